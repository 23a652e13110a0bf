//! A1111's composition of several prompts: `a cat :1.2 AND a dog :-0.5`.
//!
//! Source: the syntax of AUTOMATIC1111's stable-diffusion-webui, "Composable Diffusion" in its list of features.

use super::limits::{MAX_PARTS, check_weight};
use crate::error::{Error, Result};

/// The word between prompts.
const AND: &str = "AND";

/// The prompts that stand between `AND`, each with its weight. A prompt alone has none: what looks like one, as in
/// `16:9`, is text.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are too many or a weight is without reason.
pub(super) fn split(prompt: &str) -> Result<Vec<(&str, f64)>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut parts = Vec::new();
    let mut done = 0;
    for (at, word) in prompt.match_indices(AND) {
        let before = prompt[..at].chars().next_back().is_some_and(is_word);
        let after = prompt[at + word.len()..]
            .chars()
            .next()
            .is_some_and(is_word);
        if !before && !after {
            parts.push(&prompt[done..at]);
            done = at + word.len();
        }
    }
    if parts.is_empty() {
        return Ok(vec![(prompt, 1.0)]);
    }
    parts.push(&prompt[done..]);
    if parts.len() > MAX_PARTS {
        let expected = format!("at most {MAX_PARTS} prompts between {AND}");
        return Err(Error::argument("prompt", expected, parts.len()));
    }
    let weigh = |part| {
        let (text, weight) = weighted(part);
        check_weight(weight)?;
        Ok((text, weight))
    };
    parts.into_iter().map(weigh).collect()
}

/// A prompt without the weight at its end, and the weight.
fn weighted(prompt: &str) -> (&str, f64) {
    let trimmed = prompt.trim_end();
    let number = |text: &str| {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let is_number = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
        text.parse::<f64>().ok().filter(|_| is_number)
    };
    match trimmed.rsplit_once(':') {
        Some((text, weight)) => match number(weight.trim_start()) {
            Some(weight) => (text.trim_end(), weight),
            None => (trimmed, 1.0),
        },
        None => (trimmed, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_weights() {
        let split = |prompt| split(prompt).expect("few prompts");
        assert_eq!(split("a cat"), [("a cat", 1.0)]);
        assert_eq!(
            split("a cat :1.2 AND a dog: -0.5 AND\nbirds"),
            [("a cat", 1.2), (" a dog", -0.5), ("\nbirds", 1.0)]
        );
        assert_eq!(split("A BRAND AND_X sANDy"), [("A BRAND AND_X sANDy", 1.0)]);
        assert_eq!(split("ratio 16:9"), [("ratio 16:9", 1.0)]);
        assert_eq!(split("a:b AND "), [("a:b", 1.0), ("", 1.0)]);
        assert_eq!(split(""), [("", 1.0)]);
        assert!(super::split(&"a AND ".repeat(100)).is_err());
        assert!(super::split("a :99999999 AND b").is_err());
    }
}
