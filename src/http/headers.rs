//! The request headers that change what a write or a read means: `Idempotency-Key`, `If-Match`, `If-None-Match`.

use axum::http::{HeaderMap, HeaderName, header};

use super::problem::Problem;
use crate::engine::{Idempotency, Precondition};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const KEY_FIELD: &str = "Idempotency-Key";

/// An idempotency key that was given once, still to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenKey(Option<Vec<u8>>);

/// The `Idempotency-Key`, if there is one.
///
/// # Errors
/// 400 when it is repeated.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<GivenKey, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let key = values.next().map(|value| value.as_bytes().to_vec());
    match values.next() {
        None => Ok(GivenKey(key)),
        Some(_) => Err(Problem::malformed_at(KEY_FIELD, "Idempotency-Key is repeated")),
    }
}

/// # Errors
/// 400 when there is an `Idempotency-Key` where none is taken.
pub(crate) fn no_idempotency_key(headers: &HeaderMap, instead: &str) -> Result<(), Problem> {
    if headers.contains_key(IDEMPOTENCY_KEY) {
        return Err(Problem::malformed_at(KEY_FIELD, format!("Idempotency-Key is not taken here: {instead}")));
    }
    Ok(())
}

impl GivenKey {
    /// Ties the key to its request.
    ///
    /// # Errors
    /// 422 unless the key is 1 to 255 printable ASCII characters.
    pub(crate) fn of_request(self, method: &str, path: &str, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
        let Some(key) = self.0 else { return Ok(None) };
        // Where a body may be left out, an empty object says the same.
        let body = if body.trim_ascii() == b"{}" { b"" } else { body };
        let printable = key.iter().all(|byte| (b' '..=b'~').contains(byte));
        match String::from_utf8(key) {
            Ok(key) if printable && (1..=255).contains(&key.len()) => {
                Ok(Some(Idempotency { key, request: request_hash([method.as_bytes(), path.as_bytes(), body]) }))
            }
            _ => Err(Problem::invalid(KEY_FIELD, "must be 1 to 255 printable ASCII characters")),
        }
    }
}

/// blake3 over the parts, each behind its length, so that no two requests meet in one text.
fn request_hash(parts: [&[u8]; 3]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// `If-Match` (RFC 9110, 13.1.1). Tags that are no revision of ours, weak ones among them, match nothing.
///
/// # Errors
/// 400 when it is malformed.
pub(crate) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    Ok(match tags(headers, header::IF_MATCH, "If-Match")? {
        None => Precondition::None,
        Some(Tags::Any) => Precondition::Exists,
        Some(Tags::Listed(tags)) => {
            Precondition::RevisionIn(tags.iter().filter(|tag| !tag.weak).filter_map(Tag::revision).collect())
        }
    })
}

/// Whether `If-None-Match` names this revision (RFC 9110, 13.1.2; weak comparison).
///
/// # Errors
/// 400 when it is malformed.
pub(crate) fn unchanged_since(headers: &HeaderMap) -> Result<impl Fn(u64) -> bool + use<>, Problem> {
    let tags = tags(headers, header::IF_NONE_MATCH, "If-None-Match")?;
    Ok(move |revision: u64| match &tags {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::Listed(tags)) => tags.iter().any(|tag| tag.revision() == Some(revision)),
    })
}

/// The entity tag of a revision.
pub(crate) fn entity_tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    Listed(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    text: String,
}

impl Tag {
    /// The revision that it is the tag of: only in the form in which we write it.
    fn revision(&self) -> Option<u64> {
        self.text.parse().ok().filter(|revision: &u64| revision.to_string() == self.text)
    }
}

fn tags(headers: &HeaderMap, name: HeaderName, field: &'static str) -> Result<Option<Tags>, Problem> {
    let mut lines = Vec::new();
    for value in headers.get_all(name) {
        lines.push(value.to_str().map_err(|_| malformed_tags(field))?);
    }
    if lines.is_empty() {
        return Ok(None);
    }
    // Several lines of a list are one list (RFC 9110, 5.3).
    parse_tags(&lines.join(",")).map(Some).ok_or_else(|| malformed_tags(field))
}

fn malformed_tags(field: &'static str) -> Problem {
    Problem::malformed_at(field, format!("{field} must be `*` or a list of entity tags such as \"7\""))
}

fn parse_tags(list: &str) -> Option<Tags> {
    if list.trim() == "*" {
        return Some(Tags::Any);
    }
    let mut tags = Vec::new();
    let mut rest = list.trim_start();
    loop {
        // A list may have empty elements (RFC 9110, 5.6.1.2), but not be empty.
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
            continue;
        }
        if rest.is_empty() {
            return (!tags.is_empty()).then_some(Tags::Listed(tags));
        }
        let (weak, opened) = match rest.strip_prefix("W/") {
            Some(opened) => (true, opened),
            None => (false, rest),
        };
        let (text, after) = opened.strip_prefix('"')?.split_once('"')?;
        if text.contains([' ', '\t']) {
            return None;
        }
        tags.push(Tag { weak, text: text.to_owned() });
        rest = after.trim_start();
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn if_match_is_a_list_of_revisions_or_a_star() {
        let of = |values: &[&str]| precondition(&with(header::IF_MATCH, values)).ok();
        assert_eq!(of(&[]), Some(Precondition::None));
        assert_eq!(of(&["*"]), Some(Precondition::Exists));
        assert_eq!(of(&["\"7\""]), Some(Precondition::RevisionIn(vec![7])));
        assert_eq!(of(&["\"7\" , \"8\"", "\"9\""]), Some(Precondition::RevisionIn(vec![7, 8, 9])));
        assert_eq!(of(&["W/\"7\", \"x\", \"07\", \"a,b\""]), Some(Precondition::RevisionIn(vec![])));
        for malformed in ["", "7", "\"7", "\"7\" \"8\"", "*, \"7\"", ",", "w/\"7\"", "\"7\"x"] {
            assert_eq!(of(&[malformed]), None, "{malformed:?}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let names = |value: &str| unchanged_since(&with(header::IF_NONE_MATCH, &[value])).unwrap()(7);
        assert!(names("\"7\"") && names("W/\"7\"") && names("*") && names("\"6\",\"7\""));
        assert!(!names("\"8\""));
        assert!(!unchanged_since(&HeaderMap::new()).unwrap()(7));
    }

    #[test]
    fn an_idempotency_key_is_tied_to_its_request() {
        let bind = |value: &str, path: &str, body: &[u8]| {
            idempotency_key(&with(IDEMPOTENCY_KEY, &[value])).unwrap().of_request("POST", path, body)
        };
        let first = bind("k 1", "/v1/agents", b"{}").unwrap().unwrap();
        assert_eq!(first.key, "k 1");
        assert_eq!(bind("k 1", "/v1/agents", b"{}").unwrap().unwrap(), first);
        assert_eq!(bind("k 1", "/v1/agents", b"").unwrap().unwrap(), first, "both say nothing");
        assert_ne!(bind("k 1", "/v1/agents{", b"}").unwrap().unwrap().request, first.request);
        assert!(bind(&"k".repeat(255), "/", b"").is_ok());
        for bad in ["", &"k".repeat(256), "a\tb"] {
            assert_eq!(bind(bad, "/", b"").unwrap_err().document().code, "invalid_idempotency_key", "{bad:?}");
        }
        assert_eq!(idempotency_key(&with(IDEMPOTENCY_KEY, &["a", "a"])).unwrap_err().document().status, 400);
    }
}
