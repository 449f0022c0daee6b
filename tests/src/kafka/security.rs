//! TLS, users and rights of a broker, with certificates that are made for the test.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{DEADLINE, Testbed, http::free_port};

/// The user that the listener with SASL knows.
pub const USER: &str = "agent";

/// The password of [`USER`].
pub const PASSWORD: &str = "right one";

/// Listeners of a broker beside the plain one, and the files that clients need for them.
#[derive(Debug)]
pub struct Security {
    directory: PathBuf,
    sasl: u16,
    mutual: u16,
    expired: u16,
    plain_sasl: u16,
}

impl Security {
    /// Makes an authority, certificates by it, and a client's certificate by another authority.
    ///
    /// # Errors
    /// There is no `openssl`, or no space.
    pub fn new(bed: &Testbed) -> Result<Self> {
        let directory = bed.path("certificates/ca.pem")?.parent().context("a parent")?.to_owned();
        let [sasl, mutual, expired, plain_sasl] = [free_port()?, free_port()?, free_port()?, free_port()?];
        let security = Self { directory, sasl, mutual, expired, plain_sasl };
        security.authority("ca")?;
        security.authority("stranger")?;
        security.certificate("broker", "ca", 2)?;
        security.certificate("expired", "ca", -1)?;
        security.certificate("client", "ca", 2)?;
        Ok(security)
    }

    /// A file of the test's certificates: `ca.pem`, `stranger.pem`, `client.pem`, `client.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The listener with TLS that asks for user and password (PLAIN, SCRAM).
    #[must_use]
    pub fn sasl(&self) -> String {
        address(self.sasl)
    }

    /// The same without TLS, which knows SCRAM only.
    #[must_use]
    pub fn plain_sasl(&self) -> String {
        address(self.plain_sasl)
    }

    /// The listener with TLS that asks for the client's certificate.
    #[must_use]
    pub fn mutual(&self) -> String {
        address(self.mutual)
    }

    /// The listener whose certificate is no longer valid.
    #[must_use]
    pub fn expired(&self) -> String {
        address(self.expired)
    }

    /// Listeners for `listeners=`, to be put behind others.
    pub(super) fn listeners(&self) -> String {
        let listeners =
            [("SASL", self.sasl), ("MUTUAL", self.mutual), ("EXPIRED", self.expired), ("SASLPLAIN", self.plain_sasl)];
        listeners.iter().map(|(name, port)| format!(",{name}://{}", address(*port))).collect()
    }

    /// Lines for `server.properties`.
    pub(super) fn properties(&self) -> String {
        let module = "org.apache.kafka.common.security";
        let scram = format!("{module}.scram.ScramLoginModule required;");
        let file = |name: &str| self.file(name).display().to_string();
        let (broker, expired, ca) = (file("broker.both"), file("expired.both"), file("ca.pem"));
        format!(
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,\
             EXPIRED:SSL,SASLPLAIN:SASL_PLAINTEXT\n\
             inter.broker.listener.name=PLAINTEXT\nssl.keystore.type=PEM\nssl.keystore.location={broker}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={ca}\n\
             listener.name.mutual.ssl.client.auth=required\n\
             listener.name.expired.ssl.keystore.type=PEM\nlistener.name.expired.ssl.keystore.location={expired}\n\
             listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl.plain.sasl.jaas.config={module}.plain.PlainLoginModule required \
             user_{USER}=\"{PASSWORD}\";\n\
             listener.name.sasl.scram-sha-256.sasl.jaas.config={scram}\n\
             listener.name.sasl.scram-sha-512.sasl.jaas.config={scram}\n\
             listener.name.saslplain.sasl.enabled.mechanisms=SCRAM-SHA-256\n\
             listener.name.saslplain.scram-sha-256.sasl.jaas.config={scram}\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\nallow.everyone.if.no.acl.found=true\n"
        )
    }

    /// Arguments for the formatting of the broker's disk, which makes the users of SCRAM.
    pub(super) fn users() -> [String; 4] {
        let user = |mechanism| format!("SCRAM-SHA-{mechanism}=[name={USER},password={PASSWORD}]");
        ["--add-scram".to_owned(), user(256), "--add-scram".to_owned(), user(512)]
    }

    fn authority(&self, name: &str) -> Result<()> {
        let key = format!("{name}.key");
        let subject = format!("/CN=test authority {name}");
        openssl(&self.directory, &["req", "-x509", "-subj", &subject, "-days", "2", "-keyout", &key], &[name, "pem"])
    }

    /// A certificate for `127.0.0.1`, valid for so many days from now.
    fn certificate(&self, name: &str, authority: &str, days: i32) -> Result<()> {
        let [key, request, certificate] = ["key", "csr", "pem"].map(|extension| format!("{name}.{extension}"));
        let subject = format!("/CN={name}");
        let names = "subjectAltName=IP:127.0.0.1";
        openssl(&self.directory, &["req", "-subj", &subject, "-addext", names, "-keyout", &key], &[name, "csr"])?;
        let (ca, ca_key, days) = (format!("{authority}.pem"), format!("{authority}.key"), days.to_string());
        let sign = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", &days];
        openssl(&self.directory, &[&sign[..], &["-copy_extensions", "copy"]].concat(), &[name, "pem"])?;
        let both = [fs::read(self.file(&key))?, fs::read(self.file(&certificate))?].concat();
        fs::write(self.file(&format!("{name}.both")), both).context("writing key and certificate")
    }
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn openssl(directory: &Path, arguments: &[&str], out: &[&str; 2]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(arguments).arg("-out").arg(out.join("."));
    if arguments[0] == "req" {
        command.args(["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    }
    let output = command.output().context("running openssl: apt-get install openssl")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Denies [`USER`] to do anything with a topic (`CreateAcls`, version 1), at the plain listener `broker`.
///
/// # Errors
/// The broker does not take it.
pub(super) fn deny_topic(broker: &str, topic: &str) -> Result<()> {
    const CREATE_ACLS: i16 = 30;
    const TOPIC: u8 = 2;
    const LITERAL: u8 = 3;
    const ALL: u8 = 2;
    const DENY: u8 = 2;
    let mut request = Vec::new();
    let text = |text: &str, request: &mut Vec<u8>| {
        request.extend((text.len() as u16).to_be_bytes());
        request.extend(text.as_bytes());
    };
    request.extend(CREATE_ACLS.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    text("tests", &mut request);
    request.extend(1_i32.to_be_bytes());
    request.push(TOPIC);
    text(topic, &mut request);
    request.push(LITERAL);
    text(&format!("User:{USER}"), &mut request);
    text("*", &mut request);
    request.extend([ALL, DENY]);
    let mut connection = TcpStream::connect(broker).context("connecting to the broker")?;
    connection.set_read_timeout(Some(DEADLINE))?;
    connection.write_all(&u32::try_from(request.len())?.to_be_bytes())?;
    connection.write_all(&request)?;
    let mut length = [0; 4];
    connection.read_exact(&mut length).context("the broker's answer")?;
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    connection.read_exact(&mut answer)?;
    // Correlation, throttle time, number of results, and the error code of the first.
    ensure!(answer.get(12..14) == Some(&[0, 0]), "the broker does not take the rule: {answer:?}");
    Ok(())
}
