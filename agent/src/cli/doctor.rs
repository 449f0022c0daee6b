//! `sidestep doctor`

use std::path::PathBuf;

use clap::Args;

use super::Format;

/// Say what works on this node, what does not, and what to do about it
///
/// Looks at the kernel, its BTF, the cgroup hierarchies, the process' capabilities and each probe. It changes
/// nothing and needs no running agent. Exit code 0: all works, or works in a lesser way; 1: the agent cannot run.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep doctor
  sidestep doctor --output json | jq '.[] | select(.health != \"healthy\")'")]
pub struct DoctorArgs {
    /// The configuration to look with; without it /etc/sidestep/sidestep.yaml, and all defaults where that is missing
    #[arg(short, long, value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub config: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}
