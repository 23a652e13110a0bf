//! Sampling: the two traits that users implement, the one loop, and the algorithms.

mod ddim;
mod dpmpp_2m;
mod euler;
mod registry;
mod sampler;
mod spacing;

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

pub use ddim::Ddim;
pub use dpmpp_2m::{DpmPp2m, SolverType};
pub use euler::Euler;
pub use registry::{from_config, from_name, names};
pub use sampler::{Sampler, Step, StepReport};
pub use spacing::{FinalSigmas, TimestepSpacing, karras_sigmas};

use crate::denoise::NoiseSchedule;
use crate::error::Result;

/// Plans a walk of the latents from the highest noise level towards none. A value is immutable and
/// serves many concurrent runs; what a run must remember lives in its [`Solver`].
///
/// # Example
/// A first-order scheduler of one's own, with a closure as solver:
/// ```
/// use diffusion_core::{NoiseSchedule, Result, Scheduler, Solver, Step, Tensor};
///
/// #[derive(Debug)]
/// struct Geometric;
///
/// impl Scheduler for Geometric {
///     fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
///         let ratio = (noise.sigma_min() / noise.sigma_max()).powf(1.0 / num_steps as f64);
///         let levels = (0..num_steps).map(|i| noise.sigma_max() * ratio.powi(i as i32));
///         Ok(levels.chain([0.0]).collect())
///     }
///     fn solver(&self) -> Box<dyn Solver> {
///         Box::new(|step: &mut Step<'_>, latents: &Tensor| {
///             let denoised = step.denoise(latents, step.sigma())?;
///             let keep = step.sigma_next() / step.sigma();
///             step.combine(&[(keep, latents), (1.0 - keep, &denoised)])
///         })
///     }
/// }
/// ```
pub trait Scheduler: Send + Sync + fmt::Debug {
    /// The noise levels of a run, falling: `num_steps + 1` values, of which the last is usually 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no plan of that many steps.
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>>;

    /// Fresh state for one run; multistep history lives there.
    fn solver(&self) -> Box<dyn Solver>;

    /// What the model is told where latents have the noise level `sigma`, possibly fractional.
    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        noise.timestep(sigma)
    }

    /// Unit noise is multiplied by this to start: the standard deviation of clean latents of unit variance
    /// and noise together.
    fn init_noise_sigma(&self, sigma_max: f64) -> f64 {
        (sigma_max * sigma_max + 1.0).sqrt()
    }

    /// Latents are multiplied by this at the end. It matters only where the last noise level is not 0.
    fn final_scale(&self, sigma_last: f64) -> f64 {
        self.init_noise_sigma(sigma_last).recip()
    }
}

/// A shared scheduler is one too, such as those that [`from_name`] gives.
impl<S: Scheduler + ?Sized> Scheduler for Arc<S> {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        (**self).sigmas(noise, num_steps)
    }

    fn solver(&self) -> Box<dyn Solver> {
        (**self).solver()
    }

    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        (**self).timestep(noise, sigma)
    }

    fn init_noise_sigma(&self, sigma_max: f64) -> f64 {
        (**self).init_noise_sigma(sigma_max)
    }

    fn final_scale(&self, sigma_last: f64) -> f64 {
        (**self).final_scale(sigma_last)
    }
}

/// One run's walk. A closure of the same arguments is a solver too.
pub trait Solver: Send {
    /// Takes latents from `step.sigma()` to `step.sigma_next()`.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height, width)`, f32; returns the same.
    ///
    /// # Errors
    /// What the denoiser returns; [`Error::custom`](crate::Error::custom) wraps errors of other crates.
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor>;
}

impl<F> Solver for F
where
    F: FnMut(&mut Step<'_>, &Tensor) -> Result<Tensor> + Send,
{
    fn step(&mut self, step: &mut Step<'_>, latents: &Tensor) -> Result<Tensor> {
        self(step, latents)
    }
}
