//! The shared libraries of a program, to take it to another root file system.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// The files that `program` needs beside itself: absolute path there, to file here. Empty for a static program.
///
/// All libraries go to the folder of the C library, which the loader searches without a cache.
///
/// # Errors
/// A library is missing here, or `ldd` says something unknown.
pub fn libraries(program: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut ldd = Command::new("ldd");
    // `cargo run` adds folders of the compiler, in which nothing may be found that gets shipped.
    ldd.arg(program).env_remove("LD_LIBRARY_PATH").env("LC_ALL", "C");
    match command::output(&mut ldd) {
        Ok(text) => placed(&text).with_context(|| format!("libraries of {}", program.display())),
        // ldd fails for a static program, and says so on standard error.
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Reads `ldd`'s lines: `libc.so.6 => /lib/libc.so.6 (0x7f)`, `/lib64/ld-linux-x86-64.so.2 (0x7f)`, `linux-vdso.so.1 (0x7f)`.
fn placed(text: &str) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut found = Vec::new();
    let mut loaders = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "statically linked") {
        let (name, path) = line.split_once(" => ").unwrap_or(("", line));
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        if path == "not found" {
            bail!("{name} is not found");
        } else if name.is_empty() && path.starts_with('/') {
            loaders.push(PathBuf::from(path));
        } else if path.starts_with('/') {
            // A loader may also be shown as a library, with its place in the program before the arrow.
            let target = if name.starts_with('/') { &mut loaders } else { &mut found };
            target.push(PathBuf::from(if name.starts_with('/') { name } else { path }));
        }
    }
    let libc = found.iter().find(|path| path.file_name().is_some_and(|name| name == "libc.so.6"));
    let folder = libc.and_then(|path| path.parent()).map(Path::to_owned);
    let mut placed: BTreeMap<PathBuf, PathBuf> = loaders.into_iter().map(|path| (path.clone(), path)).collect();
    for path in found {
        let name = path.file_name().context("a library without a name")?;
        placed.insert(folder.as_ref().map_or_else(|| path.clone(), |folder| folder.join(name)), path);
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_go_beside_the_c_library() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibz.so.1 => /opt/zlib/libz.so.1 (0x00007f1)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";
        let placed = placed(text).unwrap();
        let pairs: Vec<_> = placed.iter().map(|(to, from)| (to.to_str().unwrap(), from.to_str().unwrap())).collect();
        assert_eq!(
            pairs,
            [
                ("/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
                ("/lib/x86_64-linux-gnu/libz.so.1", "/opt/zlib/libz.so.1"),
                ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
            ]
        );
    }

    #[test]
    fn missing_library_is_an_error() {
        let error = placed("\tlibgone.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libgone.so.1"), "{error}");
    }

    #[test]
    fn own_program_has_a_loader_and_a_c_library_that_exist() {
        let libraries = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(libraries.keys().any(|path| path.ends_with("libc.so.6")), "{libraries:?}");
        assert!(libraries.values().all(|path| path.is_file()), "{libraries:?}");
    }
}
