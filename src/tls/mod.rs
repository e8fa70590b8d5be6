//! TLS, by rustls with ring: towards central systems and other sidecars as a client, towards clients of the API as a server.

pub mod client;
pub mod server;

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

/// Why no TLS can be set up, before any server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TlsError {
    /// The file with the roots cannot be used.
    #[error("the certificates in {} cannot be used: {reason}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system trusts nobody.
    #[error("the system has no trusted root certificates: {reason}")]
    System {
        /// What was found instead.
        reason: String,
    },
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?;
    let certificates: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| refused(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refused("there is no PEM certificate in it".to_owned()));
    }
    Ok(certificates)
}
