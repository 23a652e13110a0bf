//! The stages of a run.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Tensor};
use image::RgbImage;

use super::canvas::Canvas;
use super::check::Checked;
use super::provenance::RunRecord;
use super::start::Start;
use super::{
    Conditioning, GenerateRequest, Generated, Pipeline, Progress, ProgressFn, PromptPlan, Timings,
    Warning,
};
use crate::denoise::{Denoiser, Guidance, Guided, Inpaint, Planned, row_for_each};
use crate::error::{Error, Result};
use crate::media;
use crate::model::Vae;
use crate::nn::Lease;
use crate::rng::{BrownianNoise, ImageRngs, NoiseKind, NoiseSource};

/// Latents that a run came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sampled {
    /// `(num_images, channels, height / 8, width / 8)`, f32, scaled for the UNet: clean ones, or after
    /// [`denoising_end`](GenerateRequest::denoising_end) clean ones plus the noise level that the run came to
    /// times unit noise.
    pub latents: Tensor,
    /// Where the run was cancelled and the request keeps what it came to: the clean latents as its last steps
    /// estimate them, of the same shape.
    pub estimate: Option<Tensor>,
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// What the caller should know and may show.
    pub warnings: Vec<Warning>,
    /// Where the time went.
    pub timings: Timings,
    pub(super) record: RunRecord,
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
            estimate,
            seeds,
            mut warnings,
            mut timings,
            record,
        } = self.generate_latents(request, progress)?;
        let start = Instant::now();
        let latents = estimate.unwrap_or(latents);
        let images = self.decode_batches(&latents, request, &mut warnings)?;
        let images = self.paste_back(request, images)?;
        timings.decode = start.elapsed();
        Ok(Generated {
            safety: self.judge(&images)?,
            images,
            seeds,
            warnings,
            timings,
            record,
        })
    }

    /// What follows [`decode`](Self::decode) where a request has a mask: what it leaves alone gets the picture's
    /// own pixels back, and a part that was worked on alone returns into its picture. Other requests' pictures stay
    /// as they are.
    ///
    /// # Errors
    /// As [`image_size`](Self::image_size).
    pub fn paste_back(
        &self,
        request: &GenerateRequest,
        images: Vec<RgbImage>,
    ) -> Result<Vec<RgbImage>> {
        let canvas = Canvas::new(request, self.image_size(request)?);
        let images = images.into_iter().enumerate();
        Ok(images
            .map(|(i, picture)| canvas.finish(i, picture))
            .collect())
    }

    /// A request's pictures from their latents, as many at once as it says.
    pub(super) fn decode_batches(
        &self,
        latents: &Tensor,
        request: &GenerateRequest,
        warnings: &mut Vec<Warning>,
    ) -> Result<Vec<RgbImage>> {
        let (num_images, batch_size) = (latents.dim(0)?, request.batch_size);
        let vae = self.vae_of(request)?;
        let mut images = Vec::with_capacity(num_images);
        for first in (0..num_images).step_by(batch_size) {
            let count = batch_size.min(num_images - first);
            let (decoded, more) = self.decode_by(&vae, &latents.narrow(0, first, count)?)?;
            images.extend(media::to_rgb8(&decoded)?);
            warnings.extend(more);
        }
        warnings.dedup();
        Ok(images)
    }

    /// The run without its last stage: prompt and steps, in both passes of a request that has two.
    ///
    /// # Errors
    /// As [`generate_with`](Self::generate_with).
    pub fn generate_latents(
        &self,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        match &request.hires {
            Some(hires) => self.two_passes(request, hires, progress),
            None => self.one_pass(request, progress),
        }
    }

    pub(super) fn one_pass(
        &self,
        request: &GenerateRequest,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        let checked = self.check(request)?;
        let start = Instant::now();
        request.check_cancelled()?;
        let (plan, mut warnings) = self.encode_checked(request, &checked)?;
        let encode = start.elapsed();
        let sampled = self.sample_checked(&plan, request, checked, progress)?;
        warnings.extend(sampled.warnings);
        Ok(Sampled {
            warnings,
            timings: Timings {
                encode,
                ..sampled.timings
            },
            ..sampled
        })
    }

    /// The middle stage: from noise, or the request's picture, to clean latents under a conditioning, of one row for all pictures or of
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
        let mut sampled = self.sample_checked(plan, request, self.check(request)?, progress)?;
        for conditioning in plan.conditionings() {
            let given = &conditioning.prompt_embeds;
            sampled.record.needs_tensor("conditioning", given)?;
        }
        Ok(sampled)
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
        self.decode_by(&self.vae, latents)
    }

    fn decode_by(&self, vae: &Vae, latents: &Tensor) -> Result<(Tensor, Vec<Warning>)> {
        let channels = vae.latent_channels();
        match latents.dims() {
            &[_, found, _, _] if found == channels && latents.elem_count() > 0 => {}
            dims => {
                let expected = format!("shape (batch, {channels}, height, width)");
                return Err(Error::argument("latents", expected, format!("{dims:?}")));
            }
        }
        let _threads = self.threads.enter();
        let latents = vae.unscale(latents)?;
        let image = vae.decode(&latents)?;
        if vae.compute_dtype() == DType::F32 || media::is_finite(&image)? {
            return Ok((image, Vec::new()));
        }
        let image = vae.with_compute_dtype(DType::F32).decode(&latents)?;
        Ok((image, vec![Warning::DecodedInF32]))
    }

    fn sample_checked(
        &self,
        plan: &PromptPlan,
        request: &GenerateRequest,
        checked: Checked,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        let begun = Instant::now();
        // What a step leaves serves the next one.
        let (_memory, _threads) = (Lease::of_run(), self.threads.enter());
        let mut warnings = Vec::new();
        let canvas = Canvas::new(request, (checked.width, checked.height));
        let start = Start::new(self, request, &checked, &canvas, &mut warnings)?;
        let record = self.record(request, &checked)?;
        let Checked {
            width,
            height,
            seeds,
            scheduler,
            noise,
            latents,
            given_noise,
            steps,
            from_noise,
        } = checked;
        let sampler = request.sampler(&*scheduler, &noise);
        let sigmas = sampler.sigmas()?;
        let factor = self.vae.downscale();
        let shape = [self.vae.latent_channels(), height / factor, width / factor];
        let num_images = seeds.len();
        plan.check(num_images)?;
        if plan.is_composed() && request.tgate.is_some() {
            return Err(Error::unsupported(
                "tgate with a composition of prompts, which needs the answer to the negative one in each step",
                "give it one prompt, or leave tgate out",
            ));
        }
        let needs_unconditional = scheduler.needs_unconditional() || plan.is_composed();
        self.check_windows(request, sigmas.len() - 1)?;
        let controls = self.read_controls(request, (width, height))?;
        let (unet, perturbation) = (self.unet_of(request)?, self.perturbation_of(request)?);
        let mut batches = Vec::new();
        let mut estimates = Vec::new();
        request.check_cancelled()?;
        for first in (0..num_images).step_by(request.batch_size) {
            let images = first..num_images.min(first + request.batch_size);
            let seeds = &seeds[images.clone()];
            let mut rngs = ImageRngs::new(seeds, &shape, &self.device);
            let begin = start.begin(self, &images, &mut rngs, |rngs| match &given_noise {
                Some(noise) => row_for_each(noise, &images, num_images),
                None => request.draw_noise(rngs, &images, &shape, &self.device),
            })?;
            let initial = match (&latents, &begin.start) {
                (Some(latents), _) => latents.narrow(0, images.start, images.len())?,
                (None, Some(clean)) => (clean + (&begin.noise * sigmas[steps.start])?)?,
                (None, None) => sampler.initial_latents(&begin.noise)?,
            };
            if steps.is_empty() {
                batches.push(begin.clean.unwrap_or(initial));
                continue;
            }
            let plan = plan.of_images(&images, num_images)?;
            let controls = controls.of_images(&images)?;
            let guided = |conditioning: &Conditioning, guidance: Option<&Guidance>| {
                let guided = Guided::new(
                    &unet,
                    &noise,
                    conditioning,
                    begin.channels.as_ref(),
                    guidance.unwrap_or(&Guidance::scale(1.0)),
                    needs_unconditional && guidance.is_some(),
                    images.len(),
                )?;
                Ok(guided
                    .with_controls(controls.clone())
                    .with_perturbation(perturbation.clone())
                    .with_deep_shrink(request.deep_shrink)
                    .with_deep_cache(request.deep_cache)
                    .with_text_gate(request.tgate)
                    .with_token_merging(request.token_merging))
            };
            let planned = Planned::new(&plan, &request.guidance, guided);
            let mut denoiser = match (begin.mask, begin.clean) {
                (Some(mask), Some(clean)) => {
                    Masked::Inpaint(Inpaint::new(planned, mask, clean, begin.noise, from_noise))
                }
                _ => Masked::No(planned),
            };
            let mut fresh_noise: Box<dyn NoiseSource> = match scheduler.noise_kind() {
                NoiseKind::Gaussian => Box::new(rngs),
                NoiseKind::Brownian => {
                    let (lowest, highest) = sampler.sigma_range()?;
                    let noise = BrownianNoise::new(seeds, &shape, &self.device, lowest, highest);
                    Box::new(noise)
                }
            };
            let mut so_far = None;
            let walked = sampler.run_steps(
                steps.clone(),
                &initial,
                denoiser.as_denoiser(),
                &mut *fresh_noise,
                &mut |report| {
                    if request.keep_cancelled {
                        so_far = Some((report.latents.clone(), report.denoised.clone()));
                    }
                    let wish = progress(&Progress {
                        pass: 0,
                        num_passes: 1,
                        step: report.index + 1 - steps.start,
                        num_steps: steps.len(),
                        images: images.clone(),
                        num_images,
                        elapsed: begun.elapsed(),
                        sigma: report.sigma,
                        latents: report.latents,
                        denoised: report.denoised,
                    });
                    match request.is_cancelled() {
                        true => ControlFlow::Break(()),
                        false => wish,
                    }
                },
            );
            let latents = match (walked, so_far) {
                (Err(Error::Cancelled { step, num_steps }), Some((latents, estimate))) => {
                    warnings.push(Warning::Cancelled { step, num_steps });
                    estimates.clone_from(&batches);
                    batches.push(latents);
                    estimates.push(estimate);
                    break;
                }
                (walked, _) => walked?,
            };
            // Clean latents are the picture's own outside of the mask, whatever noise a plan ends at.
            let sigma = match steps.end + 1 == sigmas.len() {
                true => 0.0,
                false => sigmas[steps.end],
            };
            batches.push(match &denoiser {
                Masked::Inpaint(inpaint) => inpaint.finish(&latents, sigma)?,
                Masked::No(_) => latents,
            });
        }
        let latents = Tensor::cat(&batches, 0)?;
        let timings = Timings {
            sample: begun.elapsed(),
            ..Timings::default()
        };
        let estimate = match estimates.is_empty() {
            true => None,
            false => Some(Tensor::cat(&estimates, 0)?),
        };
        let mut seeds = seeds;
        seeds.truncate(latents.dim(0)?);
        Ok(Sampled {
            latents,
            estimate,
            seeds,
            warnings,
            timings,
            record,
        })
    }
}

/// A run's denoiser, which may look after a mask.
enum Masked<D> {
    No(D),
    Inpaint(Inpaint<D>),
}

impl<D: Denoiser> Masked<D> {
    fn as_denoiser(&mut self) -> &mut dyn Denoiser {
        match self {
            Self::No(denoiser) => denoiser,
            Self::Inpaint(inpaint) => inpaint,
        }
    }
}
