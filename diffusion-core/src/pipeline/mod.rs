//! From a request to pictures: builder, request, and the public stages of a run.

mod adapters;
mod builder;
mod check;
mod controls;
mod image_encoder;
mod image_prompts;
mod memory;
mod prompt;
mod request;
mod run;
mod shared;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::Value;

use adapters::{Adapters, TextPart};
pub use builder::PipelineBuilder;
pub use controls::{Control, ControlImage, ControlModel};
pub use image_encoder::ImageEncoderFiles;
use image_prompts::Sight;
pub use image_prompts::{ImageEmbeds, IpAdapterImage};
use prompt::PromptCache;
pub use prompt::{PromptEmbeds, PromptSyntax};
pub use request::{GenerateRequest, PictureSizes};
pub use run::Sampled;
pub use shared::SharedPipeline;

use crate::denoise::NoiseSchedule;
pub use crate::denoise::{Conditioning, PromptPlan};
use crate::model::{TextEncoder, Tokenizer, UNet, Vae};
use crate::scheduler::Scheduler;

/// The parts of a latent diffusion model, joined. Runs do not change it and it is `Send + Sync`: threads share
/// one and call [`generate`](Self::generate) at the same time. [`SharedPipeline`] is for those that also change it.
/// A clone has the same weights in the same memory.
#[derive(Debug, Clone)]
pub struct Pipeline {
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
    adapters: Adapters,
    sight: Sight,
    /// Prompts that these text encoders read before.
    prompts: PromptCache,
}

impl Pipeline {
    /// Starts a pipeline.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::default()
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
}

/// Something that did not stop a run and that its caller should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A prompt had more tokens than the model takes; its end was left out.
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
    /// Steps of this batch that are done, from 1.
    pub step: usize,
    /// Steps of each batch.
    pub num_steps: usize,
    /// Which of the request's pictures are in this batch.
    pub images: Range<usize>,
    /// Pictures of the whole request.
    pub num_images: usize,
    /// The noise level that the latents have now.
    pub sigma: f64,
    /// `(batch, channels, height / 8, width / 8)`: the latents, clean plus `sigma` times unit noise.
    pub latents: &'a Tensor,
    /// The current estimate of the clean latents, of the same shape. [`Pipeline::decode`] makes a preview.
    pub denoised: &'a Tensor,
}

impl Progress<'_> {
    /// The share of the whole request's steps that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        let done = self.images.start * self.num_steps + self.images.len() * self.step;
        done as f64 / (self.num_images * self.num_steps) as f64
    }
}

/// What [`Pipeline::generate_with`] calls after each step; [`ControlFlow::Break`] cancels the run.
pub type ProgressFn<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;
