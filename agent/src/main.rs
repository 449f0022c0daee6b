//! `sidestep`: the agent and its command line.

use std::{io, process::ExitCode};

use clap::Parser;
use sidestep::{
    cli::{Cli, Command},
    config::Environment,
};

fn main() -> ExitCode {
    dispatch(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let output = &mut io::stdout();
    match command {
        Command::Run(_) => anyhow::bail!("`sidestep run` is not part of this build"),
        Command::Config(config) => return Ok(config.execute(&Environment::current())?),
        Command::Doctor(doctor) => return Ok(doctor.execute(&Environment::current(), output)?),
        Command::Logs(_) => anyhow::bail!("`sidestep logs` is not part of this build"),
        Command::Status(_) => anyhow::bail!("`sidestep status` is not part of this build"),
        Command::Completions(completions) => completions.execute(output)?,
        Command::Man(man) => man.execute(output)?,
        Command::Version(version) => version.execute(output)?,
    }
    Ok(ExitCode::SUCCESS)
}
