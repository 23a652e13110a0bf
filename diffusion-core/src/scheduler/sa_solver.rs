//! Stochastic Adams solver.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, only, with_levels};
use super::dpm_updates::FIXED_VARIANCES;
use super::levels::{FinalSigmas, Grid, Levels, SigmaSchedule};
use super::limits::Thresholding;
use super::updates::{check_order, check_range, falling, noise_of, straight};
use super::whole_steps::training_time;
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// The highest `tau`: far beyond any use, and low enough for its powers to be finite.
const MAX_TAU: f64 = 100.0;

/// What is integrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaAlgorithm {
    /// The clean latents.
    #[default]
    DataPrediction,
    /// The noise.
    NoisePrediction,
}

/// SA-Solver: stochastic Adams method, a predictor and a corrector at one evaluation a step. It ends at
/// the model's lowest noise level. diffusers' `SASolverScheduler`.
///
/// Source: Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023,
/// algorithm 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaSolver {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The order of the predictor, from 1 to 4.
    pub predictor_order: usize,
    /// The order of the corrector, from 1 to 4; 1 corrects as well.
    pub corrector_order: usize,
    /// What is integrated.
    pub algorithm_type: SaAlgorithm,
    /// Whether the last steps are of lower order, for stability.
    pub lower_order_final: bool,
    /// How stochastic the run is between the two timesteps below: 0 for not at all, 1 for as DDPM.
    pub tau: f64,
    /// The lowest timestep with fresh noise.
    pub tau_from: f64,
    /// The highest timestep with fresh noise.
    pub tau_to: f64,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Default for SaSolver {
    fn default() -> Self {
        Self {
            levels: Levels {
                final_sigmas_type: FinalSigmas::SigmaMin,
                ..Levels::new(SigmaSchedule::Native)
            },
            predictor_order: 2,
            corrector_order: 2,
            algorithm_type: SaAlgorithm::DataPrediction,
            lower_order_final: true,
            tau: 1.0,
            tau_from: 200.0,
            tau_to: 800.0,
            thresholding: Thresholding::OFF,
        }
    }
}

impl Algorithm for SaSolver {
    const CLASS: &'static str = "SASolverScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_END: bool = false;

    fn unknown_options() -> Options {
        vec![
            ("lambda_min_clipped", vec![]),
            ("tau_func", vec![]),
            ("variance_type", only(FIXED_VARIANCES)),
        ]
    }

    fn check(&self) -> Result<()> {
        self.thresholding.check()?;
        check_range("tau", self.tau, 0.0..=MAX_TAU)?;
        check_range("tau_from", self.tau_from, f64::NEG_INFINITY..=f64::INFINITY)?;
        check_range("tau_to", self.tau_to, f64::NEG_INFINITY..=f64::INFINITY)?;
        check_order("predictor_order", self.predictor_order, 1..=4)?;
        check_order("corrector_order", self.corrector_order, 1..=4)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.levels.plan_to_lowest(Self::GRID, noise, num_steps)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(SaSolverRun {
            config: self.clone(),
            history: VecDeque::new(),
            last: None,
        })
    }
}

with_levels!(SaSolver);

/// What the corrector needs of the step before.
struct LastStep {
    start: Tensor,
    noise: Tensor,
    tau: f64,
    corrector_order: usize,
}

struct SaSolverRun {
    config: SaSolver,
    /// Noise levels and values of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
    last: Option<LastStep>,
}

impl SaSolverRun {
    /// From one noise level to another through values, the first of them the newest.
    fn advance(
        &self,
        step: &Step<'_>,
        (start, noise): (&Tensor, &Tensor),
        (from, to): (f64, f64),
        tau: f64,
        values: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let h = (from / to).ln();
        let is_predictor = values[0].0 == from;
        let nodes: Vec<f64> = values
            .iter()
            .map(|(sigma, _)| (from / sigma).ln())
            .collect();
        let growth = 1.0 + tau * tau;
        let mut weights;
        let (keep, fresh) = match self.config.algorithm_type {
            SaAlgorithm::DataPrediction => {
                weights = lagrange_integrals(&nodes, &rising_moments(growth, h, nodes.len()));
                if nodes.len() == 2 {
                    // The published correction of the second order.
                    let rest = (h * growth - 1.0 + (-growth * h).exp()) / (growth * growth);
                    let correction = match is_predictor {
                        true => (0.5 * h * h - rest) / -nodes[1],
                        false => 0.5 * h - rest / h,
                    };
                    weights[0] += correction;
                    weights[1] -= correction;
                }
                let decay = (-tau * tau * h).exp();
                (
                    decay * to / from,
                    to * (1.0 - decay * decay).max(0.0).sqrt(),
                )
            }
            SaAlgorithm::NoisePrediction => {
                weights = lagrange_integrals(&nodes, &falling_moments(h, nodes.len()));
                weights.iter_mut().for_each(|weight| *weight *= -from);
                (1.0, tau * (from * from - to * to).max(0.0).sqrt())
            }
        };
        let mut terms = vec![(keep, start), (fresh, noise)];
        terms.extend(
            weights
                .iter()
                .zip(values)
                .map(|(w, (_, v))| (w * growth, *v)),
        );
        step.combine(&terms)
    }

