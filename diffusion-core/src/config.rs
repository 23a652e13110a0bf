//! Reading JSON settings.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// A setting that is one value for all levels of a model or a list with one for each.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum PerLevel<T> {
    /// One for each level. First, so that a list is a list of levels where `T` may be a list itself.
    Each(Vec<T>),
    /// The same everywhere.
    Same(T),
}

impl<T: Clone> PerLevel<T> {
    /// The list with one value for each of `levels`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a list has another length.
    pub fn to_vec(&self, name: &'static str, levels: usize) -> Result<Vec<T>> {
        match self {
            Self::Same(value) => Ok(vec![value.clone(); levels]),
            Self::Each(values) if values.len() == levels => Ok(values.clone()),
            Self::Each(values) => Err(Error::argument(
                name,
                format!("one value for each of {levels} blocks"),
                values.len(),
            )),
        }
    }
}

/// Reads a JSON file as Python writes it: with `Infinity`, `-Infinity` and `NaN`, which become null.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    parse_json(&read_text(path)?).map_err(|e| Error::format(path, e))
}

/// Reads a text that a model needs.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Io`] if the file cannot be read.
pub fn read_text(path: &Path) -> Result<String> {
    let hint = "the model needs this file; copy or download it again";
    std::fs::read_to_string(path).map_err(|e| Error::open(path, e, hint))
}

/// Parses JSON as Python writes it: with `Infinity`, `-Infinity` and `NaN`, which become null.
///
/// # Errors
/// The parser's, if it is not JSON.
pub fn parse_json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&without_non_finite(text))
}

fn without_non_finite(text: &str) -> String {
    // Every second piece between quotes is inside a string, once escaped quotes are stepped over.
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(quote) = rest.find('"') {
        output += &replace_non_finite(&rest[..quote]);
        let string = &rest[quote + 1..];
        let mut escaped = false;
        let end = string.bytes().position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        });
        let end = quote + 1 + end.map_or(string.len(), |end| end + 1);
        output += &rest[quote..end];
        rest = &rest[end..];
    }
    output + &replace_non_finite(rest)
}

fn replace_non_finite(text: &str) -> String {
    text.replace("-Infinity", "null")
        .replace("Infinity", "null")
        .replace("NaN", "null")
}

/// No number in a model's configuration is as large: counts of channels, layers, tokens and pixels.
const MAX_NUMBER: u64 = 1 << 24;

/// Parses a model's configuration.
///
/// # Errors
/// [`Error::Format`] with `path` and the parser's reason, or for a number that no model has.
pub fn parse_model<T: DeserializeOwned>(path: &Path, json: &Value) -> Result<T> {
    for (name, value) in json.as_object().into_iter().flatten() {
        if let Some(number) = largest(value).filter(|&number| number > MAX_NUMBER) {
            let reason = format!("{name}: expected at most {MAX_NUMBER}, found {number}");
            return Err(Error::format(path, reason));
        }
    }
    parse(path, json)
}

fn largest(value: &Value) -> Option<u64> {
    match value {
        Value::Array(values) => values.iter().filter_map(largest).max(),
        value => value.as_u64(),
    }
}

/// Checks that a model has some levels, each with some channels, and not absurdly many.
///
/// # Errors
/// [`Error::InvalidArgument`] if not.
pub fn check_levels(name: &'static str, channels: &[usize]) -> Result<()> {
    if (1..=MAX_LEVELS).contains(&channels.len()) && channels.iter().all(|&count| count > 0) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_LEVELS} levels of at least 1 channel");
    Err(Error::argument(name, expected, format!("{channels:?}")))
}

/// The most levels of a model; each halves the picture.
const MAX_LEVELS: usize = 16;

/// Parses settings. Those that are null count as absent.
///
/// # Errors
/// [`Error::Format`] with `path` and the parser's reason.
pub fn parse<T: DeserializeOwned>(path: &Path, json: &Value) -> Result<T> {
    let mut json = json.clone();
    if let Some(fields) = json.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    T::deserialize(json).map_err(|e| Error::format(path, e))
}

/// Refuses settings that would change the picture and that this version ignores: each of `defaults`
/// must be absent, null or the value given.
///
/// # Errors
/// [`Error::Unsupported`] with the setting's name and value.
pub fn require_defaults(model: &str, json: &Value, defaults: &[(&str, Value)]) -> Result<()> {
    for (name, default) in defaults {
        let found = json.get(name).unwrap_or(&Value::Null);
        if !found.is_null() && found != default {
            return Err(Error::unsupported(
                format!("{model} with {name} = {found}"),
                format!("it must be {default} or absent"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_become_null_outside_strings() {
        let python =
            r#"{"a": -Infinity, "NaN \"Infinity": [NaN, "\\", Infinity], "b": "-Infinity"}"#;
        let json = r#"{"a": null, "NaN \"Infinity": [null, "\\", null], "b": "-Infinity"}"#;
        assert_eq!(without_non_finite(python), json);
        assert_eq!(without_non_finite("\"open NaN"), "\"open NaN");
    }
}
