//! TLS towards clients: a certificate and its key, which may be replaced while connections go on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What new connections are encrypted with at present.
pub type CurrentTls = Arc<ArcSwap<ServerConfig>>;

/// How to speak TLS with clients. `certificates` is PEM: the server's own certificate, then those that signed it; `key`
/// is PEM too. Clients show no certificate: they have a token.
///
/// # Errors
///
/// In words, when they cannot be read or do not belong together. Never holds the key.
pub fn server_config(certificates: &str, key: &str) -> Result<ServerConfig, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificates.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    if chain.is_empty() {
        return Err("there is no PEM certificate in the file of the certificate".to_owned());
    }
    // Its error could tell what it found instead of a key.
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| "there is no PEM private key in the file of the key")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the suites of every default version")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("the certificate and the key cannot be used together: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
