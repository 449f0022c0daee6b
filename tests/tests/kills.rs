//! Fifty kills at random moments, and no line lost. `cargo xtask soak kills` does it a thousand times.

use sidestep_tests::{
    end_to_end,
    kills::{Plan, run},
};

#[test]
fn fifty_kills_cost_no_line() {
    end_to_end(|bed| {
        let report = run(bed, Plan { kills: 50, rate: 500, seed: 50 }, |_, _| ())?;
        eprintln!("{report}");
        report.check()
    });
}
