//! `sidestep version`

use std::{
    env::consts,
    io::{self, Write},
};

use clap::Args;

use super::{Format, ignore_closed_pipe};

/// Print the version
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

impl VersionArgs {
    /// Prints it.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute(&self, output: &mut impl Write) -> io::Result<()> {
        let (version, architecture) = (env!("CARGO_PKG_VERSION"), consts::ARCH);
        let line = match self.output {
            Format::Text => format!("sidestep {version} ({architecture})"),
            Format::Json => serde_json::json!({"version": version, "architecture": architecture}).to_string(),
        };
        ignore_closed_pipe(writeln!(output, "{line}").and_then(|()| output.flush()))
    }
}
