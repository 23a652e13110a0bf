//! The first stage: from a request's texts, sizes and pictures to what the UNet is told.

use candle_core::{D, DType, Tensor};

use super::check::Checked;
use super::request::PictureSizes;
use super::{Conditioning, GenerateRequest, Pipeline, Warning};
use crate::error::{Error, Result};
use crate::model::{TextTime, Tokenizer};

/// What the text encoders say of one prompt.
struct Encoded {
    /// `(1, tokens, dim)`, side by side for two encoders.
    embeds: Tensor,
    /// `(1, width)`, from SDXL's second encoder.
    pooled: Option<Tensor>,
}

/// One prompt as each of the text encoders reads it.
#[derive(Clone, Copy)]
struct Texts<'a> {
    first: &'a str,
    second: &'a str,
    negative: bool,
}

impl Pipeline {
    /// The first stage: a request's prompts in words and pictures, and the sizes that SDXL is told, as conditioning. The negative
    /// half is there where the request's guidance needs one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no text encoder; otherwise as [`generate`](Self::generate).
    pub fn encode_prompt(&self, request: &GenerateRequest) -> Result<(Conditioning, Vec<Warning>)> {
        self.encode_checked(request, &self.check(request)?)
    }

    pub(super) fn encode_checked(
        &self,
        request: &GenerateRequest,
        checked: &Checked,
    ) -> Result<(Conditioning, Vec<Warning>)> {
        let needs_unconditional = checked.scheduler.needs_unconditional();
        let is_guided = request.guidance.is_on(&self.unet, needs_unconditional);
        let mut warnings = Vec::new();
        let positive = Texts {
            first: &request.prompt,
            second: request.prompt_2.as_ref().unwrap_or(&request.prompt),
            negative: false,
        };
        let positive = self.encode_texts(positive, &mut warnings)?;
        let negative = match (&request.negative_prompt, is_guided) {
            (_, false) => None,
            (None, true) if self.zeroes_empty_prompt => Some(Encoded {
                embeds: positive.embeds.zeros_like()?,
                pooled: positive
                    .pooled
                    .as_ref()
                    .map(Tensor::zeros_like)
                    .transpose()?,
            }),
            (text, true) => {
                let first = text.as_deref().unwrap_or_default();
                let texts = Texts {
                    first,
                    second: request.negative_prompt_2.as_deref().unwrap_or(first),
                    negative: true,
                };
                Some(self.encode_texts(texts, &mut warnings)?)
            }
        };
        let size = (checked.width, checked.height);
        let negative_sizes = request.negative_sizes.unwrap_or(request.sizes);
        let text_time = |encoded: &Encoded, sizes: PictureSizes, score: f64| {
            let pooled = encoded.pooled.as_ref();
            pooled
                .map(|pooled| self.text_time(pooled, sizes, size, score))
                .transpose()
        };
        let conditioning = Conditioning {
            text_time: text_time(&positive, request.sizes, request.aesthetic_score)?,
            negative_text_time: match &negative {
                Some(encoded) => {
                    text_time(encoded, negative_sizes, request.negative_aesthetic_score)?
                }
                None => None,
            },
            prompt_embeds: positive.embeds,
            negative_prompt_embeds: negative.map(|encoded| encoded.embeds),
            image_prompts: self.encode_image_prompts(request, is_guided)?,
        };
        Ok((conditioning, warnings))
    }

    /// SD 1.x and 2.x read the last layer of their one encoder; SDXL the one before the last of both, and the
    /// second's projection.
    fn encode_texts(&self, texts: Texts<'_>, warnings: &mut Vec<Warning>) -> Result<Encoded> {
        let [first, second] = [self.text[0].whole(), self.text[1].whole()];
        let Some((tokenizer, encoder)) = second else {
            let (tokenizer, encoder) = first.ok_or_else(|| {
                Error::unsupported(
                    "a prompt for a model without a text encoder",
                    "give the conditioning to Pipeline::sample",
                )
            })?;
            let ids = tokens(tokenizer, texts.first, texts.negative, warnings)?;
            return Ok(Encoded {
                embeds: encoder.forward(&[ids])?.last_hidden_state,
                pooled: None,
            });
        };
        let mut embeds = Vec::with_capacity(2);
        if let Some((tokenizer, encoder)) = first {
            let ids = tokens(tokenizer, texts.first, texts.negative, warnings)?;
            embeds.push(penultimate(encoder.forward(&[ids])?.hidden_states));
        }
        let ids = tokens(tokenizer, texts.second, texts.negative, warnings)?;
        let encoding = encoder.forward(&[ids])?;
        embeds.push(penultimate(encoding.hidden_states));
        let pooled = encoding.text_embeds.ok_or_else(|| {
            Error::unsupported(
                "a second text encoder without projection",
                "SDXL's is a CLIPTextModelWithProjection",
            )
        })?;
        Ok(Encoded {
            embeds: Tensor::cat(&embeds, D::Minus1)?,
            pooled: Some(pooled),
        })
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

/// A prompt's ids. What did not fit is told once, though two encoders read it.
fn tokens(
    tokenizer: &Tokenizer,
    prompt: &str,
    negative: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(prompt)?;
    if let Some(dropped) = encoding.truncated {
        let warning = Warning::PromptTruncated {
            negative,
            limit: tokenizer.max_length() - 2,
            dropped,
        };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    Ok(encoding.ids)
}

/// What the last layer reads.
fn penultimate(mut hidden_states: Vec<Tensor>) -> Tensor {
    hidden_states.swap_remove(hidden_states.len().saturating_sub(2))
}
