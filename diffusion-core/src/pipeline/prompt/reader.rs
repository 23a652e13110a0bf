//! Text encoders as prompts need them.

use candle_core::{D, DType, Tensor};

use super::chunks::Chunk;
use super::{PromptEmbeds, Texts};
use crate::error::{Error, Result};
use crate::model::{TextEncoder, TextEncoding, Tokenizer};
use crate::pipeline::Pipeline;

/// A text encoder with its tokenizer, and what of it the UNet reads.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    encoder: &'a TextEncoder,
    /// The layer, from the last, which is 1.
    layer: usize,
    /// SD 1.x and 2.x have the final norm behind whatever layer they read, SDXL has none.
    is_normed: bool,
    is_second: bool,
}

/// What an encoder says of ids.
#[derive(Debug, Clone)]
pub(super) struct Read {
    /// `(1, tokens, dim)`.
    pub(super) embeds: Tensor,
    /// `(1, width)`, where the encoder has a projection.
    pub(super) pooled: Option<Tensor>,
}

/// A text's chunks, and how many times it counts beside others.
pub(super) struct Weighted {
    pub(super) chunks: Vec<Chunk>,
    pub(super) times: usize,
}

impl Pipeline {
    /// The text encoders, one or two. `clip_skip` is the layer, from the last, which is 1; SD 1.x and 2.x read that,
    /// SDXL the one before.
    pub(super) fn readers(&self, clip_skip: Option<usize>) -> Result<Vec<Reader<'_>>> {
        let parts = [self.text[0].whole(), self.text[1].whole()];
        let is_xl = parts[1].is_some();
        let layer = clip_skip.unwrap_or(if is_xl { 2 } else { 1 });
        let mut readers = Vec::with_capacity(2);
        for (part, is_second) in parts.into_iter().zip([false, true]) {
            let Some((tokenizer, encoder)) = part else {
                continue;
            };
            let layers = encoder.config().num_hidden_layers;
            if clip_skip.is_some() && !(1..=layers).contains(&layer) {
                let expected = format!("1, the last layer of the text encoder, to {layers}");
                return Err(Error::argument("clip_skip", expected, layer));
            }
            readers.push(Reader {
                tokenizer,
                encoder,
                layer,
                is_normed: !is_xl,
                is_second,
            });
        }
        match readers.is_empty() {
            false => Ok(readers),
            true => Err(Error::unsupported(
                "a prompt for a model without a text encoder",
                "give its embeddings to the request, or the conditioning to Pipeline::sample",
            )),
        }
    }
}

impl<'a> Reader<'a> {
    /// Which of two prompts this encoder reads.
    pub(super) fn text<'t>(&self, texts: &Texts<'t>) -> &'t str {
        match self.is_second {
            true => texts.second,
            false => texts.first,
        }
    }

    /// Ids with start, end and padding.
    pub(super) fn read(&self, ids: &[u32]) -> Result<Read> {
        self.read_unseen(ids, &[])
    }

    /// The same where nothing looks at the ids of some places.
    pub(super) fn read_unseen(&self, ids: &[u32], unseen: &[usize]) -> Result<Read> {
        let TextEncoding {
            mut hidden_states,
            last_hidden_state,
            text_embeds,
            ..
        } = self.encoder.forward_unseen(&[ids.to_vec()], unseen)?;
        let embeds = match (self.is_normed, self.layer) {
            (true, 1) => last_hidden_state,
            (is_normed, layer) => {
                let at = hidden_states.len().saturating_sub(layer);
                let hidden = hidden_states.swap_remove(at);
                match is_normed {
                    true => self.encoder.final_norm(&hidden)?,
                    false => hidden,
                }
            }
        };
        Ok(Read {
            embeds,
            pooled: text_embeds,
        })
    }

    /// Texts in chunks, all with as many as `count`, in A1111's way: embeddings times weights, then times what
    /// restores the mean of a chunk over all of the texts. The pooled vector is that of the first chunk.
    ///
    /// Source: `EmphasisOriginal` of AUTOMATIC1111's stable-diffusion-webui.
    pub(super) fn read_weighted(&self, texts: &[Weighted], count: usize) -> Result<Vec<Read>> {
        let empty = Chunk::default();
        let mut parts = vec![Vec::with_capacity(count); texts.len()];
        let mut pooled = Vec::with_capacity(texts.len());
        for i in 0..count {
            let chunks = texts
                .iter()
                .map(|text| text.chunks.get(i).unwrap_or(&empty));
            let is_weighted = chunks.clone().any(|c| c.weights.iter().any(|w| *w != 1.0));
            let (mut before, mut after) = (0.0, 0.0);
            for ((chunk, text), parts) in chunks.zip(texts).zip(&mut parts) {
                let read = self.read(&self.tokenizer.framed(&chunk.ids))?;
                let embeds = match is_weighted {
                    true => {
                        let weighted = weighted(&read.embeds, &chunk.weights)?;
                        before += text.times as f64 * sum(&read.embeds)?;
                        after += text.times as f64 * sum(&weighted)?;
                        weighted
                    }
                    false => read.embeds,
                };
                parts.push(embeds);
                if i == 0 {
                    pooled.push(read.pooled);
                }
            }
            let ratio = before / after;
            if is_weighted && ratio.is_finite() {
                for part in parts.iter_mut().filter_map(|parts| parts.last_mut()) {
                    *part = (&*part * ratio)?;
                }
            }
        }
        let read = |(parts, pooled): (Vec<Tensor>, Option<Tensor>)| {
            let embeds = Tensor::cat(&parts, 1)?;
            Ok(Read { embeds, pooled })
        };
        parts.into_iter().zip(pooled).map(read).collect()
    }
}

/// Embeddings `(1, tokens, dim)` times the weights of the ids behind the start token.
fn weighted(embeds: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let tokens = embeds.dim(1)?;
    let mut all = vec![1.0; tokens];
    for (weight, of) in all.iter_mut().skip(1).zip(weights) {
        *weight = *of;
    }
    let weights = Tensor::from_vec(all, (1, tokens, 1), embeds.device())?;
    let product = embeds.to_dtype(DType::F32)?.broadcast_mul(&weights)?;
    Ok(product.to_dtype(embeds.dtype())?)
}

/// The sum in f64: means are near zero, where f32 has few digits left.
fn sum(embeds: &Tensor) -> Result<f64> {
    let values = embeds
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    Ok(values.into_iter().map(f64::from).sum())
}

/// What all encoders say, side by side; the pooled vector is the last one's.
pub(super) fn side_by_side(reads: Vec<Read>) -> Result<PromptEmbeds> {
    let pooled = reads.last().and_then(|read| read.pooled.clone());
    let embeds: Vec<Tensor> = reads.into_iter().map(|read| read.embeds).collect();
    Ok(PromptEmbeds {
        embeds: Tensor::cat(&embeds, D::Minus1)?,
        pooled,
    })
}
