//! A1111's prompt editing: texts that change along a run.
//!
//! Source: the syntax of AUTOMATIC1111's stable-diffusion-webui, "Prompt editing" and "Alternating words" in its list
//! of features.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// A text and the last step that it is for, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) last_step: usize,
    pub(super) text: String,
}

/// A pair of square brackets that says which of its parts counts in a step.
#[derive(Debug)]
enum Choice {
    /// `[before:after:when]`: the first up to a step, then the second.
    Change {
        when: f64,
        before: Range<usize>,
        after: Range<usize>,
    },
    /// `[a|b|c]`: in turn.
    Turn(Vec<Range<usize>>),
}

/// A bracket that has not been closed yet.
struct Open {
    at: usize,
    bracket: u8,
    /// Where `:` and `|` stand directly inside.
    separators: Vec<usize>,
    /// Whether what is inside has no bracket of unknown meaning.
    is_whole: bool,
}

/// The texts of a prompt in a run of `num_steps` steps, in the order of their steps; the last reaches to the end.
///
/// Brackets that say nothing about steps stay in the texts, as weights.
pub(super) fn schedule(prompt: &str, num_steps: usize) -> Vec<Entry> {
    let choices = choices(prompt, num_steps);
    let mut steps = BTreeSet::from([num_steps]);
    for (_, choice) in choices.values() {
        match choice {
            Choice::Change { when, .. } if *when >= 1.0 => {
                steps.insert(*when as usize);
            }
            Choice::Change { .. } => {}
            Choice::Turn(_) => steps.extend(1..=num_steps),
        }
    }
    let entry = |last_step| Entry {
        last_step,
        text: text_at(prompt, &choices, last_step),
    };
    steps.into_iter().map(entry).collect()
}

/// By the place of each opening bracket: where it is closed, and what it chooses between. A `|` that no brackets have
/// for themselves is not of the grammar, nor is a last character that escapes nothing; A1111 then takes all of the
/// prompt as it stands.
fn choices(prompt: &str, num_steps: usize) -> HashMap<usize, (usize, Choice)> {
    let mut choices = HashMap::new();
    let mut bars = 0;
    let mut opened: Vec<Open> = Vec::new();
    let mut escaped = false;
    for (at, byte) in prompt.bytes().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'[' | b'(' => opened.push(Open {
                at,
                bracket: byte,
                separators: Vec::new(),
                is_whole: true,
            }),
            b':' | b'|' => {
                bars += usize::from(byte == b'|');
                if let Some(open) = opened.last_mut() {
                    open.separators.push(at);
                }
            }
            b']' | b')' => {
                let is_pair = |open: &Open| (open.bracket == b'[') == (byte == b']');
                let Some(open) = opened.pop().filter(is_pair) else {
                    // What holds a stray bracket says nothing about steps.
                    opened.clear();
                    continue;
                };
                let meaning = meaning(prompt, &open, at, num_steps);
                if let (Some(outer), Meaning::None) = (opened.last_mut(), &meaning) {
                    outer.is_whole = false;
                }
                if let Meaning::Choice(choice) = meaning {
                    choices.insert(open.at, (at + 1, choice));
                }
            }
            _ => {}
        }
    }
    let in_turns = |(_, choice): &(usize, Choice)| match choice {
        Choice::Turn(parts) => parts.len() - 1,
        Choice::Change { .. } => 0,
    };
    let is_grammar = !escaped && choices.values().map(in_turns).sum::<usize>() == bars;
    match is_grammar {
        true => choices,
        false => HashMap::new(),
    }
}

enum Meaning {
    Choice(Choice),
    Weight,
    None,
}

fn meaning(prompt: &str, open: &Open, close: usize, num_steps: usize) -> Meaning {
    if !open.is_whole {
        return Meaning::None;
    }
    let is_turn = |at: &&usize| prompt.as_bytes()[**at] == b'|';
    let turns = open.separators.iter().filter(is_turn).count();
    let starts = std::iter::once(open.at).chain(open.separators.iter().copied());
    let ends = open.separators.iter().copied().chain([close]);
    let mut parts = starts
        .map(|at| at + 1)
        .zip(ends)
        .map(|(start, end)| start..end);
    match (open.bracket, open.separators.len()) {
        (b'(', 0 | 1) if turns == 0 => Meaning::Weight,
        (b'[', 0) => Meaning::Weight,
        (b'[', count) if turns == count => Meaning::Choice(Choice::Turn(parts.collect())),
        (b'[', count @ (1 | 2)) if turns == 0 => {
            let before = match count {
                1 => open.at + 1..open.at + 1,
                _ => parts.next().unwrap_or_default(),
            };
            let (after, when) = (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or_default(),
            );
            match step(&prompt[when], num_steps) {
                Some(when) => Meaning::Choice(Choice::Change {
                    when,
                    before,
                    after,
                }),
                None => Meaning::None,
            }
        }
        _ => Meaning::None,
    }
}

