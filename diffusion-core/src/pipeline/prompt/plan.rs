//! What was read, and what the pictures are to be, put together step by step.

use std::collections::HashMap;

use candle_core::{D, DType, Tensor};

use super::{PromptEmbeds, Texts};
use crate::denoise::{ComposedPrompt, ImagePrompt, PromptPlan};
use crate::error::{Error, Result};
use crate::model::TextTime;
use crate::pipeline::check::Checked;
use crate::pipeline::request::PictureSizes;
use crate::pipeline::{Conditioning, GenerateRequest, Pipeline};

/// A prompt along a run.
#[derive(Debug, Clone)]
pub(super) struct Scheduled {
    /// The different texts.
    pub(super) embeds: Vec<PromptEmbeds>,
    /// Which of them each step has; the last goes on.
    pub(super) steps: Vec<usize>,
}

impl Scheduled {
    fn at_step(&self, step: usize) -> usize {
        let index = self.steps.get(step).or(self.steps.last());
        index.copied().unwrap_or(0)
    }
}

/// Prompts to be composed, each with its weight.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    pub(super) parts: Vec<(Scheduled, f64)>,
}

impl Prompt {
    /// One prompt for all steps.
    pub(super) fn unchanging(embeds: PromptEmbeds) -> Self {
        let scheduled = Scheduled {
            embeds: vec![embeds],
            steps: vec![0],
        };
        Self {
            parts: vec![(scheduled, 1.0)],
        }
    }

    pub(super) fn is_composed(&self) -> bool {
        !matches!(self.parts[..], [(_, 1.0)])
    }

    fn num_steps(&self) -> usize {
        let steps = self
            .parts
            .iter()
            .map(|(scheduled, _)| scheduled.steps.len());
        steps.max().unwrap_or(1)
    }

    /// Bytes of all embeddings.
    pub(super) fn size(&self) -> usize {
        let embeds = self
            .parts
            .iter()
            .flat_map(|(scheduled, _)| &scheduled.embeds);
        let tensors = embeds.flat_map(|e| [Some(&e.embeds), e.pooled.as_ref()]);
        tensors
            .flatten()
            .map(|t| t.elem_count() * t.dtype().size_in_bytes())
            .sum()
    }
}

/// What stands against the prompt.
pub(super) enum Negative {
    /// Nothing, as SDXL is told it.
    Zeros,
    Prompt(Prompt),
}

/// What all prompts of a run are told beside the text.
struct Beside<'a> {
    request: &'a GenerateRequest,
    size: (usize, usize),
    image_prompts: Vec<ImagePrompt>,
}

impl Pipeline {
    pub(super) fn prompt_plan(
        &self,
        request: &GenerateRequest,
        checked: &Checked,
        positive: Prompt,
        negative: Option<Negative>,
        is_guided: bool,
    ) -> Result<PromptPlan> {
        let beside = Beside {
            request,
            size: (checked.width, checked.height),
            image_prompts: self.encode_image_prompts(request, is_guided)?,
        };
        let negative_steps = match &negative {
            Some(Negative::Prompt(prompt)) => prompt.num_steps(),
            _ => 1,
        };
        let mut known = HashMap::new();
        let mut plan = PromptPlan {
            prompts: Vec::new(),
            steps: Vec::new(),
        };
        for step in 0..positive.num_steps().max(negative_steps) {
            let choose = |(scheduled, weight): &(Scheduled, f64)| {
                let at = scheduled.at_step(step);
                (at, scheduled.embeds[at].clone(), *weight)
            };
            let chosen: Vec<_> = positive.parts.iter().map(choose).collect();
            let against = match &negative {
                Some(Negative::Prompt(prompt)) => prompt.parts.first().map(choose),
                _ => None,
            };
            let key: Vec<usize> = chosen.iter().chain(&against).map(|c| c.0).collect();
            let index = match known.get(&key) {
                Some(&index) => index,
                None => {
                    let parts = chosen
                        .into_iter()
                        .map(|(_, embeds, weight)| (embeds, weight));
                    let zeros = matches!(negative, Some(Negative::Zeros));
                    let against = against.map(|(_, embeds, _)| embeds);
                    let composed = self.composed(&beside, parts.collect(), against, zeros)?;
                    plan.prompts.push(composed);
                    known.insert(key, plan.prompts.len() - 1);
                    plan.prompts.len() - 1
                }
            };
            plan.steps.push(index);
        }
        Ok(plan)
    }

