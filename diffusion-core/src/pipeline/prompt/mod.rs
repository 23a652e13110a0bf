//! The first stage: from a request's texts, sizes and pictures to what the UNet is told.

mod a1111;
mod cache;
mod chunks;
mod compel;
mod composition;
mod emphasis;
mod limits;
mod plan;
mod reader;
mod schedule;

use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

pub(super) use cache::PromptCache;
use cache::PromptKey;
use plan::{Negative, Prompt};
use reader::{Reader, side_by_side};

use super::check::Checked;
use super::{Conditioning, GenerateRequest, Pipeline, Warning};
use crate::denoise::PromptPlan;
use crate::device::compute_dtype;
use crate::error::{Error, Result};

/// How prompts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PromptSyntax {
    /// As it stands, cut after the tokens that the model takes: what diffusers does.
    Plain,
    /// That of A1111, which stable-diffusion.cpp and many others share in parts: `(word:1.3)`, `((word))`,
    /// `[word]`, `\(`, `BREAK`, `[from:to:0.5]`, `[a|b]`, `a AND b :0.5`, and prompts of any length. An
    /// ordinary prompt reads as it stands.
    #[default]
    A1111,
    /// That of compel: `word++`, `(some words)-`, `(words)1.3`, `("a", "b").and(1, 0.5)`,
    /// `("a", "b").blend(1, 1)`, with its formula for weights, and prompts of any length.
    Compel,
}

impl FromStr for PromptSyntax {
    type Err = Error;

    /// Reads a name: `plain`, `a1111` or `compel`.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "plain" => Ok(Self::Plain),
            "a1111" => Ok(Self::A1111),
            "compel" => Ok(Self::Compel),
            _ => {
                let expected = "plain, a1111 or compel";
                Err(Error::argument(
                    "prompt_syntax",
                    expected,
                    format!("{name:?}"),
                ))
            }
        }
    }
}

/// What the text encoders say of a prompt.
#[derive(Debug, Clone)]
pub struct PromptEmbeds {
    /// `(1 or num_images, tokens, dim)`: side by side for two encoders.
    pub embeds: Tensor,
    /// `(1 or num_images, width)`: the projection of SDXL's second encoder. SDXL needs it.
    pub pooled: Option<Tensor>,
}

