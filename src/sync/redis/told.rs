//! What the scripts answer, as types.

use std::time::Duration;

use redis::Value;

use super::keys::HeldVersion;
use super::link::Answer;
use crate::sync::state::{Failure, FailureClass};

/// What is there instead of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Theirs {
    /// The version that Redis remembers.
    pub held: HeldVersion,
    /// The document, if there is one.
    pub document: Option<Vec<u8>>,
    /// How long it lives yet.
    pub remaining: Duration,
}

/// What became of what we told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// It is there.
    Done,
    /// A newer version is there.
    Newer(Theirs),
    /// Other content is there under the same version.
    Differs(Theirs),
    /// The document is not there, or an older one is.
    Missing,
    /// It is there, and outcomes were written this often, if ever.
    Renewed(Vec<u8>),
    /// Another value of the same observer is there.
    Other,
    /// It is refused for its own content.
    Refused {
        /// The first word of the error.
        code: String,
        /// Its text.
        reason: String,
    },
}

impl Told {
    /// Reads a script's answer.
    pub fn read(answer: Answer) -> Result<Self, Failure> {
        let value = match answer {
            Answer::Refused { code, reason } => return Ok(Self::Refused { code, reason }),
            Answer::Value(value) => value,
        };
        let strange = || Failure::new(FailureClass::Busy, "a script of ours got an answer that it does not give");
        let Value::Array(words) = value else { return Err(strange()) };
        let mut words = words.into_iter();
        let Some(Value::BulkString(word)) = words.next() else { return Err(strange()) };
        match word.as_slice() {
            b"pushed" | b"stored" => Ok(Self::Done),
            b"missing" => Ok(Self::Missing),
            b"other" => Ok(Self::Other),
            b"renewed" => match words.next() {
                Some(Value::BulkString(written)) => Ok(Self::Renewed(written)),
                _ => Err(strange()),
            },
            b"newer" => theirs(words).map(Self::Newer).ok_or_else(strange),
            b"differs" => theirs(words).map(Self::Differs).ok_or_else(strange),
            _ => Err(strange()),
        }
    }
}

fn theirs(mut words: impl Iterator<Item = Value>) -> Option<Theirs> {
    let (Some(Value::BulkString(held)), Some(Value::BulkString(document)), Some(Value::Int(remaining))) =
        (words.next(), words.next(), words.next())
    else {
        return None;
    };
    Some(Theirs {
        held: HeldVersion::parse(&held)?,
        document: Some(document).filter(|document| !document.is_empty()),
        remaining: remaining_of(remaining),
    })
}

/// A time to live as Redis tells it; a document without one lives for as long as a lease can.
pub fn remaining_of(pttl: i64) -> Duration {
    match pttl {
        -1 => Duration::from_secs(crate::domain::Ttl::LONGEST_SECONDS.into()),
        millis => Duration::from_millis(u64::try_from(millis).unwrap_or(0)),
    }
}
