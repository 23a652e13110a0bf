//! A UNet under a prompt, as a denoiser.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::{
    Channels, Controls, DeepCache, DeepShrink, Denoiser, Estimate, Guidance, ImagePrompt,
    NoiseSchedule, Perturbation, TextGate,
};
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
/// second half where guidance is off or the model has guidance distilled in.
#[derive(Debug)]
pub struct Guided<'a> {
    unet: &'a UNet,
    noise: &'a NoiseSchedule,
    guidance: Guidance,
    needs_unconditional: bool,
    /// With the prompt alone.
    prompted: Parts,
    /// With the answers that guidance leads away from, where it is ever on.
    all: Option<Parts>,
    timestep_cond: Option<Tensor>,
    controls: Controls<'a>,
    perturbation: Option<Perturbation>,
    deep_shrink: Option<DeepShrink>,
    deep_cache: DeepCache,
    text_gate: Option<TextGate>,
    token_merging: f64,
    /// The number of the step and how many there are, once a run says so.
    step: Option<(usize, usize)>,
}

/// What a UNet is told in one call: for each of several answers a row for each picture of the batch. The last
/// answer is the one with the prompt.
#[derive(Debug)]
struct Parts {
    count: usize,
    context: Tensor,
    text_time: Option<TextTime>,
    image_attention: ImageAttention,
    channels: Option<Tensor>,
}

impl Parts {
    fn new(
        conditioning: &Conditioning,
        channels: Option<&Channels>,
        count: usize,
        batch: usize,
    ) -> Result<Self> {
        let mut image_attention = ImageAttention::default();
        for prompt in &conditioning.image_prompts {
            prompt.attend(count, batch, &mut image_attention)?;
        }
        let time = |positive: &TextTime| {
            let negative = conditioning.negative_text_time.as_ref();
            let of = |part: fn(&TextTime) -> &Tensor| {
                parts_of(part(positive), negative.map(part), count, batch)
            };
            Ok::<_, Error>(TextTime {
                text_embeds: of(|t| &t.text_embeds)?,
                time_ids: of(|t| &t.time_ids)?,
            })
        };
        Ok(Self {
            count,
            context: parts_of(
                &conditioning.prompt_embeds,
                conditioning.negative_prompt_embeds.as_ref(),
                count,
                batch,
            )?,
            text_time: conditioning.text_time.as_ref().map(time).transpose()?,
            image_attention,
            channels: channels
                .map(|channels| channels.parts(count, batch))
                .transpose()?,
        })
    }
}

