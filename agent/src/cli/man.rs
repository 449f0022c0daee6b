//! `sidestep man`

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, CommandFactory};

use super::{Cli, ignore_closed_pipe};

/// Print the manual, or write its pages into a directory
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep man | man -l -
  sidestep man --out /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write a page for each command into this directory, which is made if needed
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl ManArgs {
    /// Writes the pages, or the main one to `output`.
    ///
    /// # Errors
    /// The directory or the output could not be written.
    pub fn execute(&self, output: &mut impl Write) -> io::Result<()> {
        match &self.out {
            Some(directory) => {
                fs::create_dir_all(directory)?;
                clap_mangen::generate_to(Cli::command(), directory)
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page)?;
                ignore_closed_pipe(output.write_all(&page).and_then(|()| output.flush()))
            }
        }
    }
}
