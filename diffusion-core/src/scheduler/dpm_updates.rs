//! The updates of DPM-Solver and DPM-Solver++, shared by their multistep and single-step forms.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Step;
use super::algorithm::{Options, only};
use super::updates::{check_order, noise_of, renoise};
use crate::error::Result;

/// What is integrated, and whether fresh noise comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DpmAlgorithm {
    /// The noise. Lu et al., "DPM-Solver", 2022.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The clean latents. Lu et al., "DPM-Solver++", 2022.
    #[default]
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmSolverPp,
    /// The noise, with fresh noise.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// The clean latents, with fresh noise.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPp,
}

impl DpmAlgorithm {
    fn predicts_noise(self) -> bool {
        matches!(self, Self::DpmSolver | Self::SdeDpmSolver)
    }

    /// What the solvers remember of an evaluation.
    pub(super) fn value(
        self,
        step: &Step<'_>,
        latents: &Tensor,
        denoised: Tensor,
        sigma: f64,
    ) -> Result<Tensor> {
        match self.predicts_noise() {
            true => noise_of(step, latents, &denoised, sigma),
            false => Ok(denoised),
        }
    }
}

/// The form of the second-order term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The slope at the middle of the step; diffusers takes the names of other schedulers' types for it.
    #[default]
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// The slope over the whole step.
    Heun,
}

/// Refuses orders other than 1 to 3, and the one that is not published.
pub(super) fn check_dpm_order(order: usize, algorithm: DpmAlgorithm) -> Result<()> {
    let highest = match algorithm {
        DpmAlgorithm::SdeDpmSolver => 2,
        _ => 3,
    };
    check_order("solver_order", order, 1..=highest)
}

/// The options of diffusers' classes that are not known here.
pub(super) fn unknown_of_dpm_solvers() -> Options {
    vec![
        ("lambda_min_clipped", vec![]),
        ("use_dynamic_shifting", only([false])),
        ("variance_type", only(FIXED_VARIANCES)),
    ]
}

/// Where a model does not predict variances beside the noise; which of them it is does not matter to solvers.
pub(super) const FIXED_VARIANCES: [&str; 4] = [
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
];

/// The weights of one step: of the latents, of the value, and of its slope and curvature over the step.
pub(super) struct DpmUpdate {
    keep: f64,
    value: f64,
    midpoint: f64,
    slope: f64,
    curvature: f64,
    fresh: f64,
    span: (f64, f64),
}

impl DpmUpdate {
    /// From a noise level to a lower one above 0. Source: "DPM-Solver", equations 3.3 to 3.7;
    /// "DPM-Solver++", equations 9 to 13, over the step `h = ln(from / to)`.
    pub(super) fn new(algorithm: DpmAlgorithm, from: f64, to: f64) -> Self {
        let h = (from / to).ln();
        let span = (from, to);
        match algorithm {
            DpmAlgorithm::DpmSolverPp => {
                let value = 1.0 - to / from;
                Self {
                    keep: to / from,
                    value,
                    midpoint: 0.5 * value,
                    slope: 1.0 - value / h,
                    curvature: 0.5 - (h - value) / (h * h),
                    fresh: 0.0,
                    span,
                }
            }
            DpmAlgorithm::DpmSolver => {
                let value = to - from;
                Self {
                    keep: 1.0,
                    value,
                    midpoint: 0.5 * value,
                    slope: value / h + to,
                    curvature: (value + to * h) / (h * h) + 0.5 * to,
                    fresh: 0.0,
                    span,
                }
            }
            DpmAlgorithm::SdeDpmSolverPp => {
                let keep = (to / from).powi(2);
                let (value, h) = (1.0 - keep, 2.0 * h);
                Self {
                    keep,
                    value,
                    midpoint: 0.5 * value,
                    slope: 1.0 - value / h,
                    // As diffusers has it. The expansion gives + 0.5, which is DpmPpMultistepSde's.
                    curvature: (value - h) / (h * h) - 0.5,
                    fresh: to * value.sqrt(),
                    span,
                }
            }
            DpmAlgorithm::SdeDpmSolver => {
                let value = 2.0 * (to - from);
                Self {
                    keep: 1.0,
                    value,
                    midpoint: 0.5 * value,
                    slope: value / h + 2.0 * to,
                    curvature: 0.0,
                    fresh: (from * from - to * to).sqrt(),
                    span,
                }
            }
        }
    }

    /// `latents` at the start of the step, and the terms of first and higher order.
    pub(super) fn apply(
        &self,
        step: &mut Step<'_>,
        latents: &Tensor,
        value: &Tensor,
        higher: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let mut terms = vec![(self.keep, latents), (self.value, value)];
        terms.extend_from_slice(higher);
        let moved = step.combine(&terms)?;
        renoise(step, moved, self.span, self.fresh)
    }

    /// The weight of the slope in a step of second order.
    pub(super) fn slope_of(&self, solver_type: SolverType) -> f64 {
        match solver_type {
            SolverType::Midpoint => self.midpoint,
            SolverType::Heun => self.slope,
        }
    }

    /// The weights of slope and curvature in a step of third order.
    pub(super) fn third_order(&self) -> (f64, f64) {
        (self.slope, self.curvature)
    }
}
