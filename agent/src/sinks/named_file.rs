//! Files that a sink's settings name: certificates, keys and passwords. Whoever mounts them may do so late, and renews them
//! while the agent runs.

use std::{
    borrow::Cow,
    fs,
    io::{self, Read as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use crate::files::open_for_reading;

/// No certificate, key or password is larger, in bytes.
const MOST: u64 = 1 << 20;

/// A file, and the option that names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedFile<'settings> {
    /// The option, below its sink.
    pub option: Cow<'static, str>,
    /// The file.
    pub path: &'settings Path,
}

/// A file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{option} {}: {cause}; {remedy}", path.display())]
pub struct FileFault {
    option: Cow<'static, str>,
    path: PathBuf,
    cause: String,
    remedy: &'static str,
}

impl<'settings> NamedFile<'settings> {
    /// The file at `path`, which `option` names.
    pub(super) fn new(option: impl Into<Cow<'static, str>>, path: &'settings Path) -> Self {
        Self { option: option.into(), path }
    }

    /// All that is in it.
    ///
    /// # Errors
    /// It is missing, can't be read, or is larger than any such file.
    pub fn read(&self) -> Result<Vec<u8>, FileFault> {
        let mut bytes = Vec::new();
        let read = open(self.path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
        match read {
            Err(cause) => Err(self.fault(&cause, remedy(cause.kind()))),
            Ok(_) if bytes.len() as u64 > MOST => Err(self.fault("it has more than 1MiB", "name the right file")),
            Ok(_) => Ok(bytes),
        }
    }

    /// The secret in it: a newline at its end does not count.
    ///
    /// # Errors
    /// As [`NamedFile::read`]; and it is no text.
    pub(super) fn secret(&self) -> Result<String, FileFault> {
        let text = String::from_utf8(self.read()?)
            .map_err(|_| self.fault("it holds bytes that are no UTF-8", "see what was written to it"))?;
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        Ok(secret.strip_suffix('\r').unwrap_or(secret).to_owned())
    }

    /// Why it can't be used.
    pub(super) fn fault(&self, cause: &(impl ToString + ?Sized), remedy: &'static str) -> FileFault {
        FileFault { option: self.option.clone(), path: self.path.to_owned(), cause: cause.to_string(), remedy }
    }
}

/// Opens a file, and no FIFO, which would be waited for.
fn open(path: &Path) -> io::Result<fs::File> {
    let file = open_for_reading(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    if kind.is_fifo() { Err(io::Error::other("it is no file, but a FIFO")) } else { Ok(file) }
}

const fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "put it there, see that its Secret is mounted, or correct the path",
        io::ErrorKind::PermissionDenied => "let the agent read it",
        io::ErrorKind::IsADirectory => "name a file in it",
        _ => "see that it can be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).expect("a FIFO");
        for (path, part) in [(fifo.as_path(), "a FIFO"), (directory.path(), "name a file in it")] {
            let fault = NamedFile::new("token", path).read().expect_err("no file").to_string();
            assert!(fault.contains(part), "{fault}");
        }
    }

    #[test]
    fn a_secret_ends_before_its_newline() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let named = NamedFile::new("token", file.path());
        for (content, secret) in [("a b", "a b"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("", "")] {
            fs::write(file.path(), content).expect("writes");
            assert_eq!(named.secret().expect(content), secret);
        }
    }

    #[test]
    fn what_can_not_be_read_is_named_with_its_option_and_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let binary = directory.path().join("binary");
        fs::write(&binary, [0xff]).expect("writes");
        for (path, cause) in [
            (directory.path().join("none"), "No such file or directory (os error 2); put it there"),
            (directory.path().to_owned(), "Is a directory (os error 21); name a file in it"),
            ("/dev/zero".into(), "it has more than 1MiB; name the right file"),
            (binary, "no UTF-8; see what was written"),
        ] {
            let error = NamedFile::new("auth.basic.password_file", &path).secret().expect_err("no secret").to_string();
            let begin = format!("auth.basic.password_file {}: ", path.display());
            assert!(error.starts_with(&begin) && error.contains(cause), "{error}");
        }
    }
}
