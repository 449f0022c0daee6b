//! Images of servers that real workloads run, made of Debian's packages as for an empty system.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::pack::{self, Description, Layer};

use super::images;

/// What is in a package for people to read, and nothing of a server needs.
const UNUSED: [&str; 5] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];

/// A server, or what one is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Software {
    /// The interpreter.
    Python,
    /// With the page that says welcome, on port 80.
    Nginx,
    /// On port 6379.
    Redis,
    /// On port 5432, with a new store at each start and no passwords.
    Postgresql,
    /// A server that answers every gRPC request with what came, on port 50051: in Python, over the C library.
    Grpc,
}

impl Software {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Python, Self::Nginx, Self::Redis, Self::Postgresql, Self::Grpc];

    /// What `load-image` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Postgresql => "postgresql",
            Self::Grpc => "grpc",
        }
    }

    /// The image that a Pod names.
    #[must_use]
    pub fn image(self) -> String {
        format!("docker.io/library/{}:debian", self.name())
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Python => "python3",
            Self::Nginx => "nginx",
            Self::Redis => "redis-server",
            Self::Postgresql => "postgresql-15",
            Self::Grpc => "python3-grpcio",
        }
    }

    /// How it is started.
    fn config(self) -> Value {
        let path = json!(["PATH=/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin:/bin"]);
        match self {
            Self::Python => json!({ "Env": path, "Cmd": ["python3"] }),
            Self::Nginx => json!({ "Env": path, "Cmd": ["nginx", "-g", "daemon off;"] }),
            Self::Redis => {
                json!({ "Env": path, "Cmd": ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"] })
            }
            Self::Postgresql => {
                // It refuses to run as root.
                let script = "initdb --auth=trust --no-locale -D /data/store && echo host all all all trust >> \
                              /data/store/pg_hba.conf && exec postgres -D /data/store -k /tmp -h 0.0.0.0";
                json!({ "Env": path, "User": "70:70", "Cmd": ["sh", "-c", script] })
            }
            Self::Grpc => json!({ "Env": path, "Cmd": ["python3", "-u", "/srv/echo.py"] }),
        }
    }

    /// What the packages' own scripts would make at their installation.
    fn complete(self, layer: &mut Layer) -> Result<()> {
        match self {
            Self::Nginx => {
                let server = "server { listen 80; root /usr/share/nginx/html; }\n";
                layer.file("etc/nginx/conf.d/default.conf", 0o644, server.as_bytes())?;
                layer.link("var/log/nginx/access.log", "/dev/stdout")?;
                layer.link("var/log/nginx/error.log", "/dev/stderr")
            }
            Self::Grpc => layer.file("srv/echo.py", 0o644, include_bytes!("echo.py")),
            Self::Python | Self::Redis | Self::Postgresql => Ok(()),
        }
    }

    /// Makes the archive of its image in `directory`. Packages that were downloaded once are kept in the cache.
    ///
    /// # Errors
    /// There is no apt, or it can't download them; no space.
    pub(super) fn make(self, directory: &Path) -> Result<PathBuf> {
        let tree = directory.join(format!("{}.tree", self.name()));
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(&tree)?;
        for package in self.download()? {
            let mut unpack = Command::new("dpkg-deb");
            run(unpack.arg("--extract").arg(&package).arg(&tree))?;
        }
        let mut layer = images::busybox()?;
        add(&mut layer, &tree, Path::new(""))?;
        self.complete(&mut layer)?;
        let description = Description { name: &self.image(), config: self.config(), level: 0 };
        let archive = pack::archive(&layer.finish()?, &description)?;
        fs::remove_dir_all(&tree)?;
        let file = directory.join(format!("{}.tar", self.name()));
        fs::write(&file, archive).with_context(|| format!("writing {}", file.display()))?;
        Ok(file)
    }

    /// The package with all that it depends on, as if nothing were installed.
    fn download(self) -> Result<Vec<PathBuf>> {
        let archives = xtask::cache::folder()?.join("packages").join(self.name());
        fs::create_dir_all(archives.join("partial"))?;
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--download-only", "--no-install-recommends", "--option"]);
        apt.arg("Dir::State::status=/dev/null")
            .arg("--option")
            .arg(format!("Dir::Cache::archives={}", archives.display()));
        // Its own user may not write to a cache in root's home.
        apt.args(["--option", "APT::Sandbox::User=root", self.package()]);
        run(&mut apt).context("downloading packages; `apt-get update` fetches lists that have grown old")?;
        let entries = fs::read_dir(&archives)?.flatten().map(|entry| entry.path());
        let mut packages: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect();
        packages.sort_unstable();
        ensure!(!packages.is_empty(), "apt-get has downloaded nothing to {}", archives.display());
        Ok(packages)
    }
}

/// Adds what is below `tree` at `path`, in the order of names; what busybox has there already stays.
fn add(layer: &mut Layer, tree: &Path, path: &Path) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(tree.join(path))?.collect::<Result<_, _>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, about) = (path.join(entry.file_name()), entry.metadata()?);
        if UNUSED.iter().any(|unused| path.starts_with(unused)) || layer.has(&path) && !about.is_dir() {
            continue;
        }
        if about.is_dir() {
            layer.folder(&path, about.permissions().mode() & 0o7777)?;
            add(layer, tree, &path)?;
        } else if about.is_symlink() {
            layer.link(&path, fs::read_link(entry.path())?)?;
        } else if about.is_file() {
            layer.file(&path, about.permissions().mode() & 0o7777, &fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
