//! The second part of a run, for which the text is read no more.

use crate::nn::{CrossAttentionCache, Gate};

/// After how many steps a run goes on without guidance, with what cross-attention found last: the mean of what it found
/// with and without the prompt.
///
/// Source: Zhang et al., "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models", 2024,
/// section 3.2 (T-GATE).
#[derive(Debug)]
pub(super) struct TextGate {
    num_steps: usize,
    cache: CrossAttentionCache,
}

impl TextGate {
    pub(super) fn after(num_steps: usize) -> Self {
        Self {
            num_steps,
            cache: CrossAttentionCache::default(),
        }
    }

    /// Whether the first steps are over.
    pub(super) fn is_shut(&self, step: Option<(usize, usize)>) -> bool {
        step.is_some_and(|(index, _)| index >= self.num_steps)
    }

    /// What the UNet is told in a step, for a batch that has each picture `parts` times.
    pub(super) fn at(&self, step: Option<(usize, usize)>, parts: usize) -> Option<Gate<'_>> {
        let cache = &self.cache;
        match step {
            _ if self.is_shut(step) => Some(Gate::Shut(cache)),
            Some((index, _)) if index + 1 == self.num_steps => Some(Gate::Open { cache, parts }),
            _ => None,
        }
    }
}
