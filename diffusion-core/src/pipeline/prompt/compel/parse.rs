//! compel's syntax: `word++`, `(some words)-`, `(words)1.3`, `("a", "b").and(1, 0.5)`, `("a", "b").blend(1, 1)`.
//!
//! Source: <https://github.com/damian0815/compel>, its page on syntax.

use crate::error::{Error, Result};
use crate::pipeline::prompt::limits::{MAX_NESTING, MAX_PARTS, check_weight};

/// What each plus multiplies by, and each minus.
const PLUS: f64 = 1.1;
const MINUS: f64 = 0.9;

/// Words of one weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fragment {
    pub(super) text: String,
    pub(super) weight: f64,
}

/// One prompt, or several mixed into one.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Prompt(Vec<Fragment>),
    Blend {
        prompts: Vec<(Vec<Fragment>, f64)>,
        is_normalized: bool,
    },
}

/// The parts of a prompt, one behind the other, each with its weight.
///
/// # Errors
/// [`Error::InvalidArgument`] for weights that do not fit, [`Error::Unsupported`] for `.swap()` and LoRAs.
pub(super) fn parse(prompt: &str) -> Result<Vec<(Part, f64)>> {
    let prompt = spaced(prompt);
    let parser = Parser { text: &prompt };
    let parts = match parser.list()? {
        Some(parts) => parts,
        None => vec![(Part::Prompt(parser.prompt()?), 1.0)],
    };
    let prompts = parts.iter().flat_map(|(part, _)| match part {
        Part::Prompt(fragments) => vec![fragments],
        Part::Blend { prompts, .. } => prompts.iter().map(|(fragments, _)| fragments).collect(),
    });
    for fragment in prompts.flatten() {
        check_weight(fragment.weight)?;
    }
    Ok(parts)
}

/// With white space behind each comma.
fn spaced(prompt: &str) -> String {
    let mut spaced = String::with_capacity(prompt.len());
    let mut characters = prompt.chars().peekable();
    while let Some(c) = characters.next() {
        spaced.push(c);
        if c == ',' && characters.peek().is_some_and(|next| !next.is_whitespace()) {
            spaced.push(' ');
            // Of two commas in a row the second is only what follows.
            if let Some(next) = characters.next() {
                spaced.push(next);
            }
        }
    }
    spaced
}

/// What an operator may stand behind.
struct Target {
    fragments: Vec<Fragment>,
    end: usize,
    is_word: bool,
}

struct Parser<'a> {
    text: &'a str,
}

