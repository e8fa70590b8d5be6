//! Secrets: read from files that nobody else can read, held so that no log, error or table can show them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use secrecy::{ExposeSecret, SecretString};

use super::ConfigError;
use crate::tls::server::server_config;

const LARGEST_SECRET_BYTES: u64 = 64 * 1024;

/// A file's text with what its descriptor said of who else may read it.
pub(super) struct TextFile {
    place: String,
    mode: u32,
    pub(super) text: String,
}

/// Reads a whole text file of at most `largest` bytes. The mode is asked of the open descriptor, so that nobody can
/// swap the file between the question and the reading.
pub(super) fn read_file(path: &Path, largest: u64) -> Result<TextFile, ConfigError> {
    let place = path.display().to_string();
    let failed = |error: std::io::Error| ConfigError::new(&place, format!("cannot be read: {error}"));
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    let mut text = String::new();
    file.take(largest + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > largest {
        return Err(ConfigError::new(place, format!("is larger than {largest} bytes, which no such file needs")));
    }
    Ok(TextFile { place, mode, text })
}

impl TextFile {
    /// Refuses a file that its group or others can read; `why` says what it holds.
    pub(super) fn require_private(&self, why: &str) -> Result<(), ConfigError> {
        if self.mode & 0o044 == 0 {
            return Ok(());
        }
        let mode = self.mode & 0o7777;
        Err(ConfigError::new(
            &self.place,
            format!("can be read by other users (mode {mode:04o}), but {why}; run `chmod 600` on it"),
        ))
    }

    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default().trim()
    }
}

/// The bearer token, and the file to read it from again.
#[derive(Debug, Clone)]
pub struct Token {
    /// Where it came from.
    pub file: PathBuf,
    /// The token.
    pub secret: SecretString,
}

impl Token {
    /// Reads the token of `file`.
    ///
    /// # Errors
    /// See [`read_token`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self { file: file.to_owned(), secret: read_token(file)? })
    }
}

/// The token in a file's first line, trimmed. Also what SIGHUP calls.
///
/// # Errors
/// The file cannot be read, can be read by its group or others, or its first line is empty or nothing that an HTTP
/// header can carry.
pub fn read_token(file: &Path) -> Result<SecretString, ConfigError> {
    let file = read_file(file, LARGEST_SECRET_BYTES)?;
    file.require_private("it holds the access token")?;
    let token = file.first_line();
    if token.is_empty() {
        return Err(ConfigError::new(&file.place, "has no token in its first line"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::new(
            &file.place,
            "holds a token with spaces or characters beyond ASCII, which no Authorization header can carry",
        ));
    }
    Ok(SecretString::from(token))
}

/// What the API is encrypted with: a certificate and its key, and the files to read them from again.
#[derive(Clone)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    /// Both, as they were read last.
    pub config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads both files, in PEM.
    ///
    /// # Errors
    /// One of them cannot be read, the key can be read by its group or others, or they do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, ConfigError> {
        let chain = read_file(certificate, LARGEST_SECRET_BYTES)?;
        let secret = read_file(key, LARGEST_SECRET_BYTES)?;
        secret.require_private("it holds a private key")?;
        let config =
            server_config(&chain.text, &secret.text).map_err(|reason| ConfigError::new(&chain.place, reason))?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config: Arc::new(config) })
    }

    /// Reads them again.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn reread(&self) -> Result<Self, ConfigError> {
        Self::read(&self.certificate, &self.key)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("certificate", &self.certificate).field("key", &self.key).finish()
    }
}

/// The URL of a central system. Shown with its password as `***`.
#[derive(Clone)]
pub struct CentralUrl {
    secret: SecretString,
    redacted: String,
    schemes: &'static [&'static str],
    file: Option<PathBuf>,
}

impl CentralUrl {
    /// Takes a URL whose scheme is one of `schemes`.
    pub(super) fn parse(text: &str, schemes: &'static [&'static str]) -> Result<Self, String> {
        let expected = format!("must be a URL that begins with {}://", schemes.join(":// or "));
        let Some(parts) = UrlParts::split(text) else {
            return Err(format!("{expected}, and its password may hold / ? # @ only percent-encoded"));
        };
        if !schemes.contains(&parts.scheme) || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(expected);
        }
        Ok(Self { secret: SecretString::from(text), redacted: parts.redacted(), schemes, file: None })
    }

    /// Reads the URL in a file's first line.
    pub(super) fn read(path: &Path, schemes: &'static [&'static str]) -> Result<Self, ConfigError> {
        let file = read_file(path, LARGEST_SECRET_BYTES)?;
        let url = Self::parse(file.first_line(), schemes).map_err(|reason| ConfigError::new(&file.place, reason))?;
        if url.has_password() {
            file.require_private("it holds a password")?;
        }
        Ok(Self { file: Some(path.to_owned()), ..url })
    }

    /// Whether it holds a password.
    pub fn has_password(&self) -> bool {
        self.redacted != self.secret.expose_secret()
    }

    /// The URL with its password, for the connection only.
    pub fn secret(&self) -> &SecretString {
        &self.secret
    }

    /// The file that it came from, to read again.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads it again from its file. `None` for one that came from elsewhere, and so cannot have changed.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, holds no such URL, or is readable by others.
    pub fn reread(&self) -> Result<Option<Self>, ConfigError> {
        self.file.as_deref().map(|file| Self::read(file, self.schemes)).transpose()
    }
}

