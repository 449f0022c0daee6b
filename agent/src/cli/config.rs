//! `sidestep config`

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{colors, ignore_closed_pipe, run::effective_path};
use crate::config::{ConfigError, EXAMPLE, Environment, Raw, render_warning};

/// Print, check or show the configuration
#[derive(Args, Clone, Debug)]
#[command(
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sidestep config --example > sidestep.yaml     every option with its default, to begin with
  sidestep config check sidestep.yaml           exit code 0 when it is right, 1 when not
  sidestep config show                          what `sidestep run` would use
  kubectl -n sidestep get configmap sidestep -o jsonpath='{.data.sidestep\\.yaml}' | sidestep config check -"
)]
pub struct ConfigArgs {
    /// Print a configuration with every option, its default, and what it is for
    #[arg(long)]
    pub example: bool,
    /// What to do with a configuration.
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What to do with a configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Say all that is wrong with a file, and exit with 1 if anything is; warn of files in it that this machine has not
    Check(FileArgs),
    /// Print what is in force, defaults included
    Show(FileArgs),
    /// The same as --example
    // Typed by many before they read the help.
    #[command(hide = true)]
    Example,
}

/// Which file.
#[derive(Args, Clone, Debug)]
pub struct FileArgs {
    /// The file; `-` is standard input. Without it /etc/sidestep/sidestep.yaml, and all defaults where that is missing
    #[arg(value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub file: Option<PathBuf>,
}

impl ConfigArgs {
    /// Does what was asked for: answers to standard output, what is wrong to standard error.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute(&self, environment: &Environment) -> io::Result<ExitCode> {
        let mut output = io::stdout().lock();
        let mut errors = io::stderr().lock();
        let colors = colors(&errors);
        self.execute_to(environment, &mut output, &mut errors, colors)
    }

    /// [`Self::execute`] with its outputs given.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute_to(
        &self,
        environment: &Environment,
        output: &mut impl Write,
        errors: &mut impl Write,
        colors: bool,
    ) -> io::Result<ExitCode> {
        let (written, code) = match &self.action {
            None | Some(Action::Example) => (output.write_all(EXAMPLE.as_bytes()), ExitCode::SUCCESS),
            Some(Action::Check(args)) => match args.load(environment) {
                Ok((name, raw)) => {
                    let warnings = raw.warnings();
                    let told =
                        warnings.iter().try_for_each(|text| writeln!(errors, "{}", render_warning(text, colors)));
                    let count = match warnings.len() {
                        0 => String::new(),
                        1 => ", 1 warning".to_owned(),
                        count => format!(", {count} warnings"),
                    };
                    (told.and_then(|()| writeln!(output, "{name}: no problems{count}")), ExitCode::SUCCESS)
                }
                Err(error) => (writeln!(errors, "{}", error.render(colors)), ExitCode::FAILURE),
            },
            Some(Action::Show(args)) => match args.load(environment) {
                Ok((_, raw)) => (output.write_all(raw.to_yaml().as_bytes()), ExitCode::SUCCESS),
                Err(error) => (writeln!(errors, "{}", error.render(colors)), ExitCode::FAILURE),
            },
        };
        ignore_closed_pipe(written.and_then(|()| output.flush()))?;
        Ok(code)
    }
}

impl FileArgs {
    fn load(&self, environment: &Environment) -> Result<(String, Raw), ConfigError> {
        match effective_path(self.file.clone()) {
            Some(path) => Raw::load(&path, environment).map(|(raw, _)| (crate::config::display_name(&path), raw)),
            None => Raw::parse("defaults", "", environment).map(|(raw, _)| ("defaults".to_owned(), raw)),
        }
    }
}
