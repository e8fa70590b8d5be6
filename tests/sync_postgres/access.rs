//! Getting in: TLS as libpq means it, passwords, poolers, servers that do not answer.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use tokio_postgres::types::Type;
use tradepost::sync::postgres::config::Target;
use tradepost::sync::postgres::errors::{Kind, Trouble};
use tradepost::sync::postgres::session::{Access, Limits, Session};

use super::common::postgres::{Bouncer, PASSWORD, Postgres};

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Connects and asks whether the line is encrypted.
async fn is_encrypted(url: &str) -> Result<bool, Trouble> {
    let session = Target::parse(url).expect("the URL is sound").connect().await?;
    let row = session.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
    Ok(row.get(0))
}

fn openssl(directory: &Path, words: &str) {
    let run = Command::new("openssl").args(words.split(' ')).current_dir(directory).stdin(Stdio::null()).output();
    let run = run.expect("openssl is installed, or tests/install-servers.sh does it");
    assert!(run.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&run.stderr));
}

/// A server with a certificate for `localhost` that the root in `ca.crt` signed. `other.crt` is a root that did not.
fn server_with_tls() -> Postgres {
    let mut server = Postgres::start();
    server.stop();
    let data = server.data();
    for name in ["ca", "other"] {
        openssl(
            &data,
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"),
        );
    }
    openssl(&data, "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    std::fs::write(data.join("san"), "subjectAltName=DNS:localhost\n").expect("our directory");
    openssl(
        &data,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.crt",
    );
    finish_tls(&mut server);
    server
}

/// Hands the key to the server's user, and starts it with TLS.
fn finish_tls(server: &mut Postgres) {
    let data = server.data();
    let owner = std::fs::metadata(data.join("PG_VERSION")).expect("a cluster");
    let (user, group) = (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
    for name in ["server.key", "server.crt"] {
        std::os::unix::fs::chown(data.join(name), Some(user), Some(group)).expect("root may, or it is ours");
    }
    std::fs::set_permissions(data.join("server.key"), std::fs::Permissions::from_mode(0o600)).expect("our directory");
    let settings = "\nssl = on\n";
    let file = data.join("postgresql.auto.conf");
    std::fs::write(&file, settings).expect("our directory");
    // Roles reach it by name as well, which may resolve to either loopback.
    server.resume();
}

#[test]
fn sslmode_decides_what_is_believed() {
    let server = server_with_tls();
    let plain = Postgres::start();
    let ca = server.data().join("ca.crt").display().to_string();
    let other = server.data().join("other.crt").display().to_string();
    let at = |server: &Postgres, host: &str, query: &str| {
        format!("postgres://postgres@{host}:{}/postgres?{query}", server.port())
    };
    runtime().block_on(async {
        for (host, query, expected) in [
            ("127.0.0.1", "", Some(true)),
            ("127.0.0.1", "sslmode=disable", Some(false)),
            ("127.0.0.1", "sslmode=require", Some(true)),
            ("127.0.0.1", &format!("sslmode=require&sslrootcert={ca}"), Some(true)),
            ("127.0.0.1", &format!("sslmode=require&sslrootcert={other}"), None),
            ("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={ca}"), Some(true)),
            ("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={other}"), None),
            ("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}"), None),
            ("localhost", &format!("sslmode=verify-full&sslrootcert={ca}&hostaddr=127.0.0.1"), Some(true)),
            ("localhost", &format!("sslmode=verify-full&sslrootcert={other}&hostaddr=127.0.0.1"), None),
            ("localhost", "sslmode=verify-full&sslrootcert=system&hostaddr=127.0.0.1", None),
        ] {
            let encrypted = is_encrypted(&at(&server, host, query)).await;
            assert_eq!(encrypted.as_ref().ok().copied(), expected, "{host} {query}: {encrypted:?}");
        }
        let url = at(&server, "127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={other}"));
        let Err(trouble) = Target::parse(&url).expect("sound").connect().await else { panic!("it is not believed") };
        assert_eq!(trouble.kind, Kind::Misconfigured, "whom to trust is for somebody to mend: {trouble}");
        for (query, expected) in [("", Some(false)), ("sslmode=prefer", Some(false)), ("sslmode=require", None)] {
            assert_eq!(is_encrypted(&at(&plain, "127.0.0.1", query)).await.ok(), expected, "{query}");
        }
    });
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_when_it_is_named() {
    let mut server = Postgres::start();
    server.stop();
    let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
                 -keyout server.key -out server.crt";
    openssl(&server.data(), words);
    finish_tls(&mut server);
    let own = server.data().join("server.crt").display().to_string();
    let url = |host: &str| {
        let query = format!("sslmode=verify-full&sslrootcert={own}&hostaddr=127.0.0.1");
        format!("postgres://postgres@{host}:{}/postgres?{query}", server.port())
    };
    runtime().block_on(async {
        assert_eq!(is_encrypted(&url("localhost")).await, Ok(true));
        assert!(is_encrypted(&url("elsewhere.example")).await.is_err(), "another name is not vouched for");
    });
}

