//! The socket file: where it is made, who may use it, and how a stale one is replaced.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// The longest path that fits in `sockaddr_un`, without its final NUL.
pub const PATH_BYTES: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit in a socket address.
    #[error("the path of the control socket has {length} bytes, the system allows {PATH_BYTES}: {path}")]
    TooLong {
        /// The configured path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another agent answers there.
    #[error("another agent is running: it listens on {0}; stop it, or set another `socket`")]
    InUse(PathBuf),
    /// Something that is not a socket is there, and it is not the agent's to remove.
    #[error("{0} exists and is not a socket; remove it, or set another `socket`")]
    NotASocket(PathBuf),
    /// A step failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The path concerned.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The listening control socket, for root (the agent's user) only. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that another agent's is never removed.
    identity: (u64, u64),
}

impl Listener {
    /// Opens the socket at `path`, in a directory that is made (mode 0755) if missing. A socket file that nobody
    /// listens on any more is replaced.
    ///
    /// # Errors
    /// The path is too long, used by another agent or something else, or cannot be written.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Shorter than the name of the socket itself in all but odd cases, so that it fits where the path fits.
        let temporary = directory.join(format!(".{}", std::process::id()));
        for path in [path, &temporary] {
            let length = path.as_os_str().len();
            if length > PATH_BYTES {
                return Err(SocketError::TooLong { path: path.to_owned(), length });
            }
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("create the directory", directory))?;
        refuse_if_taken(path).await?;

        remove_if_there(&temporary).map_err(failed("remove", &temporary))?;
        let listener = listen(&temporary).map_err(failed("open the control socket", &temporary))?;
        // From here the temporary file must not stay behind.
        let placed = fs::symlink_metadata(&temporary).and_then(|metadata| {
            fs::rename(&temporary, path)?;
            Ok((metadata.dev(), metadata.ino()))
        });
        match placed {
            Ok(identity) => Ok(Self { listener, path: path.to_owned(), identity }),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(failed("put the control socket at", path)(error))
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket could not be removed");
        }
    }
}

/// Listens with mode 0600 from the first moment: the file takes the mode of the socket when it is bound, so there is no
/// instant in which others may connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(path)?;
    // The umask may have taken bits away; it cannot add any.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)
}

async fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Io { action: "look at", path: path.to_owned(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        // A full backlog is a living agent too.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(source) => Err(SocketError::Io { action: "connect to", path: path.to_owned(), source }),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_private_makes_its_directory_and_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/sidestep/control.sock");
        let listener = Listener::bind(&path).await.expect("a socket");
        let mode = fs::metadata(&path).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let entries = fs::read_dir(path.parent().expect("a parent")).expect("the directory").count();
        assert_eq!(entries, 1, "a temporary file stays behind");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        // What a killed agent leaves behind: a file without a listener.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists());
        let listener = Listener::bind(&path).await.expect("the stale one is replaced");
        UnixStream::connect(&path).await.expect("it listens");
        assert!(matches!(Listener::bind(&path).await, Err(SocketError::InUse(_))));
        UnixStream::connect(&path).await.expect("it still listens");
        drop(listener);
    }

    #[tokio::test]
    async fn the_socket_of_another_agent_is_not_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let first = Listener::bind(&path).await.expect("a socket");
        fs::remove_file(&path).expect("an operator removes it");
        let second = Listener::bind(&path).await.expect("a socket");
        drop(first);
        UnixStream::connect(second.path()).await.expect("the second is still there");
    }

    #[tokio::test]
    async fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").expect("a file");
        assert!(matches!(Listener::bind(&path).await, Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
    }

    #[tokio::test]
    async fn says_that_a_path_is_too_long() {
        let path = PathBuf::from(format!("/tmp/{}/control.sock", "a".repeat(120)));
        let error = Listener::bind(&path).await.expect_err("too long");
        assert!(matches!(error, SocketError::TooLong { .. }));
        assert!(error.to_string().contains("allows 107"), "{error}");
    }
}
