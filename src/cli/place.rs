//! Which sidecar the client commands talk to, and with which token.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use url::{Host, Url};

use super::failure::{Exit, Failure};
use crate::config::{data_directory, default_socket, read_token};
use crate::tls::client::Roots;

const DEFAULT_AUTHORITY: (&str, u16) = ("127.0.0.1", 7700);

/// Where a sidecar listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On TCP; the host as it stands in `Host`, so an IPv6 address has its brackets.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// Whether it is spoken to over TLS.
        encrypted: bool,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, encrypted } => {
                write!(f, "{}://{host}:{port}", if *encrypted { "https" } else { "http" })
            }
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Places to try in turn: the first that accepts a connection is meant.
#[derive(Debug)]
pub struct Target {
    /// At least one.
    pub places: Vec<Place>,
    /// What requests carry, if anything.
    pub token: Option<SecretString>,
    /// Whose signature under a server's certificate is trusted.
    pub roots: Roots,
}

/// The global flags, as typed.
#[derive(Debug, Default)]
pub struct Typed<'a> {
    pub url: Option<&'a str>,
    pub socket: Option<&'a Path>,
    pub token_file: Option<&'a Path>,
    pub ca_file: Option<&'a Path>,
}

impl Target {
    /// Flags, else the environment (`TRADEPOST_URL` over `TRADEPOST_SOCKET`, which `serve` reads too), else the
    /// socket in the data directory and after it 127.0.0.1:7700.
    pub fn find(typed: &Typed<'_>, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let present = |name: &str| variable(name).filter(|value| !value.is_empty());
        let token_file =
            typed.token_file.map(Path::to_owned).or_else(|| present("TRADEPOST_TOKEN_FILE").map(Into::into));
        let token = token_file.as_deref().map(read_token).transpose()?;
        let ca_file = typed.ca_file.map(Path::to_owned).or_else(|| present("TRADEPOST_CA_FILE").map(Into::into));
        let roots = ca_file.map_or(Roots::System, Roots::File);
        let places = match (typed.url, typed.socket) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage("--url and --socket cannot be given together: they name two places"));
            }
            (Some(url), None) => vec![parse_url(url).map_err(|reason| refused_flag(url, &reason))?],
            (None, Some(socket)) => socket_or_tcp(socket.to_owned()),
            (None, None) => match (present("TRADEPOST_URL"), present("TRADEPOST_SOCKET")) {
                (Some(url), _) => {
                    let place = url.to_str().ok_or_else(|| "must be UTF-8".to_owned()).and_then(parse_url);
                    let refused = |reason| Failure::Because(Exit::Configuration, format!("TRADEPOST_URL: {reason}"));
                    vec![place.map_err(refused)?]
                }
                (None, Some(socket)) => socket_or_tcp(socket.into()),
                (None, None) => {
                    // Without a home directory there is no default socket, but there may well be a sidecar.
                    let socket = data_directory(None, variable).ok().map(|directory| default_socket(&directory));
                    socket.map(Place::Unix).into_iter().chain([default_tcp()]).collect()
                }
            },
        };
        Ok(Self { places, token, roots })
    }
}

/// Everybody on this machine can read a command line, so a password on it is worse than a typing mistake.
fn refused_flag(url: &str, reason: &str) -> Failure {
    let holds_password = Url::parse(url).is_ok_and(|url| url.password().is_some());
    let exit = if holds_password { Exit::Configuration } else { Exit::Usage };
    Failure::Because(exit, format!("--url: {reason}"))
}

fn default_tcp() -> Place {
    let (host, port) = DEFAULT_AUTHORITY;
    Place::Tcp { host: host.to_owned(), port, encrypted: false }
}

/// `none` is what `serve` takes for no socket, and may stand in an environment that both share.
fn socket_or_tcp(socket: PathBuf) -> Vec<Place> {
    vec![if socket == Path::new("none") { default_tcp() } else { Place::Unix(socket) }]
}

