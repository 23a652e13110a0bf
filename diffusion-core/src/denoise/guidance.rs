//! A UNet under a prompt, as a denoiser.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::{Controls, DeepShrink, Denoiser, Estimate, ImagePrompt, NoiseSchedule, Perturbation};
use crate::config::PerLevel;
use crate::error::{Error, Result};
use crate::model::{TextTime, UNet, UNetInput};
use crate::nn::{ImageAttention, guidance_embedding};

/// Everything that a UNet is told about the wanted picture.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `(1 or batch, tokens, dim)`: the prompt.
    pub prompt_embeds: Tensor,
    /// `(1 or batch, tokens, dim)`: the negative prompt; needed for guidance above 1.
    pub negative_prompt_embeds: Option<Tensor>,
    /// What SDXL is told beside the prompt.
    pub text_time: Option<TextTime>,
    /// What SDXL is told beside the negative prompt.
    pub negative_text_time: Option<TextTime>,
    /// Pictures beside the prompt.
    pub image_prompts: Vec<ImagePrompt>,
}

impl Conditioning {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let times = [&self.text_time, &self.negative_text_time]
            .into_iter()
            .flatten();
        [
            Some(&self.prompt_embeds),
            self.negative_prompt_embeds.as_ref(),
        ]
        .into_iter()
        .flatten()
        .chain(times.flat_map(|time| [&time.text_embeds, &time.time_ids]))
        .chain(self.image_prompts.iter().flat_map(ImagePrompt::tensors))
    }

    /// Checks that there is one row, or one for each picture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if not.
    pub fn check_rows(&self, num_images: usize) -> Result<()> {
        for tensor in self.tensors() {
            let rows = tensor.dim(0)?;
            if rows != 1 && rows != num_images {
                let expected = format!("1 row, or {num_images}, one for each picture");
                return Err(Error::argument("conditioning", expected, rows));
            }
        }
        Ok(())
    }

    /// The rows of some of `num_images` pictures.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the range does not fit.
    pub fn of_images(&self, images: &Range<usize>, num_images: usize) -> Result<Self> {
        let rows = |tensor: &Tensor| rows_of(tensor, images, num_images);
        let image_prompt = |prompt: &ImagePrompt| prompt.of_images(images, num_images);
        let time = |time: &TextTime| {
            let (text_embeds, time_ids) = (rows(&time.text_embeds)?, rows(&time.time_ids)?);
            Ok::<_, Error>(TextTime {
                text_embeds,
                time_ids,
            })
        };
        Ok(Self {
            prompt_embeds: rows(&self.prompt_embeds)?,
            negative_prompt_embeds: self.negative_prompt_embeds.as_ref().map(rows).transpose()?,
            text_time: self.text_time.as_ref().map(time).transpose()?,
            negative_text_time: self.negative_text_time.as_ref().map(time).transpose()?,
            image_prompts: self
                .image_prompts
                .iter()
                .map(image_prompt)
                .collect::<Result<_>>()?,
        })
    }
}

/// The rows of some of `num_images` pictures, or the one row of all.
pub(super) fn rows_of(tensor: &Tensor, images: &Range<usize>, num_images: usize) -> Result<Tensor> {
    match tensor.dim(0)? {
        rows if rows == num_images => Ok(tensor.narrow(0, images.start, images.len())?),
        _ => Ok(tensor.clone()),
    }
}

/// A UNet with its conditioning and classifier-free guidance: one batched call an evaluation, and no
/// second half where the guidance scale is at most 1 or the model has guidance distilled in.
///
/// Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6, with the scale
/// counted as `1 + w`.
#[derive(Debug)]
pub struct Guided<'a> {
    unet: &'a UNet,
    noise: &'a NoiseSchedule,
    guidance_scale: Option<f64>,
    context: Tensor,
    text_time: Option<TextTime>,
    timestep_cond: Option<Tensor>,
    image_attention: ImageAttention,
    controls: Controls<'a>,
    perturbation: Option<Perturbation>,
    deep_shrink: Option<DeepShrink>,
    /// The number of the step and how many there are, once a run says so.
    step: Option<(usize, usize)>,
}

impl<'a> Guided<'a> {
    /// Whether a model is asked twice, with the prompt and without: at guidance scales above 1, or where the
    /// scheduler needs both answers.
    pub fn is_guided(unet: &UNet, guidance_scale: f64, needs_unconditional: bool) -> bool {
        let is_distilled = unet.config().time_cond_proj_dim.is_some();
        (guidance_scale > 1.0 || needs_unconditional) && !is_distilled
    }

    /// Prepares the conditioning for a batch of latents.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if guidance is on and there is no negative prompt, or if the
    /// conditioning's batch is neither 1 nor `batch`; [`Error::Tensor`] if shapes do not fit.
    pub fn new(
        unet: &'a UNet,
        noise: &'a NoiseSchedule,
        conditioning: &Conditioning,
        guidance_scale: f64,
        needs_unconditional: bool,
        batch: usize,
    ) -> Result<Self> {
        let distilled = unet.config().time_cond_proj_dim;
        let guided = Self::is_guided(unet, guidance_scale, needs_unconditional);
        check_width(unet, &conditioning.prompt_embeds)?;
        let halves = if guided { 2 } else { 1 };
        let device = conditioning.prompt_embeds.device();
        let mut image_attention = ImageAttention::default();
        for prompt in &conditioning.image_prompts {
            prompt.attend(halves, batch, &mut image_attention)?;
        }
        Ok(Self {
            unet,
            noise,
            guidance_scale: guided.then_some(guidance_scale),
            context: halves_of(
                &conditioning.prompt_embeds,
                conditioning.negative_prompt_embeds.as_ref(),
                halves,
                batch,
            )?,
            text_time: conditioning
                .text_time
                .as_ref()
                .map(|positive| {
                    let negative = conditioning.negative_text_time.as_ref();
                    let of = |part: fn(&TextTime) -> &Tensor| {
                        halves_of(part(positive), negative.map(part), halves, batch)
                    };
                    Ok::<_, Error>(TextTime {
                        text_embeds: of(|t| &t.text_embeds)?,
                        time_ids: of(|t| &t.time_ids)?,
                    })
                })
                .transpose()?,
            timestep_cond: distilled
                .map(|dim| guidance_embedding(guidance_scale, batch, dim, device))
                .transpose()?,
            image_attention,
            controls: Controls::default(),
            perturbation: None,
            deep_shrink: None,
            step: None,
        })
    }

