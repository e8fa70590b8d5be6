//! Reading JSON bodies strictly: unknown, repeated and mistyped fields are refused by name; numbers are read by their text.
//!
//! Two kinds of fault are kept apart. What is malformed fails while it is read and becomes a 400. What is well-formed but
//! may break a rule is carried out of here as a value ([`Decimal`], [`Object`], [`Integer`], [`Number`]) and becomes a
//! 422 once everything has been read, since 400 comes before 422 whatever the order of the fields.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::domain::json::JsonObjectError;
use crate::domain::money::MoneyError;
use crate::domain::{Invalid, JsonObject, Money};

/// A member of an object, which `null` is not a way to leave out.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Field<T> {
    #[default]
    Absent,
    Given(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::Given)
    }
}

impl<T> Field<T> {
    /// The value, or 400.
    pub(crate) fn required(self, name: &'static str) -> Result<T, Problem> {
        self.given().ok_or_else(|| Problem::malformed_at(name, format!("the field `{name}` is missing")))
    }

    pub(crate) fn given(self) -> Option<T> {
        match self {
            Self::Absent => None,
            Self::Given(value) => Some(value),
        }
    }
}

/// An exact decimal, from a JSON string or number, by its digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decimal(Result<Money, MoneyError>);

impl Decimal {
    pub(crate) fn parse(text: &str) -> Self {
        Self(Money::parse(text))
    }

    /// The amount, or why it is none.
    pub(crate) fn money(self, field: &'static str) -> Result<Money, Invalid> {
        self.0.map_err(|error| Invalid::new(field, error.to_string()))
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        match text.as_bytes().first() {
            Some(b'"') => Ok(Self::parse(&serde_json::from_str::<String>(text).map_err(D::Error::custom)?)),
            Some(b'-' | b'0'..=b'9') => Ok(Self::parse(text)),
            _ => Err(D::Error::custom("invalid type: expected a decimal as a string or a number")),
        }
    }
}

/// A JSON object that is kept for others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(Result<JsonObject, &'static str>);

impl Object {
    /// The object, or the rule that it breaks.
    pub(crate) fn checked(self, field: &'static str) -> Result<JsonObject, Invalid> {
        self.0.map_err(|rule| Invalid::new(field, rule))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match JsonObject::parse(<&RawValue>::deserialize(deserializer)?.get()) {
            Ok(object) => Ok(Self(Ok(object))),
            Err(JsonObjectError::Rule(rule)) => Ok(Self(Err(rule))),
            Err(malformed) => Err(D::Error::custom(malformed)),
        }
    }
}

/// A whole number of any size; one beyond an `i128` is the nearest one, which every range refuses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Integer(pub(crate) i128);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = number_text(deserializer)?;
        whole(text).map(Self).ok_or_else(|| D::Error::custom("invalid type: expected a whole number"))
    }
}

/// `30`, and what JSON Schema counts as the same integer: `30.0`, `3e1`.
fn whole(text: &str) -> Option<i128> {
    let saturated = || if text.starts_with('-') { i128::MIN } else { i128::MAX };
    if text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()) {
        return Some(text.parse().unwrap_or_else(|_| saturated()));
    }
    match Money::parse(text) {
        Ok(decimal) => (decimal.nanos() % 1_000_000_000 == 0).then(|| decimal.nanos() / 1_000_000_000),
        Err(_) => text.parse::<f64>().is_ok_and(|value| value.abs() >= 1e18).then(saturated),
    }
}

/// A number as the nearest double; one beyond a double's range is infinite, which every rule refuses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number(pub(crate) f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_text(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

fn number_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'de str, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(text),
        _ => Err(D::Error::custom("invalid type: expected a number")),
    }
}

/// Reads one JSON object.
///
/// # Errors
/// 400, naming the culprit.
pub(crate) fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = utf8(bytes)?;
    // serde would take an array for a struct, its items in the order of the fields.
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Problem::malformed("the body must be a JSON object"));
    }
    // Keeping track of where it is takes as long as reading does, so that is done only to name a culprit.
    serde_json::from_str(text)
        .map_err(|error| culprit::<T>(text).unwrap_or_else(|| Problem::malformed(error.to_string())))
}

/// Which field it is that cannot be read, and why; `None` if it is what follows the object.
fn culprit<T: DeserializeOwned>(text: &str) -> Option<Problem> {
    let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(text)).err()?;
    let path = error.path().to_string();
    let reason = error.into_inner().to_string();
    Some(match repeated_field(&reason) {
        Some(field) => Problem::malformed_at(field.to_owned(), reason),
        None if path == "." => Problem::malformed(reason),
        None => Problem::malformed_at(path.clone(), format!("{path}: {reason}")),
    })
}

/// The one fault that serde reports by name in its text alone, since it lies in no value's path.
fn repeated_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("duplicate field `")?.split('`').next()
}

