//! JSON objects that we keep for others (`metadata`, `context`): checked, then held as canonical text.
//!
//! Canonical: keys sorted, no white space, each key once, strings re-encoded, numbers exactly as they were written
//! (`1.10` stays `1.10`), so that nothing is rounded on its way through and equal texts mean equal objects.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

/// The longest canonical text, in bytes.
pub const MAX_OBJECT_BYTES: usize = 64 * 1024;
const MAX_DEPTH: usize = 64;
/// How many bytes may stand for one: `\u0041` for `A`.
const LONGEST_ESCAPE: usize = 6;
/// The most digits after the decimal point of PostgreSQL's `numeric`, which JSONB holds numbers as.
const MAX_SCALE: i64 = 16_383;
/// The largest exponent that it reads, whatever stands before it.
const MAX_EXPONENT: i64 = i32::MAX as i64 / 2 - 1;
const TOO_DEEP: JsonObjectError = JsonObjectError::Rule("must be nested at most 64 levels deep");
const TOO_LONG: JsonObjectError = JsonObjectError::Rule("must be at most 64 KiB of JSON");

/// A JSON object as canonical text of at most 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonObject(Arc<str>);

/// Why a text is not an acceptable object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonObjectError {
    /// Another type, or no JSON at all.
    #[error("must be a JSON object")]
    NotAnObject,
    /// One key twice in the same object.
    #[error("has the key {0:?} twice")]
    DuplicateKey(String),
    /// Well-formed, but against a rule.
    #[error("{0}")]
    Rule(&'static str),
}

impl JsonObject {
    /// Checks and canonicalises a JSON text.
    pub fn parse(text: &str) -> Result<Self, JsonObjectError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if !text.starts_with('{') {
            return Err(JsonObjectError::NotAnObject);
        }
        check_measures(text)?;
        let mut canonical = String::with_capacity(text.len().min(MAX_OBJECT_BYTES));
        write_canonical(text, 0, &mut canonical)?;
        Ok(Self(Arc::from(canonical)))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for JsonObject {
    /// `{}`.
    fn default() -> Self {
        Self(Arc::from("{}"))
    }
}

impl fmt::Display for JsonObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Refuses, in one pass, what is too large or too deep whatever else it holds. Every level is parsed once more for each
/// level above it, so the measures bound the work.
fn check_measures(text: &str) -> Result<(), JsonObjectError> {
    let (mut depth, mut length, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        if in_string {
            length += 1;
            in_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => in_string = true,
            _ => {}
        }
        length += 1;
        if depth > MAX_DEPTH + 1 {
            return Err(TOO_DEEP);
        }
    }
    if length > MAX_OBJECT_BYTES * LONGEST_ESCAPE { Err(TOO_LONG) } else { Ok(()) }
}

fn write_canonical(text: &str, depth: usize, out: &mut String) -> Result<(), JsonObjectError> {
    if depth > MAX_DEPTH {
        return Err(TOO_DEEP);
    }
    if out.len() > MAX_OBJECT_BYTES {
        return Err(TOO_LONG);
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let members = members(text)?;
            out.push('{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(key, out)?;
                out.push(':');
                write_canonical(value.get(), depth + 1, out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| JsonObjectError::NotAnObject)?;
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item.get(), depth + 1, out)?;
            }
            out.push(']');
        }
        Some(b'"') => {
            let value: String = serde_json::from_str(text).map_err(|_| JsonObjectError::NotAnObject)?;
            write_string(&value, out)?;
        }
        Some(b'-' | b'0'..=b'9') => {
            check_number(text)?;
            out.push_str(text);
        }
        _ => out.push_str(text),
    }
    if out.len() > MAX_OBJECT_BYTES { Err(TOO_LONG) } else { Ok(()) }
}

/// Within a double's range there are far fewer digits before the point than PostgreSQL's `numeric` may have. Those after it
/// count as they are written, zeros too, as many more as the exponent moves it to the left.
fn check_number(text: &str) -> Result<(), JsonObjectError> {
    if !text.parse::<f64>().is_ok_and(f64::is_finite) {
        return Err(JsonObjectError::Rule("must not hold a number beyond a double's range"));
    }
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let written = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i64);
    let beyond = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
    let exponent = exponent.parse().unwrap_or(beyond);
    if written.saturating_sub(exponent) > MAX_SCALE {
        return Err(JsonObjectError::Rule(
            "must not hold a number of more than 16383 digits after the decimal point, which PostgreSQL cannot store",
        ));
    }
    // Only a zero has such a one.
    if exponent > MAX_EXPONENT {
        return Err(JsonObjectError::Rule(
            "must not hold a number with an exponent of more than 1073741822, which PostgreSQL cannot store",
        ));
    }
    Ok(())
}

