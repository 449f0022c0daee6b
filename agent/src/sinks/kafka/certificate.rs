//! Why a broker's certificate is not accepted: librdkafka only says that it is not.

use std::{
    net::{TcpStream, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openssl::{
    ssl::{SslConnector, SslMethod, SslVerifyMode},
    x509::{X509NameRef, X509StoreContextRef},
};

use crate::sinks::config::Tls;

/// How long the broker may take for each step of a handshake.
const PATIENCE: Duration = Duration::from_secs(2);

/// The address in one of librdkafka's texts, as `ssl://10.0.0.1:9093/bootstrap: ...`.
pub(super) fn address(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("ssl://")?;
    rest.split_once('/').map(|(address, _)| address)
}

/// Asks the broker at `address` (`host:port`) for its certificate, and says what is wrong with it and what to do; `None`
/// when nothing is, or the broker is gone.
pub(super) fn fault(address: &str, tls: &Tls) -> Option<String> {
    let (host, _) = address.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let mut builder = SslConnector::builder(SslMethod::tls_client()).ok()?;
    if let Some(file) = &tls.ca_file {
        builder.set_ca_file(file).ok()?;
    }
    let found = Arc::new(Mutex::new(None));
    let note = Arc::clone(&found);
    builder.set_verify_callback(SslVerifyMode::PEER, move |holds, context| {
        if !holds {
            *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(describe(context));
        }
        holds
    });
    let target = address.to_socket_addrs().ok()?.next()?;
    let connection = TcpStream::connect_timeout(&target, PATIENCE).ok()?;
    connection.set_read_timeout(Some(PATIENCE)).ok()?;
    connection.set_write_timeout(Some(PATIENCE)).ok()?;
    // Whether it succeeds does not matter: what is wrong with the certificate came to the callback.
    let _ = builder.build().connect(host, connection);
    found.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn describe(context: &X509StoreContextRef) -> String {
    let error = context.error().error_string();
    let Some(certificate) = context.current_cert() else { return error.to_owned() };
    let remedy = match error {
        "certificate has expired" => "renew it on the broker",
        "certificate is not yet valid" => "see the clocks of this node and of the broker",
        "hostname mismatch" | "IP address mismatch" => "name the broker in `brokers` as its certificate does",
        _ => "put the authority that signed it into `tls.ca_file`",
    };
    format!(
        "{error}: certificate of {}, signed by {}, valid from {} to {}; {remedy}",
        name(certificate.subject_name()),
        name(certificate.issuer_name()),
        certificate.not_before(),
        certificate.not_after(),
    )
}

/// The last part of a name, which is the common name as a rule.
fn name(name: &X509NameRef) -> String {
    let last = name.entries().last().and_then(|entry| entry.data().to_string().ok());
    last.unwrap_or_else(|| "nobody".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_what_librdkafka_says() {
        assert_eq!(address("sasl_ssl://[::1]:9093/3: SSL handshake failed: x"), Some("[::1]:9093"));
        assert_eq!(address("ssl://kafka-0:9093/bootstrap: SSL"), Some("kafka-0:9093"));
        assert_eq!(address("kafka-0:9092/bootstrap: Connect"), None);
    }
}
