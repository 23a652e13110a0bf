//! Heun++.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, with_levels};
use super::axis::Axis;
use super::levels::{Grid, Levels, SigmaSchedule};
use super::updates::{Churn, straight};
use super::{Solver, Step};
use crate::error::Result;

/// Heun++: three evaluations a step but for the last two, at its start, its end and the end of the next,
/// each weighted by its noise level; deterministic without churn. ComfyUI's `heunpp2`.
///
/// Source: Carzit's sd-webui-samplers-scheduler, 2023.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeunPp {
    /// The noise levels.
    #[serde(flatten)]
    pub levels: Levels,
    /// Fresh noise before each step.
    #[serde(flatten)]
    pub churn: Churn,
}

impl Default for HeunPp {
    fn default() -> Self {
        Self {
            levels: Levels::new(SigmaSchedule::Native),
            churn: Churn::OFF,
        }
    }
}

impl Algorithm for HeunPp {
    const CLASS: &'static str = "HeunPP2Scheduler";
    const GRID: Grid = Grid::Fractional;

    fn check(&self) -> Result<()> {
        self.churn.check()
    }

    fn begin(&self) -> Box<dyn Solver> {
        let churn = self.churn;
        let mut highest: Option<f64> = None;
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let highest = *highest.get_or_insert(step.sigma());
            let (mut latents, mut sigma) = churn.apply(step, latents)?;
            let axis = Axis::of(step.schedule());
            let (start, from, to) = (latents.clone(), sigma, step.sigma_next());
            // The evaluations are those of a walk by Euler's method over two steps.
            let ahead: Vec<f64> = step.sigmas()[step.index() + 1..].to_vec();
            let count = ahead.len().min(3);
            let mut slopes = Vec::new();
            for &next in &ahead[..count] {
                let denoised = step.denoise(&latents, sigma)?;
                if count == 1 {
                    return straight(step, &latents, &denoised, sigma, next);
                }
                let slope = axis.slope(step, &latents, &denoised, sigma)?;
                slopes.push((axis.place(sigma), slope));
                latents = straight(step, &latents, &denoised, sigma, next)?;
                sigma = next;
            }
            let weight = |place: f64| place / (count as f64 * axis.place(highest));
            let length = axis.place(to) - axis.place(from);
            let later: f64 = slopes[1..].iter().map(|(place, _)| weight(*place)).sum();
            let mut terms = vec![(length * (1.0 - later), &slopes[0].1)];
            for (place, slope) in &slopes[1..] {
                terms.push((length * weight(*place), slope));
            }
            axis.moved(step, &start, (from, to), &terms)
        })
    }
}

with_levels!(HeunPp);
