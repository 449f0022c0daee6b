//! `sidestep crds`

use std::io::{self, Write};

use clap::Args;

use super::ignore_closed_pipe;
use crate::policy::resource;

/// Print the definitions of SidestepPolicy and ClusterSidestepPolicy, for kubectl apply
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = "\
Examples:
  sidestep crds | kubectl apply --server-side -f -")]
pub struct CrdsArgs {}

impl CrdsArgs {
    /// Prints them, a YAML document each.
    ///
    /// # Errors
    /// The output could not be written.
    pub fn execute(&self, output: &mut impl Write) -> io::Result<()> {
        for definition in resource::definitions() {
            let text = serde_saphyr::to_string(&definition).map_err(io::Error::other)?;
            ignore_closed_pipe(write!(output, "---\n{text}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The chart brings what this build prints.
    #[test]
    fn the_chart_has_the_same_definitions() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/sidestep/crds/policies.yaml");
        let mut printed = Vec::new();
        CrdsArgs {}.execute(&mut printed).expect("printed");
        let kept = std::fs::read(&path).unwrap_or_default();
        assert!(kept == printed, "run `sidestep crds > {}`, then `cargo xtask manifests`", path.display());
    }
}
