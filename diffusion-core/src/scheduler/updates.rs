//! Pieces that several solvers share.

use std::f64::consts::SQRT_2;
use std::ops::RangeInclusive;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Step;
use crate::error::{Error, Result};

/// From one noise level to another along the straight line through the estimate of the clean latents:
/// Euler's step, written so that no large terms cancel.
pub(super) fn straight(
    step: &Step<'_>,
    latents: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor> {
    let keep = to / from;
    step.combine(&[(keep, latents), (1.0 - keep, denoised)])
}

/// The noise that an estimate of the clean latents means: the slope of the latents over the noise level.
pub(super) fn noise_of(
    step: &Step<'_>,
    latents: &Tensor,
    denoised: &Tensor,
    sigma: f64,
) -> Result<Tensor> {
    let scale = sigma.recip();
    step.combine(&[(scale, latents), (-scale, denoised)])
}

/// Where to step down to, and how much fresh noise to add then, to arrive at the level `to`.
///
/// Source: k-diffusion's `get_ancestral_step`; Song, Meng and Ermon, "Denoising Diffusion Implicit
/// Models", 2020, equation 16.
pub(super) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let ratio = to / from;
    let up = to.min(eta * to * (1.0 - ratio * ratio).max(0.0).sqrt());
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// Adds fresh noise of a standard deviation, if any.
pub(super) fn renoise(
    step: &mut Step<'_>,
    latents: Tensor,
    (from, to): (f64, f64),
    scale: f64,
) -> Result<Tensor> {
    if scale == 0.0 {
        return Ok(latents);
    }
    let noise = step.noise(from, to)?;
    step.combine(&[(1.0, &latents), (scale, &noise)])
}

/// The share of fresh noise: the request's, or else the scheduler's own.
pub(super) fn eta_of(step: &Step<'_>, own: f64) -> Result<f64> {
    let eta = step.eta().unwrap_or(own);
    check_range("eta", eta, 0.0..=1.0)?;
    Ok(eta)
}

/// How many of the newest of some noise levels fall from one to the next. A level that is visited twice
/// has no slope, so methods over several steps go no further back.
pub(super) fn falling(newest_first: impl Iterator<Item = f64> + Clone) -> usize {
    let older = newest_first.clone().skip(1);
    let pairs = newest_first.zip(older);
    1 + pairs.take_while(|(newer, older)| older > newer).count()
}

/// Fresh noise after each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FreshNoise {
    /// Its share in each step, from 0 to 1; a request's own comes first.
    pub eta: f64,
    /// Its standard deviation, about 1.
    pub s_noise: f64,
}

impl FreshNoise {
    /// None.
    pub const NONE: Self = Self {
        eta: 0.0,
        s_noise: 1.0,
    };

    /// As much as the noise level allows.
    pub const FULL: Self = Self {
        eta: 1.0,
        s_noise: 1.0,
    };

    pub(super) fn check(&self) -> Result<()> {
        check_range("eta", self.eta, 0.0..=1.0)?;
        check_range("s_noise", self.s_noise, 0.0..=MAX_FACTOR)
    }
}

/// The highest standard deviation of fresh noise, and the highest of other factors: far beyond any use, and
/// low enough for latents of f32 to stay finite.
pub(super) const MAX_FACTOR: f64 = 1e3;

/// Refuses an order that a method does not have.
pub(super) fn check_order(
    name: &'static str,
    order: usize,
    range: RangeInclusive<usize>,
) -> Result<()> {
    if range.contains(&order) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(Error::argument(name, expected, order))
}

/// Refuses a field out of range, and what is no number.
pub(super) fn check_range(
    name: &'static str,
    value: f64,
    range: RangeInclusive<f64>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let expected = match (*range.start(), *range.end()) {
        (low, f64::MAX) => format!("a finite number from {low} up"),
        (low, high) => format!("{low} to {high}"),
    };
    Err(Error::argument(name, expected, value))
}

/// Fresh noise before each step, so that it starts from a little higher up.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// algorithm 2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Churn {
    /// How much in all; 0 for none.
    pub s_churn: f64,
    /// The lowest noise level at which it happens.
    pub s_tmin: f64,
    /// The highest such level, if there is one.
    pub s_tmax: Option<f64>,
    /// The standard deviation of the fresh noise, about 1.
    pub s_noise: f64,
}

impl Churn {
    /// No fresh noise.
    pub const OFF: Self = Self {
        s_churn: 0.0,
        s_tmin: 0.0,
        s_tmax: None,
        s_noise: 1.0,
    };

    pub(super) fn check(&self) -> Result<()> {
        check_range("s_churn", self.s_churn, 0.0..=f64::MAX)?;
        check_range("s_tmin", self.s_tmin, 0.0..=f64::MAX)?;
        if let Some(s_tmax) = self.s_tmax {
            check_range("s_tmax", s_tmax, 0.0..=f64::INFINITY)?;
        }
        check_range("s_noise", self.s_noise, 0.0..=MAX_FACTOR)
    }

    /// The latents of the step after that, and their noise level.
    pub(super) fn apply(&self, step: &mut Step<'_>, latents: &Tensor) -> Result<(Tensor, f64)> {
        let sigma = step.sigma();
        let highest = self.s_tmax.unwrap_or(f64::INFINITY);
        if self.s_churn <= 0.0 || !(self.s_tmin..=highest).contains(&sigma) {
            return Ok((latents.clone(), sigma));
        }
        let gamma = (self.s_churn / step.num_steps() as f64).min(SQRT_2 - 1.0);
        let raised = sigma * (1.0 + gamma);
        let scale = self.s_noise * (raised * raised - sigma * sigma).sqrt();
        let latents = renoise(step, latents.clone(), (sigma, raised), scale)?;
        Ok((latents, raised))
    }
}
