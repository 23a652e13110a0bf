//! Which noise levels a run visits, and what the model is told there.

mod curves;
mod fields;
mod sigma_schedule;
mod spacing;
mod tables;

use serde::{Deserialize, Serialize};

pub use curves::karras_sigmas;
use fields::Fields;
pub use sigma_schedule::{SigmaSchedule, sigma_schedule};
pub use spacing::{FinalSigmas, TimestepSpacing};

use super::updates::check_range;
use crate::denoise::{NoiseForm, NoiseSchedule, flow_to_sigma, shifted};
use crate::error::{Error, Result};

/// How an algorithm's reference lays out its own levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grid {
    /// k-diffusion's: fractional timesteps, and curves between the highest and the lowest of them.
    Fractional,
    /// DPM-Solver's: whole timesteps, the lowest of which is left to the final level, and curves over the
    /// model's whole range.
    Rounded,
    /// Whole timesteps, as the model was trained.
    Whole,
}

/// The noise levels of a scheduler of this crate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Levels {
    /// How the steps are spread over the timesteps.
    pub timestep_spacing: TimestepSpacing,
    /// Added to timesteps under [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// The curve of the levels.
    pub sigma_schedule: SigmaSchedule,
    /// Where the run ends.
    pub final_sigmas_type: FinalSigmas,
    /// The exponent of [`SigmaSchedule::Karras`] (7) or [`SigmaSchedule::Polyexponential`] (1), from 0.1 to
    /// 100, if another.
    pub rho: Option<f64>,
}

impl Levels {
    /// A curve with everything else as by default: `linspace`, ending at no noise.
    pub fn new(sigma_schedule: SigmaSchedule) -> Self {
        Self {
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            sigma_schedule,
            final_sigmas_type: FinalSigmas::Zero,
            rho: None,
        }
    }

    /// The model's own levels under another spacing.
    pub fn spaced(timestep_spacing: TimestepSpacing, steps_offset: usize) -> Self {
        Self {
            timestep_spacing,
            steps_offset,
            ..Self::new(SigmaSchedule::Native)
        }
    }

    /// Whether the levels are those of the model's timesteps.
    pub(super) fn is_native(&self) -> bool {
        self.sigma_schedule.is(&SigmaSchedule::Native)
    }

    pub(super) fn check(&self) -> Result<()> {
        check_range("rho", self.rho.unwrap_or(1.0), 0.1..=100.0)
    }

    /// The levels of a run that ends where [`final_sigmas_type`](Self::final_sigmas_type) says.
    pub(super) fn plan(
        &self,
        grid: Grid,
        noise: &NoiseSchedule,
        num_steps: usize,
    ) -> Result<Vec<f64>> {
        self.plan_to(grid, noise, num_steps, self.final_sigmas_type.sigma(noise))
    }

    /// The levels of a run that ends at the lowest noise level, as the references without
    /// `final_sigmas_type` do: the model's, or a flow's last one again.
    pub(super) fn plan_to_lowest(
        &self,
        grid: Grid,
        noise: &NoiseSchedule,
        num_steps: usize,
    ) -> Result<Vec<f64>> {
        let mut sigmas = self.plan(grid, noise, num_steps)?;
        let is_flow = matches!(noise.form(), NoiseForm::Flow { .. });
        if is_flow && self.final_sigmas_type == FinalSigmas::SigmaMin && sigmas.len() > 1 {
            sigmas.pop();
            sigmas.extend(sigmas.last().copied());
        }
        Ok(sigmas)
    }

