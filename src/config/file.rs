//! The `--config` file: flat TOML whose keys are the flags' names.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::ConfigError;
use super::layers::{Setting, Values};
use super::secret::{self, UrlParts};

/// More than any settings; a larger file is a mistake.
const LARGEST_BYTES: u64 = 1024 * 1024;

/// A configuration file's values as typed.
pub struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) values: Values,
}

impl ConfigFile {
    /// Reads and checks a file, whether or not something else outranks its values later.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let file = secret::read_file(path, LARGEST_BYTES)?;
        let table: Table = toml::from_str(&file.text).map_err(|error| {
            // Not the error's own display: that quotes the line, which may hold a password.
            let line = error.span().map_or(1, |span| 1 + file.text[..span.start].matches('\n').count());
            ConfigError::new(&place, format!("is not TOML: {} (line {line})", error.message()))
        })?;
        let mut values = Values::default();
        for (key, value) in &table {
            let setting = setting_of(key).map_err(|reason| ConfigError::new(&place, reason))?;
            let text = text_of(value).ok_or_else(|| {
                ConfigError::new(
                    format!("`{setting}` in {place}"),
                    "must be a text, a number, true or false, or a list of texts",
                )
            })?;
            values.set(setting, Some(text));
        }
        for setting in [Setting::RedisUrl, Setting::PostgresUrl] {
            let has_password = values
                .get(setting)
                .and_then(|url| url.to_str())
                .is_some_and(|url| UrlParts::split(url).is_none_or(|parts| parts.has_password()));
            if has_password {
                file.require_private(&format!("it holds a password in `{setting}`"))?;
            }
        }
        Ok(Self { path: path.to_owned(), values })
    }
}

fn setting_of(key: &str) -> Result<Setting, String> {
    let named = |name: &str| Setting::ALL.into_iter().find(|setting| setting.name() == name);
    named(key).ok_or_else(|| match named(&key.replace('_', "-")) {
        Some(setting) => format!("has the unknown key {key:?}; it is written `{setting}`"),
        None => format!("has the unknown key {key:?}; keys are the flags of `tradepost serve` without `--`"),
    })
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Array(items) => {
            let texts = items.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?;
            Some(texts.join(","))
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}
