//! TLS, users and rights of a broker, with certificates that are made for the test.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};

use crate::{DEADLINE, Testbed, certificates::Authority, http::free_port};

/// The user that the listener with SASL knows.
pub const USER: &str = "agent";

/// The password of [`USER`].
pub const PASSWORD: &str = "right one";

/// Listeners of a broker beside the plain one, and the files that clients need for them.
#[derive(Debug)]
pub struct Security {
    authority: Authority,
    stranger: Authority,
    client: (PathBuf, PathBuf),
    listener: PathBuf,
    outdated: PathBuf,
    sasl: u16,
    mutual: u16,
    expired: u16,
    plain_sasl: u16,
}

impl Security {
    /// Makes two authorities, and certificates by the first.
    ///
    /// # Errors
    /// There is no `openssl`, or no space.
    pub fn new(bed: &Testbed) -> Result<Self> {
        let authority = Authority::new(bed, "ca")?;
        Ok(Self {
            stranger: Authority::new(bed, "stranger")?,
            client: authority.issue("client", 2)?,
            listener: listener(&authority, "broker", 2)?,
            outdated: listener(&authority, "expired", -1)?,
            authority,
            sasl: free_port()?,
            mutual: free_port()?,
            expired: free_port()?,
            plain_sasl: free_port()?,
        })
    }

    /// The certificate of the authority that has signed all others.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.authority.file()
    }

    /// The certificate of an authority that has signed none.
    #[must_use]
    pub fn stranger(&self) -> PathBuf {
        self.stranger.file()
    }

    /// A client's certificate and its key.
    #[must_use]
    pub fn client(&self) -> &(PathBuf, PathBuf) {
        &self.client
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
        let ca = self.ca();
        let (broker, expired, ca) = (self.listener.display(), self.outdated.display(), ca.display());
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
}

/// Key and certificate of a listener in one file, as the broker reads them.
fn listener(authority: &Authority, name: &str, days: i32) -> Result<PathBuf> {
    let (certificate, key) = authority.issue(name, days)?;
    let both = certificate.with_extension("both");
    fs::write(&both, [fs::read(key)?, fs::read(certificate)?].concat()).context("writing key and certificate")?;
    Ok(both)
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
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