/// One prompt as each of the text encoders reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// [`Error::Unsupported`] if the model has no text encoder, or for prompts that change along the run or are
    /// composed of several, which [`encode_plan`](Self::encode_plan) is for; otherwise as
    /// [`generate`](Self::generate).
    pub fn encode_prompt(&self, request: &GenerateRequest) -> Result<(Conditioning, Vec<Warning>)> {
        let (plan, warnings) = self.encode_plan(request)?;
        let conditioning = plan.into_conditioning().ok_or_else(|| {
            Error::unsupported(
                "a prompt of several as one conditioning",
                "use Pipeline::encode_plan",
            )
        })?;
        Ok((conditioning, warnings))
    }

    /// The first stage for prompts that may change along the run or be composed of several.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no text encoder; otherwise as [`generate`](Self::generate).
    pub fn encode_plan(&self, request: &GenerateRequest) -> Result<(PromptPlan, Vec<Warning>)> {
        self.encode_checked(request, &self.check(request)?)
    }

    pub(super) fn encode_checked(
        &self,
        request: &GenerateRequest,
        checked: &Checked,
    ) -> Result<(PromptPlan, Vec<Warning>)> {
        let _threads = self.threads.enter();
        let mut warnings = Vec::new();
        let num_steps = checked.steps.len();
        let mut read = |texts: Texts<'_>| {
            let answer = self.read_prompt(texts, request, num_steps)?;
            warnings.extend_from_slice(&answer.1);
            Ok::<_, Error>(answer.0.clone())
        };
        let positive = match &request.prompt_embeds {
            Some(embeds) => self.given(embeds)?,
            None => read(Texts {
                first: &request.prompt,
                second: request.prompt_2.as_ref().unwrap_or(&request.prompt),
                negative: false,
            })?,
        };
        let needs_unconditional = checked.scheduler.needs_unconditional() || positive.is_composed();
        let is_guided = request.guidance.is_on(&self.unet, needs_unconditional);
        let negative = match (&request.negative_prompt_embeds, &request.negative_prompt) {
            _ if !is_guided => None,
            (Some(embeds), _) => Some(Negative::Prompt(self.given(embeds)?)),
            (None, None) if self.zeroes_empty_prompt => Some(Negative::Zeros),
            (None, text) => {
                let first = text.as_deref().unwrap_or_default();
                Some(Negative::Prompt(read(Texts {
                    first,
                    second: request.negative_prompt_2.as_deref().unwrap_or(first),
                    negative: true,
                })?))
            }
        };
        let plan = self.prompt_plan(request, checked, positive, negative, is_guided)?;
        Ok((plan, warnings))
    }

    /// A prompt that was read before with the same settings, or reads it.
    fn read_prompt(
        &self,
        texts: Texts<'_>,
        request: &GenerateRequest,
        num_steps: usize,
    ) -> Result<Arc<(Prompt, Vec<Warning>)>> {
        let changes = request.prompt_syntax == PromptSyntax::A1111
            && [texts.first, texts.second]
                .iter()
                .any(|text| text.contains('['));
        let key = PromptKey {
            first: texts.first.to_owned(),
            second: texts.second.to_owned(),
            negative: texts.negative,
            syntax: request.prompt_syntax,
            clip_skip: request.clip_skip,
            num_steps: if changes { num_steps } else { 1 },
        };
        self.prompts.get_or_insert(key, |key| {
            let readers = self.readers(key.clip_skip)?;
            let mut warnings = Vec::new();
            let prompt = match key.syntax {
                PromptSyntax::Plain => {
                    Prompt::unchanging(read_plain(&readers, &texts, &mut warnings)?)
                }
                PromptSyntax::A1111 => a1111::read(&readers, &texts, key.num_steps)?,
                PromptSyntax::Compel => Prompt::unchanging(compel::read(&readers, &texts)?),
            };
            Ok((prompt, warnings))
        })
    }

    /// Embeddings of the caller's.
    fn given(&self, embeds: &PromptEmbeds) -> Result<Prompt> {
        let check = |name: &'static str, tensor: &Tensor, rank: usize| {
            if tensor.rank() != rank || tensor.elem_count() == 0 {
                let expected = format!("a tensor of {rank} dimensions, the first of them pictures");
                return Err(Error::argument(
                    name,
                    expected,
                    format!("{:?}", tensor.dims()),
                ));
            }
            let sum = tensor.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
            if !sum.is_finite() {
                return Err(Error::argument(name, "finite values", sum));
            }
            let dtype = compute_dtype(&self.device, self.unet.weights().dtype());
            Ok(tensor.to_device(&self.device)?.to_dtype(dtype)?)
        };
        let pooled = embeds.pooled.as_ref();
        Ok(Prompt::unchanging(PromptEmbeds {
            embeds: check("prompt_embeds", &embeds.embeds, 3)?,
            pooled: pooled
                .map(|pooled| check("pooled prompt_embeds", pooled, 2))
                .transpose()?,
        }))
    }
}

/// A prompt as it stands. What did not fit is told once, though two encoders read it.
fn read_plain(
    readers: &[Reader<'_>],
    texts: &Texts<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<PromptEmbeds> {
    let mut reads = Vec::with_capacity(readers.len());
    for reader in readers {
        let encoding = reader.tokenizer.encode(reader.text(texts))?;
        if let Some(dropped) = encoding.truncated {
            let warning = Warning::PromptTruncated {
                negative: texts.negative,
                limit: reader.tokenizer.room(),
                dropped,
            };
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        reads.push(reader.read(&encoding.ids)?);
    }
    side_by_side(reads)
}
