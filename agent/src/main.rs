//! `sidestep`: the agent and its command line.

use std::{io, process::ExitCode};

use clap::Parser;
use sidestep::{
    cli::{Cli, Command},
    config::Environment,
};

fn main() -> anyhow::Result<ExitCode> {
    let output = &mut io::stdout();
    match Cli::parse().command {
        Command::Run(_) => anyhow::bail!("`sidestep run` is not part of this build"),
        Command::Doctor(_) => anyhow::bail!("`sidestep doctor` is not part of this build"),
        Command::Logs(_) => anyhow::bail!("`sidestep logs` is not part of this build"),
        Command::Status(_) => anyhow::bail!("`sidestep status` is not part of this build"),
        Command::Config(config) => return Ok(config.execute(&Environment::current())?),
        Command::Completions(completions) => completions.execute(output)?,
        Command::Man(man) => man.execute(output)?,
        Command::Version(version) => version.execute(output)?,
    }
    Ok(ExitCode::SUCCESS)
}
