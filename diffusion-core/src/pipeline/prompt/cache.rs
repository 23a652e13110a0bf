//! Prompts that were read before.

use std::sync::{Arc, Mutex, PoisonError};

use super::plan::Prompt;
use super::{PromptSyntax, Warning};
use crate::error::Result;

/// How many prompts are remembered.
const MAX_PROMPTS: usize = 8;

/// The embeddings that are remembered, in bytes: a hundred prompts of SDXL.
const MAX_BYTES: usize = 1 << 26;

/// All that the answer depends on, but for the text encoders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PromptKey {
    pub(super) first: String,
    pub(super) second: String,
    pub(super) negative: bool,
    pub(super) syntax: PromptSyntax,
    pub(super) clip_skip: Option<usize>,
    pub(super) num_steps: usize,
}

type Answer = Arc<(Prompt, Vec<Warning>)>;

/// The prompts that were read last, of one state of the text encoders. Clones share it; whoever changes a text encoder
/// begins a new one.
#[derive(Debug, Clone, Default)]
pub(in crate::pipeline) struct PromptCache(Arc<Mutex<Vec<(PromptKey, Answer)>>>);

impl PromptCache {
    /// The answer to a key, read if it is not known. Others may read meanwhile; nothing waits.
    pub(super) fn get_or_insert(
        &self,
        key: PromptKey,
        read: impl FnOnce(&PromptKey) -> Result<(Prompt, Vec<Warning>)>,
    ) -> Result<Answer> {
        if let Some(answer) = self.find(&key) {
            return Ok(answer);
        }
        let answer = Arc::new(read(&key)?);
        let size = |answer: &Answer| answer.0.size();
        if size(&answer) <= MAX_BYTES {
            self.with(|known| {
                known.retain(|(other, _)| *other != key);
                known.push((key, answer.clone()));
                let mut bytes: usize = known.iter().map(|(_, answer)| size(answer)).sum();
                while known.len() > MAX_PROMPTS || bytes > MAX_BYTES {
                    bytes -= size(&known.remove(0).1);
                }
            });
        }
        Ok(answer)
    }

    /// The last ones are those that were asked for last.
    fn find(&self, key: &PromptKey) -> Option<Answer> {
        self.with(|known| {
            let at = known.iter().position(|(other, _)| other == key)?;
            let entry = known.remove(at);
            let answer = entry.1.clone();
            known.push(entry);
            Some(answer)
        })
    }

    /// What is locked is whole at any time, so a panic under the lock leaves nothing half-done.
    fn with<T>(&self, change: impl FnOnce(&mut Vec<(PromptKey, Answer)>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