    fn tau(&self, timestep: f64) -> f64 {
        let config = &self.config;
        match (config.tau_from..=config.tau_to).contains(&timestep) {
            true => config.tau,
            false => 0.0,
        }
    }
}

impl Solver for SaSolverRun {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let config = &self.config;
        let denoised = config.thresholding.apply(step.denoise(latents, sigma)?)?;
        let value = match config.algorithm_type {
            SaAlgorithm::DataPrediction => denoised.clone(),
            SaAlgorithm::NoisePrediction => noise_of(step, latents, &denoised, sigma)?,
        };
        let latents = match &self.last {
            Some(last) if self.history[0].0 > sigma => {
                let older = self.history.iter().map(|(sigma, value)| (*sigma, value));
                let values: Vec<_> = std::iter::once((sigma, &value))
                    .chain(older)
                    .take(last.corrector_order)
                    .collect();
                let (from, ends) = (self.history[0].0, (&last.start, &last.noise));
                self.advance(step, ends, (from, sigma), last.tau, &values)?
            }
            _ => latents.clone(),
        };
        self.history.push_front((sigma, value));
        let remembered = config.predictor_order.max(config.corrector_order - 1);
        self.history.truncate(remembered);
        let usable = falling(self.history.iter().map(|(sigma, _)| *sigma));
        let to_go = match config.lower_order_final {
            true => step.num_steps() - step.index(),
            false => usize::MAX - 1,
        };
        let predictor_order = config.predictor_order.min(to_go).min(usable);
        let corrector_order = config.corrector_order.min(to_go + 1).min(usable + 1);
        // Drawn in every step, so that the stream of the seed does not depend on tau.
        let noise = step.noise(sigma, next)?;
        if next == 0.0 {
            return straight(step, &latents, &denoised, sigma, next);
        }
        let tau = self.tau(training_time(step, sigma));
        let values: Vec<_> = self
            .history
            .iter()
            .map(|(sigma, value)| (*sigma, value))
            .take(predictor_order)
            .collect();
        let moved = match sigma > next {
            true => self.advance(step, (&latents, &noise), (sigma, next), tau, &values)?,
            false => latents.clone(),
        };
        self.last = Some(LastStep {
            start: latents,
            noise,
            tau,
            corrector_order,
        });
        Ok(moved)
    }
}

/// The integrals of `exp(-growth (h - u)) u^j` over `u` from 0 to `h`, for `j` from 0 up.
fn rising_moments(growth: f64, h: f64, count: usize) -> Vec<f64> {
    let mut moments = vec![-(-growth * h).exp_m1() / growth];
    for j in 1..count {
        moments.push((h.powi(j as i32) - j as f64 * moments[j - 1]) / growth);
    }
    moments
}

/// The integrals of `exp(-u) u^j` over `u` from 0 to `h`, for `j` from 0 up.
fn falling_moments(h: f64, count: usize) -> Vec<f64> {
    let mut moments = vec![-(-h).exp_m1()];
    for j in 1..count {
        moments.push(j as f64 * moments[j - 1] - h.powi(j as i32) * (-h).exp());
    }
    moments
}

/// The integrals of the polynomials that are 1 at one node and 0 at the others, from those of the powers.
fn lagrange_integrals(nodes: &[f64], moments: &[f64]) -> Vec<f64> {
    (0..nodes.len())
        .map(|i| {
            // The coefficients, from the constant up.
            let mut polynomial = vec![1.0];
            for (_, node) in nodes.iter().enumerate().filter(|(k, _)| *k != i) {
                let scale = (nodes[i] - node).recip();
                let mut product = vec![0.0; polynomial.len() + 1];
                for (power, coefficient) in polynomial.iter().enumerate() {
                    product[power] -= coefficient * node * scale;
                    product[power + 1] += coefficient * scale;
                }
                polynomial = product;
            }
            polynomial.iter().zip(moments).map(|(c, m)| c * m).sum()
        })
        .collect()
}
