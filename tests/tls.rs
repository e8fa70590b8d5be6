//! TLS on the API, as the command line meets it, and towards the sinks: who is believed, how certificates are replaced,
//! what is refused.

mod common;

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use rcgen::KeyPair;
use rustix::process::Signal;
use serde_json::json;

use common::authority::{Authority, Certified};
use common::central::{sink, wait_until_central};
use common::postgres::Postgres;
use common::redis::RedisServer;
use common::sidecar::{Home, Setup, Sidecar, tradepost, wait_for};

/// Has a sidecar read this certificate and its key.
fn install(home: &Home, certified: &Certified) {
    fs::write(certificate_of(home), &certified.certificate).expect("there is room");
    private(&key_of(home), &certified.key);
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
    let (ours, other) = (Authority::new(home.path(), "ours"), Authority::new(home.path(), "other"));
    install(&home, &ours.sign("localhost"));
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

    install(&home, &ours.sign_expired("localhost"));
    let sidecar = setup(&home).start();
    let (code, said) = ask(&sidecar, "https://localhost", Some(&ours));
    assert!(code == Some(69) && said.contains("expired"), "{code:?} {said}");
    sidecar.stop();
}

#[test]
fn a_certificate_is_replaced_by_sighup_and_a_bad_one_is_not_taken() {
    let home = Home::new();
    let (old, new) = (Authority::new(home.path(), "old"), Authority::new(home.path(), "new"));
    install(&home, &old.sign("localhost"));
    let sidecar = setup(&home).start();
    assert_eq!(ask(&sidecar, "https://localhost", Some(&old)).0, Some(0));
    install(&home, &new.sign("localhost"));
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
    let authority = Authority::new(home.path(), "ours");
    install(&home, &authority.sign("localhost"));
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
    let authority = Authority::new(home.path(), "ours");
    install(&home, &authority.sign("localhost"));
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

/// Both central systems in turn show certificates that nobody should believe, and at last a good one.
#[test]
fn a_sink_that_is_not_believed_is_told_nothing_which_is_seen_and_heals() {
    let home = Home::new();
    let (ours, other) = (Authority::new(home.path(), "ours"), Authority::new(home.path(), "other"));
    let redis = RedisServer::start_with_tls(&ours);
    let postgres = Postgres::start();
    postgres.database("market");
    let show = |certified: &Certified| {
        redis.show_certificate(certified);
        postgres.show_certificate(certified);
    };
    show(&ours.sign_expired("localhost"));
    let postgres_url = format!(
        "postgres://postgres@localhost:{}/market?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}",
        postgres.port(),
        ours.file.display()
    );
    let sidecar = home.setup().flags(&["--redis-url", &redis.url(), "--postgres-url", &postgres_url]).start();
    let mut client = sidecar.client();
    let agent = json!({"agent_id": "thon", "name": "Thon", "capabilities": ["python"], "cost_per_task": 1});
    client.post("/v1/agents", &agent).expect(201);
    let transaction = json!({
        "transaction_id": "t1", "payer_agent": "genesis", "provider_agent": "thon", "capability": "python", "amount": 1
    });
    client.post("/v1/transactions", &transaction).expect(201);
    let strangers = [
        ("expired", ours.sign_expired("localhost")),
        ("not valid for name", ours.sign("elsewhere.example")),
        ("UnknownIssuer", other.sign("localhost")),
    ];
    for (words, certified) in &strangers {
        show(certified);
        for name in ["redis", "postgres"] {
            sidecar.client().post_nothing(format!("/v1/sync/{name}/retry")).expect(202);
            wait_for(&format!("{name} to be refused as {words}, with one entry waiting"), || {
                let sink = sink(&sidecar, name);
                let is_refused = sink["state"] == "halted" && sink["last_error"].as_str()?.contains(words);
                (is_refused && sink["backlog"] == 1).then_some(())
            });
        }
    }
    assert_eq!(redis.command::<u64>(&["DBSIZE"]), 0);
    assert_eq!(postgres.sql("market", "SELECT count(*) FROM pg_class WHERE relname LIKE 'marketplace%'"), "0");
    show(&ours.sign("localhost"));
    wait_until_central(&sidecar);
    assert_eq!(postgres.sql("market", "SELECT transaction_id FROM marketplace_transactions"), "t1");
    assert_eq!(redis.command::<u64>(&["EXISTS", "agent:thon"]), 1);
    sidecar.stop();
}