impl Parser<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn after_space(&self, at: usize) -> usize {
        let rest = &self.text[at..];
        self.text.len() - rest.trim_start_matches(is_space).len()
    }

    /// Behind a text that may have white space before it.
    fn behind(&self, at: usize, expected: &str) -> Option<usize> {
        let at = self.after_space(at);
        self.text[at..]
            .starts_with(expected)
            .then_some(at + expected.len())
    }

    /// A whole prompt, which takes anything for words that is no syntax.
    fn prompt(&self) -> Result<Vec<Fragment>> {
        let mut fragments = Vec::new();
        let mut at = self.after_space(0);
        while at < self.text.len() {
            let found = self.element(at, 0)?.filter(|target| !target.is_word);
            at = match found {
                Some(target) => {
                    fragments.extend(target.fragments);
                    target.end
                }
                None => {
                    let rest = &self.text[at..];
                    let length = rest.find(is_space).unwrap_or(rest.len());
                    fragments.push(fragment(&rest[..length]));
                    at + length
                }
            };
            at = self.after_space(at);
        }
        Ok(fused(fragments))
    }

    /// Words, groups, commas and points up to something else.
    fn fragments(&self, at: usize, depth: usize) -> Result<(Vec<Fragment>, usize)> {
        let mut fragments = Vec::new();
        let mut at = self.after_space(at);
        loop {
            if let Some(target) = self.element(at, depth)? {
                fragments.extend(target.fragments);
                at = target.end;
            } else if matches!(self.byte(at), Some(b',' | b'.')) {
                fragments.push(fragment(&self.text[at..at + 1]));
                at += 1;
            } else {
                return Ok((fragments, at));
            }
            at = self.after_space(at);
        }
    }

    /// A target with what its operator does to it; [`Target::is_word`] is left only without one.
    fn element(&self, at: usize, depth: usize) -> Result<Option<Target>> {
        for name in ["withLora", "useLora"] {
            if self
                .behind(at, name)
                .and_then(|at| self.behind(at, "("))
                .is_some()
            {
                let hint = "give the pipeline its LoRAs with set_loras";
                return Err(Error::unsupported(format!("{name}() in a prompt"), hint));
            }
        }
        let Some(target) = self.target(at, depth)? else {
            return Ok(None);
        };
        if self
            .behind(target.end, ".swap")
            .and_then(|at| self.behind(at, "("))
            .is_some()
        {
            let hint = "leave it out; compel alone does not swap either";
            return Err(Error::unsupported(".swap() in a prompt", hint));
        }
        let operator = self.explicit(target.end).or_else(|| {
            let (factor, end, is_number) = self.operator(target.end)?;
            (!(target.is_word && is_number)).then_some((factor, end))
        });
        Ok(Some(match operator {
            None => target,
            Some((factor, end)) => {
                let mut fragments = target.fragments;
                for fragment in &mut fragments {
                    fragment.weight *= factor;
                }
                Target {
                    fragments,
                    end,
                    is_word: false,
                }
            }
        }))
    }

    fn target(&self, at: usize, depth: usize) -> Result<Option<Target>> {
        match self.byte(at) {
            Some(b'(') if depth < MAX_NESTING => {
                let (fragments, end) = self.fragments(at + 1, depth + 1)?;
                let is_closed = self.byte(end) == Some(b')');
                Ok(is_closed.then_some(Target {
                    fragments,
                    end: end + 1,
                    is_word: false,
                }))
            }
            Some(b'"') => self.quoted(at, false),
            _ => Ok(self.word(at).map(|end| Target {
                fragments: vec![fragment(&self.text[at..end])],
                end,
                is_word: true,
            })),
        }
    }

    /// A text in quotes on one line. It has the syntax of a group, or with `is_free` that of a whole prompt.
    fn quoted(&self, at: usize, is_free: bool) -> Result<Option<Target>> {
        let Some(inside) = self.text.get(at..).and_then(|rest| rest.strip_prefix('"')) else {
            return Ok(None);
        };
        let mut length = None;
        let mut is_escaped = false;
        for (i, byte) in inside.bytes().enumerate() {
            match byte {
                b'"' if !is_escaped => {
                    length = Some(i);
                    break;
                }
                b'\n' | b'\r' => break,
                _ => is_escaped = byte == b'\\',
            }
        }
        let Some(length) = length else {
            return Ok(None);
        };
        let text = &inside[..length];
        let parser = Parser { text };
        let fragments = match (text.trim().is_empty(), is_free) {
            (true, _) => vec![fragment("")],
            (false, true) => parser.prompt()?,
            (false, false) => match parser.fragments(0, 0)? {
                (fragments, end) if end == text.len() => fragments,
                _ => return Ok(None),
            },
        };
        Ok(Some(Target {
            fragments,
            end: at + length + 2,
            is_word: false,
        }))
    }

    /// The end of a word without syntax.
    fn word(&self, start: usize) -> Option<usize> {
        let mut at = start;
        while let Some(c) = self.text[at..].chars().next() {
            let next = self.text[at + c.len_utf8()..].chars().next();
            at += match c {
                '\\' if next.is_some_and(is_syntax) => 2,
                '+' | '-' if next.is_some_and(|c| !is_space(c) && !is_syntax(c)) => 1,
                c if is_space(c) || is_syntax(c) => break,
                c => c.len_utf8(),
            };
        }
        (at > start).then_some(at)
    }

    /// `.attend(1.3)` or `.attend(++)`: the factor, and its end.
    fn explicit(&self, at: usize) -> Option<(f64, usize)> {
        let at = self.behind(self.behind(at, ".attend")?, "(")?;
        let (factor, end, _) = self.operator(self.after_space(at))?;
        Some((factor, self.behind(end, ")")?))
    }

    /// `++`, `--` or a number: the factor, its end, and whether it is a number.
    fn operator(&self, at: usize) -> Option<(f64, usize, bool)> {
        let rest = &self.text[at..];
        let run = |c: char| rest.len() - rest.trim_start_matches(c).len();
        for (sign, base) in [('+', PLUS), ('-', MINUS)] {
            let count = run(sign);
            if count > 0 {
                let power = i32::try_from(count).unwrap_or(i32::MAX);
                return Some((base.powi(power), at + count, false));
            }
        }
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let whole = digits(rest);
        let length = match rest[whole..].strip_prefix('.') {
            Some(behind) if whole > 0 || digits(behind) > 0 => whole + 1 + digits(behind),
            _ => whole,
        };
        let number = rest[..length].parse().ok()?;
        Some((number, at + length, true))
    }

    /// `("a", "b").and(...)` or `.blend(...)`, if the prompt is such a list.
    fn list(&self) -> Result<Option<Vec<(Part, f64)>>> {
        let Some(mut at) = self.behind(0, "(") else {
            return Ok(None);
        };
        let mut prompts = Vec::new();
        loop {
            at = self.after_space(at);
            let target = match self.target(at, 1)? {
                Some(target) => Some(target),
                None => self.quoted(at, true)?,
            };
            let Some(target) = target else {
                return Ok(None);
            };
            prompts.push(fused(target.fragments));
            at = match (self.behind(target.end, ","), self.behind(target.end, ")")) {
                (Some(next), _) => next,
                (None, Some(end)) => {
                    at = end;
                    break;
                }
                (None, None) => return Ok(None),
            };
        }
        for name in [".and", ".add", ".blend"] {
            let inside = self.behind(at, name).and_then(|at| self.behind(at, "("));
            let Some(inside) = inside else {
                continue;
            };
            let Some(length) = self.text[inside..].find(')') else {
                return Ok(None);
            };
            let rest = self.text[inside + length + 1..].trim();
            if !rest.is_empty() {
                let expected = format!("nothing behind {name}()");
                return Err(Error::argument("prompt", expected, format!("{rest:?}")));
            }
            return combined(name, prompts, &self.text[inside..inside + length]).map(Some);
        }
        Ok(None)
    }
}

