//! Who may talk to a listener: Host, Origin and bearer token, checked alike on the API and the metrics listener.
//!
//! A web page can make a browser send requests to a loopback port, and through DNS rebinding even read the answers. Its
//! requests carry the page's own name in `Host` and its origin in `Origin`, so both are held against a closed list.
//! No method here logs, keeps or shows a token.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Why a request is turned away before it is routed, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// `Host` is missing, repeated or malformed: 400.
    BadHost,
    /// `Host`, or the authority of an absolute target, is none of ours: 403.
    ForbiddenHost,
    /// `Origin` is not `http(s)://` and the host: 403.
    ForbiddenOrigin,
    /// The bearer token is missing or wrong: 401.
    Unauthorized,
}

/// What the checks look at.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Every value of `Host`.
    pub hosts: &'a [&'a [u8]],
    /// The authority of an absolute target (`GET http://name:port/path`).
    pub authority: Option<&'a str>,
    /// Every value of `Origin`.
    pub origins: &'a [&'a [u8]],
    /// The connection's own local address; `None` on the Unix socket.
    pub local: Option<SocketAddr>,
}

/// The rules of one process; its token can be replaced while it runs.
pub struct Access {
    allowed: Vec<Authority>,
    /// Only the token's hash is kept: equal lengths for the comparison, and nothing to leak.
    token: ArcSwapOption<blake3::Hash>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = if self.token.load().is_some() { "set" } else { "none" };
        f.debug_struct("Access").field("allowed", &self.allowed).field("token", &token).finish()
    }
}

impl Access {
    /// The rules: `allowed_hosts` are names or addresses, each with or without a port; one without a port admits every
    /// port. One that is malformed ([`is_host`]) admits nothing. Without a token everybody is admitted.
    pub fn new(allowed_hosts: Vec<String>, token: Option<SecretString>) -> Self {
        let allowed = allowed_hosts.iter().filter_map(|host| Authority::parse(host.as_bytes())).collect();
        Self { allowed, token: ArcSwapOption::new(token.map(hashed)) }
    }

    /// Host and Origin.
    ///
    /// On the Unix socket every well-formed `Host` will do: no browser reaches a socket, and clients put all kinds of
    /// names there. `Origin` is held against it all the same.
    ///
    /// # Errors
    /// [`Denied::BadHost`], [`Denied::ForbiddenHost`] or [`Denied::ForbiddenOrigin`], in this order.
    pub fn check_origin(&self, head: &RequestHead<'_>) -> Result<(), Denied> {
        let [host] = head.hosts else { return Err(Denied::BadHost) };
        let named = Authority::parse(host).ok_or(Denied::BadHost)?;
        let target = match head.authority {
            None => None,
            Some(text) => Some((text.as_bytes(), Authority::parse(text.as_bytes()).ok_or(Denied::BadHost)?)),
        };
        for authority in [Some(&named), target.as_ref().map(|(_, authority)| authority)].into_iter().flatten() {
            if !self.admits(authority, head.local) {
                return Err(Denied::ForbiddenHost);
            }
        }
        // RFC 9112, 3.2.2: the authority of an absolute target replaces the Host field.
        let own_name = target.map_or(*host, |(text, _)| text);
        match head.origins {
            [] => Ok(()),
            [origin] if is_origin_of(origin, own_name) => Ok(()),
            _ => Err(Denied::ForbiddenOrigin),
        }
    }

    /// `Authorization`, compared in constant time; no token configured admits everybody.
    ///
    /// # Errors
    /// [`Denied::Unauthorized`].
    pub fn check_token(&self, authorization: Option<&[u8]>) -> Result<(), Denied> {
        let configured = self.token.load();
        let Some(expected) = configured.as_deref() else { return Ok(()) };
        let presented = authorization.and_then(bearer).ok_or(Denied::Unauthorized)?;
        let equal = blake3::hash(presented).as_bytes().ct_eq(expected.as_bytes());
        if bool::from(equal) { Ok(()) } else { Err(Denied::Unauthorized) }
    }

    /// Replaces the token; requests that are already admitted go on.
    pub fn replace_token(&self, token: Option<SecretString>) {
        self.token.store(token.map(hashed));
    }

