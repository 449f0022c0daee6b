//! What people see: steps, remedies and errors on stderr, coloured only on a terminal.
//!
//! Everything goes to stderr, so that the output of what a task runs (a bench's JSON) stays alone on stdout.

use std::{env, fmt::Display, io::IsTerminal as _, sync::OnceLock};

/// The start of a step that may take a while.
pub fn step(message: impl Display) {
    eprintln!("{} {message}", paint("1;34", "==>"));
}

/// Something that is there or has been done.
pub fn done(message: impl Display) {
    eprintln!("  {} {message}", paint("32", "ok"));
}

/// Something that is missing or skipped, and does not stop the task.
pub fn warn(message: impl Display) {
    eprintln!("  {} {message}", paint("33", "--"));
}

/// What ended the task, with its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", paint("1;31", "error:"));
}

fn paint(code: &str, text: &str) -> String {
    static COLOUR: OnceLock<bool> = OnceLock::new();
    let colour = *COLOUR.get_or_init(|| {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        !refused && std::io::stderr().is_terminal()
    });
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
