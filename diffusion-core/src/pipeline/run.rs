//! The stages of a run.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use image::RgbImage;
use serde_json::Value;

use super::builder::noise_schedule;
use super::request::SchedulerChoice;
use super::{
    Conditioning, GenerateRequest, Generated, Pipeline, Progress, ProgressFn, Timings, Warning,
};
use crate::denoise::{Guided, NoiseSchedule};
use crate::error::{Error, Result};
use crate::media;
use crate::rng::{ImageRngs, random_seed};
use crate::scheduler::{self, Sampler, Scheduler};

/// Latents that a run came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sampled {
    /// `(num_images, channels, height / 8, width / 8)`, f32, scaled for the UNet.
    pub latents: Tensor,
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// What the caller should know and may show.
    pub warnings: Vec<Warning>,
    /// Where the time went.
    pub timings: Timings,
}

/// The most pictures of one request.
const MAX_IMAGES: usize = 1 << 20;

/// What follows from a request once its values have been checked.
struct Checked {
    width: usize,
    height: usize,
    seeds: Vec<u64>,
    scheduler: Arc<dyn Scheduler>,
    noise: NoiseSchedule,
    latents: Option<Tensor>,
}

impl Pipeline {
    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for values out of range, [`Error::OutOfMemory`] for sizes that cannot
    /// fit, [`Error::Unsupported`] for schedulers or models that this version does not know,
    /// [`Error::Tensor`] if the device fails.
    pub fn generate(&self, request: &GenerateRequest) -> Result<Generated> {
        self.generate_with(request, &mut |_| ControlFlow::Continue(()))
    }

    /// Makes the pictures of a request. After each step `progress` sees where it is and may cancel it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `progress` breaks; otherwise as [`generate`](Self::generate).
    pub fn generate_with(
        &self,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Generated> {
        let Sampled {
            latents,
            seeds,
            warnings,
            mut timings,
        } = self.generate_latents(request, progress)?;
        let start = Instant::now();
        let mut images = Vec::with_capacity(seeds.len());
        for i in (0..seeds.len()).step_by(request.batch_size) {
            let count = request.batch_size.min(seeds.len() - i);
            images.extend(self.decode(&latents.narrow(0, i, count)?)?);
        }
        timings.decode = start.elapsed();
        Ok(Generated {
            images,
            seeds,
            warnings,
            timings,
        })
    }

    /// The run without its last stage: prompt and steps.
    ///
    /// # Errors
    /// As [`generate_with`](Self::generate_with).
    pub fn generate_latents(
        &self,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        let checked = self.check(request)?;
        let start = Instant::now();
        let (conditioning, warnings) =
            self.encode_prompt(&request.prompt, Some(&request.negative_prompt))?;
        let encode = start.elapsed();
        let sampled = self.sample_checked(&conditioning, request, checked, progress)?;
        Ok(Sampled {
            warnings,
            timings: Timings {
                encode,
                ..sampled.timings
            },
            ..sampled
        })
    }

    /// The first stage: a prompt and a negative prompt (which guidance above 1 needs, and which may be
    /// empty) as conditioning.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no text encoder or two of them.
    pub fn encode_prompt(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
    ) -> Result<(Conditioning, Vec<Warning>)> {
        let (Some(tokenizer), Some(text_encoder)) = (&self.tokenizer, &self.text_encoder) else {
            return Err(Error::unsupported(
                "a prompt for a model without a text encoder, or with two of them",
                "give the conditioning to Pipeline::sample",
            ));
        };
        let mut warnings = Vec::new();
        let mut encode = |prompt: &str, negative: bool| {
            let encoding = tokenizer.encode(prompt)?;
            if let Some(dropped) = encoding.truncated {
                let limit = tokenizer.max_length() - 2;
                warnings.push(Warning::PromptTruncated {
                    negative,
                    limit,
                    dropped,
                });
            }
            Ok::<_, Error>(text_encoder.forward(&[encoding.ids])?.last_hidden_state)
        };
        let conditioning = Conditioning {
            prompt_embeds: encode(prompt, false)?,
            negative_prompt_embeds: negative_prompt.map(|text| encode(text, true)).transpose()?,
            text_time: None,
            negative_text_time: None,
        };
        Ok((conditioning, warnings))
    }

    /// The middle stage: from noise to clean latents under a conditioning. The request's prompts are not
    /// read.
    ///
    /// # Errors
    /// As [`generate_with`](Self::generate_with).
    pub fn sample(
        &self,
        conditioning: &Conditioning,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        self.sample_checked(conditioning, request, self.check(request)?, progress)
    }

    /// The last stage: pictures from latents.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height / 8, width / 8)`, scaled for the UNet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        media::to_rgb8(&self.decode_tensor(latents)?)
    }

