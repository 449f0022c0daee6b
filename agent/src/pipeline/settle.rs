//! Books what the sinks have settled, in the ledger and in the positions of files.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
};

use crate::{
    events::Event,
    files::Progress,
    ledger::{Reason, Stage},
    sinks::Settlement,
};

/// Starts the thread; it ends when every sink and every batch is gone, and closes what it returns.
pub(super) fn spawn(settlements: Receiver<Settlement>, files: Arc<Progress>) -> io::Result<Receiver<()>> {
    let (running, ended) = mpsc::channel();
    std::thread::Builder::new().name("settle".to_owned()).spawn(move || {
        let _running = running;
        for settlement in settlements {
            let settled = match settlement {
                Settlement::Stored(span) => {
                    files.stored(&span);
                    continue;
                }
                // It is pending still, for the next agent.
                Settlement::Settled(settled) if settled.kept => continue,
                Settlement::Settled(settled) => settled,
            };
            let account = &settled.stream.account;
            let (mut span, mut lines) = (settled.span, settled.lines);
            if let Some(lost) = settled.lost {
                if matches!(lost.reason, Reason::Rejected | Reason::Oversize) {
                    let (reason, stream) = (lost.reason.as_str(), &*settled.stream.key);
                    Event::RecordsRejected { reason, lines: lost.lines, stream }.report();
                }
                account.drop_bytes(Stage::Sink, lost.reason, lost.span);
                (span, lines) = (span - lost.span, lines - lost.lines);
            }
            account.deliver(span, lines);
        }
    })?;
    Ok(ended)
}
