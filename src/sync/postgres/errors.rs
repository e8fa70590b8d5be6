//! What an error of PostgreSQL asks for: another try, a smaller one, a new connection, somebody's help, or that one
//! entry be set aside.
//!
//! The SQLSTATE decides, never the text. The text is for people, and holds no secret: neither the URL nor any parameter
//! of a statement is in it.

use std::error::Error as _;
use std::{fmt, io};

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use crate::sync::state::{Failure, FailureClass};

/// What can be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An entry is refused for its own content.
    Entry,
    /// Somebody else was in the way, or time ran out: again, with less at once.
    Contention,
    /// The schema, the role or the address is not as it should be: somebody has to mend it.
    Misconfigured,
    /// Our place in the ledger is not where we left it: it must be looked up again.
    FenceMoved,
    /// The connection is gone, or of no more use.
    Lost,
    /// Constraints cannot be asked what they refuse.
    Unasked,
    /// Our own store failed.
    Store,
}

/// An error, with what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What can be done.
    pub kind: Kind,
    /// Its SQLSTATE, if PostgreSQL gave one.
    pub code: Option<String>,
    /// The constraint that refused, if one did.
    pub constraint: Option<String>,
    /// The id of the transaction whose row was refused, if PostgreSQL says so. No more than a hint.
    pub culprit: Option<String>,
    /// What happened, for people.
    pub words: String,
}

impl Trouble {
    /// One of our own making.
    pub fn new(kind: Kind, words: impl Into<String>) -> Self {
        Self { kind, code: None, constraint: None, culprit: None, words: words.into() }
    }

    /// The engine could not do its part.
    pub fn store(error: &crate::engine::Error) -> Self {
        Self::new(Kind::Store, format!("the local store: {error}"))
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            let words = with_causes(&error);
            // The client's own word for a setting that does not do, such as a password that is asked for and not there;
            // it gives no other sign of it.
            let is_ours = words.starts_with("invalid configuration") || is_about_trust(&error);
            return Self::new(if is_ours { Kind::Misconfigured } else { Kind::Lost }, words);
        };
        Self {
            kind: kind_of(refusal.code()),
            code: Some(refusal.code().code().to_owned()),
            constraint: refusal.constraint().map(ToOwned::to_owned),
            culprit: culprit(refusal),
            words: format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code()),
        }
    }
}

impl From<crate::engine::Error> for Trouble {
    fn from(error: crate::engine::Error) -> Self {
        Self::store(&error)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let class = match trouble.kind {
            Kind::Misconfigured => FailureClass::Misconfigured,
            Kind::Lost => FailureClass::Unreachable,
            Kind::Store => FailureClass::Store,
            Kind::Entry | Kind::Contention | Kind::FenceMoved | Kind::Unasked => FailureClass::Busy,
        };
        Self::new(class, trouble.words)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// The first column of the row that a constraint refused, out of `Failing row contains (…, …).` in whatever language.
fn culprit(refusal: &DbError) -> Option<String> {
    let row = refusal.detail().filter(|_| refusal.table() == Some("marketplace_transactions"))?;
    let (_, values) = row.split_once('(')?;
    values.split_once(',').map(|(id, _)| id.to_owned())
}

/// Classes and codes as of PostgreSQL's Appendix A.
fn kind_of(code: &SqlState) -> Kind {
    if [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
    ]
    .contains(code)
    {
        return Kind::Contention;
    }
    match &code.code()[..2] {
        // Data, integrity; a trigger or a view that refuses; a row that an index cannot hold.
        "09" | "21" | "22" | "23" | "27" | "38" | "39" | "44" | "54" | "P0" => Kind::Entry,
        "28" | "3D" | "3F" | "42" => Kind::Misconfigured,
        class if is_somebodys_own(class) => Kind::Entry,
        _ => Kind::Lost,
    }
}

/// Whether a class is one that a trigger made up: the standard leaves those from 5 and from I on to whoever wants them,
/// and PostgreSQL uses a few itself.
fn is_somebodys_own(class: &str) -> bool {
    let is_free = class.starts_with(|first: char| matches!(first, '5'..='9' | 'I'..='Z'));
    is_free && !matches!(class, "53" | "55" | "57" | "58" | "72" | "XX")
}

/// Whether a server's certificate is not believed. Whom to trust is configuration: no waiting makes a certificate another.
fn is_about_trust(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let wrapped = deeper.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let refusal = wrapped.and_then(|inner| inner.downcast_ref()).or_else(|| deeper.downcast_ref());
        if matches!(refusal, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = deeper.source();
    }
    false
}

/// An error and what caused it, as each says only its own part.
fn with_causes(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let more = deeper.to_string();
        // Some errors repeat their cause themselves.
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = deeper.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sqlstate_decides_what_can_be_done() {
        for (code, kind) in [
            ("22003", Kind::Entry),
            ("22P05", Kind::Entry),
            ("23514", Kind::Entry),
            ("23505", Kind::Entry),
            ("44000", Kind::Entry),
            ("54000", Kind::Entry),
            ("P0001", Kind::Entry),
            ("TP013", Kind::Entry),
            ("99001", Kind::Entry),
            ("27000", Kind::Entry),
            ("55000", Kind::Lost),
            ("58030", Kind::Lost),
            ("40001", Kind::Contention),
            ("40P01", Kind::Contention),
            ("55P03", Kind::Contention),
            ("57014", Kind::Contention),
            ("28P01", Kind::Misconfigured),
            ("3D000", Kind::Misconfigured),
            ("42501", Kind::Misconfigured),
            ("42703", Kind::Misconfigured),
            ("42P01", Kind::Misconfigured),
            ("25006", Kind::Lost),
            ("53300", Kind::Lost),
            ("57P01", Kind::Lost),
            ("57P03", Kind::Lost),
            ("08006", Kind::Lost),
            ("XX000", Kind::Lost),
        ] {
            assert_eq!(kind_of(&SqlState::from_code(code)), kind, "{code}");
        }
    }
}
