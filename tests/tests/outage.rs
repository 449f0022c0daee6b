//! A broker that is away for some seconds. `cargo xtask soak outage` does it for ten minutes.

use std::time::Duration;

use sidestep_tests::{
    end_to_end,
    kafka::Broker,
    outage::{Away, Buffer, Plan, run},
};

fn an_outage_costs_what_is_counted(away: Away) {
    end_to_end(|bed| {
        let mut broker = Broker::start(bed)?;
        let plan = Plan { away, time: Duration::from_secs(8), rate: 1000 };
        for report in run(&mut broker, plan, &Buffer::ALL, |_| ())? {
            eprintln!("{report}");
            report.check()?;
        }
        Ok(())
    });
}

#[test]
fn a_frozen_broker_costs_what_is_counted() {
    an_outage_costs_what_is_counted(Away::Frozen);
}

#[test]
fn a_killed_broker_costs_what_is_counted() {
    an_outage_costs_what_is_counted(Away::Killed);
}
