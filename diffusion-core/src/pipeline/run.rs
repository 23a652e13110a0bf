//! The stages of a run.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use image::RgbImage;

use super::check::Checked;
use super::{
    Conditioning, GenerateRequest, Generated, Pipeline, Progress, ProgressFn, Timings, Warning,
};
use crate::denoise::Guided;
use crate::error::{Error, Result};
use crate::media;
use crate::rng::{BrownianNoise, ImageRngs, NoiseKind, NoiseSource};
use crate::scheduler::Sampler;

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
        let needs_unconditional = checked.scheduler.needs_unconditional();
        let is_guided = Guided::is_guided(&self.unet, request.guidance_scale, needs_unconditional);
        let negative_prompt = is_guided.then_some(request.negative_prompt.as_str());
        let (conditioning, warnings) = self.encode_prompt(&request.prompt, negative_prompt)?;
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

    /// The middle stage: from noise to clean latents under a conditioning, of one row for all pictures or of
    /// one for each. The request's prompts are not read.
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
        conditioning.check_rows(num_images)?;
        self.check_windows(request, sampler.sigmas()?.len() - 1)?;
        let controls = self.read_controls(request, (width, height))?;
        let mut batches = Vec::new();
        for first in (0..num_images).step_by(request.batch_size) {
            let images = first..num_images.min(first + request.batch_size);
            let seeds = &seeds[images.clone()];
            let mut rngs = ImageRngs::new(seeds, &shape, &self.device);
            let initial = match &latents {
                Some(latents) => latents.narrow(0, images.start, images.len())?,
                None => rngs.draw()?,
            };
            let mut denoiser = Guided::new(
                &self.unet,
                &noise,
                &conditioning.of_images(&images, num_images)?,
                request.guidance_scale,
                scheduler.needs_unconditional(),
                images.len(),
            )?
            .with_controls(controls.of_images(&images)?);
            let mut fresh_noise: Box<dyn NoiseSource> = match scheduler.noise_kind() {
                NoiseKind::Gaussian => Box::new(rngs),
                NoiseKind::Brownian => {
                    let (lowest, highest) = sampler.sigma_range()?;
                    let noise = BrownianNoise::new(seeds, &shape, &self.device, lowest, highest);
                    Box::new(noise)
                }
            };
            batches.push(sampler.run(
                &mut denoiser,
                &initial,
                &mut *fresh_noise,
                &mut |report| {
                    progress(&Progress {
                        step: report.index + 1,
                        num_steps: report.num_steps,
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
