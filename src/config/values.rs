//! One parser per kind of setting: text as typed in, a checked value or the reason why not out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::domain::Ttl;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The least important log lines that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each is the level of its name")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

macro_rules! named_values {
    ($type:ident, $($variant:ident = $name:literal),+) => {
        impl $type {
            const NAMES: &[(&str, Self)] = &[$(($name, Self::$variant)),+];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}

named_values!(LogFormat, Text = "text", Json = "json");
named_values!(LogLevel, Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace");

fn one_of<T: Copy>(names: &[(&str, T)], text: &str) -> Result<T, String> {
    names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("must be one of {}, not {text:?}", names.join(", "))
    })
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    one_of(LogFormat::NAMES, text)
}

pub(super) fn log_level(text: &str) -> Result<LogLevel, String> {
    one_of(LogLevel::NAMES, text)
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    let names = [
        ("true", true),
        ("false", false),
        ("1", true),
        ("0", false),
        ("yes", true),
        ("no", false),
        ("on", true),
        ("off", false),
    ];
    one_of(&names, text)
}

/// An address to listen on: `IP:PORT`, or `localhost:PORT` for 127.0.0.1.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        Some(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        None => Err(format!("must be an address and a port such as 127.0.0.1:7700 or [::1]:7700, not {text:?}")),
    }
}

pub(super) fn ttl(text: &str) -> Result<Ttl, String> {
    let seconds: i128 = text.parse().map_err(|_| format!("must be a whole number of seconds, not {text:?}"))?;
    Ttl::parse(seconds).map_err(|_| format!("must be 1 to {} seconds, not {seconds}", Ttl::LONGEST_SECONDS))
}

/// A time span: a whole number and `s`, `m`, `h` or `d`; without a unit, seconds.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 1),
    };
    digits.parse::<u32>().map(|number| Duration::from_secs(u64::from(number) * factor)).map_err(|_| {
        format!("must be a whole number of seconds, or one with a unit such as 90s, 15m, 24h or 7d, not {text:?}")
    })
}

/// Names for `Host`, comma separated: a host or an IP address, with or without a port.
pub(super) fn hosts(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(str::trim).filter(|host| !host.is_empty()).map(host).collect()
}

fn host(text: &str) -> Result<String, String> {
    let refused = || format!("must be host names such as agents.example or agents.example:7700, not {text:?}");
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_ascii_lowercase());
    }
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if bracketed.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(text.to_ascii_lowercase());
    }
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let port_is_fine = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    let label_is_fine = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if port_is_fine && name.len() <= 253 && name.split('.').all(label_is_fine) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_or_are_seconds() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "-1", "1.5h", "1w", "1h30m", "99999999999", "5é"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_without_scheme_or_path() {
        assert_eq!(
            hosts("Agents.Example, 10.0.0.1:7700,[::1]:80,[fe80::1],my_host-1:1,").unwrap(),
            ["agents.example", "10.0.0.1:7700", "[::1]:80", "[fe80::1]", "my_host-1:1"]
        );
        for text in ["http://a", "a/b", "a b", "*", "*.example", "a..b", "a:0", "a:port", "[::1", "é"] {
            assert!(hosts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_numeric_or_localhost() {
        for (text, address_text) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:7700", "[::1]:7700"), ("localhost:80", "127.0.0.1:80")]
        {
            assert_eq!(address(text), Ok(address_text.parse().unwrap()));
        }
        for text in ["", "7700", ":7700", "localhost", "example.org:80", "127.0.0.1", "127.0.0.1:70000"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
