//! From a request to pictures: builder, request, and the public stages of a run.

mod adapters;
mod builder;
mod cancel;
mod canvas;
mod check;
mod check_pictures;
mod controls;
mod image_encoder;
mod image_prompts;
mod interpolation;
mod memory;
mod networks;
mod passes;
mod plan;
mod preview;
mod prompt;
mod provenance;
mod request;
mod run;
mod safety;
mod shared;
mod start;
mod variation;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::Value;

use adapters::{Adapters, TextPart};
pub use builder::PipelineBuilder;
pub use cancel::CancelToken;
pub use controls::{Control, ControlImage, ControlModel};
pub use image_encoder::ImageEncoderFiles;
use image_prompts::Sight;
pub use image_prompts::{ImageEmbeds, IpAdapterImage};
pub use interpolation::{Interpolated, Interpolation};
use prompt::PromptCache;
pub use prompt::{PromptEmbeds, PromptSyntax};
use provenance::RunRecord;
pub use provenance::{RecallWarning, Recalled};
pub use request::{GenerateRequest, Hires, InitImage, MaskedContent, PictureSizes, Upscaler};
pub use run::Sampled;
pub use shared::SharedPipeline;

use crate::denoise::NoiseSchedule;
pub use crate::denoise::{Conditioning, PromptPlan};
use crate::model::{SafetyChecker, SafetyReport, TextEncoder, Tokenizer, UNet, Vae};
use crate::nn::Threads;
use crate::scheduler::Scheduler;

/// The parts of a latent diffusion model, joined. Runs do not change it and it is `Send + Sync`: threads share
/// one and call [`generate`](Self::generate) at the same time. [`SharedPipeline`] is for those that also change it.
/// A clone has the same weights in the same memory.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// What its checkpoint is called.
    name: Option<String>,
    /// The text encoder, and SDXL's second.
    text: [TextPart; 2],
    /// Whether no negative prompt means zeros, not the empty text.
    zeroes_empty_prompt: bool,
    unet: UNet,
    vae: Vae,
    noise: NoiseSchedule,
    /// `None` where the folder's own is not known; requests must then name one.
    scheduler: Option<Arc<dyn Scheduler>>,
    scheduler_config: Value,
    device: Device,
    threads: Threads,
    adapters: Adapters,
    sight: Sight,
    safety_checker: Option<Arc<SafetyChecker>>,
    notes: Vec<String>,
    /// Prompts that these text encoders read before.
    prompts: PromptCache,
}

impl Pipeline {
    /// Starts a pipeline.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::default()
    }

    /// What its checkpoint is called: the file without its ending, the folder, the id on the hub without its
    /// owner. `None` if its parts were given one by one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The text encoder, or the first of two, if the model has one.
    pub fn text_encoder(&self) -> Option<&TextEncoder> {
        self.text[0].encoder.as_ref()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.text[0].tokenizer.as_ref()
    }

    /// The second text encoder of SDXL, and the only one of its refiner.
    pub fn text_encoder_2(&self) -> Option<&TextEncoder> {
        self.text[1].encoder.as_ref()
    }

    /// The second text encoder's tokenizer.
    pub fn tokenizer_2(&self) -> Option<&Tokenizer> {
        self.text[1].tokenizer.as_ref()
    }

    /// The UNet.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// The autoencoder.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }

    /// The noise levels of the model's timesteps.
    pub fn noise_schedule(&self) -> &NoiseSchedule {
        &self.noise
    }

    /// The scheduler of requests that name none; `None` if the model's own is not known, and requests must
    /// name one.
    pub fn scheduler(&self) -> Option<&dyn Scheduler> {
        self.scheduler.as_deref()
    }

    /// What the checkpoint does not say and was assumed, such as what a model in one file predicts, and what of it
    /// is not used. Nothing, for folders in the diffusers layout.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the model is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `(width, height)` of pictures of requests that name no size: the size that the model was trained on.
    pub fn default_size(&self) -> (usize, usize) {
        use crate::config::PerLevel;
        let (height, width) = match &self.unet.config().sample_size {
            Some(PerLevel::Same(side)) => (*side, *side),
            Some(PerLevel::Each(sides)) if sides.len() == 2 => (sides[0], sides[1]),
            _ => (64, 64),
        };
        (width * self.vae.downscale(), height * self.vae.downscale())
    }
}

