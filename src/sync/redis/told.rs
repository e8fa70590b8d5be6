//! What the scripts answer, as types.

use std::time::Duration;

use redis::Value;

use super::keys::HeldVersion;
use super::link::Answer;
use super::outcomes;
use crate::domain::Counters;

/// What is there instead of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Theirs {
    /// The version that Redis remembers.
    pub held: HeldVersion,
    /// The document, if there is one that is not too long.
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
    /// Another value of the same observer is there: these counters, if that can be read.
    Other(Option<Counters>),
    /// It is refused for its own content.
    Refused {
        /// The first word of the error.
        code: String,
        /// Its text.
        reason: String,
    },
}

impl Told {
    /// Reads a script's answer. One that a script of ours does not give is a refusal: it concerns one entry, and must not
    /// stop all others.
    pub fn read(answer: Answer) -> Self {
        let value = match answer {
            Answer::Refused { code, reason } => return Self::Refused { code, reason },
            Answer::Value(value) => value,
        };
        known(value).unwrap_or_else(|| Self::Refused {
            code: "ANSWER".to_owned(),
            reason: "a script of ours got an answer that it does not give".to_owned(),
        })
    }
}

fn known(value: Value) -> Option<Told> {
    let Value::Array(words) = value else { return None };
    let mut words = words.into_iter();
    let Some(Value::BulkString(word)) = words.next() else { return None };
    match word.as_slice() {
        b"pushed" | b"stored" => Some(Told::Done),
        b"missing" => Some(Told::Missing),
        b"other" => match words.next() {
            Some(Value::BulkString(there)) => Some(Told::Other(outcomes::parse(&there))),
            _ => None,
        },
        b"renewed" => match words.next() {
            Some(Value::BulkString(written)) => Some(Told::Renewed(written)),
            _ => None,
        },
        b"newer" => theirs(words).map(Told::Newer),
        b"differs" => theirs(words).map(Told::Differs),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_answer_is_a_refusal_of_its_entry() {
        let word = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let damaged = [word("newer"), word(&format!("{}+", "z".repeat(74))), word(""), Value::Int(-2)];
        for strange in [Value::Nil, Value::Array(vec![word("hello")]), Value::Array(damaged.to_vec())] {
            assert!(matches!(Told::read(Answer::Value(strange)), Told::Refused { .. }));
        }
        assert_eq!(Told::read(Answer::Value(Value::Array(vec![word("pushed")]))), Told::Done);
    }
}
