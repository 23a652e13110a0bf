//! What a run shall do, as data.

use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use super::Control;
use crate::scheduler::Scheduler;

/// How a request names its scheduler.
#[derive(Debug, Clone)]
pub(super) enum SchedulerChoice {
    Value(Arc<dyn Scheduler>),
    Name(String),
    Config(Value),
}

/// What a run shall do. Every field has a default but the prompt; values are checked when the run starts.
///
/// # Example
/// ```
/// use diffusion_core::{DpmSolverMultistep, GenerateRequest, WithLevels};
///
/// let request = GenerateRequest::txt2img("a red heart, flat style")
///     .negative_prompt("blue")
///     .size(128, 128)
///     .num_steps(25)
///     .guidance_scale(5.0)
///     .seed(42)
///     .scheduler(DpmSolverMultistep::default().karras());
/// ```
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub(super) prompt: String,
    pub(super) negative_prompt: String,
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
    pub(super) num_steps: usize,
    pub(super) guidance_scale: f64,
    pub(super) seed: Option<u64>,
    pub(super) num_images: usize,
    pub(super) batch_size: usize,
    pub(super) eta: Option<f64>,
    pub(super) scheduler: Option<SchedulerChoice>,
    pub(super) latents: Option<Tensor>,
    pub(super) controls: Vec<Control>,
}

impl GenerateRequest {
    /// A picture from a prompt. An empty prompt is one, too.
    pub fn txt2img(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            width: None,
            height: None,
            num_steps: 50,
            guidance_scale: 7.5,
            seed: None,
            num_images: 1,
            batch_size: 1,
            eta: None,
            scheduler: None,
            latents: None,
            controls: Vec::new(),
        }
    }

    /// What the picture shall show, in place of what the constructor was given.
    pub fn prompt(mut self, prompt: impl Into<String>) -> Self {
        self.prompt = prompt.into();
        self
    }

    /// What the picture shall not show; it counts where guidance is on. Default: nothing.
    pub fn negative_prompt(mut self, negative_prompt: impl Into<String>) -> Self {
        self.negative_prompt = negative_prompt.into();
        self
    }

    /// Size in pixels, each a multiple of the autoencoder's factor (8 in Stable Diffusion). Default: the
    /// size that the model was trained on.
    pub fn size(self, width: usize, height: usize) -> Self {
        self.width(width).height(height)
    }

    /// Width in pixels; see [`size`](Self::size).
    pub fn width(mut self, width: usize) -> Self {
        self.width = Some(width);
        self
    }

    /// Height in pixels; see [`size`](Self::size).
    pub fn height(mut self, height: usize) -> Self {
        self.height = Some(height);
        self
    }

    /// Number of steps, from 1 to the model's timesteps (1000); some schedulers take fewer (LCM), others
    /// more. Default: 50.
    pub fn num_steps(mut self, num_steps: usize) -> Self {
        self.num_steps = num_steps;
        self
    }

    /// How far the picture follows the prompt, finite and at least 0. At most 1 means without guidance, in
    /// half the time. Default: 7.5.
    pub fn guidance_scale(mut self, guidance_scale: f64) -> Self {
        self.guidance_scale = guidance_scale;
        self
    }

    /// The seed of the first picture; the next ones have the seeds that follow. The lower 32 bits count, as
    /// in PyTorch. Default: a random one, told in [`Generated::seeds`](super::Generated::seeds).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Number of pictures, at least 1. Default: 1.
    pub fn num_images(mut self, num_images: usize) -> Self {
        self.num_images = num_images;
        self
    }

    /// How many of the pictures are worked on at once, at least 1. More is faster on a GPU and takes more
    /// memory; 1 gives each picture the same bits whatever stands beside it. Default: 1.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// The share of fresh noise in each step, from 0 to 1, for schedulers that have one (DDIM, TCD, the
    /// ancestral ones and those of stochastic equations). Default: the scheduler's own.
    pub fn eta(mut self, eta: f64) -> Self {
        self.eta = Some(eta);
        self
    }

    /// A scheduler in place of the pipeline's.
    pub fn scheduler(mut self, scheduler: impl Scheduler + 'static) -> Self {
        self.scheduler = Some(SchedulerChoice::Value(Arc::new(scheduler)));
        self
    }

    /// A scheduler by name, set as the model's `scheduler_config.json` says; see
    /// [`from_name`](crate::scheduler::from_name).
    pub fn scheduler_name(mut self, name: impl Into<String>) -> Self {
        self.scheduler = Some(SchedulerChoice::Name(name.into()));
        self
    }

    /// A scheduler by a diffusers configuration. Where it is silent the model's `scheduler_config.json`
    /// speaks; betas and prediction type count too.
    pub fn scheduler_config(mut self, config: Value) -> Self {
        self.scheduler = Some(SchedulerChoice::Config(config));
        self
    }

    /// The noise to start from, in place of the seed's: `(num_images, channels, height / 8, width / 8)` of
    /// unit variance. It sets the size, where the request names none.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.latents = Some(latents);
        self
    }

    /// A picture to follow, by a ControlNet or T2I-Adapter. Called again it adds another.
    pub fn control(mut self, control: Control) -> Self {
        self.controls.push(control);
        self
    }
}
