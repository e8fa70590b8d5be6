//! TLS towards servers: how much of a server's certificate is believed.
//!
//! One certificate is looked at in three ways, because operators know libpq's: not at all, its chain only, or its chain
//! and its name. A certificate that stands among the given roots itself is trusted as it is, so that a self-signed one
//! can be pinned by naming its own file.
//!
//! Deliberately absent: names in a certificate's `CN` only (no TLS library that is alive reads them), client
//! certificates, revocation lists.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::{TlsError, read_certificates};

/// What is asked of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Nothing: the line is private, but anybody may be at its other end.
    Nothing,
    /// That a trusted root signed it, for whomever.
    Chain,
    /// That a trusted root signed it for this host.
    Full,
}

/// Whose signatures are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// The certificates in this PEM file.
    File(PathBuf),
}

/// How to speak TLS with a server. Reads the roots from the disk where `verification` needs them.
///
/// # Errors
///
/// When there are no roots to verify with.
pub fn client_config(verification: Verification, roots: &Roots) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match verification {
        Verification::Nothing => Arc::new(Unverified(Arc::clone(&provider))),
        Verification::Chain => Arc::new(Verifier::new(roots, false, &provider)?),
        Verification::Full => Arc::new(Verifier::new(roots, true, &provider)?),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the suites of every default version")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn certificates(roots: &Roots) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    match roots {
        Roots::File(path) => read_certificates(path),
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
                return Err(TlsError::System { reason: reasons.join("; ") });
            }
            Ok(found.certs)
        }
    }
}

/// Takes every certificate.
struct Unverified(Arc<CryptoProvider>);

/// Takes a certificate that a root signed or that is one of the roots, with or without regard to its name.
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
    checks_name: bool,
}

impl Verifier {
    fn new(from: &Roots, checks_name: bool, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let roots = certificates(from)?;
        let mut store = RootCertStore::empty();
        // A system's bundle may hold one that is malformed; the others are still good.
        store.add_parsable_certificates(roots.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
        let chain = chain.map_err(|error| match from {
            Roots::File(path) => TlsError::File { path: path.clone(), reason: error.to_string() },
            Roots::System => TlsError::System { reason: error.to_string() },
        })?;
        Ok(Self { chain, roots, checks_name })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        };
        let Err(error) = self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        else {
            return Ok(ServerCertVerified::assertion());
        };
        match &error {
            // The name is looked at last: whatever came before it was found to be in order.
            Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) if !self.checks_name => {
                Ok(ServerCertVerified::assertion())
            }
            // Time comes first of all, so that a certificate that is refused for anything else is valid today.
            Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) => {
                Err(error)
            }
            Error::InvalidCertificate(_) if self.roots.iter().any(|root| root == end_entity) => {
                if self.checks_name {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            _ => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Who signed is not asked, so neither is whether they signed well.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} roots, checks_name: {})", self.roots.len(), self.checks_name)
    }
}

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unverified")
    }
}
