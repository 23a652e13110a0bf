//! Stochastic exponential solvers of several stages.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{FreshNoise, eta_of, straight};
use super::{Solver, Step};
use crate::error::Result;

/// The stages of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedsStages {
    /// The start and the middle of the step's logarithm.
    #[default]
    Two,
    /// The start, a third and two thirds.
    Three,
    /// The start and the end: exponential Heun.
    Heun,
}

impl SeedsStages {
    /// Where the stages after the first are, as shares of the step's logarithm.
    fn places(self) -> &'static [f64] {
        match self {
            Self::Two => &[0.5],
            Self::Three => &[1.0 / 3.0, 2.0 / 3.0],
            Self::Heun => &[1.0],
        }
    }
}

/// SEEDS and exponential Heun: two or three evaluations a step but for a last one to no noise, in the
/// logarithm of the noise level; stochastic, or without fresh noise of order two. ComfyUI's `seeds_2`,
/// `seeds_3`, `exp_heun_2_x0` and `exp_heun_2_x0_sde`.
///
/// Source: Gonzalez et al., "SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion
/// Models", 2023, algorithms 2 and 3, for the clean latents; without noise, Hochbruck and Ostermann,
/// "Exponential Integrators", 2010, section 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seeds {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The stages of a step.
    pub stages: SeedsStages,
    /// Fresh noise in each step.
    #[serde(flatten)]
    pub fresh: FreshNoise,
}

impl Default for Seeds {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            stages: SeedsStages::Two,
            fresh: FreshNoise::FULL,
        }
    }
}

impl Algorithm for Seeds {
    const CLASS: &'static str = "SEEDSScheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.fresh.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let config = self.clone();
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| config.step(step, latents))
    }
}

with_levels!(Seeds);

impl Seeds {
    fn step(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let eta = eta_of(step, self.fresh.eta)?;
        let first = step.denoise(latents, sigma)?;
        if next == 0.0 || next == sigma {
            return straight(step, latents, &first, sigma, next);
        }
        let h = (sigma / next).ln();
        let level = |place: f64| sigma * (-place * h).exp();
        let mut path = NoisePath::new(h * eta, self.fresh.s_noise);
        // The estimate of the stage before, and its place.
        let mut newest: Option<(Tensor, f64)> = None;
        for &place in self.stages.places() {
            let moved = self.stage(step, (latents, &first, &newest), place, h * (1.0 + eta))?;
            let moved = path.add_to(step, moved, place, &level)?;
            newest = Some((step.denoise(&moved, level(place))?, place));
        }
        let moved = self.stage(step, (latents, &first, &newest), 1.0, h * (1.0 + eta))?;
        path.add_to(step, moved, 1.0, &level)
    }

    /// From the start of a step of some length, fresh noise counted in, to a place in it.
    fn stage(
        &self,
        step: &Step<'_>,
        (latents, first, newest): (&Tensor, &Tensor, &Option<(Tensor, f64)>),
        place: f64,
        length: f64,
    ) -> Result<Tensor> {
        let length = place * length;
        let keep = (-length).exp();
        let mut terms = vec![(keep, latents), (1.0 - keep, first)];
        if let Some((estimate, before)) = newest {
            let slope = match self.stages {
                SeedsStages::Two => 0.5 * (1.0 - keep),
                SeedsStages::Three | SeedsStages::Heun => 1.0 - (1.0 - keep) / length,
            };
            let slope = slope * place / before;
            terms.extend([(slope, estimate), (-slope, first)]);
        }
        step.combine(&terms)
    }
}

/// The fresh noise of one step, which its stages share: a process that forgets.
struct NoisePath {
    /// How much is forgotten over the whole step, as a logarithm.
    length: f64,
    s_noise: f64,
    place: f64,
    value: Option<Tensor>,
}

impl NoisePath {
    fn new(length: f64, s_noise: f64) -> Self {
        Self {
            length,
            s_noise,
            place: 0.0,
            value: None,
        }
    }

    /// Walks on to a place and adds what is there, in units of the noise level, to latents.
    fn add_to(
        &mut self,
        step: &mut Step<'_>,
        latents: Tensor,
        place: f64,
        level: &dyn Fn(f64) -> f64,
    ) -> Result<Tensor> {
        let way = (place - self.place) * self.length;
        let fresh = self.s_noise * (-(-2.0 * way).exp_m1()).sqrt();
        if fresh > 0.0 {
            let noise = step.noise(level(self.place), level(place))?;
            self.value = Some(match &self.value {
                Some(value) => step.combine(&[((-way).exp(), value), (fresh, &noise)])?,
                None => step.combine(&[(fresh, &noise)])?,
            });
        }
        self.place = place;
        match &self.value {
            Some(value) => step.combine(&[(1.0, &latents), (level(place), value)]),
            None => Ok(latents),
        }
    }
}
