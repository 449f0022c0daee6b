//! Where the running agent answers: what `sidestep logs` and `sidestep status` have in common.

use std::path::PathBuf;

use clap::Args;

use super::run::effective_path;
use crate::config::{Config, ConfigError, DEFAULT_SOCKET, Environment};

/// The agent's socket, or the configuration that names it.
#[derive(Args, Clone, Debug, Default)]
pub struct SocketArgs {
    /// The agent's socket; without it that of the configuration
    #[arg(long, value_name = "PATH", env = "SIDESTEP_SOCKET")]
    pub socket: Option<PathBuf>,
    /// The agent's configuration; without it /etc/sidestep/sidestep.yaml, and all defaults where that is missing
    #[arg(long, value_name = "FILE", env = "SIDESTEP_CONFIG")]
    pub config: Option<PathBuf>,
}

impl SocketArgs {
    /// Where to ask.
    ///
    /// # Errors
    /// The configuration that is named could not be read, or is wrong.
    pub fn path(&self, environment: &Environment) -> Result<PathBuf, ConfigError> {
        let socket_of = |path: PathBuf| Config::load(&path, environment).map(|config| config.socket);
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(config)) => socket_of(config.clone()),
            // Nobody has named the usual file: that it is wrong must not hide an agent that runs since before.
            (None, None) => {
                Ok(effective_path(None).and_then(|path| socket_of(path).ok()).unwrap_or(DEFAULT_SOCKET.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_or_that_of_the_configuration() {
        let environment = Environment { node_name: Some("node-1".to_owned()), host_name: None };
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("sidestep.yaml");
        std::fs::write(&file, "socket: /run/other.sock\n").expect("written");
        let args = |socket: Option<&str>| SocketArgs { socket: socket.map(Into::into), config: Some(file.clone()) };
        assert_eq!(args(None).path(&environment).expect("valid"), PathBuf::from("/run/other.sock"));
        assert_eq!(args(Some("/a.sock")).path(&environment).expect("named"), PathBuf::from("/a.sock"));
        std::fs::write(&file, "sockets: x\n").expect("written");
        let error = args(None).path(&environment).expect_err("wrong");
        assert!(error.to_string().contains("unknown option `sockets`"), "{error}");
    }
}
