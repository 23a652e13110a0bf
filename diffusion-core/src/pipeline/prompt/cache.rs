//! Prompts that were read before.

use std::sync::{Arc, Mutex, PoisonError};

use super::plan::Prompt;
use super::{PromptSyntax, Warning};
use crate::error::Result;

/// How many prompts are remembered.
const MAX_PROMPTS: usize = 8;

/// What is remembered at most, texts and embeddings, in bytes: a hundred prompts of SDXL.
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
        let entry = (key, answer.clone());
        if size(&entry) <= MAX_BYTES {
            self.with(|known| {
                known.retain(|(other, _)| *other != entry.0);
                known.push(entry);
                let mut bytes: usize = known.iter().map(size).sum();
                while known.len() > MAX_PROMPTS || bytes > MAX_BYTES {
                    bytes -= size(&known.remove(0));
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

fn size((key, answer): &(PromptKey, Answer)) -> usize {
    key.first.len() + key.second.len() + answer.0.size()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::pipeline::prompt::PromptEmbeds;

    fn key(text: &str) -> PromptKey {
        PromptKey {
            first: text.to_owned(),
            second: String::new(),
            negative: false,
            syntax: PromptSyntax::Plain,
            clip_skip: None,
            num_steps: 1,
        }
    }

    #[test]
    fn the_last_few_are_remembered() -> Result<()> {
        let cache = PromptCache::default();
        let read = |text: &str, tokens: usize| {
            let mut was_read = false;
            cache.get_or_insert(key(text), |_| {
                was_read = true;
                let embeds = Tensor::zeros((1, tokens, 1), DType::F32, &Device::Cpu)?;
                let embeds = PromptEmbeds {
                    embeds,
                    pooled: None,
                };
                Ok((Prompt::unchanging(embeds), Vec::new()))
            })?;
            Ok::<_, crate::Error>(was_read)
        };
        assert!(read("a", 1)?);
        assert!(!read("a", 1)?);
        for i in 0..MAX_PROMPTS - 1 {
            assert!(read(&i.to_string(), 1)?);
        }
        assert!(!read("a", 1)?, "and is the last now");
        assert!(read("b", 1)?);
        assert!(!read("a", 1)? && read("0", 1)?, "the oldest went");
        assert!(read("large", MAX_BYTES)? && read("large", MAX_BYTES)?);
        let half = MAX_BYTES / 8;
        assert!(read("c", half)? && read("d", half)? && read("c", half)?);
        Ok(())
    }
}
