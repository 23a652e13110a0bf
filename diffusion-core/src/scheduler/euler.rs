//! Euler's method: plain, ancestral, and for CFG++.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, only, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{Churn, FreshNoise, ancestral, eta_of, noise_of, renoise, straight};
use super::{Solver, Step};
use crate::error::Result;

/// Euler's method in sigma space: first order, one evaluation a step, deterministic without churn.
/// diffusers' `EulerDiscreteScheduler`, k-diffusion's `sample_euler`.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// algorithm 2 without its second-order correction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Euler {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise before each step.
    #[serde(flatten)]
    pub churn: Churn,
}

impl Default for Euler {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            churn: Churn::OFF,
        }
    }
}

impl Algorithm for Euler {
    const CLASS: &'static str = "EulerDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;

    fn unknown_options() -> Options {
        vec![
            ("interpolation_type", only(["linear"])),
            ("sigma_max", vec![]),
            ("sigma_min", vec![]),
            ("timestep_type", only(["discrete"])),
        ]
    }

    fn check(&self) -> Result<()> {
        self.churn.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        euler(self.churn)
    }
}

/// [`Euler`] for models in the form of Karras et al. diffusers' `EDMEulerScheduler`.
///
/// Source: as [`Euler`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EdmEuler {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise before each step.
    #[serde(flatten)]
    pub churn: Churn,
}

impl Default for EdmEuler {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Karras),
            churn: Churn::OFF,
        }
    }
}

impl Algorithm for EdmEuler {
    const CLASS: &'static str = "EDMEulerScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_CURVES: bool = false;

    fn check(&self) -> Result<()> {
        self.churn.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        euler(self.churn)
    }
}

fn euler(churn: Churn) -> Box<dyn Solver> {
    Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
        let (latents, sigma) = churn.apply(step, latents)?;
        let denoised = step.denoise(&latents, sigma)?;
        straight(step, &latents, &denoised, sigma, step.sigma_next())
    })
}

/// Euler's method with fresh noise in each step: first order, one evaluation a step, stochastic.
/// diffusers' `EulerAncestralDiscreteScheduler`, k-diffusion's `sample_euler_ancestral`.
///
/// Source: k-diffusion; DDPM's ancestral sampling, Ho, Jain and Abbeel, 2020, in sigma space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EulerAncestral {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for EulerAncestral {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for EulerAncestral {
    const CLASS: &'static str = "EulerAncestralDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let (down, up) = ancestral(sigma, next, eta_of(step, eta)?);
            let denoised = step.denoise(latents, sigma)?;
            let moved = straight(step, latents, &denoised, sigma, down)?;
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }
}

/// Euler's method that takes the noise to go back to from the negative prompt alone, so that low guidance
/// scales (up to about 2) suffice; ancestral where `eta` is above 0. First order, one evaluation a step.
/// ComfyUI's `euler_cfg_pp` and `euler_ancestral_cfg_pp`.
///
/// Source: Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
/// 2024, algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EulerCfgPp {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for EulerCfgPp {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::NONE,
        }
    }
}

impl Algorithm for EulerCfgPp {
    const CLASS: &'static str = "EulerCFGPPScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let (down, up) = ancestral(sigma, next, eta_of(step, eta)?);
            let denoised = step.denoise(latents, sigma)?;
            let unconditional = step.unconditional().unwrap_or(&denoised).clone();
            let noise = noise_of(step, latents, &unconditional, sigma)?;
            let moved = step.combine(&[(1.0, &denoised), (down, &noise)])?;
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }

    fn takes_unconditional(&self) -> bool {
        true
    }
}

with_levels!(Euler, EdmEuler, EulerAncestral, EulerCfgPp);