#[test]
fn a_wrong_password_and_a_missing_database_are_for_somebody_to_mend() {
    let server = Postgres::start();
    server.role("app");
    runtime().block_on(async {
        let ask = async |url: String| Target::parse(&url).expect("sound").connect().await.map(drop);
        assert_eq!(ask(server.url_of("app", "postgres")).await, Ok(()));
        for (url, code) in [
            (server.url_of("app", "nowhere"), "3D000"),
            (server.url_of("app", "postgres").replace(PASSWORD, "wrong-s3cret"), "28P01"),
            (server.url_of("nobody", "postgres"), "28P01"),
        ] {
            let trouble = ask(url).await.expect_err("it is refused");
            assert_eq!((trouble.kind, trouble.code.as_deref()), (Kind::Misconfigured, Some(code)), "{trouble}");
            assert!(!trouble.words.contains("s3cret"), "{trouble}");
        }
    });
}

#[test]
fn a_server_that_does_not_answer_is_given_up_in_time() {
    let server = Postgres::start();
    runtime().block_on(async {
        let target = Target::parse(&server.url("postgres")).expect("sound");
        server.freeze();
        let started = Instant::now();
        let Err(trouble) = target.connect().await else { panic!("nobody could have answered") };
        assert_eq!(trouble.kind, Kind::Lost, "{trouble}");
        assert!(started.elapsed().as_secs() < 12, "{:?}", started.elapsed());
        server.thaw();
        let session = target.connect().await.expect("it goes on");
        assert_eq!(session.query_one("SELECT 1", &[]).await.expect("an answer").get::<_, i32>(0), 1);
    });
}

/// One transaction with parameters, rows, a savepoint and a cursor.
async fn exercise(session: &mut Session, from: i32) -> Result<Vec<i32>, Trouble> {
    session.begin(Access::ReadWrite, Limits::default()).await?;
    session.batch("SAVEPOINT one").await?;
    let failed = session.query("SELECT 1 / $1", &[(&0_i32, Type::INT4)]).await.expect_err("a division by zero");
    assert_eq!(failed.kind, Kind::Entry, "{failed}");
    session.batch("ROLLBACK TO SAVEPOINT one").await?;
    session
        .execute(
            "DECLARE page NO SCROLL CURSOR FOR SELECT i FROM generate_series($1, $1 + 9) AS i",
            &[(&from, Type::INT4)],
        )
        .await?;
    let mut all = Vec::new();
    loop {
        let rows = session.query("FETCH FORWARD 4 FROM page", &[]).await?;
        if rows.is_empty() {
            break;
        }
        all.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
    }
    session.commit().await?;
    Ok(all)
}

#[test]
fn what_we_send_a_transaction_pooler_can_carry() {
    let server = Postgres::start();
    let bouncer = Bouncer::start(&server);
    runtime().block_on(async {
        let target = Target::parse(&bouncer.url("postgres")).expect("sound");
        let mut sessions = Vec::new();
        for _ in 0..8 {
            sessions.push(target.connect().await.expect("pgbouncer answers"));
        }
        let mut works = Vec::new();
        for (number, mut session) in (0..).zip(sessions) {
            works.push(tokio::spawn(async move {
                for round in 0..20 {
                    let from = number * 1000 + round * 10;
                    let rows = exercise(&mut session, from).await.expect("it works behind a pooler");
                    assert_eq!(rows, (from..=from + 9).collect::<Vec<_>>());
                }
            }));
        }
        for work in works {
            work.await.expect("no task panics");
        }
    });
    assert!(!bouncer.log().contains("unsupported"), "{}", bouncer.log());
}
