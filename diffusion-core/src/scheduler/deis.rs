//! Diffusion exponential integrator sampler.

use std::collections::VecDeque;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Options, only, with_levels};
use super::levels::{FinalSigmas, Grid, Levels, SigmaSchedule};
use super::limits::Thresholding;
use super::updates::{check_order, falling, noise_of, straight};
use super::{Solver, Step};
use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// DEIS: the polynomial in the logarithm of the noise level through the noise of the last steps; order 1
/// to 3, one evaluation a step, deterministic. It ends at the model's lowest noise level. diffusers'
/// `DEISMultistepScheduler`.
///
/// Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, section
/// 3 (log-rho Adams and Bashforth).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deis {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// The order, from 1 to 3.
    pub solver_order: usize,
    /// Whether the last steps of runs under 15 steps are of lower order, for stability.
    pub lower_order_final: bool,
    /// Keeps the estimate in the range of most of its values.
    #[serde(flatten)]
    pub thresholding: Thresholding,
}

impl Default for Deis {
    fn default() -> Self {
        Self {
            levels: Levels {
                final_sigmas_type: FinalSigmas::SigmaMin,
                ..Levels::new(SigmaSchedule::Native)
            },
            solver_order: 2,
            lower_order_final: true,
            thresholding: Thresholding::OFF,
        }
    }
}

impl Algorithm for Deis {
    const CLASS: &'static str = "DEISMultistepScheduler";
    const GRID: Grid = Grid::Rounded;
    const HAS_END: bool = false;

    fn unknown_options() -> Options {
        let types = ["logrho", "midpoint", "heun", "bh1", "bh2"];
        vec![
            ("algorithm_type", only(["deis", "dpmsolver", "dpmsolver++"])),
            ("solver_type", only(types)),
            ("use_dynamic_shifting", only([false])),
        ]
    }

    fn check(&self) -> Result<()> {
        self.thresholding.check()?;
        check_order("solver_order", self.solver_order, 1..=3)
    }

    fn plan(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        self.levels.plan_to_lowest(Self::GRID, noise, num_steps)
    }

    fn begin(&self) -> Box<dyn Solver> {
        Box::new(DeisSolver {
            config: self.clone(),
            history: VecDeque::new(),
        })
    }
}

with_levels!(Deis);

struct DeisSolver {
    config: Deis,
    /// Noise levels and the noise of the last steps, the newest first.
    history: VecDeque<(f64, Tensor)>,
}

impl Solver for DeisSolver {
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.sigma_next());
        let config = &self.config;
        let denoised = config.thresholding.apply(step.denoise(latents, sigma)?)?;
        let noise = noise_of(step, latents, &denoised, sigma)?;
        self.history.push_front((sigma, noise));
        self.history.truncate(config.solver_order);
        let is_lowered = config.lower_order_final && step.num_steps() < 15;
        let highest = match step.num_steps() - step.index() {
            1 if is_lowered => 1,
            2 if is_lowered => 2,
            _ => config.solver_order,
        };
        let nodes: Vec<f64> = self.history.iter().map(|(sigma, _)| *sigma).collect();
        let order = highest.min(falling(nodes.iter().copied()));
        if order == 1 || next == 0.0 {
            return straight(step, latents, &denoised, sigma, next);
        }
        let weights = log_rho_weights(&nodes[..order], next);
        let noises = self.history.iter().map(|(_, noise)| noise);
        let mut terms = vec![(1.0, latents)];
        terms.extend(weights.into_iter().zip(noises));
        step.combine(&terms)
    }
}

/// The integrals from the first node to `to` of the polynomials in the logarithm that are 1 at one node and
/// 0 at the others.
fn log_rho_weights(nodes: &[f64], to: f64) -> Vec<f64> {
    let logs: Vec<f64> = nodes.iter().map(|node| node.ln()).collect();
    (0..nodes.len())
        .map(|j| {
            let others: Vec<f64> = (0..logs.len())
                .filter(|k| *k != j)
                .map(|k| logs[k])
                .collect();
            let scale: f64 = others.iter().map(|other| logs[j] - other).product();
            // The antiderivatives of ln x - a, and of (ln x - a)(ln x - b).
            let antiderivative = |x: f64| {
                let l = x.ln();
                match others[..] {
                    [a] => x * (l - 1.0 - a),
                    [a, b] => x * (l * l - 2.0 * l + 2.0 - (a + b) * (l - 1.0) + a * b),
                    _ => x,
                }
            };
            (antiderivative(to) - antiderivative(nodes[0])) / scale
        })
        .collect()
}