/// A number with a point is a share of the steps, one without is a step.
fn step(text: &str, num_steps: usize) -> Option<f64> {
    let text = text.trim();
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-' | 'e' | 'E');
    let number: f64 = text.parse().ok().filter(|_| text.chars().all(is_number))?;
    let steps = num_steps as f64;
    let step = match text.contains('.') {
        true => number * steps,
        false => number,
    };
    Some(step.trunc().min(steps))
}

fn text_at(prompt: &str, choices: &HashMap<usize, (usize, Choice)>, step: usize) -> String {
    let mut text = String::new();
    // Where chosen parts end, and where the text goes on behind their brackets.
    let mut inside: Vec<(usize, usize)> = Vec::new();
    let (mut at, mut copied) = (0, 0);
    while at <= prompt.len() {
        let choice = match prompt.as_bytes().get(at) {
            Some(b'[') => choices.get(&at),
            _ => None,
        };
        let jump = match (inside.last(), choice) {
            (Some(&(end, behind)), _) if at == end => {
                inside.pop();
                Some(behind)
            }
            (_, Some((behind, choice))) => {
                let part = match choice {
                    Choice::Change {
                        when,
                        before,
                        after,
                    } => match step as f64 <= *when {
                        true => before,
                        false => after,
                    },
                    Choice::Turn(parts) => &parts[(step - 1) % parts.len()],
                };
                inside.push((part.end, *behind));
                Some(part.start)
            }
            _ => None,
        };
        match jump {
            Some(target) => {
                text.push_str(&prompt[copied..at]);
                (at, copied) = (target, target);
            }
            None => at += 1,
        }
    }
    text.push_str(&prompt[copied..]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(prompt: &str) -> Vec<(usize, String)> {
        let entries = schedule(prompt, 10).into_iter();
        entries.map(|entry| (entry.last_step, entry.text)).collect()
    }

    #[test]
    fn the_examples_of_a1111() {
        for (prompt, expected) in [
            ("test", &[(10, "test")][..]),
            ("a [b:3]", &[(3, "a "), (10, "a b")]),
            ("a [b: 3]", &[(3, "a "), (10, "a b")]),
            ("a [[[b]]:2]", &[(2, "a "), (10, "a [[b]]")]),
            ("[(a:2):3]", &[(3, ""), (10, "(a:2)")]),
            ("a [b : c : 1] d", &[(1, "a b  d"), (10, "a  c  d")]),
            ("a[b:[c:d:2]:1]e", &[(1, "abe"), (2, "ace"), (10, "ade")]),
            ("a [unbalanced", &[(10, "a [unbalanced")]),
            ("a [b:.5] c", &[(5, "a  c"), (10, "a b c")]),
            ("((a][:b:c [d:3]", &[(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ] {
            let expected: Vec<_> = expected.iter().map(|(n, t)| (*n, t.to_string())).collect();
            assert_eq!(entries(prompt), expected, "{prompt}");
        }
        let turns = |prompt: &str| {
            let entries = entries(prompt).into_iter();
            entries.map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(turns("[a|(b:1.1)]")[..3], ["a", "(b:1.1)", "a"]);
        assert_eq!(turns("[fe|]male")[..3], ["female", "male", "female"]);
        assert_eq!(
            turns("[fe|||]male")[..5],
            ["female", "male", "male", "male", "female"]
        );
    }

    #[test]
    fn steps_and_shares() {
        assert_eq!(entries("[a:b:1.0]"), [(10, "a".to_owned())]);
        assert_eq!(entries("[a:b:0]"), [(10, "b".to_owned())]);
        assert_eq!(entries("[a:b:-3]"), [(10, "b".to_owned())]);
        assert_eq!(entries("[a:b:99]"), [(10, "a".to_owned())]);
        assert_eq!(entries("[a::0.25]")[0], (2, "a".to_owned()));
        assert_eq!(entries(r"\[a:b:3]"), [(10, r"\[a:b:3]".to_owned())]);
        assert_eq!(entries("[a:b:3] | c"), [(10, "[a:b:3] | c".to_owned())]);
        assert_eq!(entries(r"[a:b:3] \"), [(10, r"[a:b:3] \".to_owned())]);
        assert_eq!(entries("[a:b:inf]"), [(10, "[a:b:inf]".to_owned())]);
    }

    #[test]
    fn deep_and_wide_prompts_take_little() {
        for prompt in ["[", "(", "]", "[a|", "[a:b:", "|", ":", "\\"] {
            assert!(!schedule(&prompt.repeat(40_000), 10).is_empty());
        }
        let depth = 20_000;
        let nested = format!("{}x{}", "[a|".repeat(depth), "]".repeat(depth));
        assert_eq!(schedule(&nested, 30).len(), 30);
    }
}
