//! A PostgreSQL URL as libpq means it: where to connect, and how much TLS is asked for.
//!
//! | `sslmode` | TLS | the server's certificate |
//! | --- | --- | --- |
//! | `disable` | none | |
//! | `prefer` (default) | if the server has it, and plain text if that fails | is not looked at |
//! | `require` | always | is not looked at, unless `sslrootcert` is given: then as `verify-ca` |
//! | `verify-ca` | always | must be signed by `sslrootcert` |
//! | `verify-full` | always | must be signed by `sslrootcert`, or by a root of the system, and name the host |
//!
//! `sslrootcert=system` stands for the system's roots and, as in libpq, only goes with `verify-full`. A Unix socket never
//! has TLS. Deliberately absent: `PG*` environment variables, password and service files: a sidecar's configuration says
//! everything, or it is not there.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use thiserror::Error;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::{Kind, Trouble};
use super::session::Session;
use crate::tls::TlsError;
use crate::tls::client::{self as tls, Roots, Verification};

/// How long one address may take to answer, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long connecting may take in all: several addresses, TLS and the password included.
const CONNECT_LIMIT: Duration = Duration::from_secs(9);
/// How long sent data may stay unacknowledged before the connection counts as dead.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Where a PostgreSQL is, and how to reach it.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// TLS is tried first, and done without if it fails.
    may_be_plain: bool,
}

/// Why a URL cannot be used. Never holds the URL, nor anything else that is secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadUrl {
    /// It is malformed, or has an option that is not known.
    #[error("the PostgreSQL URL cannot be used: {0}")]
    Malformed(String),
    /// `sslmode` has no such value.
    #[error("sslmode must be one of disable, prefer, require, verify-ca, verify-full")]
    SslMode,
    /// The roots that `sslmode` needs are not given, or do not go with it.
    #[error("{0}")]
    SslRootCert(&'static str),
    /// The roots cannot be read.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Target {
    /// Reads a URL, and the certificates that it names.
    ///
    /// # Errors
    ///
    /// As [`BadUrl`] says.
    pub fn parse(url: &str) -> Result<Self, BadUrl> {
        let (rest, wishes) = TlsWishes::take(url)?;
        let mut config = Config::from_str(&rest).map_err(|error| malformed(&rest, &error))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(BadUrl::Malformed("it names no host".to_owned()));
        }
        let has_tcp = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        let policy = wishes.policy()?;
        let (mode, tls) = match policy {
            Some((verification, roots)) if has_tcp || !config.get_hostaddrs().is_empty() => {
                let mode = if wishes.mode == Mode::Prefer { SslMode::Prefer } else { SslMode::Require };
                (mode, Some(MakeRustlsConnect::new(tls::client_config(verification, &roots)?)))
            }
            _ => (SslMode::Disable, None),
        };
        config.ssl_mode(mode);
        complete(&mut config);
        Ok(Self { config, tls, may_be_plain: mode == SslMode::Prefer })
    }

    /// Connects within a few seconds, or not at all.
    ///
    /// # Errors
    ///
    /// [`Kind::Misconfigured`] for a wrong password or a missing database, else [`Kind::Lost`].
    pub async fn connect(&self) -> Result<Session, Trouble> {
        timeout(CONNECT_LIMIT, self.try_connect()).await.unwrap_or_else(|_| {
            let seconds = CONNECT_LIMIT.as_secs();
            Err(Trouble::new(Kind::Lost, format!("no connection within {seconds} seconds")))
        })
    }

    async fn try_connect(&self) -> Result<Session, Trouble> {
        let Some(tls) = &self.tls else {
            let (client, connection) = self.config.connect(NoTls).await?;
            return Ok(Session::new(client, connection));
        };
        let error = match self.config.connect(tls.clone()).await {
            Ok((client, connection)) => return Ok(Session::new(client, connection)),
            Err(error) => error,
        };
        if self.may_be_plain {
            let mut plain = self.config.clone();
            plain.ssl_mode(SslMode::Disable);
            if let Ok((client, connection)) = plain.connect(NoTls).await {
                return Ok(Session::new(client, connection));
            }
        }
        Err(error.into())
    }
}

