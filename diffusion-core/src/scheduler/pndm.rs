//! Pseudo numerical methods for diffusion models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::ddim::last_sigma;
use super::levels::{Grid, Levels, TimestepSpacing};
use super::updates::straight;
use super::whole_steps::{has_strides, relabelled, sigma_at, stride, target};
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// PNDM: fourth order with one evaluation a step; the first step takes two (PLMS), or each of the first
/// three takes four (Runge and Kutta). Deterministic. What Stable Diffusion 1.x came with: diffusers'
/// `PNDMScheduler`, A1111's PLMS.
///
/// Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, equations 9, 12
/// and 13.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pndm {
    /// The noise levels. Where they end is said by `set_alpha_to_one` alone.
    #[serde(flatten)]
    pub levels: Levels,
    /// Whether the last step goes to no noise, or to the model's lowest noise level.
    pub set_alpha_to_one: bool,
    /// Whether the run starts without Runge and Kutta's steps. Those need the model's own levels and at
    /// least 4 steps.
    pub skip_prk_steps: bool,
}

impl Default for Pndm {
    /// What Stable Diffusion 1.x is sampled with.
    fn default() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 1),
            set_alpha_to_one: false,
            skip_prk_steps: true,
        }
    }
}

impl Algorithm for Pndm {
    const CLASS: &'static str = "PNDMScheduler";
    const GRID: Grid = Grid::Whole;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn class_defaults() -> Self {
        Self {
            levels: Levels::spaced(TimestepSpacing::Leading, 0),
            skip_prk_steps: false,
            ..Self::default()
        }
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let last = last_sigma(self.set_alpha_to_one, noise);
        self.levels.plan_to(Self::GRID, noise, num_steps, last)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(PndmSolver {
            config: self.clone(),
            outputs: Vec::new(),
        })
    }
}

with_levels!(Pndm);

struct PndmSolver {
    config: Pndm,
    /// What the model said in the last steps, the newest last. The published method combines outputs, be
    /// they noise or velocity.
    outputs: Vec<Tensor>,
}

/// Adams and Bashforth's weights by the number of outputs, the newest first.
pub(super) const ADAMS_BASHFORTH: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

impl Solver for PndmSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let sigma = step.sigma();
        let last = last_sigma(config.set_alpha_to_one, step.schedule());
        let output = output_at(step, latents, sigma, step.timestep(sigma))?;
        self.outputs.push(output.clone());
        if self.outputs.len() > ADAMS_BASHFORTH.len() {
            self.outputs.remove(0);
        }
        let is_native = has_strides(&config.levels, step.schedule());
        let num_steps = step.num_steps();
        if !config.skip_prk_steps && is_native && num_steps >= 4 && step.index() < 3 {
            return runge_kutta(step, latents, &output);
        }
        let to = target(&config.levels, step, last);
        let weights = ADAMS_BASHFORTH[self.outputs.len() - 1];
        let terms: Vec<(f64, &Tensor)> = weights
            .iter()
            .copied()
            .zip(self.outputs.iter().rev())
            .collect();
        let combined = step.combine(&terms)?;
        let moved = transfer(step, latents, &combined, sigma, to)?;
        let next = step.sigma_next();
        let is_last = step.index() + 1 == num_steps;
        if self.outputs.len() > 1 || is_last {
            return relabelled(step, &moved, to, next);
        }
        // The first step is done again, by the mean of the outputs at both ends.
        let ahead = relabelled(step, &moved, to, next)?;
        let timestep = step.timestep(next);
        let output_ahead = output_at(step, &ahead, next, timestep)?;
        let mean = step.combine(&[(0.5, &output), (0.5, &output_ahead)])?;
        let from = match is_native {
            true => sigma_at(step.schedule(), timestep + stride(step), last),
            false => sigma,
        };
        let start = relabelled(step, latents, sigma, from)?;
        transfer(step, &start, &mean, from, next)
    }
}

fn output_at(step: &mut Step<'_>, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Tensor> {
    let denoised = step.denoise_at(latents, sigma, timestep)?;
    step.schedule().output(latents, &denoised, sigma)
}

/// Between two noise levels along an output of the model.
fn transfer(
    step: &Step<'_>,
    latents: &Tensor,
    output: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor> {
    let denoised = step.schedule().denoised(latents, output, from)?;
    straight(step, latents, &denoised, from, to)
}

/// One step of the classical method of fourth order, given its first output.
fn runge_kutta(step: &mut Step<'_>, latents: &Tensor, first: &Tensor) -> Result<Tensor> {
    let (sigma, next) = (step.sigma(), step.sigma_next());
    let half = (stride(step) / 2.0).floor();
    let timestep_next = step.timestep(next);
    let timestep_middle = timestep_next + half;
    let noise = step.schedule();
    let middle = noise.sigma(timestep_middle);
    let towards = noise.sigma((step.timestep(sigma) - half).max(0.0));
    let halfway = transfer(step, latents, first, sigma, towards)?;
    let halfway = relabelled(step, &halfway, towards, middle)?;
    let second = output_at(step, &halfway, middle, timestep_middle)?;
    let halfway = transfer(step, latents, &second, sigma, middle)?;
    let third = output_at(step, &halfway, middle, timestep_middle)?;
    let ahead = transfer(step, latents, &third, sigma, next)?;
    let fourth = output_at(step, &ahead, next, timestep_next)?;
    let mean = step.combine(&[
        (1.0 / 6.0, first),
        (1.0 / 3.0, &second),
        (1.0 / 3.0, &third),
        (1.0 / 6.0, &fourth),
    ])?;
    transfer(step, latents, &mean, sigma, next)
}
