//! Somebody who signs certificates: whom a test trusts, or does not.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// A certificate and its key, as they stand in files.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

/// An authority of a test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, to be trusted.
    pub file: PathBuf,
}

impl Authority {
    /// One of this name, whose certificate lies in this directory.
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to check");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("it signs itself");
        let file = directory.join(format!("{name}.pem"));
        fs::write(&file, certificate.pem()).expect("there is room");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// A certificate for this host.
    pub fn sign(&self, host: &str) -> Certified {
        self.sign_params(host, |_| {})
    }

    /// One that was good until some years ago.
    pub fn sign_expired(&self, host: &str) -> Certified {
        self.sign_params(host, |params| params.not_after = date_time_ymd(2020, 1, 1))
    }

    fn sign_params(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host's name");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("it signs");
        Certified { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