/// Fills in what the URL leaves open.
fn complete(config: &mut Config) {
    if config.get_application_name().is_none() {
        config.application_name("tradepost");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    config.keepalives_idle(KEEPALIVE_IDLE);
    config.keepalives_interval(KEEPALIVE_INTERVAL);
    config.keepalives_retries(KEEPALIVE_RETRIES);
    // Of several servers only the primary is of use: everything we do there ends in a write.
    let servers = config.get_hosts().len().max(config.get_hostaddrs().len());
    if servers > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
}

fn malformed(url: &str, error: &tokio_postgres::Error) -> BadUrl {
    // What is between two of them may be the rest of the password, whatever the client library takes it for.
    if url.split_once('@').is_some_and(|(_, rest)| rest.contains('@')) {
        let words = "it holds more than one @; in a password it has to be written as %40";
        return BadUrl::Malformed(words.to_owned());
    }
    // Its causes name the option at fault, and hold no value.
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    BadUrl::Malformed(cause)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// What a URL says about TLS.
struct TlsWishes {
    mode: Mode,
    root: Option<String>,
}

impl TlsWishes {
    /// Takes the parameters about TLS out of a URL, as the client library knows none of them in full.
    fn take(url: &str) -> Result<(String, Self), BadUrl> {
        // A password may hold a question mark; the client library takes all up to the first @ for the credentials.
        let host = url.find('@').map_or(0, |at| at + 1);
        let (place, query) = match url[host..].find('?') {
            Some(mark) => (&url[..host + mark], &url[host + mark + 1..]),
            None => (url, ""),
        };
        let (mut mode, mut root) = (None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            match decoded(key).as_str() {
                "sslmode" => mode = Some(Mode::parse(&decoded(value))?),
                "sslrootcert" => root = Some(decoded(value)).filter(|root| !root.is_empty()),
                _ => rest.push(pair),
            }
        }
        // libpq: whoever wants the system's roots wants the name checked too.
        let default = if root.as_deref() == Some("system") { Mode::VerifyFull } else { Mode::Prefer };
        let rest = if rest.is_empty() { place.to_owned() } else { format!("{place}?{}", rest.join("&")) };
        Ok((rest, Self { mode: mode.unwrap_or(default), root }))
    }

    /// What to verify against which roots; `None` without TLS.
    fn policy(&self) -> Result<Option<(Verification, Roots)>, BadUrl> {
        let is_system = self.root.as_deref() == Some("system");
        if is_system && self.mode != Mode::VerifyFull {
            return Err(BadUrl::SslRootCert("sslrootcert=system only goes with sslmode=verify-full"));
        }
        let file = self.root.as_ref().filter(|_| !is_system).map(|root| Roots::File(PathBuf::from(root)));
        Ok(match (self.mode, file) {
            (Mode::Disable, _) => None,
            (Mode::Prefer, _) | (Mode::Require, None) => Some((Verification::Nothing, Roots::System)),
            (Mode::Require | Mode::VerifyCa, Some(file)) => Some((Verification::Chain, file)),
            (Mode::VerifyCa, None) => {
                return Err(BadUrl::SslRootCert(
                    "sslmode=verify-ca needs sslrootcert, a file with the certificates to trust: without a name to check, \
                     the system's roots would let anybody in who owns any domain",
                ));
            }
            (Mode::VerifyFull, file) => Some((Verification::Full, file.unwrap_or(Roots::System))),
        })
    }
}

impl Mode {
    fn parse(text: &str) -> Result<Self, BadUrl> {
        Ok(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return Err(BadUrl::SslMode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(query: &str) -> Result<Option<(Verification, Roots)>, BadUrl> {
        TlsWishes::take(&format!("postgres://u:p@h/db{query}"))?.1.policy()
    }

    #[test]
    fn sslmode_means_what_libpq_says() {
        let file = || Roots::File(PathBuf::from("/ca.pem"));
        for (query, expected) in [
            ("", Some((Verification::Nothing, Roots::System))),
            ("?sslmode=prefer&sslrootcert=/ca.pem", Some((Verification::Nothing, Roots::System))),
            ("?sslmode=disable&sslrootcert=/ca.pem", None),
            ("?sslmode=require", Some((Verification::Nothing, Roots::System))),
            ("?sslmode=require&sslrootcert=/ca.pem", Some((Verification::Chain, file()))),
            ("?sslrootcert=%2Fca.pem&%73slmode=verify-ca", Some((Verification::Chain, file()))),
            ("?sslmode=verify-full&sslrootcert=/ca.pem", Some((Verification::Full, file()))),
            ("?sslmode=verify-full", Some((Verification::Full, Roots::System))),
            ("?sslrootcert=system", Some((Verification::Full, Roots::System))),
        ] {
            assert_eq!(policy(query), Ok(expected), "{query}");
        }
        assert_eq!(policy("?sslmode=allow"), Err(BadUrl::SslMode));
        for query in ["?sslmode=verify-ca", "?sslmode=require&sslrootcert=system"] {
            assert!(matches!(policy(query), Err(BadUrl::SslRootCert(_))), "{query}");
        }
    }

    #[test]
    fn the_rest_of_the_url_is_left_as_it_was() {
        let (rest, _) =
            TlsWishes::take("postgres://u:p%3F@a:1,b:2/db?sslmode=require&connect_timeout=3&options=-c%20x").unwrap();
        assert_eq!(rest, "postgres://u:p%3F@a:1,b:2/db?connect_timeout=3&options=-c%20x");
        let (rest, wishes) = TlsWishes::take("postgres://u:what?=&@a/db?sslmode=verify-full").unwrap();
        assert_eq!((rest.as_str(), wishes.mode), ("postgres://u:what?=&@a/db", Mode::VerifyFull));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_secrets() {
        for url in [
            "postgres://u:s3cret@h:port/db",
            "postgres://u:s3cret@h/db?frobnicate=s3cret",
            "postgres://u:s3cret@h/db?connect_timeout=s3cret",
            "postgres://u:s3cret@h/db?sslmode=s3cret",
            "postgres://u:s3cret@/db",
            "postgres://u:s3cret@h/db?sslmode=verify-full&sslrootcert=/nonexistent.pem",
            "postgres://u:half@s3cret@h/db?x",
            "postgres://u:half@h?s3cret@h/db",
        ] {
            let Err(refusal) = Target::parse(url) else { panic!("{url} is taken") };
            assert!(!refusal.to_string().contains("s3cret"), "{refusal}");
        }
    }

    #[test]
    fn unless_told_otherwise_every_wait_has_an_end_and_the_primary_is_looked_for() {
        let target = Target::parse("postgres://u@a,b/db").unwrap();
        assert_eq!(target.config.get_connect_timeout(), Some(&CONNECT_TIMEOUT));
        assert_eq!(target.config.get_tcp_user_timeout(), Some(&TCP_USER_TIMEOUT));
        assert_eq!(target.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        let target = Target::parse("postgres://u@a/db?connect_timeout=1&application_name=mine").unwrap();
        assert_eq!(target.config.get_connect_timeout(), Some(&Duration::from_secs(1)));
        assert_eq!(target.config.get_application_name(), Some("mine"));
        assert_eq!(target.config.get_target_session_attrs(), TargetSessionAttrs::Any);
    }

    #[test]
    fn a_unix_socket_has_no_tls_whatever_is_asked() {
        let target = Target::parse("postgres://u@%2Frun%2Fpostgresql/db?sslmode=verify-full").unwrap();
        assert!(target.tls.is_none());
        assert_eq!(target.config.get_ssl_mode(), SslMode::Disable);
    }
}
