//! The files of an emulated machine: a static busybox, the programs with their libraries, and what init does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::BufWriter,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use crate::libraries;

/// Where the program to run is in the machine.
pub(super) const PROGRAM: &str = "/usr/bin/guest";

/// First stage: a root that `pivot_root` accepts, as runc needs; the initramfs itself can't be pivoted away from.
const INIT: &str = include_str!("init.sh");

/// Second stage: mounts what a node has, runs the program, reports its exit status.
const MAIN: &str = include_str!("main.sh");

/// In the place of a program.
const SMOKE: &str = include_str!("smoke.sh");

/// What the machine holds.
pub(super) struct Contents {
    /// The host name of the machine.
    pub(super) label: String,
    /// A static busybox of this machine.
    pub(super) busybox: PathBuf,
    /// Files: absolute path in the machine, path here. Libraries of programs are added.
    pub(super) programs: Vec<(PathBuf, PathBuf)>,
    /// Variables of the program.
    pub(super) environment: Vec<(String, String)>,
    /// Run the built-in smoke test, not [`PROGRAM`].
    pub(super) smoke: bool,
    /// Arguments of the program.
    pub(super) arguments: Vec<String>,
}

/// Writes the initramfs to `path`.
///
/// # Errors
/// A file can't be read or written, or a library is missing.
pub(super) fn write(contents: &Contents, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut tree = Tree { archive: Archive::new(BufWriter::new(file)), folders: BTreeSet::new() };
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "root", "var/log", "etc", "newroot", "sbin", "usr/bin"] {
        tree.folder(Path::new(folder))?;
    }
    tree.copy(Path::new("/bin/busybox"), &contents.busybox)?;
    tree.archive.link("bin/sh", "busybox")?;
    tree.file("init", 0o755, INIT.as_bytes())?;
    tree.file("sbin/vm-main", 0o755, MAIN.as_bytes())?;
    tree.file("etc/hostname", 0o644, format!("vm-{}\n", contents.label.replace('.', "-")).as_bytes())?;
    tree.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    tree.file("etc/group", 0o644, b"root:x:0:\n")?;
    tree.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
    tree.file("sbin/vm-smoke", 0o755, SMOKE.as_bytes())?;
    tree.file("sbin/vm-run", 0o755, start_script(contents).as_bytes())?;

    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (target, source) in &contents.programs {
        files.insert(target.clone(), source.clone());
        if is_program(source) {
            files.extend(libraries::libraries(source)?);
        }
    }
    for (target, source) in &files {
        tree.copy(target, source)?;
    }
    tree.archive.finish().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// The shell script that becomes the program.
fn start_script(contents: &Contents) -> String {
    let mut script = String::from("#!/bin/sh\n");
    for (name, value) in &contents.environment {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    script.push_str("exec ");
    script.push_str(if contents.smoke { "/sbin/vm-smoke" } else { PROGRAM });
    for argument in &contents.arguments {
        script.push(' ');
        script.push_str(&quoted(argument));
    }
    script.push('\n');
    script
}

/// `text` as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether a file is ELF, which may need libraries.
fn is_program(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

struct Tree {
    archive: Archive<BufWriter<File>>,
    folders: BTreeSet<PathBuf>,
}

impl Tree {
    fn copy(&mut self, target: &Path, source: &Path) -> Result<()> {
        let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        let mode = source.metadata()?.permissions().mode() & 0o7777;
        self.file(target.strip_prefix("/")?, mode, &content)
    }

    fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.folder(path.parent().context("a file at the root")?)?;
        Ok(self.archive.file(name(path)?, mode, content)?)
    }

    fn folder(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.folder(path.parent().context("a folder above the root")?)?;
        self.folders.insert(path.to_owned());
        Ok(self.archive.folder(name(path)?)?)
    }
}

fn name(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_variables_survive_the_shell() {
        let contents = Contents {
            label: "6.1".to_owned(),
            busybox: "/bin/busybox".into(),
            programs: Vec::new(),
            environment: vec![("NAME".to_owned(), "it's $HOME `x`".to_owned())],
            smoke: false,
            arguments: vec!["a b".to_owned(), "'\"\\".to_owned(), String::new()],
        };
        let script = start_script(&contents).replace(PROGRAM, "printf '[%s]' \"$NAME\"");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "[it's $HOME `x`][a b]['\"\\][]");
    }
}
