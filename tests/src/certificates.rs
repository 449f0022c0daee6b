//! Certificates that are made for a test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::Testbed;

/// An authority, and what it has issued.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    name: String,
}

impl Authority {
    /// Makes an authority.
    ///
    /// # Errors
    /// There is no `openssl`, or no space.
    pub fn new(bed: &Testbed, name: &str) -> Result<Self> {
        let directory = bed.path(format!("authorities/{name}/ca.pem"))?.parent().context("a parent")?.to_owned();
        let authority = Self { directory, name: name.to_owned() };
        let subject = format!("/CN=test authority {name}");
        authority.openssl(&["req", "-x509", "-subj", &subject, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"])?;
        Ok(authority)
    }

    /// Its own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for `127.0.0.1`, valid for so many days from now, and its key.
    ///
    /// # Errors
    /// As [`Authority::new`].
    pub fn issue(&self, name: &str, days: i32) -> Result<(PathBuf, PathBuf)> {
        let [key, request, certificate] = ["key", "csr", "pem"].map(|extension| format!("{name}.{extension}"));
        let (subject, days) = (format!("/CN={name} by {}", self.name), days.to_string());
        let names = "subjectAltName=IP:127.0.0.1";
        self.openssl(&["req", "-subj", &subject, "-addext", names, "-keyout", &key, "-out", &request])?;
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        let rest = ["-days", &days, "-copy_extensions", "copy", "-out", &certificate];
        self.openssl(&[&sign[..], &rest].concat())?;
        Ok((self.directory.join(certificate), self.directory.join(key)))
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(Path::new(&self.directory)).args(arguments);
        if arguments[0] == "req" {
            command.args(["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        let output = command.output().context("running openssl: apt-get install openssl")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
