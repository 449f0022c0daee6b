//! Archives in cpio's `newc` format, which the kernel unpacks at boot (Documentation/driver-api/early-userspace).

use std::io::{self, Write};

/// Folders and files, in the kinds that `stat` knows.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes an archive; [`Archive::finish`] completes it.
pub(super) struct Archive<W> {
    output: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, entries: 0 }
    }

    /// A folder; those above it have to be there already. Paths are relative to the root.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, FOLDER | 0o755, &[])
    }

    /// A file with permissions `mode`.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | mode, content)
    }

    /// A symbolic link to `target`.
    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, target.as_bytes())
    }

    /// Writes the trailer and returns what was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} has more than 4 GiB")))?;
        self.entries += 1;
        let (owner, group, links, time, device, check) = (0, 0, 1, 0, 0, 0);
        let name_size = path.len() as u32 + 1;
        write!(self.output, "070701")?;
        let fields =
            [self.entries, mode, owner, group, links, time, size, device, device, device, device, name_size, check];
        for field in fields {
            write!(self.output, "{field:08x}")?;
        }
        /// Magic and 13 fields.
        const HEADER: usize = 6 + 13 * 8;
        self.output.write_all(path.as_bytes())?;
        self.output.write_all(&[0])?;
        self.pad(HEADER + path.len() + 1)?;
        self.output.write_all(content)?;
        self.pad(content.len())
    }

    /// Fills up to a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.output.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_unpacks_what_was_packed() {
        let Some(busybox) = crate::command::find_program("busybox") else {
            // It is installed for the tests that run containers; this one has nothing else to compare with.
            eprintln!("busybox is not installed");
            return;
        };
        let mut archive = Archive::new(Vec::new());
        archive.folder("etc").unwrap();
        for length in 0..9_usize {
            let name = format!("etc/{}", "n".repeat(length + 1));
            archive.file(&name, 0o640, &vec![b'x'; length]).unwrap();
        }
        archive.link("link", "etc/n").unwrap();
        let content = archive.finish().unwrap();
        assert_eq!(content.len() % 4, 0);

        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(busybox);
        command.args(["cpio", "-i"]).current_dir(folder.path()).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&content).unwrap();
        assert!(child.wait().unwrap().success());
        for length in 0..9_usize {
            let file = folder.path().join(format!("etc/{}", "n".repeat(length + 1)));
            assert_eq!(std::fs::read(file).unwrap(), vec![b'x'; length]);
        }
        assert_eq!(std::fs::read_link(folder.path().join("link")).unwrap().to_str(), Some("etc/n"));
    }
}
