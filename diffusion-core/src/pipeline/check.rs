//! Checking a request, once, before a run.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::request::{InitImage, SchedulerChoice};
use super::{GenerateRequest, Pipeline};
use crate::denoise::{NoiseSchedule, NoiseScheduleConfig};
use crate::error::{Error, Result};
use crate::rng::random_seed;
use crate::scheduler::{self, Scheduler};

/// The scale of aesthetic scores.
const MAX_SCORE: f64 = 10.0;

/// The longest side of a picture, in pixels.
pub(super) const MAX_SIDE: usize = 1 << 16;

/// The most pictures of one request.
const MAX_IMAGES: usize = 1 << 20;

/// What follows from a request once its values have been checked.
pub(super) struct Checked {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) seeds: Vec<u64>,
    pub(super) scheduler: Arc<dyn Scheduler>,
    pub(super) noise: NoiseSchedule,
    /// The latents to go on from.
    pub(super) latents: Option<Tensor>,
    /// The noise in place of the seeds'.
    pub(super) given_noise: Option<Tensor>,
    pub(super) steps: Range<usize>,
    /// Whether the run starts from noise alone, whatever pictures it has.
    pub(super) from_noise: bool,
}

impl Pipeline {
    /// `(width, height)` of a request's run: its own, that of its latents or noise, that of its picture, rounded
    /// down to multiples of the autoencoder's factor, or the model's default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sides that are not multiples of the autoencoder's factor.
    pub fn image_size(&self, request: &GenerateRequest) -> Result<(usize, usize)> {
        let factor = self.vae.downscale();
        let default = self
            .own_size(request)
            .unwrap_or_else(|| self.default_size());
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
        request.guidance.check()?;
        request.check_variation()?;
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
        self.check_pictures(request)?;
        self.check_image_prompts(request)?;
        self.check_controls(request)?;
        self.check_networks(request)?;
        let (width, height) = self.image_size(request)?;
        let has_controls = !request.controls.is_empty();
        let vae = self.vae_of(request)?;
        let at_once = batch_size.min(num_images);
        self.check_memory(&vae, (width, height), at_once, has_controls)?;
        let latents =
            self.check_latents("latents", request.latents.as_ref(), request, width, height)?;
        let noise = self.check_latents("noise", request.noise.as_ref(), request, width, height)?;
        let init = match &request.image {
            Some(InitImage::Latents(latents)) => Some(latents),
            _ => None,
        };
        self.check_latents("image", init, request, width, height)?;
        let (latents, given_noise) = match (latents, noise) {
            (Some(_), Some(_)) => {
                let expected = "latents or noise, which are the same without denoising_start";
                return Err(Error::argument("noise", expected, "both"));
            }
            (latents, noise) if request.denoising_start.is_some() => (latents, noise),
            (latents, noise) => (None, latents.or(noise)),
        };
        let (scheduler, noise) = self.resolve_scheduler(request)?;
        let plan = self.plan(request, scheduler, &noise)?;
        let first = request.seed.unwrap_or_else(random_seed);
        // Where another seed varies a picture, that one counts up.
        let counts_up = request.variation.is_none();
        let seeds = (0..num_images as u64)
            .map(|i| first.wrapping_add(if counts_up { i } else { 0 }))
            .collect();
        Ok(Checked {
            width,
            height,
            seeds,
            scheduler: plan.scheduler,
            noise,
            latents,
            given_noise,
            steps: plan.steps,
            from_noise: plan.from_noise,
        })
    }

    /// Latents of a request, of one row for each picture, or of one for all where they are not what a run goes
    /// on from.
    fn check_latents(
        &self,
        name: &'static str,
        latents: Option<&Tensor>,
        request: &GenerateRequest,
        width: usize,
        height: usize,
    ) -> Result<Option<Tensor>> {
        let Some(latents) = latents else {
            return Ok(None);
        };
        let factor = self.vae.downscale();
        let channels = self.vae.latent_channels();
        let expected = |rows| [rows, channels, height / factor, width / factor];
        let each = expected(request.num_images);
        if latents.dims() != each && (name == "latents" || latents.dims() != expected(1)) {
            let found = format!("{:?}", latents.dims());
            return Err(Error::argument(name, format!("shape {each:?}"), found));
        }
        let latents = latents.to_device(&self.device)?.to_dtype(DType::F32)?;
        let sum = latents.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(Error::argument(name, "finite values", sum));
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