    /// The last stage without the conversion to RGB.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height / 8, width / 8)`, scaled for the UNet; returns
    /// `(batch, 3, height, width)`, f32, about `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shape does not fit.
    pub fn decode_tensor(&self, latents: &Tensor) -> Result<Tensor> {
        let channels = self.vae.latent_channels();
        match latents.dims() {
            &[_, found, _, _] if found == channels && latents.elem_count() > 0 => {}
            dims => {
                let expected = format!("shape (batch, {channels}, height, width)");
                return Err(Error::argument("latents", expected, format!("{dims:?}")));
            }
        }
        self.vae.decode(&self.vae.unscale(latents)?)
    }

    /// `(width, height)` of a request's pictures: its own, that of its latents, or the default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sides that are not multiples of the autoencoder's factor.
    pub fn image_size(&self, request: &GenerateRequest) -> Result<(usize, usize)> {
        let factor = self.vae.downscale();
        let default = match request.latents.as_ref().map(Tensor::dims) {
            Some(&[_, _, height, width]) => (width * factor, height * factor),
            _ => self.default_size(),
        };
        let size = (
            request.width.unwrap_or(default.0),
            request.height.unwrap_or(default.1),
        );
        for (name, side) in [("width", size.0), ("height", size.1)] {
            if side == 0 || side % factor != 0 {
                let expected = format!("a multiple of {factor} pixels, at least {factor}");
                return Err(Error::argument(name, expected, side));
            }
        }
        Ok(size)
    }

    fn sample_checked(
        &self,
        conditioning: &Conditioning,
        request: &GenerateRequest,
        checked: Checked,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        let start = Instant::now();
        let Checked {
            width,
            height,
            seeds,
            scheduler,
            noise,
            latents,
        } = checked;
        let sampler = Sampler {
            scheduler: &*scheduler,
            schedule: &noise,
            num_steps: request.num_steps,
            eta: request.eta,
        };
        let factor = self.vae.downscale();
        let shape = [self.vae.latent_channels(), height / factor, width / factor];
        let num_images = seeds.len();
        let mut batches = Vec::new();
        for first in (0..num_images).step_by(request.batch_size) {
            let images = first..num_images.min(first + request.batch_size);
            let mut rngs = ImageRngs::new(&seeds[images.clone()], &shape, &self.device);
            let initial = match &latents {
                Some(latents) => latents.narrow(0, images.start, images.len())?,
                None => rngs.draw()?,
            };
            let guidance_scale = request.guidance_scale;
            let mut denoiser = Guided::new(
                &self.unet,
                &noise,
                conditioning,
                guidance_scale,
                images.len(),
            )?;
            batches.push(
                sampler.run(&mut denoiser, &initial, &mut rngs, &mut |report| {
                    progress(&Progress {
                        step: report.index + 1,
                        num_steps: report.num_steps,
                        images: images.clone(),
                        num_images,
                        sigma: report.sigma,
                        latents: report.latents,
                        denoised: report.denoised,
                    })
                })?,
            );
        }
        let latents = Tensor::cat(&batches, 0)?;
        let timings = Timings {
            sample: start.elapsed(),
            ..Timings::default()
        };
        Ok(Sampled {
            latents,
            seeds,
            warnings: Vec::new(),
            timings,
        })
    }

