//! The axis along which methods of slopes step.

use candle_core::Tensor;

use super::Step;
use super::updates::noise_of;
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::Result;

/// The axis of a run's slopes: noise levels, or shares of noise `s = sigma / (1 + sigma)`.
///
/// Along both, the probability flow has the form `dx / ds = (x - denoised) / s`, of latents
/// `clean + sigma * noise` or of mixtures `(1 - s) * clean + s * noise`, so that a method is the same formula
/// on either. From pure noise down, levels have no bound, and a polynomial in them is far off over the first
/// interval; shares have one. Source: Karras et al., 2022, equation 1; Lipman et al., "Flow Matching for
/// Generative Modeling", 2022.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    by_share: bool,
}

impl Axis {
    /// The axis of shares.
    pub(super) const SHARES: Self = Self { by_share: true };

    /// Shares for flows alone.
    pub(super) fn of_flows(noise: &NoiseSchedule) -> Self {
        Self {
            by_share: matches!(noise.form(), NoiseForm::Flow { .. }),
        }
    }

    /// Shares for models that start at pure noise.
    pub(super) fn of(noise: &NoiseSchedule) -> Self {
        Self {
            by_share: noise.starts_at_pure_noise(),
        }
    }

    /// Where a noise level is.
    pub(super) fn place(self, sigma: f64) -> f64 {
        match self.by_share {
            true => sigma / (1.0 + sigma),
            false => sigma,
        }
    }

    /// The noise level of a place.
    pub(super) fn level(self, place: f64) -> f64 {
        match self.by_share {
            true => place / (1.0 - place),
            false => place,
        }
    }

    /// How much larger latents are at a noise level than what steps along the axis.
    pub(super) fn stretch(self, sigma: f64) -> f64 {
        match self.by_share {
            true => 1.0 + sigma,
            false => 1.0,
        }
    }

    /// The slope that an estimate of the clean latents means.
    pub(super) fn slope(
        self,
        step: &Step<'_>,
        latents: &Tensor,
        denoised: &Tensor,
        sigma: f64,
    ) -> Result<Tensor> {
        match self.by_share {
            // The velocity: noise less clean latents.
            true => {
                let scale = sigma.recip();
                step.combine(&[(scale, latents), (-scale - 1.0, denoised)])
            }
            false => noise_of(step, latents, denoised, sigma),
        }
    }

    /// The latents at `to`, from those at `from` and weights times slopes.
    pub(super) fn moved(
        self,
        step: &Step<'_>,
        latents: &Tensor,
        (from, to): (f64, f64),
        slopes: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let mut terms = vec![(self.stretch(to) / self.stretch(from), latents)];
        terms.extend(
            slopes
                .iter()
                .map(|(w, slope)| (w * self.stretch(to), *slope)),
        );
        step.combine(&terms)
    }
}