impl fmt::Display for CentralUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl fmt::Debug for CentralUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CentralUrl").field("url", &self.redacted).field("file", &self.file).finish()
    }
}

/// A URL cut where passwords can hide. Not the `url` crate: it refuses PostgreSQL's lists of hosts, and what it
/// refuses it cannot redact.
pub(super) struct UrlParts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    password: Option<&'a str>,
    /// Hosts and path.
    place: &'a str,
    query: Option<&'a str>,
}

impl<'a> UrlParts<'a> {
    /// `None` for what is no URL, or one where an unescaped password makes it unclear which part is secret.
    pub(super) fn split(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (userinfo, hosts) = match authority.split_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo), hosts),
            None => (None, authority),
        };
        if tail.contains(['@', '#']) || hosts.contains('@') {
            return None;
        }
        let (user, password) = match userinfo.map(|userinfo| userinfo.split_once(':').ok_or(userinfo)) {
            Some(Ok((user, password))) => (Some(user), Some(password).filter(|password| !password.is_empty())),
            Some(Err(user)) => (Some(user), None),
            None => (None, None),
        };
        let place_and_query = &rest[authority.len() - hosts.len()..];
        let (place, query) = match place_and_query.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (place_and_query, None),
        };
        Some(Self { scheme, user, password, place, query })
    }

    pub(super) fn has_password(&self) -> bool {
        self.password.is_some() || self.query_pairs().any(|pair| secret_key(pair).is_some())
    }

    fn query_pairs(&self) -> impl Iterator<Item = &'a str> {
        self.query.into_iter().flat_map(|query| query.split('&'))
    }

    fn redacted(&self) -> String {
        let mut text = format!("{}://", self.scheme);
        if let Some(user) = self.user {
            text += user;
            if self.password.is_some() {
                text += ":***";
            }
            text.push('@');
        }
        text += self.place;
        for (index, pair) in self.query_pairs().enumerate() {
            text.push(if index == 0 { '?' } else { '&' });
            match secret_key(pair) {
                Some(key) => text += &format!("{key}=***"),
                None => text += pair,
            }
        }
        text
    }
}

/// The key of a query pair that carries a secret (`password`, `sslpassword`, percent-encoded or not).
fn secret_key(pair: &str) -> Option<&str> {
    let (key, value) = pair.split_once('=')?;
    let decoded = percent_encoding::percent_decode_str(key).decode_utf8_lossy().to_ascii_lowercase();
    (decoded.contains("pass") && !value.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn shows_urls_without_their_passwords() {
        for (url, shown) in [
            ("redis://localhost", "redis://localhost"),
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://:s3cret@localhost", "redis://:***@localhost"),
            ("redis://app:s3:cr=et@localhost/1", "redis://app:***@localhost/1"),
            ("redis://app@localhost", "redis://app@localhost"),
            ("redis://app:@localhost", "redis://app@localhost"),
            ("postgres://u:p%40ss@a:1,b:2/db?sslmode=require", "postgres://u:***@a:1,b:2/db?sslmode=require"),
            ("postgres://h/db?user=u&password=s3cret&x=1", "postgres://h/db?user=u&password=***&x=1"),
            ("postgres://h/db?p%61ssword=s3cret", "postgres://h/db?p%61ssword=***"),
            ("postgres:///db?host=/run/postgresql", "postgres:///db?host=/run/postgresql"),
        ] {
            let parsed = CentralUrl::parse(url, &["redis", "postgres"]).expect(url);
            assert_eq!(parsed.to_string(), shown);
            assert!(!format!("{parsed:?}").contains("s3"), "{parsed:?}");
            assert_eq!(parsed.secret().expose_secret(), url);
        }
    }

    #[test]
    fn refuses_urls_whose_password_it_could_not_find_without_repeating_them() {
        for url in [
            "",
            "localhost:6379",
            "http://u:s3cret@localhost",
            "postgres://u:s3/cret@h/db",
            "postgres://u:s3?cret@h/db",
            "postgres://u:s3#cret@h/db",
            "postgres://u:s3@cret@h/db",
            "postgres://u:s3 cret@h/db",
            "host=h password=s3cret",
        ] {
            let refusal = CentralUrl::parse(url, &["postgres", "postgresql"]).expect_err(url);
            assert!(refusal.contains("postgres:// or postgresql://") && !refusal.contains("s3"), "{refusal}");
        }
    }

    #[test]
    fn takes_a_token_only_from_a_private_file_with_something_in_its_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let read = |text: &str, mode: u32| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            read_token(&file).map_err(|error| error.reason)
        };
        for (text, mode) in [("t0ken", 0o600), (" t0ken \r\nmore\n", 0o400), ("t0ken\n", 0o700)] {
            assert_eq!(read(text, mode).unwrap().expose_secret(), "t0ken");
        }
        for (text, mode, words) in [
            ("t0ken", 0o640, "chmod 600"),
            ("t0ken", 0o604, "chmod 600"),
            ("", 0o600, "no token"),
            ("\nt0ken", 0o600, "no token"),
            ("two words", 0o600, "spaces"),
            ("tökén", 0o600, "beyond ASCII"),
        ] {
            let reason = read(text, mode).unwrap_err();
            assert!(reason.contains(words) && !reason.contains("t0ken"), "{text:?}: {reason}");
        }
        assert!(read_token(&directory.path().join("absent")).unwrap_err().reason.contains("cannot be read"));
        assert!(!format!("{:?}", Token::read(&file)).contains("t0ken"));
    }
}
