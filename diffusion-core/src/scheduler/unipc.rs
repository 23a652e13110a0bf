//! Unified predictor-corrector.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, only, with_levels};
use super::levels::{FinalSigmas, Grid, Levels, SigmaSchedule};
use super::limits::Thresholding;
use super::updates::{check_order, falling, noise_of};
use super::{Solver, Step};
use crate::denoise::{NoiseForm, NoiseSchedule, flow_to_sigma, shifted};
use crate::error::Result;

/// The function of the step's length that scales the terms of higher order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UniPcType {
    /// The length itself.
    Bh1,
    /// Its exponential, less one. diffusers takes the names of other schedulers' types for it.
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

/// UniPC: predicts as DPM-Solver++ does and corrects with the next evaluation, so that the order is one
/// more at one evaluation a step; deterministic. diffusers' `UniPCMultistepScheduler`.
///
/// Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
/// Models", 2023, algorithms 5 to 8.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UniPc {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The predictor's order, from 1 to 3.
    pub solver_order: usize,
    /// The function of the step's length.
    pub solver_type: UniPcType,
    /// Whether the clean latents are integrated, or the noise.
    pub predict_x0: bool,
    /// Whether the last steps are of lower order, for stability.
    pub lower_order_final: bool,
    /// The steps that are not corrected.
    pub disable_corrector: Vec<usize>,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Default for UniPc {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            solver_order: 2,
            solver_type: UniPcType::Bh2,
            predict_x0: true,
            lower_order_final: true,
            disable_corrector: Vec::new(),
            thresholding: Thresholding::OFF,
        }
    }
}

impl Algorithm for UniPc {
    const CLASS: &'static str = "UniPCMultistepScheduler";
    const GRID: Grid = Grid::Rounded;

    fn unknown_options() -> Options {
        let absent = ["solver_p", "shift_terminal", "sigma_min", "sigma_max"];
        let mut options: Options = absent.map(|name| (name, vec![])).into();
        options.push(("use_dynamic_shifting", only([false])));
        options
    }

    fn check(&self) -> Result<()> {
        self.thresholding.check()?;
        check_order("solver_order", self.solver_order, 1..=3)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let NoiseForm::Flow { shift } = noise.form() else {
            return self.levels.plan(Self::GRID, noise, num_steps);
        };
        if !self.levels.sigma_schedule.is(&SigmaSchedule::Flow) {
            return self.levels.plan(Self::GRID, noise, num_steps);
        }
        // Its reference starts at pure noise, where those of DPM-Solver start a step below.
        let lowest = (noise.num_train_timesteps() as f64).recip();
        let share = |i: usize| 1.0 - (1.0 - lowest) * i as f64 / num_steps as f64;
        let mut sigmas: Vec<f64> = (0..num_steps)
            .map(|i| flow_to_sigma(shifted(share(i), shift).min(1.0 - 1e-6)))
            .collect();
        sigmas.push(match self.levels.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => sigmas[num_steps - 1],
        });
        Ok(sigmas)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(UniPcSolver {
            config: self.clone(),
            history: VecDeque::new(),
            last: None,
        })
    }
}

with_levels!(UniPc);

struct UniPcSolver {
    config: UniPc,
    /// Noise levels and values of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
    /// What the last step started from, and its order.
    last: Option<(Tensor, usize)>,
}

/// The weights of one step, over its length in the logarithm.
struct Weights {
    keep: f64,
    value: f64,
    scale: f64,
    /// What the terms of order 2 and up must come to, by the powers of their places.
    moments: Vec<f64>,
}

impl Weights {
    fn new(config: &UniPc, from: f64, to: f64, order: usize) -> Self {
        let h = (from / to).ln();
        let signed = if config.predict_x0 { -h } else { h };
        let growth = signed.exp_m1();
        let scale = match config.solver_type {
            UniPcType::Bh1 => signed,
            UniPcType::Bh2 => growth,
        };
        let mut phi = growth / signed - 1.0;
        let mut factorial = 1.0;
        let mut moments = Vec::with_capacity(order);
        for i in 1..=order {
            moments.push(phi * factorial / scale);
            factorial *= (i + 1) as f64;
            phi = phi / signed - 1.0 / factorial;
        }
        // Latents that hold noise of the scale `to`.
        let (keep, unit) = match config.predict_x0 {
            true => (to / from, -1.0),
            false => (1.0, -to),
        };
        Self {
            keep,
            value: unit * growth,
            scale: unit * scale,
            moments,
        }
    }
}