    fn admits(&self, authority: &Authority, local: Option<SocketAddr>) -> bool {
        let Some(local) = local else { return true };
        let own = match &authority.host {
            Host::Address(address) => address.is_loopback() || *address == local.ip().to_canonical(),
            Host::Name(name) => name == "localhost",
        };
        own || self.allowed.iter().any(|allowed| {
            allowed.host == authority.host && allowed.port.is_none_or(|port| authority.port.unwrap_or(80) == port)
        })
    }
}

/// Whether a text is a host, with or without a port, as [`Access::new`] wants it.
pub fn is_host(text: &str) -> bool {
    Authority::parse(text.as_bytes()).is_some_and(|authority| authority.host != Host::Name(String::new()))
}

fn hashed(token: SecretString) -> Arc<blake3::Hash> {
    Arc::new(blake3::hash(token.expose_secret().as_bytes()))
}

/// The token of `Bearer <token>`; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let token = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && rest.first() == Some(&b' ') && !token.is_empty()).then_some(token)
}

/// Whether `origin` is `http://` or `https://` and exactly the host that was asked for.
fn is_origin_of(origin: &[u8], host: &[u8]) -> bool {
    [&b"http://"[..], b"https://"].iter().any(|scheme| {
        origin.split_at_checked(scheme.len()).is_some_and(|(start, rest)| {
            start.eq_ignore_ascii_case(scheme) && !rest.is_empty() && rest.eq_ignore_ascii_case(host)
        })
    })
}

/// `host[:port]` (RFC 3986, 3.2.2 and 3.2.3, without user information).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case; empty when the field was.
    Name(String),
}

