//! Whatever a server answers first, no line is lost without a count.

use proptest::prelude::*;

use super::*;

/// What the server does with a request.
fn replies() -> impl Strategy<Value = Vec<Reply>> {
    let reply = prop_oneof![
        4 => Just(Reply::status(200)),
        1 => Just(Reply::status(429).header("Retry-After", "0")),
        1 => Just(Reply::status(500)),
        1 => Just(Reply::status(413)),
        1 => Just(Reply::raw("")),
        1 => Just(Reply::status(404)),
    ];
    prop::collection::vec(reply, 0..6)
}

/// A line, now and then one that the server does not like.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![5 => "[a-y]{0,40}", 1 => "[a-y]{0,40}z"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_line_is_taken_or_counted(
        replies in replies(),
        mut batches in prop::collection::vec(prop::collection::vec(line(), 1..20), 1..6),
        max_in_flight in 1..4_usize,
    ) {
        // Whatever it answers first, in the end the server takes all but what it does not like.
        let server = Server::scripted(replies, |got| {
            let bad = got.bodies().iter().any(|body| body.ends_with('z'));
            Reply::status(if bad { 422 } else { 200 })
        });
        let mut sink = HttpSink::new(Settings { max_in_flight, ..settings(&server) }).expect("a sink");
        // A server that takes nothing at all would have to be at fault itself.
        batches.push(vec!["good".to_owned()]);
        let mut number = 0;
        let mut name = |line: &String| {
            number += 1;
            format!("{number:04} {line}")
        };
        let batches: Vec<Vec<String>> = batches.iter().map(|lines| lines.iter().map(&mut name).collect()).collect();
        let (mut queue, settled) = deliveries(&batches);
        let (settled, _) = drive(&mut sink, &mut queue, &settled);
        let (mut good, mut bad) = (Vec::new(), 0);
        for line in batches.into_iter().flatten() {
            if line.ends_with('z') { bad += 1 } else { good.push(line) }
        }
        let mut taken: Vec<_> =
            server.got().into_iter().filter(|got| got.status == 200).flat_map(|got| got.bodies()).collect();
        let in_order = taken.is_sorted();
        taken.sort();
        taken.dedup();
        let (lines, reason) = lost(&settled);
        // A 413 of a single line, or a 200 for a bad one, comes from the first answers.
        let oversize = good.iter().filter(|line| !taken.contains(line)).count();
        prop_assert!(lines as usize <= bad + oversize && (oversize == 0 || reason.is_some()));
        let missing = good.iter().filter(|line| !taken.contains(line)).count() as u64;
        prop_assert!(missing <= lines, "{} lines are lost and {} are counted", missing, lines);
        if max_in_flight == 1 {
            prop_assert!(in_order, "with one request at a time lines keep their order");
        }
    }
}
