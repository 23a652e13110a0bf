//! Sampling: the two traits that users implement, the one loop, and the algorithms.

mod algorithm;
mod axis;
mod cfg_pp;
mod consistency;
mod consistency_model;
mod cosine_dpm_solver;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_adaptive;
mod dpm_solver_multistep;
mod dpm_solver_multistep_inverse;
mod dpm_solver_singlestep;
mod dpm_updates;
mod dpmpp_2m_cfg_pp;
mod dpmpp_2s_ancestral;
mod dpmpp_sde;
mod er_sde;
mod euler;
mod flow_match;
mod flow_match_stochastic;
mod gradient_estimation;
mod heun;
mod heun_pp;
mod ipndm;
mod levels;
mod limits;
mod lms;
mod pndm;
mod registry;
mod res_multistep;
mod restart;
mod sa_solver;
mod sampler;
mod seeds;
mod table;
mod unipc;
mod updates;
mod whole_steps;

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

pub use algorithm::WithLevels;
pub use consistency::{Lcm, Tcd};
pub use consistency_model::ConsistencyModel;
pub use cosine_dpm_solver::CosineDpmSolverMultistep;
pub use ddim::{Ddim, DdimInverse};
pub use ddpm::{Ddpm, VarianceType};
pub use deis::Deis;
pub use dpm_adaptive::{DpmAdaptive, DpmFast};
pub use dpm_solver_multistep::{DpmSolverMultistep, EdmDpmSolverMultistep};
pub use dpm_solver_multistep_inverse::DpmSolverMultistepInverse;
pub use dpm_solver_singlestep::DpmSolverSinglestep;
pub use dpm_updates::{DpmAlgorithm, SolverType};
pub use dpm2::{Dpm2, Dpm2Ancestral};
pub use dpmpp_2m_cfg_pp::DpmPp2mCfgPp;
pub use dpmpp_2s_ancestral::DpmPp2sAncestral;
pub use dpmpp_sde::{DpmPpMultistepSde, DpmSolverSde};
pub use er_sde::ErSde;
pub use euler::{EdmEuler, Euler, EulerAncestral, EulerCfgPp};
pub use flow_match::{FlowMatchEuler, FlowMatchHeun, TimeShift};
pub use flow_match_stochastic::{FlowMatchEulerAncestral, FlowMatchLcm};
pub use gradient_estimation::GradientEstimation;
pub use heun::Heun;
pub use heun_pp::HeunPp;
pub use ipndm::Ipndm;
pub use levels::{
    FinalSigmas, Levels, SigmaSchedule, TimestepSpacing, karras_sigmas, sigma_schedule,
};
pub use limits::{ClipSample, Limits, Thresholding};
pub use lms::Lms;
pub use pndm::Pndm;
pub use registry::{Entry, entries, entry_of, from_config, from_name, names};
pub use res_multistep::ResMultistep;
pub use restart::Restart;
pub use sa_solver::{SaAlgorithm, SaSolver};
pub use sampler::{Observer, Sampler, Step, StepReport};
pub use seeds::{Seeds, SeedsStages};
pub use unipc::{UniPc, UniPcType};
pub use updates::{Churn, FreshNoise};

use crate::denoise::NoiseSchedule;
use crate::error::Result;
use crate::rng::NoiseKind;

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
    /// The noise levels of a run: `num_steps + 1` values, falling, of which the last is usually 0. Lists of
    /// one's own and some solvers have other numbers of steps, and those of [`may_rise`](Self::may_rise) rise.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no plan of that many steps.
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>>;

    /// Fresh state for one run; multistep history lives there.
    fn solver(&self) -> Box<dyn Solver>;

    /// What the model is told where latents have a noise level of the plan, possibly fractional. Between
    /// the planned levels it is told [`NoiseSchedule::timestep`].
    fn timestep(&self, noise: &NoiseSchedule, sigma: f64) -> f64 {
        noise.timestep(sigma)
    }

    /// Unit noise is multiplied by this to start: the standard deviation of clean latents of unit variance
    /// and noise together.
    fn init_noise_sigma(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        noise.input_scale(sigma_max).recip()
    }

    /// Latents are multiplied by this at the end. It matters only where the last noise level is not 0.
    fn final_scale(&self, noise: &NoiseSchedule, sigma_last: f64) -> f64 {
        noise.input_scale(sigma_last) / noise.input_scale(0.0)
    }

    /// Which fresh noise the solver takes.
    fn noise_kind(&self) -> NoiseKind {
        NoiseKind::Gaussian
    }

    /// Whether [`sigmas`](Self::sigmas) may rise: where noise is added again, or where clean latents are
    /// taken back to noise.
    fn may_rise(&self) -> bool {
        false
    }

    /// Whether the solver needs [`Step::unconditional`], so that guidance must be on at any scale.
    fn needs_unconditional(&self) -> bool {
        false
    }

    /// A scheduler whose whole plan starts from the noise that a strength between 0 and 1 puts on a picture, for
    /// those of models that are distilled to few levels. `None` (the default) where a run leaves out the first
    /// steps of the plan instead.
    fn shortened(&self, _strength: f64) -> Option<Arc<dyn Scheduler>> {
        None
    }

    /// The settings as a `scheduler_config.json`, from which [`from_config`] makes an equal scheduler;
    /// `None` for schedulers that it does not know.
    fn config(&self) -> Option<Value> {
        None
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

    fn init_noise_sigma(&self, noise: &NoiseSchedule, sigma_max: f64) -> f64 {
        (**self).init_noise_sigma(noise, sigma_max)
    }

    fn final_scale(&self, noise: &NoiseSchedule, sigma_last: f64) -> f64 {
        (**self).final_scale(noise, sigma_last)
    }

    fn noise_kind(&self) -> NoiseKind {
        (**self).noise_kind()
    }

    fn may_rise(&self) -> bool {
        (**self).may_rise()
    }

    fn needs_unconditional(&self) -> bool {
        (**self).needs_unconditional()
    }

    fn shortened(&self, strength: f64) -> Option<Arc<dyn Scheduler>> {
        (**self).shortened(strength)
    }

    fn config(&self) -> Option<Value> {
        (**self).config()
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
