//! What an error of Redis means: for the connection, for the configuration, or for one agent's entry alone.
//!
//! The server's words are shown as they are, except that the password never is, whoever wrote it there.

use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

use crate::sync::state::{Failure, FailureClass};

/// The longest text of an error that is shown.
const LONGEST_REASON: usize = 300;

/// What came of a command about one agent that the server did not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The server does not know the script: load it, and send the command again.
    NoScript,
    /// This entry is refused for its own content; others may go on.
    Entry {
        /// The first word of the error.
        code: String,
        /// Its text.
        reason: String,
    },
    /// Nothing goes on until this is mended.
    Sink(Failure),
}

/// Reads errors, and knows what must not be shown.
#[derive(Clone)]
pub struct Reader {
    secrets: Vec<String>,
}

impl Reader {
    /// `secrets` are cut out of every text.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        Self { secrets: secrets.into_iter().filter(|secret| !secret.is_empty()).collect() }
    }

    /// What an error means for the connection.
    pub fn failure(&self, error: &RedisError) -> Failure {
        let text = self.shown(&error.to_string());
        let class = match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => {
                FailureClass::Misconfigured
            }
            // Whom to trust is configuration: no waiting makes a certificate another.
            ErrorKind::Io if text.contains("peer certificate") => FailureClass::Misconfigured,
            ErrorKind::Server(_) | ErrorKind::Extension => class_of(error.code().unwrap_or_default(), &text),
            _ => FailureClass::Unreachable,
        };
        Failure::new(class, text)
    }

    /// What an error means that the server gave in answer to one command among many.
    pub fn refused(&self, error: &ServerError) -> Refused {
        let code = error.code();
        let text = self.shown(&format!("{code} {}", error.details().unwrap_or_default()));
        match error.kind() {
            Some(ServerErrorKind::NoScript) => Refused::NoScript,
            // A script that stumbles over a key of another type, or over an argument: the script is the same for all,
            // so it is this entry.
            None | Some(ServerErrorKind::ResponseError) if is_of_the_entry(code, &text) => {
                Refused::Entry { code: code.to_owned(), reason: text }
            }
            _ => Refused::Sink(Failure::new(class_of(code, &text), text)),
        }
    }

    fn shown(&self, text: &str) -> String {
        let mut shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for secret in &self.secrets {
            shown = shown.replace(secret.as_str(), "***");
        }
        if let Some((cut, _)) = shown.char_indices().nth(LONGEST_REASON) {
            shown.truncate(cut);
            shown.push('…');
        }
        shown
    }
}

/// Redis 7 keeps the code of an error within a script; 6.2 wraps it in words.
fn is_of_the_entry(code: &str, text: &str) -> bool {
    code == "WRONGTYPE"
        || text.contains("WRONGTYPE")
        || text.contains("string exceeds maximum allowed size")
        || text.contains("too many elements")
}

fn class_of(code: &str, text: &str) -> FailureClass {
    let says = |word: &str| code == word || text.contains(word);
    const NEEDS_SOMEBODY: [&str; 9] = [
        "WRONGPASS",
        "NOAUTH",
        "NOPERM",
        // Of a command within a script.
        "executing the script can't run this command",
        "OOM",
        "MISCONF",
        "WRONGTYPE",
        "unknown command",
        "invalid DB index",
    ];
    const AGAIN: [&str; 7] =
        ["LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "NOREPLICAS", "max number of clients", "UNBLOCKED"];
    if says("READONLY") {
        // A replica, perhaps since a moment ago: whoever is the primary now answers a new connection.
        FailureClass::Unreachable
    } else if NEEDS_SOMEBODY.into_iter().any(says) {
        FailureClass::Misconfigured
    } else if AGAIN.into_iter().any(says) {
        FailureClass::Busy
    } else if matches!(code, "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") {
        FailureClass::Misconfigured
    } else {
        FailureClass::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_decide_in_any_version_of_it() {
        for (text, class) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", FailureClass::Misconfigured),
            ("NOPERM this user has no permissions to run the 'xadd' command", FailureClass::Misconfigured),
            (
                "ERR The user executing the script can't run this command or subcommand script: 1, on @user_script:23.",
                FailureClass::Misconfigured,
            ),
            ("OOM command not allowed when used memory > 'maxmemory'.", FailureClass::Misconfigured),
            (
                "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed when used memory",
                FailureClass::Misconfigured,
            ),
            ("READONLY You can't write against a read only replica.", FailureClass::Unreachable),
            ("ERR Error running script: -READONLY You can't write against a read only", FailureClass::Unreachable),
            ("LOADING Redis is loading the dataset in memory", FailureClass::Busy),
            ("MISCONF Redis is configured to save RDB snapshots", FailureClass::Misconfigured),
            ("ERR max number of clients reached", FailureClass::Busy),
            ("ERR something nobody has seen yet", FailureClass::Unreachable),
        ] {
            let (code, _) = text.split_once(' ').unwrap();
            assert_eq!(class_of(code, text), class, "{text}");
        }
    }

    #[test]
    fn no_text_holds_the_password_or_a_line_break_or_goes_on_for_ever() {
        let reader = Reader::new(["s3cret".to_owned(), String::new()]);
        let shown = reader.shown(&format!("bad 's3cret'\n{}", "x".repeat(10_000)));
        assert!(shown.starts_with("bad '***' x") && shown.chars().count() == LONGEST_REASON + 1, "{shown}");
    }
}