/// Prompts with the weights between the brackets of their operator.
fn combined(name: &str, prompts: Vec<Vec<Fragment>>, options: &str) -> Result<Vec<(Part, f64)>> {
    let is_blend = name == ".blend";
    let mut options: Vec<&str> = options.split(',').map(str::trim).collect();
    options.retain(|option| !option.is_empty());
    let is_normalized = !(is_blend && options.last() == Some(&"no_normalize"));
    if !is_normalized {
        options.pop();
    }
    let weight = |option: &&str| {
        let refused = || Error::argument("prompt", format!("numbers in {name}()"), *option);
        let weight: f64 = option.parse().map_err(|_| refused())?;
        check_weight(weight)?;
        Ok(weight)
    };
    let mut weights = options.iter().map(weight).collect::<Result<Vec<f64>>>()?;
    if weights.is_empty() {
        weights.resize(prompts.len(), 1.0);
    }
    if weights.len() != prompts.len() || prompts.len() > MAX_PARTS {
        let expected = format!("as many weights as prompts in {name}(), at most {MAX_PARTS}");
        let found = format!("{} for {}", weights.len(), prompts.len());
        return Err(Error::argument("prompt", expected, found));
    }
    if is_blend && is_normalized && weights.iter().sum::<f64>() == 0.0 {
        let expected = "weights of a sum that is not 0 in .blend(), or no_normalize";
        return Err(Error::argument("prompt", expected, format!("{weights:?}")));
    }
    let weighted = prompts.into_iter().zip(weights);
    Ok(match is_blend {
        true => {
            let blend = Part::Blend {
                prompts: weighted.collect(),
                is_normalized,
            };
            vec![(blend, 1.0)]
        }
        false => weighted
            .map(|(p, weight)| (Part::Prompt(p), weight))
            .collect(),
    })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

fn is_syntax(c: char) -> bool {
    matches!(c, '(' | ')' | '"' | ',' | '.' | '+' | '-' | '=')
}

/// Of the escapes only brackets and quotes lose their backslash.
fn fragment(text: &str) -> Fragment {
    let text = text
        .replace("\\(", "(")
        .replace("\\)", ")")
        .replace("\\\"", "\"");
    Fragment { text, weight: 1.0 }
}

/// Neighbours of one weight as one.
fn fused(fragments: Vec<Fragment>) -> Vec<Fragment> {
    let mut fused: Vec<Fragment> = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        match fused.last_mut() {
            Some(last) if last.weight == fragment.weight => {
                last.text.push(' ');
                last.text.push_str(&fragment.text);
            }
            _ => fused.push(fragment),
        }
    }
    fused
}
