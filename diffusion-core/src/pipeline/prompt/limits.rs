//! How much a prompt may ask for.

use crate::error::{Error, Result};

/// The longest prompt with syntax, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 17;

/// The most chunks of all texts that a prompt becomes along a run: 77,000 tokens.
pub(super) const MAX_CHUNKS: usize = 1 << 10;

/// The most brackets around a word.
pub(super) const MAX_NESTING: usize = 1 << 8;

/// The most prompts of one composition; each is an evaluation of the model in each step.
pub(super) const MAX_PARTS: usize = 1 << 6;

/// Far beyond any use, and far below what f32 holds.
const MAX_WEIGHT: f64 = 1e4;

pub(super) fn check_length(prompt: &str) -> Result<()> {
    match prompt.len() {
        0..=MAX_BYTES => Ok(()),
        found => {
            let expected = format!("at most {MAX_BYTES} bytes");
            Err(Error::argument(
                "prompt",
                expected,
                format!("{found} bytes"),
            ))
        }
    }
}

pub(super) fn check_nesting(depth: usize, limit: usize) -> Result<()> {
    match depth <= limit {
        true => Ok(()),
        false => {
            let expected = format!("at most {limit} brackets within each other");
            Err(Error::argument("prompt", expected, "more"))
        }
    }
}

pub(super) fn check_weight(weight: f64) -> Result<()> {
    match weight.abs() <= MAX_WEIGHT {
        true => Ok(()),
        false => {
            let expected = format!("weights from -{MAX_WEIGHT} to {MAX_WEIGHT}");
            Err(Error::argument("prompt", expected, weight))
        }
    }
}

/// Counts the chunks of a prompt's texts.
#[derive(Debug)]
pub(super) struct ChunkBudget(usize);

impl ChunkBudget {
    pub(super) fn new() -> Self {
        Self(MAX_CHUNKS)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<()> {
        let left = self.0.checked_sub(count).ok_or_else(|| {
            let expected = format!("a prompt of at most {MAX_CHUNKS} chunks in all its steps");
            Error::argument("prompt", expected, "more")
        })?;
        self.0 = left;
        Ok(())
    }
}
