//! Fifty kills at random moments, and no line lost. `cargo xtask soak` does it a thousand times.

use anyhow::ensure;
use serde_json::json;
use sidestep_tests::{
    Agent, end_to_end,
    kafka::Broker,
    kills::{Load, Moments, check_kafka, kill_again_and_again},
};

const KILLS: u32 = 50;

#[test]
fn fifty_kills_cost_no_line() {
    end_to_end(|bed| {
        let broker = Broker::start(bed)?;
        ["logs.pod", "logs.business"].iter().try_for_each(|topic| broker.create_topic(topic))?;
        let config = bed.config().with("/capture/pin", json!(bed.pins()));
        let config = config.with("/sinks", json!([{ "type": "kafka", "brokers": [broker.address()] }]));
        let load = Load::start(bed, &config, 500)?;
        let mut ready = 0;
        kill_again_and_again(bed, &config, &load, KILLS, Moments::new(KILLS.into()), |_, was_ready| {
            ready += u32::from(was_ready);
        })?;
        ensure!(ready > KILLS / 10, "only {ready} of {KILLS} agents became ready before they were killed");
        let agent = Agent::start(bed, &config)?;
        let written = load.stop()?;
        load.wait_delivered(&agent)?;
        agent.stop()?;
        let repeated = check_kafka(&broker, &written)?;
        eprintln!("{written:?} lines, {repeated} of them more than once, {ready} of {KILLS} agents were ready");
        Ok(())
    });
}
