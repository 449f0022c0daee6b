mod changes;
mod errors;
mod example;
mod load;
mod refusals;
mod rules;

use super::*;

fn environment() -> Environment {
    Environment { node_name: None, host_name: Some("node-1".to_owned()) }
}

fn config(text: &str) -> Config {
    Raw::parse("sidestep.yaml", text, &environment()).unwrap_or_else(|error| panic!("{error}")).1
}