    /// Checks a request, once.
    fn check(&self, request: &GenerateRequest) -> Result<Checked> {
        let GenerateRequest {
            num_images,
            batch_size,
            guidance_scale,
            ..
        } = *request;
        for (name, value) in [("num_images", num_images), ("batch_size", batch_size)] {
            if !(1..=MAX_IMAGES).contains(&value) {
                return Err(Error::argument(name, format!("1 to {MAX_IMAGES}"), value));
            }
        }
        let max_steps = self.noise.num_train_timesteps();
        if !(1..=max_steps).contains(&request.num_steps) {
            let expected = format!("1 to {max_steps}, the timesteps of the model");
            return Err(Error::argument("num_steps", expected, request.num_steps));
        }
        if !guidance_scale.is_finite() || guidance_scale < 0.0 {
            let expected = "a finite number from 0 up";
            return Err(Error::argument("guidance_scale", expected, guidance_scale));
        }
        if let Some(eta) = request.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            return Err(Error::argument("eta", "0 to 1", eta));
        }
        let (channels, expected) = (self.unet.config().in_channels, self.vae.latent_channels());
        if channels != expected {
            return Err(Error::unsupported(
                format!("txt2img with a UNet of {channels} input channels"),
                format!("it takes models of {expected}; others need a picture too"),
            ));
        }
        let (width, height) = self.image_size(request)?;
        self.check_memory(width, height, batch_size.min(num_images))?;
        let latents = self.check_latents(request, width, height)?;
        let (scheduler, noise) = self.resolve_scheduler(request)?;
        let first = request.seed.unwrap_or_else(random_seed);
        let seeds = (0..num_images as u64)
            .map(|i| first.wrapping_add(i))
            .collect();
        Ok(Checked {
            width,
            height,
            seeds,
            scheduler,
            noise,
            latents,
        })
    }

    fn check_latents(
        &self,
        request: &GenerateRequest,
        width: usize,
        height: usize,
    ) -> Result<Option<Tensor>> {
        let Some(latents) = &request.latents else {
            return Ok(None);
        };
        let factor = self.vae.downscale();
        let channels = self.vae.latent_channels();
        let expected = [
            request.num_images,
            channels,
            height / factor,
            width / factor,
        ];
        if latents.dims() != expected {
            let found = format!("{:?}", latents.dims());
            return Err(Error::argument(
                "latents",
                format!("shape {expected:?}"),
                found,
            ));
        }
        let latents = latents.to_device(&self.device)?.to_dtype(DType::F32)?;
        let sum = latents.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(Error::argument("latents", "finite values", sum));
        }
        Ok(Some(latents))
    }

    fn resolve_scheduler(
        &self,
        request: &GenerateRequest,
    ) -> Result<(Arc<dyn Scheduler>, NoiseSchedule)> {
        let model = &self.scheduler_config;
        Ok(match &request.scheduler {
            None => match &self.scheduler {
                Some(scheduler) => (scheduler.clone(), self.noise.clone()),
                None => (scheduler::from_config(model)?, self.noise.clone()),
            },
            Some(SchedulerChoice::Value(scheduler)) => (scheduler.clone(), self.noise.clone()),
            Some(SchedulerChoice::Name(name)) => {
                (scheduler::from_name(name, model)?, self.noise.clone())
            }
            Some(SchedulerChoice::Config(config)) => {
                let Value::Object(fields) = config else {
                    let expected = "a JSON object such as scheduler_config.json";
                    return Err(Error::argument("scheduler config", expected, config));
                };
                let mut merged = model.as_object().cloned().unwrap_or_default();
                merged.extend(fields.clone());
                let merged = Value::Object(merged);
                (scheduler::from_config(&merged)?, noise_schedule(&merged)?)
            }
        })
    }
}