impl UniPcSolver {
    /// From `start` at the newest level of the history to `to`, with the value there, if it is known.
    fn advance(
        &self,
        step: &Step<'_>,
        start: &Tensor,
        to: f64,
        order: usize,
        value_there: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (from, now) = &self.history[0];
        let weights = Weights::new(&self.config, *from, to, order);
        let h = (from / to).ln();
        // Where the older values are, in steps.
        let mut places: Vec<f64> = (1..order)
            .map(|i| (from / self.history[i].0).ln() / h)
            .collect();
        let mut values: Vec<&Tensor> = (1..order).map(|i| &self.history[i].1).collect();
        if let Some(value) = value_there {
            places.push(1.0);
            values.push(value);
        }
        let shares = match (value_there, order) {
            // Published as one half, which is as good at this order.
            (None, 2) | (Some(_), 1) => vec![0.5],
            _ => solve_moments(&places, &weights.moments),
        };
        let mut terms = vec![(weights.keep, start)];
        let mut now_weight = weights.value;
        for ((share, place), value) in shares.iter().zip(&places).zip(values) {
            let weight = weights.scale * share / place;
            now_weight -= weight;
            terms.push((weight, value));
        }
        terms.push((now_weight, now));
        step.combine(&terms)
    }

    /// The predictor's order in this step.
    fn order(&self, step: &Step<'_>) -> usize {
        let to_go = step.num_steps() - step.index();
        let highest = match self.config.lower_order_final {
            true => self.config.solver_order.min(to_go),
            false => self.config.solver_order,
        };
        highest.min(falling(self.history.iter().map(|(sigma, _)| *sigma)))
    }
}

impl Solver for UniPcSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let config = &self.config;
        let denoised = config.thresholding.apply(step.denoise(latents, sigma)?)?;
        let value = match config.predict_x0 {
            true => denoised,
            false => noise_of(step, latents, &denoised, sigma)?,
        };
        let is_corrected = step
            .index()
            .checked_sub(1)
            .is_some_and(|before| !config.disable_corrector.contains(&before));
        let latents = match &self.last {
            Some((start, order)) if is_corrected && self.history[0].0 > sigma => {
                self.advance(step, start, sigma, *order, Some(&value))?
            }
            _ => latents.clone(),
        };
        self.history.push_front((sigma, value));
        self.history.truncate(self.config.solver_order);
        let order = self.order(step);
        self.last = Some((latents.clone(), order));
        if next == sigma {
            return Ok(latents);
        }
        if next == 0.0 {
            let value = &self.history[0].1;
            return match self.config.predict_x0 {
                true => Ok(value.clone()),
                false => step.combine(&[(1.0, &latents), (-sigma, value)]),
            };
        }
        self.advance(step, &latents, next, order, None)
    }
}

/// The shares whose sums over powers of the places, from 0 up, are the first of `moments`: a small
/// Vandermonde system, by Gaussian elimination with pivots.
fn solve_moments(places: &[f64], moments: &[f64]) -> Vec<f64> {
    let n = places.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|power| {
            let mut row: Vec<f64> = places.iter().map(|p| p.powi(power as i32)).collect();
            row.push(moments[power]);
            row
        })
        .collect();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        let (above, below) = rows.split_at_mut(column + 1);
        let lead = &above[column];
        for row in below {
            let factor = row[column] / lead[column];
            row.iter_mut()
                .zip(lead)
                .for_each(|(value, lead)| *value -= factor * lead);
        }
    }
    let mut solution = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * solution[j]).sum();
        solution[i] = (rows[i][n] - known) / rows[i][i];
    }
    solution
}
