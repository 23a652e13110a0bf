//! Two passes over one picture.

use std::ops::ControlFlow;

use super::request::{Hires, InitImage, Upscaler};
use super::{GenerateRequest, Pipeline, Progress, ProgressFn, Sampled, Timings};
use crate::error::{Error, Result};
use crate::media;
use crate::nn::interpolate;

impl Pipeline {
    /// A picture at the request's size, made larger, and an img2img pass over that.
    pub(super) fn two_passes(
        &self,
        request: &GenerateRequest,
        hires: &Hires,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Sampled> {
        let is_part = request.denoising_start.or(request.denoising_end).is_some();
        if is_part || request.image.is_some() {
            let expected =
                "a whole txt2img run beside hires; a picture is made larger by its request's size";
            let found = "a picture, denoising_start or denoising_end";
            return Err(Error::argument("hires", expected, found));
        }
        let first_request = GenerateRequest {
            hires: None,
            ..request.clone()
        };
        let mut second_request = GenerateRequest {
            width: Some(hires.size.0),
            height: Some(hires.size.1),
            strength: Some(hires.strength),
            num_steps: hires.num_steps.unwrap_or(request.num_steps),
            prompt: hires
                .prompt
                .clone()
                .unwrap_or_else(|| request.prompt.clone()),
            noise: None,
            latents: None,
            ..first_request.clone()
        };
        let in_pass = |pass: usize| {
            move |report: &Progress<'_>, progress: &mut ProgressFn<'_>| -> ControlFlow<()> {
                progress(&Progress {
                    pass,
                    num_passes: 2,
                    images: report.images.clone(),
                    ..*report
                })
            }
        };
        let first_pass = in_pass(0);
        let first = self.one_pass(&first_request, &mut |report| first_pass(report, progress))?;
        if first.estimate.is_some() {
            return Ok(first);
        }
        let mut warnings = first.warnings;
        let (width, height) = self.image_size(&second_request)?;
        second_request.seed = first.seeds.first().copied();
        second_request.image = Some(match hires.upscaler {
            Upscaler::Latents(how) => {
                let factor = self.vae.downscale();
                let size = (height / factor, width / factor);
                InitImage::Latents(interpolate(&first.latents, size, how)?)
            }
            Upscaler::Pixels(resampling) => {
                let pictures = self.decode_batches(&first.latents, request, &mut warnings)?;
                let larger = pictures
                    .iter()
                    .map(|p| media::resize(p, width as u32, height as u32, resampling));
                InitImage::Pictures(larger.collect())
            }
        });
        let second_pass = in_pass(1);
        let second = self.one_pass(&second_request, &mut |report| second_pass(report, progress))?;
        warnings.extend(second.warnings);
        warnings.dedup();
        Ok(Sampled {
            warnings,
            record: first.record.with_second_pass(hires)?,
            timings: Timings {
                encode: first.timings.encode + second.timings.encode,
                sample: first.timings.sample + second.timings.sample,
                ..first.timings
            },
            ..second
        })
    }
}