/// Reads a JSON array into the texts of its items.
///
/// # Errors
/// 400.
pub(crate) fn parse_array(bytes: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    serde_json::from_str(utf8(bytes)?)
        .map_err(|error| Problem::malformed(format!("the body must be a JSON array: {error}")))
}

fn utf8(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|_| Problem::malformed("the body is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "some fields are only there to be refused")]
    struct Sample {
        #[serde(default)]
        name: Field<String>,
        #[serde(default)]
        cost: Field<Decimal>,
        #[serde(default)]
        count: Field<Integer>,
        #[serde(default)]
        weight: Field<Number>,
        #[serde(default)]
        data: Field<Object>,
        #[serde(default)]
        notes: Field<Option<String>>,
        #[serde(default)]
        tags: Field<Vec<String>>,
    }

    fn parse(text: &str) -> Result<Sample, Problem> {
        parse_object(text.as_bytes())
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (text, culprit) in [
            (r#"{"surplus":1}"#, "surplus"),
            (r#"{"name":"a","name":"b"}"#, "name"),
            (r#"{"name":5}"#, "name"),
            (r#"{"name":null}"#, "name"),
            (r#"{"cost":null}"#, "cost"),
            (r#"{"cost":[]}"#, "cost"),
            (r#"{"cost":true}"#, "cost"),
            (r#"{"count":1.5}"#, "count"),
            (r#"{"count":1e-30}"#, "count"),
            (r#"{"count":"1"}"#, "count"),
            (r#"{"weight":"1"}"#, "weight"),
            (r#"{"data":[]}"#, "data"),
            (r#"{"data":{"k":1,"k":2}}"#, "data"),
            (r#"{"tags":["a",null]}"#, "tags[1]"),
        ] {
            let document = parse(text).expect_err(text).document();
            assert_eq!((document.status, document.code.as_str()), (400, "invalid_request"), "{text}");
            assert_eq!(document.field.as_deref(), Some(culprit), "{text}: {}", document.detail);
            assert!(document.detail.contains(culprit), "{text}: {}", document.detail);
        }
        for text in
            ["", "{", "[]", "5", "null", r#"["a"]"#, "{}x", "{} {}", r#"{"name":"\ud800"}"#, "{\"name\":\"a\nb\"}"]
        {
            assert_eq!(parse(text).expect_err(text).document().status, 400, "{text}");
        }
        assert_eq!(parse_object::<Sample>(b"{\"name\":\"\xff\"}").unwrap_err().document().status, 400);
    }

    #[test]
    fn numbers_are_read_by_their_text() {
        let money = |text: &str| parse(text).unwrap().cost.given().unwrap().money("cost");
        for (text, shown) in [
            (r#"{"cost":0.1}"#, "0.1"),
            (r#"{"cost":"0.10"}"#, "0.1"),
            (r#"{"cost":1e2}"#, "100"),
            (r#"{"cost":123456789012345678.123456789}"#, "123456789012345678.123456789"),
        ] {
            assert_eq!(money(text).unwrap().to_string(), shown);
        }
        for text in [r#"{"cost":"abc"}"#, r#"{"cost":""}"#, r#"{"cost":0.1234567891}"#, r#"{"cost":1e99}"#] {
            assert_eq!(money(text).unwrap_err().field, "cost", "{text}");
        }
        let count = |text: &str| parse(text).unwrap().count.given().unwrap().0;
        assert_eq!(count(r#"{"count":30}"#), 30);
        assert_eq!(count(r#"{"count":30.0}"#), 30);
        assert_eq!(count(r#"{"count":-1}"#), -1);
        assert_eq!(count(&format!(r#"{{"count":{}}}"#, "9".repeat(60))), i128::MAX);
        assert_eq!(count(r#"{"count":1e999}"#), i128::MAX);
        let weight = |text: &str| parse(text).unwrap().weight.given().unwrap().0;
        assert_eq!(weight(r#"{"weight":0.5}"#), 0.5);
        assert_eq!(weight(r#"{"weight":1e999}"#), f64::INFINITY);
    }

    #[test]
    fn null_is_a_value_only_where_it_is_asked_for() {
        assert_eq!(parse(r#"{"notes":null}"#).unwrap().notes, Field::Given(None));
        assert_eq!(parse("{}").unwrap().notes, Field::Absent);
        assert_eq!(parse(r#"{"notes":"x"}"#).unwrap().notes, Field::Given(Some("x".into())));
    }

    #[test]
    fn an_object_that_breaks_a_rule_is_well_formed() {
        let large = format!(r#"{{"data":{{"k":"{}"}}}}"#, "x".repeat(70_000));
        assert!(parse(&large).unwrap().data.given().unwrap().checked("data").is_err());
        let object = parse(r#"{"data":{"b":1.10,"a":"x"}}"#).unwrap().data.given().unwrap().checked("data").unwrap();
        assert_eq!(object.as_str(), r#"{"a":"x","b":1.10}"#);
    }
}
