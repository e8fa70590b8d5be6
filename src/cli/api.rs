//! The sidecar's API as commands use it: paths and queries, answers as JSON, refusals as failures.

use std::fmt::Display;

use form_urlencoded::Serializer;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{Answer, Call, Client};
use super::failure::Failure;
use super::output::{Field, Output};

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `prefix/{id}suffix`, the id percent-encoded.
pub fn path(prefix: &str, id: &str, suffix: &str) -> String {
    format!("{prefix}/{}{suffix}", utf8_percent_encode(id, SEGMENT))
}

/// A query string in the making.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Adds a parameter, if it has a value.
    pub fn with(mut self, name: &'static str, value: Option<impl Display>) -> Self {
        if let Some(value) = value {
            self.0.push((name, value.to_string()));
        }
        self
    }

    /// Adds a parameter that is false when absent.
    pub fn flag(self, name: &'static str, set: bool) -> Self {
        self.with(name, set.then_some("true"))
    }

    /// The path with this query behind it.
    pub fn on(&self, path: &str) -> String {
        if self.0.is_empty() {
            return path.to_owned();
        }
        let query = Serializer::new(String::new()).extend_pairs(&self.0).finish();
        format!("{path}?{query}")
    }
}

impl Client {
    /// Sends a request and returns an answer that is a success.
    ///
    /// # Errors
    /// As [`Client::call`], and the problem that the server answered with.
    pub fn ask(&self, call: &Call) -> Result<Answer, Failure> {
        success(self.call(call)?)
    }

    /// Sends a request and shows the entity that it answers with.
    pub fn show(&self, call: &Call, fields: &[Field], output: &mut Output) -> Result<(), Failure> {
        let answer = self.ask(call)?;
        if output.is_json() { output.json(&answer.body) } else { output.entity(fields, &parse::<Value>(&answer)?) }
    }

    /// Sends a request and shows the `items` that it answers with.
    pub fn show_items(&self, call: &Call, fields: &[Field], output: &mut Output) -> Result<(), Failure> {
        let answer = self.ask(call)?;
        if output.is_json() {
            return output.json(&answer.body);
        }
        let list = parse::<Value>(&answer)?;
        let items = list["items"].as_array().ok_or_else(not_ours)?;
        output.rows(fields, items)
    }
}

/// An answer's body.
pub fn parse<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    serde_json::from_slice(&answer.body).map_err(|_| not_ours())
}

/// Something answers there, but no sidecar of this kind.
pub fn not_ours() -> Failure {
    Failure::unreachable("what answers there is not Tradepost, or not this version of it; check --url or --socket")
}

/// Turns an answer that is no success into a failure.
pub fn success(answer: Answer) -> Result<Answer, Failure> {
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    match problem_words(&answer) {
        Some(words) => Err(Failure::Problem { words, json: answer.body }),
        None => Err(not_ours()),
    }
}

fn problem_words(answer: &Answer) -> Option<String> {
    let problem: Value = serde_json::from_slice(&answer.body).ok().filter(|_| answer.is_problem)?;
    problem_in_words(&problem)
}

/// `title: detail (code)`.
pub fn problem_in_words(problem: &Value) -> Option<String> {
    let code = problem["code"].as_str()?;
    let title = problem["title"].as_str()?;
    Some(match problem["detail"].as_str() {
        Some(detail) => format!("{title}: {detail} ({code})"),
        None => format!("{title} ({code})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_values_are_encoded() {
        assert_eq!(path("/v1/agents", "a/b c?é", "/heartbeat"), "/v1/agents/a%2Fb%20c%3F%C3%A9/heartbeat");
        let query = Query::default()
            .with("capability", Some("c++ & more"))
            .with("agent", None::<String>)
            .with("since", Some("2026-11-22T23:50:31+00:00"))
            .flag("include_busy", true)
            .flag("include_expired", false);
        assert_eq!(
            query.on("/p"),
            "/p?capability=c%2B%2B+%26+more&since=2026-11-22T23%3A50%3A31%2B00%3A00&include_busy=true"
        );
        assert_eq!(Query::default().on("/p"), "/p");
    }
}
