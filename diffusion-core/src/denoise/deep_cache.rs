//! Inner levels that are not asked in each evaluation.

use std::cell::RefCell;

use candle_core::Tensor;

use crate::error::Result;
use crate::model::{DeepFeatures, UNet, UNetInput};

/// The UNet of a run, whose inner levels are asked in each `interval`-th evaluation alone.
///
/// Source: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", 2023, section 3.3, with equal
/// distances.
#[derive(Debug)]
pub(super) struct DeepCache {
    interval: usize,
    /// How many evaluations there were, and what the inner levels found last.
    state: RefCell<(usize, DeepFeatures)>,
}

impl DeepCache {
    pub(super) fn every(interval: usize) -> Self {
        Self {
            interval: interval.max(1),
            state: RefCell::default(),
        }
    }

    pub(super) fn forward(&self, unet: &UNet, input: &UNetInput<'_>) -> Result<Tensor> {
        if self.interval == 1 {
            return unet.forward(input);
        }
        let (evaluations, features) = &mut *self.state.borrow_mut();
        let is_fresh = *evaluations % self.interval == 0;
        *evaluations += 1;
        unet.forward_deep(input, features, is_fresh)
    }
}