    /// The levels of a run that ends at `last`.
    pub(super) fn plan_to(
        &self,
        grid: Grid,
        noise: &NoiseSchedule,
        num_steps: usize,
        last: f64,
    ) -> Result<Vec<f64>> {
        // Curves need a finite end. The model's own levels of whole timesteps may be as they are.
        let finite = noise.with_finite_terminal_snr();
        let noise = match grid == Grid::Whole && self.is_native() {
            true => noise,
            false => &finite,
        };
        let mut sigmas = match &self.sigma_schedule {
            SigmaSchedule::Native => self.native(grid, noise, num_steps)?,
            SigmaSchedule::Sigmas(sigmas) => return Ok(sigmas.clone()),
            SigmaSchedule::Timesteps(timesteps) => {
                timesteps.iter().map(|&t| noise.sigma(t)).collect()
            }
            SigmaSchedule::Flow => flow_levels(noise, num_steps),
            curve => self.curve(curve, grid, noise, num_steps)?,
        };
        if grid == Grid::Rounded && matches!(noise.form(), NoiseForm::Flow { .. }) {
            // These never start at pure noise, from which those that integrate the noise do not come down.
            let highest = noise.sigmas()[noise.num_train_timesteps() - 2];
            sigmas
                .iter_mut()
                .for_each(|sigma| *sigma = sigma.min(highest));
        }
        // The tables end a little below or above the lowest level of a model.
        let lowest = sigmas.iter().copied().fold(last, f64::min);
        sigmas.push(lowest);
        Ok(sigmas)
    }

    fn native(&self, grid: Grid, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        match noise.form() {
            NoiseForm::Variances => {}
            NoiseForm::Flow { .. } => return Ok(flow_levels(noise, num_steps)),
            NoiseForm::Edm { .. } => {
                return self.curve(&SigmaSchedule::Karras, grid, noise, num_steps);
            }
        }
        let (spacing, total) = (self.timestep_spacing, noise.num_train_timesteps());
        // One timestep more than steps, of which the lowest is left to the final level.
        let leaves_one = grid == Grid::Rounded && spacing != TimestepSpacing::Trailing;
        let limit = match (grid, spacing) {
            (Grid::Rounded, TimestepSpacing::Leading) => total - 1,
            (Grid::Whole, _) | (_, TimestepSpacing::Leading | TimestepSpacing::Trailing) => total,
            _ => usize::MAX,
        };
        if num_steps > limit {
            let expected = format!("1 to {limit} for a model of {total} timesteps");
            return Err(Error::argument("num_steps", expected, num_steps));
        }
        let count = num_steps + usize::from(leaves_one);
        let timesteps = spacing.timesteps(total, count, self.steps_offset)?;
        let sigma = |t: &f64| match grid {
            Grid::Fractional => noise.sigma(*t),
            Grid::Rounded | Grid::Whole => noise.sigma(t.round_ties_even()),
        };
        Ok(timesteps.iter().take(num_steps).map(sigma).collect())
    }

    fn curve(
        &self,
        curve: &SigmaSchedule,
        grid: Grid,
        noise: &NoiseSchedule,
        num_steps: usize,
    ) -> Result<Vec<f64>> {
        use SigmaSchedule as S;
        let is_flow = matches!(noise.form(), NoiseForm::Flow { .. });
        let is_spaced = grid == Grid::Fractional && noise.form() == NoiseForm::Variances;
        let (mut low, mut high) = (noise.sigma_min(), noise.sigma_max());
        if is_flow {
            (low, high) = (low / (1.0 + low), high / (1.0 + high));
        } else if is_spaced && matches!(curve, S::Karras | S::Exponential | S::Beta) {
            let native = self.native(grid, noise, num_steps)?;
            (low, high) = (native[native.len() - 1], native[0]);
        }
        let n = num_steps;
        let between = match curve {
            S::Lu => curves::polyexponential(low, high, n, 1.0),
            S::Polyexponential => curves::polyexponential(low, high, n, self.rho.unwrap_or(1.0)),
            S::Laplace => curves::laplace(low, high, n),
            S::KlOptimal => curves::kl_optimal(low, high, n),
            S::LinearQuadratic => curves::linear_quadratic(high, n),
            S::SgmUniform => return Ok(curves::sgm_uniform(noise, n)),
            S::Simple => return Ok(curves::simple(noise, n)),
            S::BetaTimesteps => return Ok(curves::beta_timesteps(noise, n)),
            S::Normal => return Ok(curves::normal(noise, n)),
            S::DdimUniform => return curves::ddim_uniform(noise, n),
            S::AlignYourSteps => return Ok(tables::interpolated(&tables::ALIGN_YOUR_STEPS, n)),
            S::AlignYourStepsSdxl => {
                return Ok(tables::interpolated(&tables::ALIGN_YOUR_STEPS_SDXL, n));
            }
            S::Gits => return Ok(tables::gits(n)),
            other => self
                .curve_between(other, (low, high), n)
                .unwrap_or_default(),
        };
        Ok(match is_flow {
            true => between.into_iter().map(flow_to_sigma).collect(),
            false => between,
        })
    }

