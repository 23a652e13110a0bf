//! Cross-attention that is asked no more once the picture is laid out.

use std::cell::RefCell;
use std::collections::HashMap;

use super::Activation;
use crate::error::Result;

/// What cross-attention layers found, by their transformer blocks.
#[derive(Debug, Default)]
pub struct CrossAttentionCache {
    found: RefCell<HashMap<String, Activation>>,
}

/// How the cross-attention layers of one evaluation use a cache.
///
/// Source: Zhang et al., "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models", 2024,
/// section 3.2 (T-GATE).
#[derive(Debug, Clone, Copy)]
pub enum Gate<'a> {
    /// They work, and leave the mean of what they find for the batch's `parts`, as many equal ones.
    Open {
        /// Where they leave it.
        cache: &'a CrossAttentionCache,
        /// How often the batch has each picture.
        parts: usize,
    },
    /// They answer what was left for as many pictures of this size, and work where nothing was.
    Shut(&'a CrossAttentionCache),
}

impl Gate<'_> {
    /// What the layer at `path` need not look for again.
    pub(super) fn recall(self, path: &str, dims: &[usize]) -> Option<Activation> {
        let Self::Shut(cache) = self else {
            return None;
        };
        let found = cache.found.borrow();
        found.get(path).filter(|x| x.dims() == dims).cloned()
    }

    /// Leaves what the layer at `path` found, if the gate is open.
    pub(super) fn leave(self, path: &str, found: &Activation) -> Result<()> {
        let Self::Open { cache, parts } = self else {
            return Ok(());
        };
        let found = found.to_tensor()?;
        let (batch, tokens, channels) = found.dims3()?;
        let mean = found
            .reshape((parts, batch / parts.max(1), tokens, channels))?
            .mean(0)?;
        let mut all = cache.found.borrow_mut();
        all.insert(path.to_owned(), Activation::new(mean));
        Ok(())
    }
}