    fn composed(
        &self,
        beside: &Beside<'_>,
        mut parts: Vec<(PromptEmbeds, f64)>,
        mut negative: Option<PromptEmbeds>,
        zeros: bool,
    ) -> Result<ComposedPrompt> {
        let lengths = parts.iter().map(|(part, _)| part.embeds.dim(1));
        let longest = lengths.collect::<candle_core::Result<Vec<_>>>()?;
        let longest = longest.into_iter().max().unwrap_or(0);
        for (part, _) in &mut parts {
            part.embeds = repeat_last(&part.embeds, longest)?;
        }
        if let (Some(negative), Some((first, _))) = (&mut negative, parts.first_mut()) {
            let tokens = negative.embeds.dim(1)?;
            match longest > tokens {
                true => negative.embeds = self.padded(&negative.embeds, longest, beside.request)?,
                false => first.embeds = self.padded(&first.embeds, tokens, beside.request)?,
            }
        }
        let conditioning = |(i, (part, weight)): (usize, (PromptEmbeds, f64))| {
            let negative = match (i, zeros) {
                (0, true) => Some(zeros_like(&part)?),
                (0, false) => negative.clone(),
                _ => None,
            };
            Ok((self.conditioning(beside, part, negative)?, weight))
        };
        let parts = parts.into_iter().enumerate().map(conditioning);
        Ok(ComposedPrompt {
            parts: parts.collect::<Result<_>>()?,
        })
    }

    fn conditioning(
        &self,
        beside: &Beside<'_>,
        positive: PromptEmbeds,
        negative: Option<PromptEmbeds>,
    ) -> Result<Conditioning> {
        let Beside { request, size, .. } = *beside;
        let negative_sizes = request.negative_sizes.unwrap_or(request.sizes);
        let text_time = |encoded: &PromptEmbeds, sizes, score| {
            let pooled = encoded.pooled.as_ref();
            let time = |pooled| self.text_time(pooled, sizes, size, score);
            pooled.map(time).transpose()
        };
        let negative_text_time = match &negative {
            Some(encoded) => text_time(encoded, negative_sizes, request.negative_aesthetic_score)?,
            None => None,
        };
        Ok(Conditioning {
            text_time: text_time(&positive, request.sizes, request.aesthetic_score)?,
            negative_text_time,
            prompt_embeds: positive.embeds,
            negative_prompt_embeds: negative.map(|encoded| encoded.embeds),
            image_prompts: beside.image_prompts.clone(),
        })
    }

    /// Embeddings with as many empty prompts behind them as it takes.
    fn padded(&self, embeds: &Tensor, tokens: usize, request: &GenerateRequest) -> Result<Tensor> {
        let (rows, missing) = (embeds.dim(0)?, tokens - embeds.dim(1)?);
        if missing == 0 {
            return Ok(embeds.clone());
        }
        let texts = Texts {
            first: "",
            second: "",
            negative: true,
        };
        let empty = self.read_prompt(texts, request, 1)?;
        let empty = &empty.0.parts[0].0.embeds[0].embeds;
        let chunk = empty.dim(1)?;
        if missing % chunk != 0 {
            let expected = format!(
                "as many tokens as the other prompt has, or {chunk} or a multiple of it fewer"
            );
            return Err(Error::argument("prompt_embeds", expected, embeds.dim(1)?));
        }
        let empty = empty
            .to_dtype(embeds.dtype())?
            .repeat((rows, missing / chunk, 1))?;
        Ok(Tensor::cat(&[embeds, &empty], 1)?)
    }

    /// The sizes in the order that SDXL knows them, heights first; its refiner knows no target size but an
    /// aesthetic score.
    fn text_time(
        &self,
        pooled: &Tensor,
        sizes: PictureSizes,
        picture: (usize, usize),
        aesthetic_score: f64,
    ) -> Result<TextTime> {
        let (original, target) = (
            sizes.original.unwrap_or(picture),
            sizes.target.unwrap_or(picture),
        );
        let pixels = |(width, height): (usize, usize)| [height as f32, width as f32];
        let mut ids = [pixels(original), pixels(sizes.crop)].concat();
        let config = self.unet.config();
        let width = config.projection_class_embeddings_input_dim.unwrap_or(0);
        let sizes_width = width.saturating_sub(pooled.dim(D::Minus1)?);
        match sizes_width / config.addition_time_embed_dim.unwrap_or(256).max(1) {
            5 => ids.push(aesthetic_score as f32),
            6 => ids.extend(pixels(target)),
            other => {
                return Err(Error::unsupported(
                    format!("a UNet that is told {other} numbers beside the text"),
                    "SDXL is told 6 and its refiner 5; give others to Pipeline::sample",
                ));
            }
        }
        Ok(TextTime {
            text_embeds: pooled.to_dtype(DType::F32)?,
            time_ids: Tensor::new(ids, pooled.device())?.unsqueeze(0)?,
        })
    }
}

fn zeros_like(embeds: &PromptEmbeds) -> Result<PromptEmbeds> {
    let pooled = embeds.pooled.as_ref();
    Ok(PromptEmbeds {
        embeds: embeds.embeds.zeros_like()?,
        pooled: pooled.map(Tensor::zeros_like).transpose()?,
    })
}

/// Composed prompts of A1111 are of one length: the last vector of shorter ones is repeated.
fn repeat_last(embeds: &Tensor, tokens: usize) -> Result<Tensor> {
    let found = embeds.dim(1)?;
    if found >= tokens {
        return Ok(embeds.clone());
    }
    let last = embeds.narrow(1, found - 1, 1)?;
    let more = last.repeat((1, tokens - found, 1))?;
    Ok(Tensor::cat(&[embeds, &more], 1)?)
}
