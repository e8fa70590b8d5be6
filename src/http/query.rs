//! Strict query strings: every parameter is known and, unless it says otherwise, given once.
//!
//! Use in two steps, since 400 comes before 422: take every parameter, [`finish`](Query::finish), then read the values.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::json::Decimal;
use super::problem::Problem;
use crate::domain::{AgentId, AvailabilityStatus, Capability, Currency, Money, Timestamp};

/// How many items a page has when the request does not say.
const DEFAULT_LIMIT: usize = 100;

/// A decoded query string whose parameters are taken one by one.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

/// The text of one parameter, still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    name: &'static str,
    text: String,
}

impl Query {
    /// # Errors
    /// 400 for what is not percent-encoded UTF-8.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let name =
                    decode(name).ok_or_else(|| Problem::malformed("the query has a malformed parameter name"))?;
                match decode(value) {
                    Some(value) => Ok((name, value)),
                    None => Err(Problem::malformed_at(
                        name.clone(),
                        format!("the value of the parameter `{name}` is not percent-encoded UTF-8"),
                    )),
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// A parameter that may be absent.
    ///
    /// # Errors
    /// 400 when it is repeated.
    pub(crate) fn optional(&mut self, name: &'static str) -> Result<Option<Value>, Problem> {
        let mut values = self.repeated(name);
        let value = values.pop();
        if values.is_empty() {
            Ok(value)
        } else {
            Err(Problem::malformed_at(name, format!("the parameter `{name}` is repeated")))
        }
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// 400 when it is missing or repeated.
    pub(crate) fn required(&mut self, name: &'static str) -> Result<Value, Problem> {
        self.optional(name)?.ok_or_else(|| Problem::malformed_at(name, format!("the parameter `{name}` is missing")))
    }

    /// A parameter that may be given any number of times.
    pub(crate) fn repeated(&mut self, name: &'static str) -> Vec<Value> {
        self.pairs.extract_if(.., |(given, _)| given == name).map(|(_, text)| Value { name, text }).collect()
    }

    /// # Errors
    /// 400 when a parameter is left that nobody took.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        match self.pairs.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let detail = format!("the parameter `{name}` is not known here");
                Err(Problem::malformed_at(name, detail))
            }
        }
    }
}

impl Value {
    fn refused(&self, reason: impl Into<String>) -> Problem {
        Problem::invalid(self.name, reason)
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }

    pub(crate) fn capability(&self) -> Result<Capability, Problem> {
        Ok(Capability::parse(self.name, &self.text)?)
    }

    pub(crate) fn agent_id(&self) -> Result<AgentId, Problem> {
        Ok(AgentId::parse(self.name, &self.text)?)
    }

    pub(crate) fn currency(&self) -> Result<Currency, Problem> {
        Ok(Currency::parse(self.name, &self.text)?)
    }

    pub(crate) fn availability(&self) -> Result<AvailabilityStatus, Problem> {
        Ok(AvailabilityStatus::parse(self.name, &self.text)?)
    }

    pub(crate) fn time(&self) -> Result<Timestamp, Problem> {
        Timestamp::parse(&self.text).map_err(|error| self.refused(error.to_string()))
    }

    pub(crate) fn money(&self) -> Result<Money, Problem> {
        Ok(Decimal::parse(&self.text).money(self.name)?)
    }

    /// A finite number in JSON's grammar, as the nearest double.
    pub(crate) fn number(&self) -> Result<f64, Problem> {
        serde_json::from_str::<serde_json::Number>(&self.text)
            .ok()
            .and_then(|number| number.as_f64())
            .filter(|value| value.is_finite() && !self.text.contains(char::is_whitespace))
            .ok_or_else(|| self.refused("must be a finite number"))
    }

    pub(crate) fn flag(&self) -> Result<bool, Problem> {
        match self.text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.refused("must be true or false")),
        }
    }

    /// 1 to 1000.
    pub(crate) fn count(&self) -> Result<usize, Problem> {
        let digits = !self.text.is_empty() && self.text.bytes().all(|byte| byte.is_ascii_digit());
        match self.text.parse() {
            Ok(count @ 1..=1_000) if digits => Ok(count),
            _ => Err(self.refused("must be a whole number from 1 to 1000")),
        }
    }

    /// One of a closed set of words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Problem> {
        words.iter().find(|(word, _)| *word == self.text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refused(format!("must be one of {}", words.join(", ")))
        })
    }
}

/// The `limit` of a list.
pub(crate) fn limit(value: Option<Value>) -> Result<usize, Problem> {
    value.map_or(Ok(DEFAULT_LIMIT), |value| value.count())
}

/// `application/x-www-form-urlencoded`, strictly: no stray `%`, and UTF-8.
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let mut stray = bytes.iter().enumerate().filter(|(at, byte)| **byte == b'%' && !(is_hex(at + 1) && is_hex(at + 2)));
    if stray.next().is_some() {
        return None;
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(query: &str) -> (u16, String) {
        let read = || {
            let mut query = Query::parse(Some(query))?;
            let (limit_text, since) = (query.optional("limit")?, query.optional("since")?);
            let all = query.repeated("capability");
            query.finish()?;
            limit(limit_text)?;
            since.map(|value| value.time()).transpose()?;
            all.iter().map(Value::capability).collect::<Result<Vec<_>, _>>()
        };
        let document = read().expect_err(query).document();
        (document.status, document.field.unwrap_or_default().into_owned())
    }

    #[test]
    fn faults_are_named_and_400_comes_before_422() {
        for (query, status, field) in [
            ("surplus=1", 400, "surplus"),
            ("limit=1&limit=1", 400, "limit"),
            ("limit=0&surplus", 400, "surplus"),
            ("limit=%zz", 400, "limit"),
            ("capability=%ff", 400, "capability"),
            ("limit=", 422, "limit"),
            ("limit=0", 422, "limit"),
            ("limit=1001", 422, "limit"),
            ("limit=%2B5", 422, "limit"),
            ("limit=ten", 422, "limit"),
            ("since=yesterday", 422, "since"),
            ("capability=a&capability=", 422, "capability"),
        ] {
            assert_eq!(refused(query), (status, field.to_owned()), "{query}");
        }
    }

    #[test]
    fn values_are_decoded_and_a_plus_in_a_time_survives() {
        let mut query = Query::parse(Some("capability=A%20b&capability=c+d&&since=2026-11-22T23:50:31+00:00")).unwrap();
        let all: Vec<String> =
            query.repeated("capability").iter().map(|value| value.capability().unwrap().to_string()).collect();
        assert_eq!(all, ["a b", "c d"]);
        let since = query.required("since").unwrap().time().unwrap();
        assert_eq!(since.to_string(), "2026-11-22T23:50:31.000000+00:00");
        query.finish().unwrap();
    }

    #[test]
    fn numbers_are_finite_and_in_jsons_grammar() {
        let number = |text: &str| Value { name: "min_score", text: text.into() }.number();
        assert_eq!(number("4.5"), Ok(4.5));
        assert_eq!(number("-1e0"), Ok(-1.0));
        for bad in ["", "nan", "inf", "1e999", "+1", ".5", "0x1", " 1"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
