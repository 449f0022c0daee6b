//! `sidestep`: the agent and its command line.

use std::{io, process::ExitCode};

use clap::Parser;
use sidestep::{
    cli::{Cli, Command},
    config::Environment,
    run,
};

pub(crate) fn main() -> ExitCode {
    dispatch(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {}", with_causes(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes, without those that an error names in its own text.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        _ if text.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let output = &mut io::stdout();
    match command {
        Command::Run(run) => return run::run(&run),
        Command::Config(config) => return Ok(config.execute(&Environment::current())?),
        Command::Doctor(doctor) => return Ok(doctor.execute(&Environment::current(), output)?),
        Command::Logs(logs) => return Ok(logs.execute()),
        Command::Explain(explain) => return Ok(explain.execute()),
        Command::Policy(policy) => return Ok(policy.execute()),
        Command::Status(status) => return Ok(status.execute()),
        Command::Uninstall(uninstall) => return Ok(uninstall.execute(&Environment::current(), output)),
        Command::Crds(crds) => crds.execute(output)?,
        Command::Completions(completions) => completions.execute(output)?,
        Command::Man(man) => man.execute(output)?,
        Command::Version(version) => version.execute(output)?,
    }
    Ok(ExitCode::SUCCESS)
}
