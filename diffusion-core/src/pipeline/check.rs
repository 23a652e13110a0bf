//! Checking a request, once, before a run.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::request::SchedulerChoice;
use super::{GenerateRequest, Pipeline};
use crate::denoise::{NoiseSchedule, NoiseScheduleConfig};
use crate::error::{Error, Result};
use crate::rng::random_seed;
use crate::scheduler::{self, Sampler, Scheduler};

/// Far beyond any use, and far below what f32 holds.
pub(super) const MAX_GUIDANCE: f64 = 1e6;

/// The scale of aesthetic scores.
const MAX_SCORE: f64 = 10.0;

/// The longest side of a picture, in pixels.
const MAX_SIDE: usize = 1 << 16;

/// The most pictures of one request.
const MAX_IMAGES: usize = 1 << 20;

/// What follows from a request once its values have been checked.
pub(super) struct Checked {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) seeds: Vec<u64>,
    pub(super) scheduler: Arc<dyn Scheduler>,
    pub(super) noise: NoiseSchedule,
    pub(super) latents: Option<Tensor>,
    pub(super) steps: Range<usize>,
}

impl Pipeline {
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
            if !(1..=MAX_SIDE).contains(&side) || side % factor != 0 {
                let expected =
                    format!("a multiple of {factor} pixels, from {factor} to {MAX_SIDE}");
                return Err(Error::argument(name, expected, side));
            }
        }
        Ok(size)
    }

    /// Checks a request, once.
    pub(super) fn check(&self, request: &GenerateRequest) -> Result<Checked> {
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
        if !(0.0..=MAX_GUIDANCE).contains(&guidance_scale) {
            let expected = format!("a number from 0 to {MAX_GUIDANCE}");
            return Err(Error::argument("guidance_scale", expected, guidance_scale));
        }
        if let Some(eta) = request.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            return Err(Error::argument("eta", "0 to 1", eta));
        }
        for (name, score) in [
            ("aesthetic_score", request.aesthetic_score),
            ("negative_aesthetic_score", request.negative_aesthetic_score),
        ] {
            if !(0.0..=MAX_SCORE).contains(&score) {
                return Err(Error::argument(name, format!("0 to {MAX_SCORE}"), score));
            }
        }
        let (channels, expected) = (self.unet.config().in_channels, self.vae.latent_channels());
        if channels != expected {
            return Err(Error::unsupported(
                format!("txt2img with a UNet of {channels} input channels"),
                format!("it takes models of {expected}; others need a picture too"),
            ));
        }
        self.check_image_prompts(request)?;
        self.check_controls(request)?;
        self.check_networks(request)?;
        let (width, height) = self.image_size(request)?;
        let has_controls = !request.controls.is_empty();
        let vae = self.vae_of(request)?;
        let at_once = batch_size.min(num_images);
        self.check_memory(&vae, (width, height), at_once, has_controls)?;
        let latents = self.check_latents(request, width, height)?;
        let (scheduler, noise) = self.resolve_scheduler(request)?;
        let steps = request.steps(&*scheduler, &noise)?;
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
            steps,
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
                let mut fields = fields.clone();
                // diffusers lists there what it filled in by itself, and takes it for absent.
                if let Some(Value::Array(filled)) = fields.remove("_use_default_values") {
                    fields.retain(|name, _| !filled.iter().any(|other| other == name));
                }
                let describes_noise = NoiseScheduleConfig::FIELDS
                    .iter()
                    .any(|name| fields.contains_key(*name));
                let mut merged = model.as_object().cloned().unwrap_or_default();
                merged.extend(fields);
                let merged = Value::Object(merged);
                let noise = match describes_noise {
                    true => NoiseSchedule::from_json(&merged)?,
                    false => self.noise.clone(),
                };
                (scheduler::from_config(&merged)?, noise)
            }
        })
    }
}

impl GenerateRequest {
    pub(super) fn sampler<'a>(
        &self,
        scheduler: &'a dyn Scheduler,
        schedule: &'a NoiseSchedule,
    ) -> Sampler<'a> {
        Sampler {
            scheduler,
            schedule,
            num_steps: self.num_steps,
            eta: self.eta,
        }
    }

    /// Which steps of the plan the run takes.
    fn steps(&self, scheduler: &dyn Scheduler, noise: &NoiseSchedule) -> Result<Range<usize>> {
        let (start, end) = (self.denoising_start, self.denoising_end);
        for (name, share) in [("denoising_start", start), ("denoising_end", end)] {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Error::argument(name, "0 to 1", share));
            }
        }
        if start.is_some() && self.latents.is_none() {
            let expected = "the latents that a run with denoising_end left, for denoising_start";
            return Err(Error::argument("latents", expected, "none"));
        }
        let sampler = self.sampler(scheduler, noise);
        let step_at = |share: f64| sampler.step_at(share);
        let first = start.map_or(Ok(0), step_at)?;
        let end_step = match end {
            Some(share) => step_at(share)?,
            None => sampler.sigmas()?.len() - 1,
        };
        match first < end_step {
            true => Ok(first..end_step),
            false => {
                let expected =
                    "a share that leaves steps to do; ask for more steps or another share";
                let found = format!("{start:?} to {end:?} of {} steps", self.num_steps);
                Err(Error::argument(
                    "denoising_start to denoising_end",
                    expected,
                    found,
                ))
            }
        }
    }
}
