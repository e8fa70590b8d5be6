//! TLS on the API, as the command line meets it: who is believed, how certificates are replaced, what is refused.

mod common;

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::process::Signal;

use common::sidecar::{Home, Setup, Sidecar, tradepost, wait_for};

/// Somebody who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, to be trusted.
    file: PathBuf,
}

impl Authority {
    fn new(home: &Home, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to check");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("it signs itself");
        let file = home.path().join(format!("{name}.pem"));
        fs::write(&file, certificate.pem()).expect("there is room");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// Writes a certificate for `localhost` and its key where a sidecar reads them.
    fn sign(&self, home: &Home, has_expired: bool) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        if has_expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("it signs");
        fs::write(certificate_of(home), certificate.pem()).expect("there is room");
        private(&key_of(home), &key.serialize_pem());
    }
}

fn certificate_of(home: &Home) -> PathBuf {
    home.path().join("server.pem")
}

fn key_of(home: &Home) -> PathBuf {
    home.path().join("server.key")
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).expect("there is room");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("it is our own");
}

fn setup(home: &Home) -> Setup {
    let (certificate, key) = (certificate_of(home), key_of(home));
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    home.setup().flags(&["--tls-cert", &path(&certificate), "--tls-key", &path(&key)])
}

/// `agent list` at this scheme and host of the sidecar's port; what it said, and its exit code.
fn ask(sidecar: &Sidecar, scheme_and_host: &str, trusted: Option<&Authority>) -> (Option<i32>, String) {
    let url = format!("{scheme_and_host}:{}", sidecar.address.port());
    let mut command = tradepost();
    command.args(["agent", "list", "--url", &url]);
    if let Some(authority) = trusted {
        command.arg("--ca-file").arg(&authority.file);
    }
    let Output { status, stderr, .. } = command.output().expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn who_believes_the_certificate_is_served_and_nobody_else() {
    let home = Home::new();
    let (ours, other) = (Authority::new(&home, "ours"), Authority::new(&home, "other"));
    ours.sign(&home, false);
    let sidecar = setup(&home).start();
    assert_eq!(ask(&sidecar, "https://localhost", Some(&ours)), (Some(0), String::new()));
    for (what, place, trusted, words) in [
        ("another authority", "https://localhost", Some(&other), "UnknownIssuer"),
        ("the system's", "https://localhost", None, "certificate"),
        ("another name", "https://127.0.0.1", Some(&ours), "not valid for name"),
        ("no TLS", "http://localhost", None, "https://"),
    ] {
        let (code, said) = ask(&sidecar, place, trusted);
        assert!(code != Some(0) && said.contains(words), "{what}: {code:?} {said}");
    }
    let answer = sidecar.socket_client().get("/v1/status").expect(200).json();
    let listen = answer["listen"].as_array().expect("a list").clone();
    assert!(listen.contains(&format!("https://{}", sidecar.address).into()), "{listen:?}");
    sidecar.stop();

    ours.sign(&home, true);
    let sidecar = setup(&home).start();
    let (code, said) = ask(&sidecar, "https://localhost", Some(&ours));
    assert!(code == Some(69) && said.contains("expired"), "{code:?} {said}");
    sidecar.stop();
}

#[test]
fn a_certificate_is_replaced_by_sighup_and_a_bad_one_is_not_taken() {
    let home = Home::new();
    let (old, new) = (Authority::new(&home, "old"), Authority::new(&home, "new"));
    old.sign(&home, false);
    let sidecar = setup(&home).start();
    assert_eq!(ask(&sidecar, "https://localhost", Some(&old)).0, Some(0));
    new.sign(&home, false);
    sidecar.signal(Signal::HUP);
    wait_for("the new certificate", || (ask(&sidecar, "https://localhost", Some(&new)).0 == Some(0)).then_some(()));
    assert_eq!(ask(&sidecar, "https://localhost", Some(&old)).0, Some(69));
    fs::write(certificate_of(&home), "nothing of the kind").expect("there is room");
    sidecar.signal(Signal::HUP);
    sidecar.log_line("the certificate was not reread; the old one stays");
    assert_eq!(ask(&sidecar, "https://localhost", Some(&new)).0, Some(0));
    sidecar.stop();
}

#[test]
fn whoever_does_not_begin_to_encrypt_is_let_go() {
    let home = Home::new();
    let authority = Authority::new(&home, "ours");
    authority.sign(&home, false);
    let sidecar = setup(&home).start();
    let mut silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(sidecar.address).expect("it listens")).collect();
    assert_eq!(ask(&sidecar, "https://localhost", Some(&authority)).0, Some(0), "they are in nobody's way");
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("it can be set");
        assert_eq!(stream.read(&mut [0; 16]).expect("it is closed in order"), 0);
    }
    sidecar.stop();
}

#[test]
fn what_cannot_encrypt_does_not_start() {
    let home = Home::new();
    let authority = Authority::new(&home, "ours");
    authority.sign(&home, false);
    let refused = |setup: Setup| {
        let output = setup.refused();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
        said
    };
    let certificate = certificate_of(&home).display().to_string();
    assert!(refused(home.setup().flags(&["--tls-cert", &certificate])).contains("--tls-key"));
    assert!(refused(home.setup().flags(&["--tls-key", &certificate])).contains("--tls-cert"));
    fs::set_permissions(key_of(&home), Permissions::from_mode(0o640)).expect("it is our own");
    assert!(refused(setup(&home)).contains("chmod 600"));
    private(&key_of(&home), &KeyPair::generate().expect("a key").serialize_pem());
    assert!(refused(setup(&home)).contains("used together"));
    private(&key_of(&home), "no key");
    assert!(refused(setup(&home)).contains("no PEM private key"));
}
