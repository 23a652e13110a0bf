//! What a run shall do, as data.

mod guidance;
mod hires;
mod networks;
mod pictures;

use std::sync::Arc;

use candle_core::Tensor;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use hires::{Hires, Upscaler};
pub(super) use pictures::Inpainting;
pub use pictures::{InitImage, MaskedContent};

use super::{CancelToken, Control, IpAdapterImage, PromptEmbeds, PromptSyntax};
use crate::denoise::{DeepShrink, Guidance};
use crate::media::{Margins, ResizeMode};
use crate::model::VaeTiling;
use crate::nn::Seamless;
use crate::scheduler::Scheduler;

/// How a request names its scheduler.
#[derive(Debug, Clone)]
pub(super) enum SchedulerChoice {
    Value(Arc<dyn Scheduler>),
    Name(String),
    Config(Value),
}

impl Serialize for SchedulerChoice {
    /// A name as text and a configuration as an object; null for a scheduler that has none.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Name(name) => name.serialize(serializer),
            Self::Config(config) => config.serialize(serializer),
            Self::Value(scheduler) => scheduler.config().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SchedulerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Ok(Self::Name(name)),
            config @ Value::Object(_) => Ok(Self::Config(config)),
            other => Err(D::Error::custom(format!(
                "expected a scheduler, found {other}"
            ))),
        }
    }
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
///
/// Serde writes and reads all fields that are data: not tensors, pictures, networks, and not schedulers without
/// [`config`](Scheduler::config).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerateRequest {
    pub(super) prompt: String,
    pub(super) prompt_2: Option<String>,
    pub(super) negative_prompt: Option<String>,
    pub(super) negative_prompt_2: Option<String>,
    pub(super) prompt_syntax: PromptSyntax,
    pub(super) clip_skip: Option<usize>,
    #[serde(skip)]
    pub(super) prompt_embeds: Option<PromptEmbeds>,
    #[serde(skip)]
    pub(super) negative_prompt_embeds: Option<PromptEmbeds>,
    pub(super) sizes: PictureSizes,
    pub(super) negative_sizes: Option<PictureSizes>,
    pub(super) aesthetic_score: f64,
    pub(super) negative_aesthetic_score: f64,
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
    pub(super) num_steps: usize,
    #[serde(flatten)]
    pub(super) guidance: Guidance,
    pub(super) seed: Option<u64>,
    pub(super) num_images: usize,
    pub(super) batch_size: usize,
    pub(super) eta: Option<f64>,
    pub(super) scheduler: Option<SchedulerChoice>,
    #[serde(skip)]
    pub(super) latents: Option<Tensor>,
    #[serde(skip)]
    pub(super) noise: Option<Tensor>,
    pub(super) variation: Option<Variation>,
    #[serde(skip)]
    pub(super) image: Option<InitImage>,
    pub(super) resize_mode: ResizeMode,
    pub(super) strength: Option<f64>,
    #[serde(flatten)]
    pub(super) inpainting: Inpainting,
    pub(super) margins: Option<Margins>,
    pub(super) is_instruction: bool,
    pub(super) hires: Option<Hires>,
    #[serde(skip)]
    pub(super) cancel_token: Option<CancelToken>,
    #[serde(skip)]
    pub(super) keep_cancelled: bool,
    pub(super) denoising_start: Option<f64>,
    pub(super) denoising_end: Option<f64>,
    #[serde(skip)]
    pub(super) ip_adapter_images: Vec<IpAdapterImage>,
    #[serde(skip)]
    pub(super) controls: Vec<Control>,
    pub(super) pag_scale: f64,
    pub(super) pag_adaptive_scale: f64,
    pub(super) pag_layers: Vec<String>,
    pub(super) deep_shrink: Option<DeepShrink>,
    pub(super) deep_cache: usize,
    pub(super) tgate: Option<usize>,
    pub(super) token_merging: f64,
    pub(super) seamless: Seamless,
    pub(super) vae_tiling: Option<VaeTiling>,
    pub(super) vae_slicing: bool,
}