    /// The same with ControlNets and T2I-Adapters, prepared for the batch. Which of them take part is known from
    /// [`begin_step`](Denoiser::begin_step) on; before, all do.
    pub fn with_controls(self, controls: Controls<'a>) -> Self {
        Self { controls, ..self }
    }

    /// The same with guidance away from perturbed self-attention.
    pub fn with_perturbation(self, perturbation: Option<Perturbation>) -> Self {
        Self {
            perturbation,
            ..self
        }
    }

    /// The same with smaller inner levels in a part of the run.
    pub fn with_deep_shrink(self, deep_shrink: Option<DeepShrink>) -> Self {
        Self {
            deep_shrink,
            ..self
        }
    }

    /// What perturbed self-attention adds to the model's answer, if anything.
    fn push(
        &self,
        input: &UNetInput<'_>,
        prompted: &Tensor,
        timestep: f64,
    ) -> Result<Option<Tensor>> {
        match &self.perturbation {
            Some(perturbation) => perturbation.push(self.unet, input, prompted, timestep),
            None => Ok(None),
        }
    }
}

/// A text encoder of another model gives vectors of another width.
fn check_width(unet: &UNet, prompt_embeds: &Tensor) -> Result<()> {
    let found = prompt_embeds.dim(D::Minus1)?;
    match unet.config().cross_attention_dim {
        PerLevel::Same(width) if width != found => {
            let expected =
                format!("embeddings of width {width}, as the UNet's cross_attention_dim");
            Err(Error::argument("conditioning", expected, found))
        }
        _ => Ok(()),
    }
}

/// The negative half, if wanted, then the positive, each repeated for the batch.
pub(super) fn halves_of(
    positive: &Tensor,
    negative: Option<&Tensor>,
    halves: usize,
    batch: usize,
) -> Result<Tensor> {
    let positive = repeated(positive, batch)?;
    if halves == 1 {
        return Ok(positive);
    }
    let negative = negative.ok_or_else(|| {
        let expected = "the conditioning of a negative prompt, for guidance above 1";
        Error::argument("conditioning", expected, "none")
    })?;
    Ok(Tensor::cat(&[&repeated(negative, batch)?, &positive], 0)?)
}

fn repeated(tensor: &Tensor, batch: usize) -> Result<Tensor> {
    let mut dims = tensor.dims().to_vec();
    match dims.first_mut() {
        Some(first) if *first == batch => Ok(tensor.clone()),
        Some(first) if *first == 1 => {
            *first = batch;
            Ok(tensor.broadcast_as(dims)?.contiguous()?)
        }
        _ => {
            let expected = format!("a batch of 1 or {batch}");
            Err(Error::argument(
                "conditioning",
                expected,
                format!("{:?}", tensor.dims()),
            ))
        }
    }
}

impl Denoiser for Guided<'_> {
    fn begin_step(&mut self, index: usize, num_steps: usize) {
        self.step = Some((index, num_steps));
    }

    fn denoise(&mut self, latents: &Tensor, sigma: f64, timestep: f64) -> Result<Estimate> {
        let mut sample = (latents * self.noise.input_scale(sigma))?;
        if self.guidance_scale.is_some() {
            sample = Tensor::cat(&[&sample, &sample], 0)?;
        }
        let timesteps = [timestep];
        let input = UNetInput {
            text_time: self.text_time.as_ref(),
            timestep_cond: self.timestep_cond.as_ref(),
            image_attention: Some(&self.image_attention),
            shrink: self
                .deep_shrink
                .and_then(|shrink| shrink.at(timestep, self.noise.num_train_timesteps())),
            ..UNetInput::new(&sample, &timesteps, &self.context)
        };
        let guided = self.guidance_scale.is_some();
        let residuals = self.controls.residuals(&input, self.step, guided)?;
        let input = UNetInput {
            residuals: residuals.as_ref(),
            ..input
        };
        let output = self.unet.forward(&input)?.to_dtype(DType::F32)?;
        let Some(scale) = self.guidance_scale else {
            let output = match self.push(&input, &output, timestep)? {
                Some(push) => (&output + push)?,
                None => output,
            };
            let denoised = self.noise.denoised(latents, &output, sigma)?;
            return Ok(Estimate {
                denoised,
                unconditional: None,
            });
        };
        let halves = output.chunk(2, 0)?;
        let mut guided = (&halves[0] + ((&halves[1] - &halves[0])? * scale)?)?;
        if let Some(push) = self.push(&input, &halves[1], timestep)? {
            guided = (guided + push)?;
        }
        Ok(Estimate {
            denoised: self.noise.denoised(latents, &guided, sigma)?,
            unconditional: Some(self.noise.denoised(latents, &halves[0], sigma)?),
        })
    }
}
