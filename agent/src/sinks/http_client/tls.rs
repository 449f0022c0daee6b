//! The settings of TLS as rustls takes them.

use std::{fmt::Display, io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::sinks::{NamedFile, SinkError, config::Tls};

/// A client's configuration.
///
/// # Errors
/// A file can't be read, or does not hold what it should.
pub(in crate::sinks) fn config(tls: &Tls) -> Result<ClientConfig, SinkError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| error("choosing the versions of TLS".to_owned(), cause))?
        .with_root_certificates(authorities(tls.ca_file.as_deref())?);
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let [certificate, key] =
        [("tls.cert_file", cert_file), ("tls.key_file", key_file)].map(|(option, path)| NamedFile::new(option, path));
    let bytes = key.read().map_err(SinkError::of_file)?;
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|cause| unusable(&key, &cause))?;
    builder.with_client_auth_cert(certificates(&certificate)?, private).map_err(|cause| {
        error(
            format!("using tls.cert_file {} with the key in tls.key_file {}", cert_file.display(), key_file.display()),
            cause,
        )
    })
}

fn authorities(ca_file: Option<&Path>) -> Result<RootCertStore, SinkError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let file = NamedFile::new("tls.ca_file", path);
        for certificate in certificates(&file)? {
            roots.add(certificate).map_err(|cause| unusable(&file, &cause))?;
        }
    } else {
        // An image may have none, and an `http://` server needs none; a connection says when one is missing.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(roots)
}

fn certificates(file: &NamedFile<'_>) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let bytes = file.read().map_err(SinkError::of_file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Err(cause) => Err(unusable(file, &cause)),
        Ok(none) if none.is_empty() => Err(unusable(file, &"there is no certificate in PEM")),
        Ok(certificates) => Ok(certificates),
    }
}

fn unusable(file: &NamedFile<'_>, cause: &dyn Display) -> SinkError {
    SinkError::of_file(file.fault(cause, "write it anew, in PEM"))
}

fn error(action: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SinkError {
    SinkError { action, source: io::Error::other(cause) }
}
