//! `sidestep`: the agent and its command line.

use std::{io, process::ExitCode};

use clap::Parser;
use sidestep::{
    cli::{Cli, Command},
    config::Environment,
    run,
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
        Command::Run(run) => return run::run(&run),
        Command::Config(config) => return Ok(config.execute(&Environment::current())?),
        Command::Doctor(doctor) => return Ok(doctor.execute(&Environment::current(), output)?),
        Command::Logs(logs) => return Ok(logs.execute()),
        Command::Status(status) => return Ok(status.execute()),
        Command::Completions(completions) => completions.execute(output)?,
        Command::Man(man) => man.execute(output)?,
        Command::Version(version) => version.execute(output)?,
    }
    Ok(ExitCode::SUCCESS)
}
