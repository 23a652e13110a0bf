//! Curves of noise levels by name.

use std::mem::discriminant;

use crate::error::{Error, Result};

/// A curve of noise levels over the steps.
///
/// Each has a name in configurations, that of the variant in lower case with underscores; those of
/// diffusers are `use_karras_sigmas` and so on there too.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum SigmaSchedule {
    /// The model's own, by [`TimestepSpacing`](super::TimestepSpacing).
    #[default]
    Native,
    /// Even in the power `1 / rho`, with rho = 7. Karras et al., "Elucidating the Design Space of
    /// Diffusion-Based Generative Models", 2022, equation 5.
    Karras,
    /// Even in the logarithm. k-diffusion's `get_sigmas_exponential`.
    Exponential,
    /// Even in the power `1 / rho` of the logarithm's share, with rho = 1. k-diffusion's
    /// `get_sigmas_polyexponential`.
    Polyexponential,
    /// Levels at the quantiles of the beta distribution with both parameters 0.6. diffusers and A1111, after
    /// Lee et al., "Beta Sampling is All You Need", 2024.
    Beta,
    /// Timesteps at those quantiles, each once. ComfyUI's `beta`.
    BetaTimesteps,
    /// Even in the logarithm of the signal-to-noise ratio. Lu et al., "DPM-Solver++", 2022; diffusers'
    /// `use_lu_lambdas`.
    Lu,
    /// Quantiles of the Laplace distribution, of the logarithm. Hang et al., "Improved Noise Schedule for
    /// Diffusion Training", 2024.
    Laplace,
    /// Even in the timestep, without the lowest. Stability AI's generative models; A1111 and ComfyUI.
    SgmUniform,
    /// Every n-th level of the model. ComfyUI.
    Simple,
    /// Even in the timestep, highest and lowest among them. ComfyUI.
    Normal,
    /// Whole strides of timesteps from the second up. Where the number of steps does not divide that of the
    /// timesteps there are more levels than steps: 12 for 11 of 1000, and 999 for 501 or more. ComfyUI.
    DdimUniform,
    /// Even in the arc tangent. Sabour, Fidler and Kreis, "Align Your Steps", 2024, equation 11.
    KlOptimal,
    /// Optimised for Stable Diffusion 1.5, interpolated to any number of steps. "Align Your Steps", 2024.
    AlignYourSteps,
    /// Optimised for SDXL.
    AlignYourStepsSdxl,
    /// Optimised by the geometry of the trajectory. Chen et al., "On the Trajectory Regularity of
    /// ODE-based Diffusion Sampling", 2024; ComfyUI's table for the coefficient 1.2.
    Gits,
    /// Straight, then quadratic. Polyak et al., "Movie Gen", 2024, section 3.4; ComfyUI.
    LinearQuadratic,
    /// The shares of noise of a flow model, as diffusers' `use_flow_sigmas` spreads them.
    Flow,
    /// These levels, the last being where the run ends, whatever the number of steps.
    Sigmas(Vec<f64>),
    /// The levels of these timesteps, falling, whatever the number of steps.
    Timesteps(Vec<f64>),
}

impl SigmaSchedule {
    /// All that have a name, in the order of the documentation.
    pub const NAMED: [(&str, Self); 18] = [
        ("native", Self::Native),
        ("karras", Self::Karras),
        ("exponential", Self::Exponential),
        ("polyexponential", Self::Polyexponential),
        ("beta", Self::Beta),
        ("beta_timesteps", Self::BetaTimesteps),
        ("lu", Self::Lu),
        ("laplace", Self::Laplace),
        ("sgm_uniform", Self::SgmUniform),
        ("simple", Self::Simple),
        ("normal", Self::Normal),
        ("ddim_uniform", Self::DdimUniform),
        ("kl_optimal", Self::KlOptimal),
        ("align_your_steps", Self::AlignYourSteps),
        ("align_your_steps_sdxl", Self::AlignYourStepsSdxl),
        ("gits", Self::Gits),
        ("linear_quadratic", Self::LinearQuadratic),
        ("flow", Self::Flow),
    ];

    /// The name in configurations; `None` for lists.
    pub fn name(&self) -> Option<&'static str> {
        let mut named = Self::NAMED.into_iter();
        named.find_map(|(name, schedule)| self.is(&schedule).then_some(name))
    }

    /// Whether both are the same curve, or both a list of the same kind.
    pub(in crate::scheduler) fn is(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other)
    }
}

/// A curve by its name in configurations.
///
/// # Errors
/// [`Error::Unsupported`] for other names.
pub fn sigma_schedule(name: &str) -> Result<SigmaSchedule> {
    let mut named = SigmaSchedule::NAMED.into_iter();
    match named.find_map(|(known, schedule)| (known == name).then_some(schedule)) {
        Some(schedule) => Ok(schedule),
        None => {
            let known = SigmaSchedule::NAMED.map(|(name, _)| name).join(", ");
            let hint = format!("take one of {known}");
            Err(Error::unsupported(format!("sigma schedule {name:?}"), hint))
        }
    }
}
