//! Curves of noise levels: `num_steps` of them, falling, without the final one.

use std::f64::consts::PI;

use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};
use crate::scheduler::sampler::check_steps;

/// `num_steps` noise levels, falling from `sigma_max` to `sigma_min`, evenly in the power 1/7.
///
/// Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
/// equation 5 with rho = 7.
///
/// # Errors
/// [`Error::InvalidArgument`] for levels other than `0 < sigma_min <= sigma_max`, or for no steps or more than
/// a run has.
pub fn karras_sigmas(sigma_min: f64, sigma_max: f64, num_steps: usize) -> Result<Vec<f64>> {
    check_steps(num_steps)?;
    if !(sigma_min > 0.0 && sigma_min <= sigma_max && sigma_max.is_finite()) {
        let expected = "0 < sigma_min <= sigma_max";
        let found = format!("{sigma_min} and {sigma_max}");
        return Err(Error::argument("sigma_min", expected, found));
    }
    Ok(power(sigma_min, sigma_max, num_steps, 7.0))
}

/// `count` values from 0 to 1, evenly; a single one is 0.
fn ramp(count: usize) -> impl Iterator<Item = f64> {
    (0..count).map(move |i| i as f64 / (count.max(2) - 1) as f64)
}

/// Between the ends by a formula that must hit them exactly.
fn between(low: f64, high: f64, count: usize, at: impl Fn(f64) -> f64) -> Vec<f64> {
    ramp(count)
        .map(|share| match share {
            0.0 => high,
            1.0 => low,
            share => at(share),
        })
        .collect()
}

pub(super) fn power(low: f64, high: f64, count: usize, rho: f64) -> Vec<f64> {
    let (from, to) = (high.powf(rho.recip()), low.powf(rho.recip()));
    between(low, high, count, |share| {
        (from + (to - from) * share).powf(rho)
    })
}

pub(super) fn polyexponential(low: f64, high: f64, count: usize, rho: f64) -> Vec<f64> {
    between(low, high, count, |share| {
        low * (high / low).powf((1.0 - share).powf(rho))
    })
}

pub(super) fn kl_optimal(low: f64, high: f64, count: usize) -> Vec<f64> {
    between(low, high, count, |share| {
        (share * low.atan() + (1.0 - share) * high.atan()).tan()
    })
}

pub(super) fn laplace(low: f64, high: f64, count: usize) -> Vec<f64> {
    // Location 0 and scale 0.5; the small number keeps the logarithm of the ends finite.
    ramp(count)
        .map(|share| {
            let side = 0.5 - share;
            let magnitude = (1.0 - 2.0 * side.abs() + 1e-5).ln();
            let sign = if side == 0.0 { 0.0 } else { side.signum() };
            (-0.5 * sign * magnitude).exp().clamp(low, high)
        })
        .collect()
}

pub(super) fn linear_quadratic(high: f64, count: usize) -> Vec<f64> {
    /// What the straight half comes to.
    const THRESHOLD: f64 = 0.025;
    if count == 1 {
        return vec![high];
    }
    let (n, linear) = (count as f64, (count / 2) as f64);
    let quadratic = n - linear;
    let difference = linear - THRESHOLD * n;
    let square = difference / (linear * quadratic * quadratic);
    let slope = THRESHOLD / linear - 2.0 * difference / (quadratic * quadratic);
    (0..count)
        .map(|i| {
            let i = i as f64;
            let clean = match i < linear {
                true => i * THRESHOLD / linear,
                false => square * i * i + slope * i + square * linear * linear,
            };
            high * (1.0 - clean)
        })
        .collect()
}

pub(super) fn beta(low: f64, high: f64, count: usize) -> Vec<f64> {
    between(low, high, count, |share| {
        low + beta_quantile(1.0 - share) * (high - low)
    })
}

pub(super) fn beta_timesteps(noise: &NoiseSchedule, count: usize) -> Vec<f64> {
    let sigmas = noise.sigmas();
    let last = highest_index(noise);
    let mut places: Vec<usize> = (0..count)
        .map(|i| 1.0 - i as f64 / count as f64)
        .map(|share| (last * beta_quantile(share)).round_ties_even() as usize)
        .collect();
    places.dedup();
    places.into_iter().map(|place| sigmas[place]).collect()
}

/// The quantile of the beta distribution with both parameters 0.6. It is symmetric; below one half, in
/// `v = x^0.6`, the density is almost even, and Newton's method is at the digits' end in a few steps.
fn beta_quantile(probability: f64) -> f64 {
    const A: f64 = 0.6;
    if probability > 0.5 {
        return 1.0 - beta_quantile(1.0 - probability);
    }
    if probability == 0.5 {
        // Exactly, since it falls on a half when it becomes a timestep.
        return 0.5;
    }
    let density = |v: f64| (1.0 - v.powf(A.recip())).powf(A - 1.0);
    let half = 0.5f64.powf(A);
    let wanted = 2.0 * probability * integral(half, density);
    let mut v = 2.0 * probability * half;
    for _ in 0..6 {
        v = (v - (integral(v, density) - wanted) / density(v)).clamp(0.0, half);
    }
    v.powf(A.recip())
}

/// The integral from 0, by the tanh-sinh rule, which bends of the function at its ends do not disturb.
fn integral(end: f64, function: impl Fn(f64) -> f64) -> f64 {
    const STEP: f64 = 0.125;
    let node = |k: i32| {
        let t = f64::from(k) * STEP;
        let bend = 0.5 * PI * t.sinh();
        let weight = 0.5 * PI * t.cosh() / bend.cosh().powi(2);
        weight * function(0.5 * end * (1.0 + bend.tanh()))
    };
    0.5 * end * STEP * (-32..=32).map(node).sum::<f64>()
}

/// The place of a level among the model's, from 0.
fn highest_index(noise: &NoiseSchedule) -> f64 {
    (noise.num_train_timesteps() - 1) as f64
}

pub(super) fn normal(noise: &NoiseSchedule, count: usize) -> Vec<f64> {
    let last = highest_index(noise);
    ramp(count)
        .map(|share| noise.sigma_log(last * (1.0 - share)))
        .collect()
}

pub(super) fn sgm_uniform(noise: &NoiseSchedule, count: usize) -> Vec<f64> {
    let last = highest_index(noise);
    (0..count)
        .map(|i| noise.sigma_log(last * (1.0 - i as f64 / count as f64)))
        .collect()
}

pub(super) fn simple(noise: &NoiseSchedule, count: usize) -> Vec<f64> {
    let sigmas = noise.sigmas();
    let stride = sigmas.len() as f64 / count as f64;
    (0..count)
        .map(|i| sigmas[sigmas.len() - 1 - ((i as f64 * stride) as usize).min(sigmas.len() - 1)])
        .collect()
}

pub(super) fn ddim_uniform(noise: &NoiseSchedule, count: usize) -> Result<Vec<f64>> {
    let sigmas = noise.sigmas();
    if count >= sigmas.len() {
        let expected = format!("1 to {}, below the model's timesteps", sigmas.len() - 1);
        return Err(Error::argument("num_steps", expected, count));
    }
    let stride = sigmas.len() / count;
    let mut levels: Vec<f64> = sigmas.iter().skip(1).step_by(stride).copied().collect();
    levels.reverse();
    Ok(levels)
}
