//! A1111's weights: `(word)`, `[word]`, `(word:1.3)`, escapes and `BREAK`.
//!
//! Source: the syntax of AUTOMATIC1111's stable-diffusion-webui, "Attention/emphasis" in its list of features.

use super::limits::{MAX_NESTING, check_nesting, check_weight};
use crate::error::Result;

/// What round brackets multiply by, and square ones divide by.
const STRENGTH: f64 = 1.1;

/// The word that begins a new chunk, and the weight that tells it from a word in brackets.
const BREAK: &str = "BREAK";
const BREAK_WEIGHT: f64 = -1.0;

/// Words of one weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) weight: f64,
}

impl Piece {
    /// Whether what follows begins a new chunk. A `BREAK` in brackets has their weight, too, and is a word, as in A1111.
    pub(super) fn is_break(&self) -> bool {
        self.text == BREAK && self.weight == BREAK_WEIGHT
    }
}

/// The words of a prompt with their weights, neighbours of one weight joined.
///
/// Brackets of the two kinds count apart from each other. One that is never closed reaches to the end, one that
/// closes nothing is a character.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for weights or nesting without reason.
pub(super) fn parse(prompt: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    // Where brackets opened: at these pieces.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next();
                let escaped = escaped.filter(|c| matches!(c, '(' | ')' | '[' | ']' | '\\'));
                push(&mut pieces, escaped.map(String::from).unwrap_or_default());
                length += escaped.map_or(0, char::len_utf8);
            }
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ')' if !round.is_empty() => multiply(&mut pieces, round.pop(), STRENGTH),
            ']' if !square.is_empty() => multiply(&mut pieces, square.pop(), STRENGTH.recip()),
            ')' | ']' => push(&mut pieces, first.to_string()),
            ':' => match closing_weight(rest) {
                Some((weight, end)) if !round.is_empty() => {
                    multiply(&mut pieces, round.pop(), weight);
                    length = end;
                }
                Some((_, end)) => {
                    push(&mut pieces, rest[..end].to_owned());
                    length = end;
                }
                None => push(&mut pieces, first.to_string()),
            },
            _ => {
                let special = |c| matches!(c, '\\' | '(' | ')' | '[' | ']' | ':');
                length = rest.find(special).unwrap_or(rest.len());
                push_with_breaks(&mut pieces, &rest[..length]);
            }
        }
        check_nesting(round.len().max(square.len()), MAX_NESTING)?;
        rest = &rest[length..];
    }
    for opened in round {
        multiply(&mut pieces, Some(opened), STRENGTH);
    }
    for opened in square {
        multiply(&mut pieces, Some(opened), STRENGTH.recip());
    }
    let joined = joined(pieces);
    joined
        .iter()
        .try_for_each(|piece| check_weight(piece.weight))?;
    Ok(joined)
}

/// The weight and the length of `:1.3)` at the beginning of a text.
fn closing_weight(text: &str) -> Option<(f64, usize)> {
    let inside = text.strip_prefix(':')?;
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    // Not the first bracket: it may be far away, and colons many.
    let is_number = |c: char| is_digit(c) || matches!(c, '+' | '-') || c.is_whitespace();
    let number = &inside[..inside.find(|c| !is_number(c))?];
    if !inside[number.len()..].starts_with(')') {
        return None;
    }
    let length = number.len() + 2;
    let number = number.trim();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let weight = number
        .parse()
        .ok()
        .filter(|_| digits.chars().all(is_digit))?;
    Some((weight, length))
}

/// Multiplies all pieces since a bracket opened.
fn multiply(pieces: &mut [Piece], opened: Option<usize>, factor: f64) {
    let start = opened.unwrap_or(pieces.len());
    for piece in &mut pieces[start..] {
        piece.weight *= factor;
    }
}

fn push(pieces: &mut Vec<Piece>, text: String) {
    pieces.push(Piece { text, weight: 1.0 });
}

/// Text in which `BREAK` may stand as a word of its own; it takes the white space around it along.
fn push_with_breaks(pieces: &mut Vec<Piece>, text: &str) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text;
    let mut from = 0;
    while let Some(at) = rest[from..].find(BREAK).map(|at| from + at) {
        let (before, after) = (&rest[..at], &rest[at + BREAK.len()..]);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            from = at + BREAK.len();
            continue;
        }
        push(pieces, before.trim_end().to_owned());
        pieces.push(Piece {
            text: BREAK.to_owned(),
            weight: BREAK_WEIGHT,
        });
        (rest, from) = (after.trim_start(), 0);
    }
    push(pieces, rest.to_owned());
}

/// Neighbours of one weight as one; of nothing an empty piece.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if last.weight == piece.weight => last.text.push_str(&piece.text),
            _ => joined.push(piece),
        }
    }
    if joined.is_empty() {
        push(&mut joined, String::new());
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f64)> {
        let pieces = parse(prompt).expect(prompt).into_iter();
        pieces.map(|piece| (piece.text, piece.weight)).collect()
    }

    #[test]
    fn the_examples_of_a1111() {
        for (prompt, expected) in [
            ("normal text", &[("normal text", 1.0)][..]),
            (
                "an (important) word",
                &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
            ),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
        ] {
            let found = pieces(prompt);
            assert_eq!(found.len(), expected.len(), "{prompt}: {found:?}");
            for ((text, weight), (wanted, of)) in found.iter().zip(expected) {
                assert_eq!(text, wanted, "{prompt}");
                assert!((weight - of).abs() < 1e-9, "{prompt}: {weight}");
            }
        }
    }

    #[test]
    fn breaks_are_words_of_their_own() {
        let texts = |prompt: &str| {
            let pieces = pieces(prompt);
            pieces.into_iter().map(|(text, _)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts("a  BREAK\nb"), ["a", "BREAK", "b"]);
        assert_eq!(texts("BREAK"), ["", "BREAK", ""]);
        assert_eq!(
            texts("a BREAKER break OUTBREAK _BREAK"),
            ["a BREAKER break OUTBREAK _BREAK"]
        );
        assert_eq!(texts("cat\\ dog  BREAK b"), ["cat dog", "BREAK", "b"]);
        let breaks = |prompt| {
            parse(prompt)
                .expect(prompt)
                .iter()
                .filter(|p| p.is_break())
                .count()
        };
        assert_eq!(breaks("BREAK BREAK a (b) BREAK"), 3);
        assert_eq!(breaks("(a BREAK b)"), 0, "a word of A1111");
    }

    #[test]
    fn what_is_no_weight_is_text() {
        assert_eq!(pieces("(a:1.2.3)"), [("a:1.2.3".to_owned(), 1.1)]);
        assert_eq!(pieces("a:1.3)"), [("a:1.3)".to_owned(), 1.0)]);
        assert_eq!(pieces("(a:)"), [("a:".to_owned(), 1.1)]);
        assert_eq!(pieces("(a: 1.3 )"), [("a".to_owned(), 1.3)]);
        assert_eq!(pieces(""), [(String::new(), 1.0)]);
        assert_eq!(pieces("(a:-0.5)"), [("a".to_owned(), -0.5)]);
        assert_eq!(pieces(r"a\b\\"), [(r"ab\".to_owned(), 1.0)]);
        assert!(parse("(a:99999)").is_err());
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&")".repeat(100_000)).is_ok());
    }
}
