//! A1111's weights: `(word)`, `[word]`, `(word:1.3)`, escapes and `BREAK`.
//!
//! Source: the syntax of AUTOMATIC1111's stable-diffusion-webui, "Attention/emphasis" in its list of features.

use super::limits::{MAX_NESTING, check_nesting, check_weight};
use crate::error::Result;

/// What round brackets multiply by, and square ones divide by.
const STRENGTH: f64 = 1.1;

/// The word that begins a new chunk.
const BREAK: &str = "BREAK";

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Words of one weight.
    Text { text: String, weight: f64 },
    /// What follows begins a new chunk.
    Break,
}

/// Where a bracket opened: at this piece.
type Opened = Vec<usize>;

/// The words of a prompt with their weights, neighbours of one weight joined.
///
/// Brackets of the two kinds count apart from each other. One that is never closed reaches to the end, one that
/// closes nothing is a character.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for weights or nesting without reason.
pub(super) fn parse(prompt: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut round, mut square) = (Opened::new(), Opened::new());
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
            ')' if !round.is_empty() => close(&mut pieces, &mut round, STRENGTH),
            ']' if !square.is_empty() => close(&mut pieces, &mut square, STRENGTH.recip()),
            ':' if !round.is_empty() && closing_weight(rest).is_some() => {
                if let Some((weight, end)) = closing_weight(rest) {
                    close(&mut pieces, &mut round, weight);
                    length = end;
                }
            }
            ')' | ']' | ':' => push(&mut pieces, first.to_string()),
            _ => {
                let special = |c| matches!(c, '\\' | '(' | ')' | '[' | ']' | ':');
                length = rest.find(special).unwrap_or(rest.len());
                push_with_breaks(&mut pieces, &rest[..length]);
            }
        }
        check_nesting(round.len().max(square.len()), MAX_NESTING)?;
        rest = &rest[length..];
    }
    while !round.is_empty() {
        close(&mut pieces, &mut round, STRENGTH);
    }
    while !square.is_empty() {
        close(&mut pieces, &mut square, STRENGTH.recip());
    }
    let joined = joined(pieces);
    for piece in &joined {
        if let Piece::Text { weight, .. } = piece {
            check_weight(*weight)?;
        }
    }
    Ok(joined)
}

/// The weight and the length of `:1.3)` at the beginning of a text.
fn closing_weight(text: &str) -> Option<(f64, usize)> {
    let (number, _) = text.strip_prefix(':')?.split_once(')')?;
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let is_number = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let weight = number.parse().ok().filter(|_| is_number)?;
    Some((weight, number.len() + 2))
}

/// Multiplies all pieces since the last bracket opened.
fn close(pieces: &mut [Piece], opened: &mut Opened, factor: f64) {
    let start = opened.pop().unwrap_or(pieces.len());
    for piece in &mut pieces[start..] {
        if let Piece::Text { weight, .. } = piece {
            *weight *= factor;
        }
    }
}

fn push(pieces: &mut Vec<Piece>, text: String) {
    pieces.push(Piece::Text { text, weight: 1.0 });
}

/// Text in which `BREAK` may stand as a word of its own.
fn push_with_breaks(pieces: &mut Vec<Piece>, text: &str) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut done = 0;
    for (at, word) in text.match_indices(BREAK) {
        let before = text[..at].chars().next_back().is_some_and(is_word);
        let after = text[at + word.len()..].chars().next().is_some_and(is_word);
        if !before && !after {
            push(pieces, text[done..at].trim().to_owned());
            pieces.push(Piece::Break);
            done = at + word.len();
        }
    }
    let rest = &text[done..];
    push(
        pieces,
        if done > 0 { rest.trim_start() } else { rest }.to_owned(),
    );
}

fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (
                Some(Piece::Text { text, weight }),
                Piece::Text {
                    text: more,
                    weight: other,
                },
            ) if *weight == other => text.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f64)> {
        let piece = |piece| match piece {
            Piece::Text { text, weight } => (text, weight),
            Piece::Break => ("BREAK".to_owned(), -1.0),
        };
        parse(prompt)
            .expect(prompt)
            .into_iter()
            .map(piece)
            .collect()
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
        assert_eq!(texts("(a BREAK b)"), ["a", "BREAK", "b"]);
    }

    #[test]
    fn what_is_no_weight_is_text() {
        assert_eq!(pieces("(a:1.2.3)"), [("a:1.2.3".to_owned(), 1.1)]);
        assert_eq!(pieces("a:1.3)"), [("a:1.3)".to_owned(), 1.0)]);
        assert_eq!(pieces("(a:)"), [("a:".to_owned(), 1.1)]);
        assert_eq!(pieces("(a:-0.5)"), [("a".to_owned(), -0.5)]);
        assert_eq!(pieces(r"a\b\\"), [(r"ab\".to_owned(), 1.0)]);
        assert!(parse("(a:99999)").is_err());
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&")".repeat(100_000)).is_ok());
    }
}
