//! nginx before a server that knows neither TLS nor users: it ends TLS, and checks passwords and certificates.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{DEADLINE, Testbed, certificates::Authority, daemon::Daemon, http::free_port, wait_until};

/// The user that it lets through.
pub const USER: &str = "agent";

/// The password of [`USER`].
pub const PASSWORD: &str = "right one";

/// A front with a port for each kind of client. It is ended when dropped.
#[derive(Debug)]
pub struct Front {
    authority: Authority,
    ports: [u16; 3],
    _daemon: Daemon,
}

impl Front {
    /// Starts it before the server at `port` of the loopback address.
    ///
    /// # Errors
    /// There is no nginx or `openssl`, or it does not come up.
    pub fn start(bed: &Testbed, port: u16) -> Result<Self> {
        let authority = Authority::new(bed, "front")?;
        let (valid, outdated) = (authority.issue("front", 2)?, authority.issue("outdated", -1)?);
        let directory = bed.path("front/nginx.conf")?.with_file_name("");
        fs::create_dir_all(&directory)?;
        let users = directory.join("users");
        fs::write(&users, format!("{USER}:{{PLAIN}}{PASSWORD}\n"))?;
        let ports = [free_port()?, free_port()?, free_port()?];
        let password = format!("auth_basic \"logs\";\nauth_basic_user_file {};", users.display());
        let certificate = format!("ssl_client_certificate {};\nssl_verify_client on;", authority.file().display());
        let servers = [
            server(ports[0], &valid, &password, port),
            server(ports[1], &valid, &certificate, port),
            server(ports[2], &outdated, "", port),
        ];
        let place = directory.display();
        let text = format!(
            "user root;\nworker_processes 1;\npid {place}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
             client_max_body_size 0;\nclient_body_temp_path {place}/body;\nproxy_temp_path {place}/proxy;\n\
             fastcgi_temp_path {place}/fastcgi;\nuwsgi_temp_path {place}/uwsgi;\nscgi_temp_path {place}/scgi;\n{}}}\n",
            servers.concat()
        );
        fs::write(directory.join("nginx.conf"), text)?;
        let mut command = Command::new("nginx");
        command.args(["-g", "daemon off;", "-e", "stderr", "-p"]).arg(&directory);
        command.arg("-c").arg(directory.join("nginx.conf"));
        let log = directory.join("log");
        let mut daemon = Daemon::start(bed, &mut command, &log, "nginx")?;
        wait_until("nginx", DEADLINE, || {
            if let Some(status) = daemon.ended()? {
                bail!("nginx ended: {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            Ok(TcpStream::connect(("127.0.0.1", ports[2])).is_ok().then_some(()))
        })?;
        Ok(Self { authority, ports, _daemon: daemon })
    }

    /// The authority that has signed its certificates.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where [`USER`] gets through with [`PASSWORD`].
    #[must_use]
    pub fn password(&self) -> String {
        url(self.ports[0])
    }

    /// Where a certificate of the authority is wanted.
    #[must_use]
    pub fn mutual(&self) -> String {
        url(self.ports[1])
    }

    /// Where the certificate is out of date.
    #[must_use]
    pub fn expired(&self) -> String {
        url(self.ports[2])
    }
}

fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

fn server(port: u16, (certificate, key): &(PathBuf, PathBuf), check: &str, to: u16) -> String {
    let show = |path: &Path| path.display().to_string();
    format!(
        "server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\n{check}\n\
         location / {{ proxy_pass http://127.0.0.1:{to}; }}\n}}\n",
        show(certificate),
        show(key)
    )
}