fn parse_url(text: &str) -> Result<Place, String> {
    const EXAMPLE: &str = "write it like http://127.0.0.1:7700";
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); {EXAMPLE}"))?;
    let encrypted = match url.scheme() {
        "http" => false,
        "https" => true,
        scheme => return Err(format!("has the scheme {scheme:?}; {EXAMPLE}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password; tokens come from --token-file".to_owned());
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("must end after host and port; {EXAMPLE}"));
    }
    let host = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => format!("[{address}]"),
        None => return Err(format!("names no host; {EXAMPLE}")),
    };
    let port = url.port_or_known_default().expect("both schemes have a port");
    Ok(Place::Tcp { host, port, encrypted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(typed: &Typed<'_>, variables: &[(&str, &str)]) -> Result<Vec<String>, Failure> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Target::find(typed, &variable).map(|target| target.places.iter().map(Place::to_string).collect())
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let url = Typed { url: Some("http://[::1]:7"), ..Typed::default() };
        let socket = Typed { socket: Some(Path::new("/s")), ..Typed::default() };
        let none = Typed { socket: Some(Path::new("none")), ..Typed::default() };
        let both = [("TRADEPOST_URL", "http://h:1"), ("TRADEPOST_SOCKET", "/e")];
        let home = ("HOME", "/home/op");
        let default_tcp = "http://127.0.0.1:7700";
        for (typed, variables, expected) in [
            (&url, &both[..], vec!["http://[::1]:7"]),
            (&socket, &both[..], vec!["/s"]),
            (&none, &both[..], vec![default_tcp]),
            (&Typed::default(), &both[..], vec!["http://h:1"]),
            (&Typed::default(), &both[1..], vec!["/e"]),
            (&Typed::default(), &[home], vec!["/home/op/.local/share/tradepost/tradepost.sock", default_tcp]),
            (&Typed::default(), &[home, ("TRADEPOST_DATA_DIR", "/d")], vec!["/d/tradepost.sock", default_tcp]),
            (
                &Typed::default(),
                &[home, ("TRADEPOST_URL", ""), ("TRADEPOST_DATA_DIR", "/d")],
                vec!["/d/tradepost.sock", default_tcp],
            ),
            (&Typed::default(), &[], vec![default_tcp]),
        ] {
            assert_eq!(places(typed, variables).unwrap(), expected);
        }
    }

    #[test]
    fn a_url_is_http_host_and_port_and_nothing_else() {
        for (url, words) in [
            ("127.0.0.1:7700", "write it like http://127.0.0.1:7700"),
            ("localhost:7700", "has the scheme \"localhost\""),
            ("http://u@h", "--token-file"),
            ("http://h/v1", "must end after host and port"),
            ("http://h?x", "must end after host and port"),
            ("http://", "is not a URL"),
        ] {
            let refusal = places(&Typed { url: Some(url), ..Typed::default() }, &[]).unwrap_err();
            assert_eq!(refusal.exit(), Exit::Usage);
            assert!(format!("{refusal:?}").contains(&words.replace('"', "\\\"")), "{refusal:?}");
        }
        let refusal = places(&Typed::default(), &[("TRADEPOST_URL", "ftp://h")]).unwrap_err();
        assert_eq!(refusal.exit(), Exit::Configuration);
        let refusal = places(&Typed { url: Some("http://u:s3cret@h"), ..Typed::default() }, &[]).unwrap_err();
        assert_eq!(refusal.exit(), Exit::Configuration);
        assert!(!format!("{refusal:?}").contains("s3cret"), "{refusal:?}");
        let default_port = places(&Typed { url: Some("http://sidecar"), ..Typed::default() }, &[]).unwrap();
        assert_eq!(default_port, ["http://sidecar:80"]);
        let encrypted = places(&Typed { url: Some("https://sidecar"), ..Typed::default() }, &[]).unwrap();
        assert_eq!(encrypted, ["https://sidecar:443"]);
    }
}
