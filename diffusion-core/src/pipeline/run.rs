//! The stages of a run.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Tensor};
use image::RgbImage;

use super::check::Checked;
use super::{
    Conditioning, GenerateRequest, Generated, Pipeline, Progress, ProgressFn, PromptPlan, Timings,
    Warning,
};
use crate::denoise::{Guided, Planned};
use crate::error::{Error, Result};
use crate::media;
use crate::rng::{BrownianNoise, ImageRngs, NoiseKind, NoiseSource};

/// Latents that a run came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sampled {
    /// `(num_images, channels, height / 8, width / 8)`, f32, scaled for the UNet: clean ones, or after
    /// [`denoising_end`](GenerateRequest::denoising_end) clean ones plus the noise level that the run came to
    /// times unit noise.
    pub latents: Tensor,
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// What the caller should know and may show.
    pub warnings: Vec<Warning>,
    /// Where the time went.
    pub timings: Timings,
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
            mut warnings,
            mut timings,
        } = self.generate_latents(request, progress)?;
        let start = Instant::now();
        let mut images = Vec::with_capacity(seeds.len());
        for i in (0..seeds.len()).step_by(request.batch_size) {
            let count = request.batch_size.min(seeds.len() - i);
            let (decoded, more) = self.decode(&latents.narrow(0, i, count)?)?;
            images.extend(decoded);
            warnings.extend(more);
        }
        warnings.dedup();
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
        let (plan, warnings) = self.encode_checked(request, &checked)?;
        let encode = start.elapsed();
        let sampled = self.sample_checked(&plan, request, checked, progress)?;
        Ok(Sampled {
            warnings,
            timings: Timings {
                encode,
                ..sampled.timings
            },
            ..sampled
        })
    }

    /// The middle stage: from noise to clean latents under a conditioning, of one row for all pictures or of
    /// one for each. The request's prompts are not read, be they words or pictures.
    ///
    /// # Errors
    /// As [`generate_with`](Self::generate_with).
    pub fn sample(
        &self,
        conditioning: &Conditioning,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        self.sample_plan(&conditioning.clone().into(), request, progress)
    }

    /// The middle stage under a plan of several conditionings.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), and [`Error::Unsupported`] for compositions with a model that has guidance distilled
    /// in.
    pub fn sample_plan(
        &self,
        plan: &PromptPlan,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        self.sample_checked(plan, request, self.check(request)?, progress)
    }

    /// The last stage: pictures from latents.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height / 8, width / 8)`, scaled for the UNet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shape does not fit, [`Error::NotFinite`] if the picture has values
    /// that are not numbers.
    pub fn decode(&self, latents: &Tensor) -> Result<(Vec<RgbImage>, Vec<Warning>)> {
        let (image, warnings) = self.decode_tensor(latents)?;
        Ok((media::to_rgb8(&image)?, warnings))
    }

    /// The last stage without the conversion to RGB. An autoencoder that overflows in half precision, as
    /// SDXL's does, is asked again in f32, and a warning says so.
    ///
    /// # Shapes
    /// `latents`: `(batch, channels, height / 8, width / 8)`, scaled for the UNet; returns
    /// `(batch, 3, height, width)`, f32, about `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shape does not fit.
    pub fn decode_tensor(&self, latents: &Tensor) -> Result<(Tensor, Vec<Warning>)> {
        let channels = self.vae.latent_channels();
        match latents.dims() {
            &[_, found, _, _] if found == channels && latents.elem_count() > 0 => {}
            dims => {
                let expected = format!("shape (batch, {channels}, height, width)");
                return Err(Error::argument("latents", expected, format!("{dims:?}")));
            }
        }
        let latents = self.vae.unscale(latents)?;
        let image = self.vae.decode(&latents)?;
        if self.vae.compute_dtype() == DType::F32 || media::is_finite(&image)? {
            return Ok((image, Vec::new()));
        }
        let image = self.vae.with_compute_dtype(DType::F32).decode(&latents)?;
        Ok((image, vec![Warning::DecodedInF32]))
    }

    fn sample_checked(
        &self,
        plan: &PromptPlan,
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
            steps,
        } = checked;
        let sampler = request.sampler(&*scheduler, &noise);
        let factor = self.vae.downscale();
        let shape = [self.vae.latent_channels(), height / factor, width / factor];
        let num_images = seeds.len();
        plan.check(num_images)?;
        let needs_unconditional = scheduler.needs_unconditional() || plan.is_composed();
        self.check_windows(request, sampler.sigmas()?.len() - 1)?;
        let controls = self.read_controls(request, (width, height))?;
        let mut batches = Vec::new();
        for first in (0..num_images).step_by(request.batch_size) {
            let images = first..num_images.min(first + request.batch_size);
            let seeds = &seeds[images.clone()];
            let mut rngs = ImageRngs::new(seeds, &shape, &self.device);
            let given = match &latents {
                Some(latents) => latents.narrow(0, images.start, images.len())?,
                None => rngs.draw()?,
            };
            let initial = match request.denoising_start {
                Some(_) => given,
                None => sampler.initial_latents(&given)?,
            };
            let plan = plan.of_images(&images, num_images)?;
            let controls = controls.of_images(&images)?;
            let guided = |conditioning: &Conditioning, guidance_scale: Option<f64>| {
                let guided = Guided::new(
                    &self.unet,
                    &noise,
                    conditioning,
                    guidance_scale.unwrap_or(1.0),
                    needs_unconditional && guidance_scale.is_some(),
                    images.len(),
                )?;
                Ok(guided.with_controls(controls.clone()))
            };
            let mut denoiser = Planned::new(&plan, request.guidance_scale, guided);
            let mut fresh_noise: Box<dyn NoiseSource> = match scheduler.noise_kind() {
                NoiseKind::Gaussian => Box::new(rngs),
                NoiseKind::Brownian => {
                    let (lowest, highest) = sampler.sigma_range()?;
                    let noise = BrownianNoise::new(seeds, &shape, &self.device, lowest, highest);
                    Box::new(noise)
                }
            };
            batches.push(sampler.run_steps(
                steps.clone(),
                &initial,
                &mut denoiser,
                &mut *fresh_noise,
                &mut |report| {
                    progress(&Progress {
                        step: report.index + 1 - steps.start,
                        num_steps: steps.len(),
                        images: images.clone(),
                        num_images,
                        sigma: report.sigma,
                        latents: report.latents,
                        denoised: report.denoised,
                    })
                },
            )?);
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
}
