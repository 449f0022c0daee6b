//! Debian's kernels: the newest of a series, downloaded once, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, setup, ui, workspace::Workspace};

/// The series that are tested: Debian 12's own kernel, and the newer one that it offers.
pub(super) const SERIES: [&str; 2] = ["6.1", "6.12"];

/// The kernel image of the newest package of `series`.
///
/// # Errors
/// The package lists have none, or none of them can be downloaded and none was before.
pub(super) fn find(workspace: &Workspace, series: &str) -> Result<PathBuf> {
    let folder = workspace.cache.join("kernels");
    setup::ensure_package_lists()?;
    let listed = command::output(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let packages = newest_first(listed.lines(), series);
    if packages.is_empty() {
        bail!("no package linux-image-{series}*-cloud-amd64 in the package lists (on Debian 12: bookworm-security)");
    }
    for package in &packages {
        let image = folder.join(format!("vmlinuz-{package}"));
        if image.is_file() {
            return Ok(image);
        }
        // Lists still name versions that the mirror has replaced.
        match download(&folder, package, &image) {
            Ok(()) => return Ok(image),
            Err(error) => ui::warn(format!("{package}: {error:#}")),
        }
    }
    bail!("none of {} can be downloaded", packages.join(", "))
}

/// Fetches `package` and keeps its kernel only.
fn download(folder: &Path, package: &str, image: &Path) -> Result<()> {
    ui::step(format!("downloading {package}"));
    let work = folder.join(format!("{package}.{}.partial", std::process::id()));
    let result = unpack(package, &work, image);
    // What was fetched is of no more use; the error to report is that of fetching.
    let _: std::io::Result<()> = fs::remove_dir_all(&work);
    result
}

fn unpack(package: &str, work: &Path, image: &Path) -> Result<()> {
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    // apt's own user may not write into a home folder.
    let download = ["-qq", "-o", "APT::Sandbox::User=root", "download", package];
    command::run(Command::new("apt-get").current_dir(work).args(download))?;
    let entries = fs::read_dir(work)?.collect::<std::io::Result<Vec<_>>>()?;
    let archive =
        entries.into_iter().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    let archive = archive.context("apt-get downloaded nothing")?;
    let root = work.join("root");
    command::run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&root))?;
    let kernels = fs::read_dir(root.join("boot")).context("the package has no /boot")?;
    let kernels = kernels.collect::<std::io::Result<Vec<_>>>()?;
    let kernel = kernels.iter().find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    fs::rename(kernel.context("the package has no kernel")?.path(), image)
        .with_context(|| format!("cannot write {}", image.display()))
}

/// The names of kernels of `series` for clouds, which have drivers for emulated machines only; without unsigned ones
/// and debug symbols.
fn newest_first<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Vec<&'a str> {
    let mut versions: Vec<(Vec<u64>, &str)> = names
        .filter_map(|name| {
            let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
            let rest = version.strip_prefix(series)?.strip_prefix('.')?;
            let numbers = rest.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok());
            Some((numbers.collect(), name))
        })
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions.into_iter().rev().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_of_a_series_comes_first() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.9+bpo-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let of = |series| newest_first(names.into_iter(), series);
        assert_eq!(of("6.1"), ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"]);
        assert_eq!(of("6.12"), ["linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.9+bpo-cloud-amd64"]);
        assert_eq!(of("5.10"), [""; 0]);
    }
}