impl Authority {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                (Host::Address(IpAddr::V6(address).to_canonical()), rest)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                (Host::parse_name(&text[..end])?, &text[end..])
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

impl Host {
    /// A dotted quad, or what RFC 3986 calls a registered name.
    fn parse_name(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(IpAddr::V4(address)));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
        text.bytes().all(allowed).then(|| Self::Name(text.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "192.168.7.9:7700";

    fn check(access: &Access, host: &str, authority: Option<&str>, origins: &[&[u8]], tcp: bool) -> Result<(), Denied> {
        access.check_origin(&RequestHead {
            hosts: &[host.as_bytes()],
            authority,
            origins,
            local: tcp.then(|| LOCAL.parse().unwrap()),
        })
    }

    #[test]
    fn only_names_of_this_host_are_admitted() {
        let access = Access::new(vec!["Box.Example".into(), "other.example:8443".into()], None);
        for (host, expected) in [
            ("localhost", Ok(())),
            ("LocalHost:7700", Ok(())),
            ("127.0.0.1", Ok(())),
            ("127.9.9.9:1", Ok(())),
            ("[::1]:7700", Ok(())),
            ("[::ffff:127.0.0.1]", Ok(())),
            ("192.168.7.9:7700", Ok(())),
            ("box.example:99", Ok(())),
            ("BOX.example", Ok(())),
            ("other.example:8443", Ok(())),
            ("other.example", Err(Denied::ForbiddenHost)),
            ("192.168.7.8", Err(Denied::ForbiddenHost)),
            ("evil.example", Err(Denied::ForbiddenHost)),
            ("localhost.evil.example", Err(Denied::ForbiddenHost)),
            ("evil.localhost", Err(Denied::ForbiddenHost)),
            ("0.0.0.0", Err(Denied::ForbiddenHost)),
            ("2130706433", Err(Denied::ForbiddenHost)),
            ("", Err(Denied::ForbiddenHost)),
            ("localhost:", Err(Denied::BadHost)),
            ("localhost:99999", Err(Denied::BadHost)),
            ("localhost:+80", Err(Denied::BadHost)),
            ("localhost:80:80", Err(Denied::BadHost)),
            ("user@localhost", Err(Denied::BadHost)),
            ("local host", Err(Denied::BadHost)),
            ("localhost/", Err(Denied::BadHost)),
            ("[::1", Err(Denied::BadHost)),
            ("[::1]x", Err(Denied::BadHost)),
            ("löcal", Err(Denied::BadHost)),
        ] {
            assert_eq!(check(&access, host, None, &[], true), expected, "{host:?}");
        }
    }

    #[test]
    fn host_comes_exactly_once() {
        let access = Access::new(Vec::new(), None);
        for hosts in [&[][..], &[&b"localhost"[..], b"localhost"]] {
            let head = RequestHead { hosts, authority: None, origins: &[], local: None };
            assert_eq!(access.check_origin(&head), Err(Denied::BadHost));
        }
    }

    #[test]
    fn the_socket_takes_any_well_formed_name() {
        let access = Access::new(Vec::new(), None);
        for host in ["localhost", "tradepost", "%2Frun%2Ftradepost.sock", ""] {
            assert_eq!(check(&access, host, None, &[], false), Ok(()), "{host:?}");
        }
        assert_eq!(check(&access, "a b", None, &[], false), Err(Denied::BadHost));
        assert_eq!(check(&access, "x", None, &[b"http://y"], false), Err(Denied::ForbiddenOrigin));
    }

    #[test]
    fn an_absolute_target_is_held_against_the_same_rules() {
        let access = Access::new(Vec::new(), None);
        assert_eq!(check(&access, "localhost", Some("127.0.0.1:7700"), &[], true), Ok(()));
        assert_eq!(check(&access, "localhost", Some("evil.example"), &[], true), Err(Denied::ForbiddenHost));
        assert_eq!(check(&access, "evil.example", Some("localhost"), &[], true), Err(Denied::ForbiddenHost));
        assert_eq!(check(&access, "localhost", Some("u@localhost"), &[], true), Err(Denied::BadHost));
        assert_eq!(check(&access, "localhost", Some("[::1]"), &[b"http://[::1]"], true), Ok(()));
        assert_eq!(
            check(&access, "localhost", Some("[::1]"), &[b"http://localhost"], true),
            Err(Denied::ForbiddenOrigin)
        );
    }

    #[test]
    fn an_origin_is_the_host_itself_or_forbidden() {
        let access = Access::new(Vec::new(), None);
        for (origins, expected) in [
            (&[&b"http://localhost:7700"[..]][..], Ok(())),
            (&[b"https://LOCALHOST:7700"], Ok(())),
            (&[b"http://localhost"], Err(Denied::ForbiddenOrigin)),
            (&[b"http://localhost:7701"], Err(Denied::ForbiddenOrigin)),
            (&[b"http://localhost:7700/"], Err(Denied::ForbiddenOrigin)),
            (&[b"ftp://localhost:7700"], Err(Denied::ForbiddenOrigin)),
            (&[b"null"], Err(Denied::ForbiddenOrigin)),
            (&[b""], Err(Denied::ForbiddenOrigin)),
            (&[b"http://evil.example"], Err(Denied::ForbiddenOrigin)),
            (&[b"http://localhost:7700", b"http://localhost:7700"], Err(Denied::ForbiddenOrigin)),
        ] {
            assert_eq!(check(&access, "localhost:7700", None, origins, true), expected, "{origins:?}");
        }
    }

    #[test]
    fn a_token_is_asked_for_once_there_is_one_and_can_be_replaced() {
        let access = Access::new(Vec::new(), None);
        assert_eq!(access.check_token(None), Ok(()));
        access.replace_token(Some("s3cret".into()));
        for good in [&b"Bearer s3cret"[..], b"bearer s3cret", b"BEARER  s3cret"] {
            assert_eq!(access.check_token(Some(good)), Ok(()));
        }
        for bad in
            [&b""[..], b"Bearer", b"Bearer ", b"Bearer s3cre", b"Bearer S3cret", b"Basic s3cret", b"Bearers3cret"]
        {
            assert_eq!(access.check_token(Some(bad)), Err(Denied::Unauthorized));
        }
        assert_eq!(access.check_token(None), Err(Denied::Unauthorized));
        access.replace_token(Some("next".into()));
        assert_eq!(access.check_token(Some(b"Bearer s3cret")), Err(Denied::Unauthorized));
        assert!(!format!("{access:?}").contains("next"));
    }
}
