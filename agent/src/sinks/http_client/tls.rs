//! The settings of TLS as rustls takes them.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::sinks::{SinkError, config::Tls};

/// A client's configuration.
///
/// # Errors
/// A file can't be read, or does not hold what it should.
pub(super) fn config(tls: &Tls) -> Result<ClientConfig, SinkError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| error("choosing the versions of TLS".to_owned(), cause))?
        .with_root_certificates(authorities(tls.ca_file.as_deref())?);
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|cause| error(format!("reading the key in tls.key_file {}", key_file.display()), cause))?;
    builder.with_client_auth_cert(certificates("tls.cert_file", cert_file)?, key).map_err(|cause| {
        let (cert_file, key_file) = (cert_file.display(), key_file.display());
        error(format!("using tls.cert_file {cert_file} with the key in tls.key_file {key_file}"), cause)
    })
}

fn authorities(ca_file: Option<&Path>) -> Result<RootCertStore, SinkError> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca_file {
        for certificate in certificates("tls.ca_file", file)? {
            roots
                .add(certificate)
                .map_err(|cause| error(format!("using a certificate in tls.ca_file {}", file.display()), cause))?;
        }
    } else {
        // An image may have none, and an `http://` server needs none; a connection says when one is missing.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(roots)
}

fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let action = || format!("reading the certificates in {option} {}", file.display());
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|cause| error(action(), cause))?;
    if certificates.is_empty() {
        return Err(error(action(), "there is none in PEM"));
    }
    Ok(certificates)
}

fn error(action: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SinkError {
    SinkError { action, source: io::Error::other(cause) }
}