/// The result of a run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generated {
    /// The pictures, one for each of `seeds`.
    pub images: Vec<RgbImage>,
    /// The seed of each picture: a request with it and one picture gives the same again.
    pub seeds: Vec<u64>,
    /// What the caller should know and may show.
    pub warnings: Vec<Warning>,
    /// Where the time went.
    pub timings: Timings,
    /// What the pipeline's safety checker says of each picture; empty without one.
    pub safety: Vec<SafetyReport>,
    pub(in crate::pipeline) record: RunRecord,
}

/// Something that did not stop a run and that its caller should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A prompt in [`PromptSyntax::Plain`] had more tokens than the model takes; its end was left out.
    PromptTruncated {
        /// Whether it was the negative prompt.
        negative: bool,
        /// Tokens that the model takes, start and end token not counted.
        limit: usize,
        /// What was left out.
        dropped: String,
    },
    /// The autoencoder overflowed in half precision and was asked again in f32.
    DecodedInF32,
    /// The autoencoder overflowed in half precision, and a picture was encoded again in f32.
    EncodedInF32,
    /// The run was cancelled, and what it had come to is the result, as the request asked.
    Cancelled {
        /// Steps of the last batch that were done.
        step: usize,
        /// Steps of each batch.
        num_steps: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PromptTruncated {
                negative,
                limit,
                dropped,
            } => {
                let which = if *negative {
                    "negative prompt"
                } else {
                    "prompt"
                };
                write!(
                    f,
                    "the {which} is longer than {limit} tokens; left out: {dropped:?}"
                )
            }
            Self::Cancelled { step, num_steps } => {
                write!(f, "cancelled after step {step} of {num_steps}")
            }
            Self::EncodedInF32 => f.write_str(
                "the autoencoder overflowed in half precision; a picture was encoded again in f32",
            ),
            Self::DecodedInF32 => f.write_str(
                "the autoencoder overflowed in half precision; the picture was decoded again in f32",
            ),
        }
    }
}

/// Where the time of a run went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokenizer and text encoder.
    pub encode: Duration,
    /// All steps of all pictures.
    pub sample: Duration,
    /// Autoencoder and conversion to RGB.
    pub decode: Duration,
}

/// What the caller sees after each step.
#[derive(Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The pass over the pictures, from 0: the second is that of [`Hires`].
    pub pass: usize,
    /// How many passes there are.
    pub num_passes: usize,
    /// Steps of this batch that are done, from 1.
    pub step: usize,
    /// Steps of each batch.
    pub num_steps: usize,
    /// Which of the request's pictures are in this batch.
    pub images: Range<usize>,
    /// Pictures of the whole request.
    pub num_images: usize,
    /// How long this pass has been at its steps.
    pub elapsed: Duration,
    /// The noise level that the latents have now.
    pub sigma: f64,
    /// `(batch, channels, height / 8, width / 8)`: the latents, clean plus `sigma` times unit noise.
    pub latents: &'a Tensor,
    /// The current estimate of the clean latents, of the same shape. [`Pipeline::decode`] makes a preview.
    pub denoised: &'a Tensor,
}

impl Progress<'_> {
    /// The share of the whole request's steps that is done, from 0 to 1; passes count alike.
    pub fn fraction(&self) -> f64 {
        (self.pass as f64 + self.share_of_pass()) / self.num_passes as f64
    }

    /// How long the rest of this pass's steps will take, if they go on as so far.
    pub fn time_left(&self) -> Duration {
        let share = self.share_of_pass();
        self.elapsed.mul_f64((1.0 - share).max(0.0) / share)
    }

    /// The share of this pass's steps that is done; above 0.
    fn share_of_pass(&self) -> f64 {
        let done = self.images.start * self.num_steps + self.images.len() * self.step.max(1);
        done as f64 / (self.num_images * self.num_steps) as f64
    }
}

/// What [`Pipeline::generate_with`] calls after each step; [`ControlFlow::Break`] cancels the run.
pub type ProgressFn<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;
