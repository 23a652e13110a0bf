//! CFG++ for solvers of any kind.
//!
//! Source: Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", 2024,
//! algorithm 2, read as: step by the estimate under the negative prompt alone, then add what guidance adds.

use candle_core::Tensor;

use super::Step;
use crate::error::Result;

/// One evaluation for a solver that may follow CFG++.
pub(super) struct Evaluated {
    /// What the solver works with: the guided estimate, or under CFG++ that of the negative prompt alone.
    pub(super) estimate: Tensor,
    /// Under CFG++ the guided estimate, where the step lands.
    guided: Option<Tensor>,
}

impl Evaluated {
    /// Asks the model once.
    pub(super) fn new(
        step: &mut Step<'_>,
        latents: &Tensor,
        sigma: f64,
        cfg_pp: bool,
    ) -> Result<Self> {
        let guided = step.denoise(latents, sigma)?;
        Ok(match step.unconditional() {
            Some(unconditional) if cfg_pp => Self {
                estimate: unconditional.clone(),
                guided: Some(guided),
            },
            _ => Self {
                estimate: guided,
                guided: None,
            },
        })
    }

    /// Adds a share of what guidance adds to the estimate.
    pub(super) fn guide(&self, step: &Step<'_>, latents: Tensor, share: f64) -> Result<Tensor> {
        match &self.guided {
            Some(guided) => {
                step.combine(&[(1.0, &latents), (share, guided), (-share, &self.estimate)])
            }
            None => Ok(latents),
        }
    }

    /// The estimate with guidance.
    pub(super) fn guided(&self) -> &Tensor {
        self.guided.as_ref().unwrap_or(&self.estimate)
    }
}