/// Another seed, and how much of its noise counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Variation {
    pub(super) seed: u64,
    pub(super) strength: f64,
}

/// What SDXL is told of the picture that it was cut from and that it becomes, in pixels. Small originals give
/// soft pictures, crops cut-off ones.
///
/// Source: Podell et al., "SDXL", 2023, section 2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PictureSizes {
    /// `(width, height)` before cropping. Default: the size of the picture.
    pub original: Option<(usize, usize)>,
    /// `(left, top)`: what was cropped away there. Default: nothing.
    pub crop: (usize, usize),
    /// `(width, height)` after cropping. Default: the size of the picture.
    pub target: Option<(usize, usize)>,
}

impl Default for GenerateRequest {
    /// Of an empty prompt.
    fn default() -> Self {
        Self::txt2img("")
    }
}

impl GenerateRequest {
    /// A picture from a prompt. An empty prompt is one, too.
    pub fn txt2img(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            prompt_2: None,
            negative_prompt: None,
            negative_prompt_2: None,
            prompt_syntax: PromptSyntax::default(),
            clip_skip: None,
            prompt_embeds: None,
            negative_prompt_embeds: None,
            sizes: PictureSizes::default(),
            negative_sizes: None,
            aesthetic_score: 6.0,
            negative_aesthetic_score: 2.5,
            width: None,
            height: None,
            num_steps: 50,
            guidance: Guidance::default(),
            seed: None,
            num_images: 1,
            batch_size: 1,
            eta: None,
            scheduler: None,
            latents: None,
            noise: None,
            variation: None,
            image: None,
            resize_mode: ResizeMode::default(),
            strength: None,
            inpainting: Inpainting::default(),
            margins: None,
            is_instruction: false,
            hires: None,
            cancel_token: None,
            keep_cancelled: false,
            denoising_start: None,
            denoising_end: None,
            ip_adapter_images: Vec::new(),
            controls: Vec::new(),
            pag_scale: 0.0,
            pag_adaptive_scale: 0.0,
            pag_layers: Vec::new(),
            deep_shrink: None,
            deep_cache: 1,
            tgate: None,
            token_merging: 0.0,
            seamless: Seamless::NONE,
            vae_tiling: None,
            vae_slicing: false,
        }
    }

    /// What the picture shall show, in place of what the constructor was given.
    pub fn prompt(mut self, prompt: impl Into<String>) -> Self {
        self.prompt = prompt.into();
        self
    }

    /// What SDXL's second text encoder reads in place of the prompt. Default: the prompt.
    pub fn prompt_2(mut self, prompt: impl Into<String>) -> Self {
        self.prompt_2 = Some(prompt.into());
        self
    }

    /// What the picture shall not show; it counts where guidance is on. Default: nothing, which SDXL is told
    /// by zeros and the other models by the empty text.
    pub fn negative_prompt(mut self, negative_prompt: impl Into<String>) -> Self {
        self.negative_prompt = Some(negative_prompt.into());
        self
    }

    /// What SDXL's second text encoder reads in place of the negative prompt. Default: the negative prompt.
    pub fn negative_prompt_2(mut self, negative_prompt: impl Into<String>) -> Self {
        self.negative_prompt_2 = Some(negative_prompt.into());
        self
    }

    /// How the prompts are read: as they stand, or with weights, schedules and compositions. Default:
    /// [`PromptSyntax::A1111`], in which an ordinary prompt reads as it stands.
    pub fn prompt_syntax(mut self, syntax: PromptSyntax) -> Self {
        self.prompt_syntax = syntax;
        self
    }

    /// Which layer of the text encoders the UNet reads, counted from the last, which is 1, to their number of
    /// layers, as A1111 and stable-diffusion.cpp count. diffusers counts the layers that are left out: its
    /// `clip_skip=1` is 2 here, and 3 for SDXL. Default: what the model was trained with, which is 1 for SD 1.x
    /// and 2.x (whose final norm follows any layer) and 2 for SDXL (without it).
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = Some(layer);
        self
    }

    /// What the prompt became, in place of the prompt, which is then not read: the same for all pictures, or a row
    /// for each. SDXL's need their pooled vectors.
    pub fn prompt_embeds(mut self, embeds: PromptEmbeds) -> Self {
        self.prompt_embeds = Some(embeds);
        self
    }

    /// The same in place of the negative prompt. Either of the two may be shorter by whole chunks; empty prompts then
    /// fill it up.
    pub fn negative_prompt_embeds(mut self, embeds: PromptEmbeds) -> Self {
        self.negative_prompt_embeds = Some(embeds);
        self
    }

    /// What SDXL is told of the picture's size. Default: whole pictures of their own size.
    pub fn sizes(mut self, sizes: PictureSizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// What SDXL is told beside the negative prompt. Default: the same as beside the prompt.
    pub fn negative_sizes(mut self, sizes: PictureSizes) -> Self {
        self.negative_sizes = Some(sizes);
        self
    }

    /// How much viewers shall like the picture, from 0 to 10: what SDXL's refiner is told beside the prompt.
    /// Default: 6.
    pub fn aesthetic_score(mut self, score: f64) -> Self {
        self.aesthetic_score = score;
        self
    }

    /// The same beside the negative prompt. Default: 2.5.
    pub fn negative_aesthetic_score(mut self, score: f64) -> Self {
        self.negative_aesthetic_score = score;
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

    /// Some of another seed's noise in the seed's own: pictures that differ a little, by the strength, from 0
    /// (the seed's) to 1 (the other's). Where there are several pictures the seed is the same for all, and the
    /// other one's followers are the next ones' others. Default: none.
    ///
    /// Source: A1111's "Variation seed", which turns each row of the noise (a spherical interpolation).
    pub fn variation(mut self, seed: u64, strength: f64) -> Self {
        self.variation = Some(Variation { seed, strength });
        self
    }

    /// The noise to start from or to put on the picture, in place of the seed's:
    /// `(1 or num_images, channels, height / 8, width / 8)` of unit variance. It sets the size, where the request
    /// names none and has no picture.
    pub fn noise(mut self, noise: Tensor) -> Self {
        self.noise = Some(noise);
        self
    }

    /// The latents to start from: `(num_images, channels, height / 8, width / 8)`. With
    /// [`denoising_start`](Self::denoising_start) the ones to go on from; otherwise the same as
    /// [`noise`](Self::noise), as diffusers names it.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.latents = Some(latents);
        self
    }

    /// A picture to follow, by a ControlNet or T2I-Adapter. Called again it adds another.
    pub fn control(mut self, control: Control) -> Self {
        self.controls.push(control);
        self
    }

    /// A picture, or several in an [`IpAdapterImage`], for the pipeline's IP-Adapter; a second call is for its
    /// second adapter, and so on. A request without any runs as if there were no adapter.
    pub fn ip_adapter_image(mut self, image: impl Into<IpAdapterImage>) -> Self {
        self.ip_adapter_images.push(image.into());
        self
    }

    /// Goes on from latents that a run with [`denoising_end`](Self::denoising_end) of the same share left, as
    /// SDXL's refiner does, from 0 to 1: the steps whose timesteps lie below `1 - share` of the model's.
    pub fn denoising_start(mut self, share: f64) -> Self {
        self.denoising_start = Some(share);
        self
    }

    /// Leaves the latents noisy, for another model to go on from: the steps whose timesteps lie below
    /// `1 - share` of the model's are left out. From 0 to 1.
    pub fn denoising_end(mut self, share: f64) -> Self {
        self.denoising_end = Some(share);
        self
    }
}