    /// The curve between two values, if it is one of diffusers' own.
    pub(super) fn curve_between(
        &self,
        curve: &SigmaSchedule,
        (low, high): (f64, f64),
        num_steps: usize,
    ) -> Option<Vec<f64>> {
        Some(match curve {
            SigmaSchedule::Karras => curves::power(low, high, num_steps, self.rho.unwrap_or(7.0)),
            SigmaSchedule::Exponential => curves::polyexponential(low, high, num_steps, 1.0),
            SigmaSchedule::Beta => curves::beta(low, high, num_steps),
            _ => return None,
        })
    }

    pub(super) fn timestep(&self, grid: Grid, noise: &NoiseSchedule, sigma: f64) -> f64 {
        use SigmaSchedule as S;
        let finite = noise.with_finite_terminal_snr();
        let noise = match grid == Grid::Whole && self.is_native() {
            true => noise,
            false => &finite,
        };
        let timestep = noise.timestep(sigma);
        let by_timesteps = matches!(self.sigma_schedule, S::Native | S::Timesteps(_));
        match (noise.form(), grid, &self.sigma_schedule) {
            // diffusers cuts these off to whole numbers, where it rounds the others.
            (NoiseForm::Flow { .. }, Grid::Rounded, S::Flow) => (timestep + 1e-6).floor(),
            (NoiseForm::Variances, Grid::Rounded, S::Exponential | S::Beta) => {
                // Rounding in f32 makes its highest level fall just short of the last timestep.
                let last = (noise.num_train_timesteps() - 1) as f64;
                timestep.min(last - 0.5).floor()
            }
            (NoiseForm::Variances, Grid::Rounded, S::Karras | S::Lu) => timestep.round_ties_even(),
            (NoiseForm::Variances, Grid::Fractional, _) if by_timesteps => {
                noise.timestep_linear(sigma)
            }
            (NoiseForm::Variances, _, _) if by_timesteps => timestep.round_ties_even(),
            _ => timestep,
        }
    }

    pub(super) fn init_noise_sigma(&self, grid: Grid, noise: &NoiseSchedule, sigma: f64) -> f64 {
        let forgets_signal = self.timestep_spacing != TimestepSpacing::Leading;
        match (noise.form(), grid) {
            // These start at the highest noise level, where the signal's share is forgotten.
            (NoiseForm::Variances, Grid::Fractional) if forgets_signal => sigma,
            (NoiseForm::Edm { .. }, _) => sigma.hypot(1.0),
            _ => noise.input_scale(sigma).recip(),
        }
    }

    pub(super) fn final_scale(&self, grid: Grid, noise: &NoiseSchedule, sigma_last: f64) -> f64 {
        match (noise.form(), grid) {
            (NoiseForm::Variances, Grid::Fractional) | (NoiseForm::Edm { .. }, _) => 1.0,
            _ => noise.input_scale(sigma_last),
        }
    }
}

/// The levels of diffusers' `use_flow_sigmas`: shares of noise from almost 1 down, evenly, then shifted.
fn flow_levels(noise: &NoiseSchedule, num_steps: usize) -> Vec<f64> {
    let shift = match noise.form() {
        NoiseForm::Flow { shift } => shift,
        _ => 1.0,
    };
    let lowest = (noise.num_train_timesteps() as f64).recip();
    let share = |i: usize| (1.0 - lowest) * (num_steps - i) as f64 / num_steps as f64;
    (0..num_steps)
        .map(|i| flow_to_sigma(shifted(share(i), shift)))
        .collect()
}
