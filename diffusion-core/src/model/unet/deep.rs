//! Evaluations that take over what the inner levels found in an earlier one.

use candle_core::Tensor;

use super::{UNet, UNetInput};
use crate::error::Result;
use crate::nn::Activation;

/// What goes into the last block on the way up: nearly all of the work, and what changes least from step to step.
///
/// Source: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", 2023, section 3.2, with the first
/// block as the branch.
#[derive(Debug, Clone, Default)]
pub struct DeepFeatures {
    /// For inputs of this shape.
    found: Option<(Vec<usize>, Activation)>,
}

impl UNet {
    /// One evaluation, which takes over what the inner levels found for `deep`, or finds it anew: if asked, if there is
    /// nothing for an input of this shape, or if the inner levels are told something (residuals, perturbed attention,
    /// a lower resolution).
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_deep(
        &self,
        input: &UNetInput<'_>,
        deep: &mut DeepFeatures,
        is_fresh: bool,
    ) -> Result<Tensor> {
        let is_plain =
            input.residuals.is_none() && input.perturbed.is_none() && input.shrink.is_none();
        match &deep.found {
            Some((shape, features)) if is_plain && !is_fresh && shape == input.sample.dims() => {
                self.forward_shallow(input, features)
            }
            _ => {
                let (features, answer) = self.forward_whole(input)?;
                deep.found = Some((input.sample.dims().to_vec(), features));
                Ok(answer)
            }
        }
    }
}
