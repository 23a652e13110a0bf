//! DPM-Solver-2 in sigma space: plain and ancestral.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{Churn, FreshNoise, ancestral, eta_of, renoise, straight};
use super::{Solver, Step};
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::Result;

/// DPM2: second order, two evaluations a step but for the last, the second at the middle of the
/// logarithms; deterministic without churn. diffusers' `KDPM2DiscreteScheduler`, k-diffusion's
/// `sample_dpm_2`.
///
/// Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around
/// 10 Steps", 2022, algorithm 1, as Karras et al., 2022, algorithm 2 sets it in sigma space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dpm2 {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise before each step.
    #[serde(flatten)]
    pub churn: Churn,
}

impl Default for Dpm2 {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            churn: Churn::OFF,
        }
    }
}

impl Algorithm for Dpm2 {
    const CLASS: &'static str = "KDPM2DiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn told_timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        rounded_karras(&self.levels, noise, sigma)
    }

    fn check(&self) -> Result<()> {
        self.churn.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let churn = self.churn;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (latents, sigma) = churn.apply(step, latents)?;
            midpoint_step(step, &latents, sigma, step.sigma_next())
        })
    }
}

/// DPM2 with fresh noise in each step: two evaluations, stochastic. diffusers'
/// `KDPM2AncestralDiscreteScheduler`, k-diffusion's `sample_dpm_2_ancestral`.
///
/// Source: as [`Dpm2`], with k-diffusion's ancestral step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dpm2Ancestral {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise after each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for Dpm2Ancestral {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for Dpm2Ancestral {
    const CLASS: &'static str = "KDPM2AncestralDiscreteScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn told_timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        rounded_karras(&self.levels, noise, sigma)
    }

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let FreshNoise { eta, s_noise } = self.fresh;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let (down, up) = ancestral(sigma, next, eta_of(step, eta)?);
            let moved = midpoint_step(step, latents, sigma, down)?;
            renoise(step, moved, (sigma, next), up * s_noise)
        })
    }
}

with_levels!(Dpm2, Dpm2Ancestral);

/// diffusers tells these two whole timesteps under Karras et al.'s levels.
fn rounded_karras(levels: &Levels, noise: &NoiseSchedule, sigma: f64) -> f64 {
    let timestep = levels.timestep(Grid::Fractional, noise, sigma);
    let is_karras = levels.sigma_schedule.is(&SigmaSchedule::Karras);
    match is_karras && noise.form() == NoiseForm::Variances {
        true => timestep.round_ties_even(),
        false => timestep,
    }
}

/// By the slope at the geometric mean of both levels.
fn midpoint_step(step: &mut Step<'_>, latents: &Tensor, sigma: f64, to: f64) -> Result<Tensor> {
    let denoised = step.denoise(latents, sigma)?;
    if to == 0.0 {
        return straight(step, latents, &denoised, sigma, to);
    }
    let axis = Axis::of(step.schedule());
    let (place, place_to) = (axis.place(sigma), axis.place(to));
    let middle = axis.level((place * place_to).sqrt());
    let halfway = straight(step, latents, &denoised, sigma, middle)?;
    let denoised_halfway = step.denoise(&halfway, middle)?;
    let slope = axis.slope(step, &halfway, &denoised_halfway, middle)?;
    axis.moved(step, latents, (sigma, to), &[(place_to - place, &slope)])
}
