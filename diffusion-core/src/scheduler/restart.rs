//! Restart sampling.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::heun::heun_step;
use super::levels::{Grid, Levels, SigmaSchedule, karras_sigmas};
use super::limits::ClipSample;
use super::updates::{MAX_FACTOR, check_range, renoise};
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// Restart: Heun's method that goes back up with fresh noise from a low level, once from 20 steps on and
/// twice from 36 on, and down again; second order, two evaluations a step, stochastic. A1111's "Restart".
///
/// Source: Xu et al., "Restart Sampling for Improving Generative Processes", 2023, algorithm 1; A1111 for
/// the choice of levels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// The noise levels, but for those of the way down again, which are Karras et al.'s.
    #[serde(flatten)]
    pub levels: Levels,
    /// Near which level it turns back.
    pub restart_sigma_min: f64,
    /// To near which level it goes.
    pub restart_sigma_max: f64,
    /// The standard deviation of the fresh noise, about 1.
    pub s_noise: f64,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Karras),
            restart_sigma_min: 0.1,
            restart_sigma_max: 2.0,
            s_noise: 1.0,
        }
    }
}

impl Algorithm for Restart {
    const CLASS: &'static str = "RestartScheduler";
    const GRID: Grid = Grid::Fractional;
    const HAS_END: bool = false;

    fn check(&self) -> Result<()> {
        check_range("restart_sigma_min", self.restart_sigma_min, 0.0..=f64::MAX)?;
        check_range("restart_sigma_max", self.restart_sigma_max, 0.0..=f64::MAX)?;
        check_range("s_noise", self.s_noise, 0.0..=MAX_FACTOR)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        // A list of one's own is walked as it is.
        let is_list = matches!(
            self.levels.sigma_schedule,
            SigmaSchedule::Sigmas(_) | SigmaSchedule::Timesteps(_)
        );
        let (restart_steps, times) = match num_steps {
            _ if is_list => (0, 0),
            0..20 => (0, 0),
            20..36 => (9, 1),
            _ => (num_steps / 4, 2),
        };
        let first_steps = num_steps - restart_steps * times;
        let mut walk = self.levels.plan_to(Self::GRID, noise, first_steps, 0.0)?;
        let nearest = |level: f64| {
            let distance = |i: &usize| (walk[*i] - level).abs();
            (0..walk.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
        };
        let (turn, top) = (
            nearest(self.restart_sigma_min).unwrap_or(0),
            nearest(self.restart_sigma_max).unwrap_or(0),
        );
        if times == 0 || top >= turn || walk[turn] == 0.0 {
            return Ok(walk);
        }
        let again = karras_sigmas(walk[turn], walk[top], restart_steps + 1)?;
        let rest = walk.split_off(turn + 1);
        for _ in 0..times {
            walk.extend(&again);
        }
        walk.extend(rest);
        Ok(walk)
    }

    fn plan_rises(&self) -> bool {
        true
    }

    fn begin(&self) -> Box<dyn Solver> {
        let s_noise = self.s_noise;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            if next > sigma {
                let scale = s_noise * (next * next - sigma * sigma).sqrt();
                return renoise(step, latents.clone(), (sigma, next), scale);
            }
            heun_step(
                step,
                latents,
                &ClipSample::OFF,
                sigma,
                Axis::of(step.schedule()),
            )
        })
    }
}

with_levels!(Restart);
