//! Self-attention that sees nothing but the pixel it is at.

use std::collections::BTreeSet;

/// Self-attention layers whose attention map is the identity for some of a batch: each pixel gets its own value.
/// What such a model draws lacks structure, and guidance leads away from it.
///
/// Source: Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024, equation 7.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PerturbedAttention {
    paths: BTreeSet<String>,
    first_row: usize,
}

impl PerturbedAttention {
    /// The transformer blocks at `paths`, such as `mid_block.attentions.0.transformer_blocks.0`, for the images of
    /// the batch from `first_row` on.
    pub fn new(paths: impl IntoIterator<Item = String>, first_row: usize) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            first_row,
        }
    }

    /// The transformer blocks.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(String::as_str)
    }

    /// From which image on the block at `path` is perturbed, if it is.
    pub(super) fn first_row_at(&self, path: &str) -> Option<usize> {
        self.paths.contains(path).then_some(self.first_row)
    }
}