fn write_string(value: &str, out: &mut String) -> Result<(), JsonObjectError> {
    if value.contains('\0') {
        return Err(JsonObjectError::Rule("must not hold the character U+0000, which PostgreSQL cannot store"));
    }
    out.push_str(&serde_json::to_string(value).map_err(|_| JsonObjectError::NotAnObject)?);
    Ok(())
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

fn members(text: &str) -> Result<Members<'_>, JsonObjectError> {
    struct UniqueKeys<'d>(&'d mut Option<String>);

    impl<'de> Visitor<'de> for UniqueKeys<'_> {
        type Value = Members<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                if members.contains_key(&key) {
                    *self.0 = Some(key);
                    return Err(serde::de::Error::custom("duplicate key"));
                }
                members.insert(key, value);
            }
            Ok(members)
        }
    }

    let mut duplicate = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = deserializer
        .deserialize_map(UniqueKeys(&mut duplicate))
        .and_then(|members| deserializer.end().map(|()| members));
    result.map_err(|_| duplicate.map_or(JsonObjectError::NotAnObject, JsonObjectError::DuplicateKey))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, JsonObjectError> {
        JsonObject::parse(text).map(|object| object.to_string())
    }

    #[test]
    fn sorts_keys_and_keeps_numbers_as_they_were_written() {
        assert_eq!(
            canonical(r#" { "b" : [1.10, {"z":1e2,"a":null}] , "a":"\u0041\n" } "#).as_deref(),
            Ok(r#"{"a":"A\n","b":[1.10,{"a":null,"z":1e2}]}"#)
        );
        assert_eq!(canonical("{}").as_deref(), Ok("{}"));
        let long = r#"{"n":123456789012345678901234567890}"#;
        assert_eq!(canonical(long).as_deref(), Ok(long));
    }

    #[test]
    fn refuses_what_is_too_deep_or_too_long_before_it_parses_any_of_it() {
        let nested =
            |depth: usize, inner: &str| format!(r#"{{"a":{}{inner}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(canonical(&nested(64, "")).is_ok());
        assert_eq!(canonical(&nested(65, "")), Err(TOO_DEEP));
        assert_eq!(canonical(&nested(100_000, "")), Err(TOO_DEEP));
        // Brackets and quotes within a string are no levels.
        assert!(canonical(&nested(60, &format!(r#""\"{}""#, "[".repeat(1_000)))).is_ok());
        let escaped = r"\u0041".repeat(60_000);
        assert!(canonical(&nested(1, &format!(r#""{escaped}""#))).is_ok(), "what is written short is short enough");
        for inner in
            [format!(r#""{}""#, "x".repeat(900_000)), vec!["1"; 450_000].join(","), vec!["1"; 40_000].join(",")]
        {
            assert_eq!(canonical(&nested(62, &inner)), Err(TOO_LONG));
        }
        assert_eq!(check_measures(&nested(65, "")), Err(TOO_DEEP));
        assert_eq!(check_measures(&nested(62, &"1,".repeat(450_000))), Err(TOO_LONG));
    }

    #[test]
    fn refuses_duplicates_at_any_depth() {
        assert_eq!(canonical(r#"{"a":1,"a":2}"#), Err(JsonObjectError::DuplicateKey("a".into())));
        assert_eq!(canonical(r#"{"x":[{"k":1,"\u006b":2}]}"#), Err(JsonObjectError::DuplicateKey("k".into())));
    }

    /// `sync_postgres` asks PostgreSQL itself about such numbers.
    #[test]
    fn refuses_numbers_that_postgresql_could_never_hold() {
        let number = |number: &str| canonical(&format!(r#"{{"p":[{number}]}}"#));
        let fraction = |digits: usize| format!("0.{}1", "0".repeat(digits - 1));
        let (most, more) = (fraction(16_383), fraction(16_384));
        for text in ["1e-16383", "-1E-16383", "1.5e-16382", "0e-16383", "1e-00016383", "1e308", "0e1073741822", &most] {
            assert_eq!(number(text), Ok(format!(r#"{{"p":[{text}]}}"#)));
        }
        assert!(number(&format!("{more}e+1")).is_ok(), "the exponent moves the point to the right");
        let zeros = format!("0.{}", "0".repeat(16_384));
        for text in [
            "1e-16384",
            "-1e-16384",
            "1.5e-16383",
            "100e-16385",
            "0e-20000",
            "-0.0E-16383",
            "1e-99999999999999999999",
            &more,
            &zeros,
            &format!("{more}0e1"),
        ] {
            let Err(JsonObjectError::Rule(rule)) = number(text) else { panic!("{text:.20} was taken") };
            assert!(rule.contains("more than 16383 digits after the decimal point"), "{text:.20}: {rule}");
        }
        for text in ["0e1073741823", "0.0e+1073741823", "0e99999999999999999999"] {
            let Err(JsonObjectError::Rule(rule)) = number(text) else { panic!("{text} was taken") };
            assert!(rule.contains("an exponent of more than 1073741822"), "{text}: {rule}");
        }
    }

    #[test]
    fn refuses_other_types_and_what_breaks_a_rule() {
        for text in ["[]", "1", "null", "\"{}\"", "", "{", "{}{}"] {
            assert_eq!(canonical(text), Err(JsonObjectError::NotAnObject), "{text:?}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_OBJECT_BYTES));
        for text in [r#"{"a":"\u0000"}"#, r#"{"a":1e999}"#, &deep, &large] {
            assert!(matches!(canonical(text), Err(JsonObjectError::Rule(_))), "{}", &text[..20.min(text.len())]);
        }
    }
}
