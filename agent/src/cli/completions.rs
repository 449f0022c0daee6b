//! `sidestep completions`

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, ignore_closed_pipe};

/// Print a script that completes commands in a shell
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep completions bash > /usr/share/bash-completion/completions/sidestep
  sidestep completions zsh > /usr/local/share/zsh/site-functions/_sidestep
  sidestep completions fish > ~/.config/fish/completions/sidestep.fish")]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

impl CompletionsArgs {
    /// Prints the script.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute(&self, output: &mut impl Write) -> io::Result<()> {
        // The generator panics when its output fails, so it writes to memory.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "sidestep", &mut script);
        ignore_closed_pipe(output.write_all(&script).and_then(|()| output.flush()))
    }
}
