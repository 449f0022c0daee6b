//! The agent as a build with another layout of records would be, for the tests of an upgrade.

#[path = "main.rs"]
mod agent;

fn main() -> std::process::ExitCode {
    agent::main()
}