impl<'a> Guided<'a> {
    /// Prepares the conditioning for a batch of latents.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if guidance is on and there is no negative prompt, or if the
    /// conditioning's batch is neither 1 nor `batch`; [`Error::Tensor`] if shapes do not fit.
    pub fn new(
        unet: &'a UNet,
        noise: &'a NoiseSchedule,
        conditioning: &Conditioning,
        channels: Option<&Channels>,
        guidance: &Guidance,
        needs_unconditional: bool,
        batch: usize,
    ) -> Result<Self> {
        check_width(unet, &conditioning.prompt_embeds)?;
        let device = conditioning.prompt_embeds.device();
        let guided = guidance.is_on(unet, needs_unconditional);
        let count = match channels {
            Some(Channels::Picture(_)) => 3,
            _ => 2,
        };
        let distilled = unet.config().time_cond_proj_dim;
        Ok(Self {
            unet,
            noise,
            guidance: guidance.clone(),
            needs_unconditional,
            prompted: Parts::new(conditioning, channels, 1, batch)?,
            all: guided
                .then(|| Parts::new(conditioning, channels, count, batch))
                .transpose()?,
            timestep_cond: distilled
                .map(|dim| guidance_embedding(guidance.scale, batch, dim, device))
                .transpose()?,
            controls: Controls::default(),
            perturbation: None,
            deep_shrink: None,
            deep_cache: DeepCache::every(1),
            text_gate: None,
            token_merging: 0.0,
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

    /// The same with inner levels that are asked in each `interval`-th evaluation alone, 1 or more.
    pub fn with_deep_cache(self, interval: usize) -> Self {
        Self {
            deep_cache: DeepCache::every(interval),
            ..self
        }
    }

    /// The same without guidance after so many steps, 1 or more, and with what cross-attention found in the last of them.
    pub fn with_text_gate(self, num_steps: Option<usize>) -> Self {
        Self {
            text_gate: num_steps.map(TextGate::after),
            ..self
        }
    }

    /// The same with a share of the tokens merged for self-attention.
    pub fn with_token_merging(self, ratio: f64) -> Self {
        Self {
            token_merging: ratio,
            ..self
        }
    }

    /// What the UNet says, for each of `parts` one after another, and what perturbed self-attention adds to it, if
    /// anything.
    fn outputs(
        &self,
        latents: &Tensor,
        sigma: f64,
        timestep: f64,
        parts: &Parts,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let scaled = (latents * self.noise.input_scale(sigma))?;
        let sample = Tensor::cat(&vec![&scaled; parts.count], 0)?;
        let timesteps = [timestep];
        let num_timesteps = self.noise.num_train_timesteps();
        let shrink = |shrink: DeepShrink| shrink.at(timestep, num_timesteps);
        let input = UNetInput {
            text_time: parts.text_time.as_ref(),
            timestep_cond: self.timestep_cond.as_ref(),
            image_attention: Some(&parts.image_attention),
            shrink: self.deep_shrink.and_then(shrink),
            ..UNetInput::new(&sample, &timesteps, &parts.context)
        };
        let residuals = self.controls.residuals(&input, self.step, parts.count)?;
        let with_channels = match &parts.channels {
            Some(channels) => &Tensor::cat(&[&sample, channels], 1)?,
            None => &sample,
        };
        let input = UNetInput {
            sample: with_channels,
            residuals: residuals.as_ref(),
            gate: self
                .text_gate
                .as_ref()
                .and_then(|gate| gate.at(self.step, parts.count)),
            token_merging: self.token_merging,
            ..input
        };
        let outputs = self.deep_cache.forward(self.unet, &input)?;
        let outputs = outputs.to_dtype(DType::F32)?;
        let outputs = outputs.chunk(parts.count, 0)?;
        let push = match (&self.perturbation, outputs.last()) {
            (Some(perturbation), Some(prompted)) => {
                perturbation.push(self.unet, &input, prompted, timestep)?
            }
            _ => None,
        };
        Ok((outputs, push))
    }
}

/// The answer with what is added to it, if anything.
fn pushed(output: Tensor, push: Option<Tensor>) -> Result<Tensor> {
    match push {
        Some(push) => Ok((output + push)?),
        None => Ok(output),
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

/// The negative parts, if any, then the positive, each repeated for the batch.
pub(super) fn parts_of(
    positive: &Tensor,
    negative: Option<&Tensor>,
    count: usize,
    batch: usize,
) -> Result<Tensor> {
    let positive = repeated(positive, batch)?;
    if count == 1 {
        return Ok(positive);
    }
    let negative = negative.ok_or_else(|| {
        let expected = "the conditioning of a negative prompt, for guidance above 1";
        Error::argument("conditioning", expected, "none")
    })?;
    let mut parts = vec![repeated(negative, batch)?; count - 1];
    parts.push(positive);
    Ok(Tensor::cat(&parts, 0)?)
}

/// The rows of some of `num_images` pictures, repeated where there is one row for all.
pub(crate) fn row_for_each(
    tensor: &Tensor,
    images: &Range<usize>,
    num_images: usize,
) -> Result<Tensor> {
    repeated(&rows_of(tensor, images, num_images)?, images.len())
}

pub(super) fn repeated(tensor: &Tensor, batch: usize) -> Result<Tensor> {
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
        let gate = self.text_gate.as_ref();
        let is_shut = gate.is_some_and(|gate| gate.is_shut(self.step));
        let is_guided = self.guidance.scale_at(self.step) > 1.0 || self.needs_unconditional;
        let is_guided = is_guided && !is_shut;
        let (Some(all), true) = (&self.all, is_guided) else {
            let (outputs, push) = self.outputs(latents, sigma, timestep, &self.prompted)?;
            let output = pushed(outputs[0].clone(), push)?;
            let denoised = self.noise.denoised(latents, &output, sigma)?;
            // Behind a gate there is one answer for both; a model with guidance distilled in has but the one.
            let unconditional = (is_shut && self.needs_unconditional).then(|| denoised.clone());
            return Ok(Estimate {
                denoised,
                unconditional,
            });
        };
        let (outputs, push) = self.outputs(latents, sigma, timestep, all)?;
        let guided = pushed(self.guidance.combine(&outputs, self.step)?, push)?;
        let guided = self.guidance.rescaled(guided, &outputs[all.count - 1])?;
        Ok(Estimate {
            denoised: self.noise.denoised(latents, &guided, sigma)?,
            unconditional: Some(self.noise.denoised(latents, &outputs[0], sigma)?),
        })
    }
}
