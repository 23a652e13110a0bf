//! Consistency models.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::limits::ClipSample;
use super::updates::{MAX_FACTOR, check_range, renoise};
use super::{Solver, Step};
use crate::denoise::{NoiseForm, NoiseSchedule};
use crate::error::{Error, Result};

/// Consistency sampling: jumps to clean latents and back to the next noise level; one evaluation a step,
/// stochastic in more than one step. diffusers' `CMStochasticIterativeScheduler`.
///
/// Source: Song, Dhariwal, Chen and Sutskever, "Consistency Models", 2023, algorithm 1 and appendix C.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsistencyModel {
    /// The noise levels; the model's own are those that it was trained on.
    #[serde(flatten)]
    pub levels: Levels,
    /// Whether the estimate is clamped to -1 to 1.
    pub clip_denoised: bool,
    /// The standard deviation of fresh noise, about 1.
    pub s_noise: f64,
}

impl Default for ConsistencyModel {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            clip_denoised: true,
            s_noise: 1.0,
        }
    }
}

impl Algorithm for ConsistencyModel {
    const CLASS: &'static str = "CMStochasticIterativeScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_SPACING: bool = false;
    const HAS_CURVES: bool = false;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        check_range("s_noise", self.s_noise, 0.0..=MAX_FACTOR)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let (low, high) = (noise.sigma_min(), noise.sigma_max());
        if !self.levels.is_native() {
            return self.levels.plan_to(Self::GRID, noise, num_steps, low);
        }
        let total = noise.num_train_timesteps();
        if num_steps > total {
            let expected = format!("1 to {total}, the levels that the model was trained on");
            return Err(Error::argument("num_steps", expected, num_steps));
        }
        let curve = SigmaSchedule::Karras;
        let trained = self.levels.curve_between(&curve, (low, high), total);
        let trained = trained.unwrap_or_default().into_iter();
        let chosen = trained.step_by(total / num_steps).take(num_steps);
        Ok(chosen.chain([low]).collect())
    }

    fn told_timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        let timestep = self.levels.timestep(Self::GRID, noise, sigma);
        match noise.form() {
            NoiseForm::Edm { .. } => 1000.0 * timestep,
            _ => timestep,
        }
    }

    fn start_scale(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        match noise.form() {
            NoiseForm::Edm { .. } => sigma,
            _ => self.levels.init_noise_sigma(Self::GRID, noise, sigma),
        }
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.step(step, latents))
    }
}

with_levels!(ConsistencyModel);

impl ConsistencyModel {
    fn step(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let lowest = step.schedule().sigma_min();
        let denoised = step.denoise(latents, sigma)?;
        let clean = match step.schedule().form() {
            // The estimate mixes in latents so that it is they at no noise; a consistency model so that it
            // is they at the lowest level.
            NoiseForm::Edm { sigma_data, .. } => {
                let skip = |sigma: f64| (sigma_data / sigma.hypot(sigma_data)).powi(2);
                let out = (sigma - lowest) / sigma;
                let mixed = skip(sigma - lowest) - out * skip(sigma);
                step.combine(&[(out, &denoised), (mixed, latents)])?
            }
            _ => denoised,
        };
        let clip = ClipSample {
            clip_sample: self.clip_denoised,
            clip_sample_range: 1.0,
        };
        let clean = clip.apply(clean)?;
        let fresh = (next * next - lowest * lowest).max(0.0).sqrt();
        renoise(step, clean, (sigma, next), self.s_noise * fresh)
    }
}
