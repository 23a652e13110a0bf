//! CLIP's text model.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::clip_tower::{Tower, TowerConfig};
use crate::config::parse_model;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, LayerNorm, Linear, Mask, NamedTensors, Params, TensorSource,
    WeightChanges, Weights,
};

/// The end-of-text id by which old configurations mean "the largest id of the prompt".
const LEGACY_EOS: u32 = 2;

/// The vectors of the tokens.
const TOKEN_TABLE: &str = "embeddings.token_embedding.weight";

/// Tensors that text-encoder files carry and this model need not read: a buffer, the projection of models
/// that do not use it, and the other half of files that hold the whole CLIP.
const IGNORED: &[&str] = &[
    "text_projection.weight",
    "position_ids",
    "logit_scale",
    "vision_model.",
    "visual_projection.weight",
];

/// The `config.json` of `CLIPTextModel` and `CLIPTextModelWithProjection`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Channels.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Non-linearity of the feed-forward layers.
    pub hidden_act: ActivationFunction,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Channels of the projected embedding, where the model has a projection.
    pub projection_dim: usize,
    /// The end-of-text id; its first place in a prompt is where the pooled vector is read.
    pub eos_token_id: u32,
    /// The class that the file was saved from, which says whether there is a projection.
    pub architectures: Option<Vec<String>>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: ActivationFunction::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
            architectures: None,
        }
    }
}

impl ClipTextConfig {
    fn tower(&self) -> TowerConfig {
        TowerConfig {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            function: self.hidden_act,
            eps: self.layer_norm_eps,
            mask: Mask::Causal,
        }
    }

    fn has_projection(&self, params: Params<'_>) -> bool {
        match &self.architectures {
            Some(classes) => classes
                .iter()
                .any(|class| class == "CLIPTextModelWithProjection"),
            None => params.contains("text_projection.weight"),
        }
    }
}

/// What the text model says about a batch of prompts.
#[derive(Debug, Clone)]
pub struct TextEncoding {
    /// `(batch, tokens, hidden)` before the first layer, then after each: `layers + 1` of them, without
    /// the final norm. SDXL reads the one before the last.
    pub hidden_states: Vec<Tensor>,
    /// `(batch, tokens, hidden)`: the last of them after the final norm. SD 1.x and 2.x read this.
    pub last_hidden_state: Tensor,
    /// `(batch, hidden)`: `last_hidden_state` at the end-of-text token.
    pub pooled: Tensor,
    /// `(batch, projection_dim)`: `pooled` projected, where the model has a projection.
    pub text_embeds: Option<Tensor>,
}

/// CLIP's text model, the conditioning of Stable Diffusion.
///
/// Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Tower,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
    dtype: DType,
    weights: Weights,
    /// Ids that the model was trained with; words that were added later have higher ones.
    trained_vocab_size: usize,
}

impl TextEncoder {
    /// Reads the tensors, with or without the prefix `text_model.` (transformers 5 writes none).
    /// Weights are held as `dtype`; arithmetic is [`compute_dtype`](crate::device::compute_dtype).
    ///
    /// # Errors
    /// [`Error::Weights`] if tensors and configuration do not fit; otherwise if reading fails.
    pub fn new(
        config: ClipTextConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Params::build(source, dtype, device, IGNORED, |params| {
            let prefix = match params.contains("text_model.final_layer_norm.weight") {
                true => "text_model.",
                false => "",
            };
            let at = |name: &str| format!("{prefix}{name}");
            let hidden = config.hidden_size;
            let embedding = |name: &str, rows: usize| params.tensor(&at(name), &[rows, hidden]);
            Ok(Self {
                token_embedding: embedding(TOKEN_TABLE, config.vocab_size)?,
                position_embedding: embedding(
                    "embeddings.position_embedding.weight",
                    config.max_position_embeddings,
                )?,
                encoder: params.at(at("encoder"), |p| Tower::new(p, config.tower()))?,
                final_layer_norm: params.at(at("final_layer_norm"), |p| {
                    LayerNorm::new(p, hidden, config.layer_norm_eps)
                })?,
                text_projection: config
                    .has_projection(params)
                    .then(|| {
                        params.at("text_projection", |p| {
                            Linear::new(p, hidden, config.projection_dim, false)
                        })
                    })
                    .transpose()?,
                dtype: crate::device::compute_dtype(device, dtype),
                weights: params.weights(),
                trained_vocab_size: config.vocab_size,
                config,
            })
        })
    }

    /// The weights that the model was built from, with or without the prefix `text_model.`.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The same model with some of its weights changed; it shares the memory of all others.
    ///
    /// # Errors
    /// [`Error::Weights`] if a replacement is of another name or shape than the model's.
    pub fn with_changes(&self, changes: impl Into<WeightChanges>) -> Result<Self> {
        self.rebuilt(self.config.clone(), changes.into())
    }

    /// The same model with other vectors for the ids from `first_id` on. Its table of vectors grows where
    /// they are new.
    ///
    /// # Shapes
    /// `vectors`: `(count, hidden_size)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the vectors have another width or `first_id` leaves a gap.
    pub fn with_token_vectors(&self, first_id: u32, vectors: &Tensor) -> Result<Self> {
        let (count, width) = vectors.dims2()?;
        let table = &self.token_embedding;
        let (rows, hidden) = table.dims2()?;
        if width != hidden {
            let expected = format!("vectors of {hidden} channels, as the text encoder's");
            return Err(Error::argument("embedding", expected, width));
        }
        let first = first_id as usize;
        if first > rows {
            return Err(Error::argument(
                "token id",
                format!("at most {rows}"),
                first_id,
            ));
        }
        let vectors = vectors.to_device(table.device())?.to_dtype(table.dtype())?;
        let mut pieces = vec![table.narrow(0, 0, first)?, vectors];
        if first + count < rows {
            pieces.push(table.narrow(0, first + count, rows - first - count)?);
        }
        let table = Tensor::cat(&pieces, 0)?;
        let mut config = self.config.clone();
        config.vocab_size = table.dim(0)?;
        let is_table = |name: &&String| name.ends_with(TOKEN_TABLE);
        let names = self.weights.tensors().keys().filter(is_table);
        let tables: NamedTensors = names.map(|name| (name.clone(), table.clone())).collect();
        self.rebuilt(config, tables.into())
    }

    fn rebuilt(&self, config: ClipTextConfig, changes: WeightChanges) -> Result<Self> {
        let weights = self.weights.changed(changes);
        Ok(Self {
            trained_vocab_size: self.trained_vocab_size,
            ..Self::new(config, &weights, weights.dtype(), weights.device())?
        })
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not one of a CLIP text model.
    pub fn parse_config(path: &Path, json: &Value) -> Result<ClipTextConfig> {
        // A whole CLIP model's configuration has the text model's inside.
        parse_model(path, json.get("text_config").unwrap_or(json))
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes prompts.
    ///
    /// # Shapes
    /// `ids`: one list for each prompt, all of one length, at most `max_position_embeddings`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for lists of other lengths or ids outside the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<TextEncoding> {
        self.forward_unseen(ids, &[])
    }

    /// Encodes prompts in which some tokens are there but not looked at, so that all others keep their places.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward); `unseen`: the places of those tokens, in all of the prompts.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and if the first token is one of them: it would see nothing.
    pub fn forward_unseen(&self, ids: &[Vec<u32>], unseen: &[usize]) -> Result<TextEncoding> {
        let (batch, tokens) = self.check_ids(ids)?;
        if let Some(at) = unseen.iter().find(|&&at| at == 0 || at >= tokens) {
            let expected = format!("places from 1 to {}", tokens - 1);
            return Err(Error::argument("unseen tokens", expected, at));
        }
        let device = self.token_embedding.device();
        let flat = Tensor::from_vec(ids.concat(), batch * tokens, device)?;
        let embedded = self
            .token_embedding
            .index_select(&flat, 0)?
            .to_dtype(self.dtype)?;
        let embedded = embedded.reshape((batch, tokens, self.config.hidden_size))?;
        let positions = self
            .position_embedding
            .narrow(0, 0, tokens)?
            .to_dtype(self.dtype)?;
        let embedded = Activation::new(embedded.broadcast_add(&positions)?);
        let hidden_states = self.encoder.forward_unseen(embedded, unseen)?;
        let last_hidden_state = self.final_norm(&hidden_states[hidden_states.len() - 1])?;
        let pooled = self.pool(ids, &last_hidden_state)?;
        let text_embeds = self
            .text_projection
            .as_ref()
            .map(|projection| {
                projection
                    .forward(&Activation::new(pooled.clone()))?
                    .to_tensor()
            })
            .transpose()?;
        Ok(TextEncoding {
            hidden_states,
            last_hidden_state,
            pooled,
            text_embeds,
        })
    }

    /// Applies the final norm to one of [`TextEncoding::hidden_states`], as `clip_skip` wants it.
    ///
    /// # Shapes
    /// `hidden`: `(batch, tokens, hidden)`; returns the same.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape does not fit.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.final_layer_norm
            .forward(&Activation::new(hidden.clone()))?
            .to_tensor()
    }

    fn check_ids(&self, ids: &[Vec<u32>]) -> Result<(usize, usize)> {
        let tokens = ids.first().map_or(0, Vec::len);
        let limit = self.config.max_position_embeddings;
        if tokens == 0 || tokens > limit || ids.iter().any(|list| list.len() != tokens) {
            let lengths: Vec<_> = ids.iter().map(Vec::len).collect();
            let expected = format!("lists of one length from 1 to {limit}");
            return Err(Error::argument(
                "token ids",
                expected,
                format!("{lengths:?}"),
            ));
        }
        let size = self.config.vocab_size as u32;
        match ids.iter().flatten().find(|&&id| id >= size) {
            Some(id) => Err(Error::argument(
                "token ids",
                format!("ids below {size}"),
                id,
            )),
            None => Ok((ids.len(), tokens)),
        }
    }

    fn pool(&self, ids: &[Vec<u32>], last_hidden_state: &Tensor) -> Result<Tensor> {
        let rows = ids.iter().enumerate().map(|(i, list)| {
            let wanted = match self.config.eos_token_id {
                LEGACY_EOS => {
                    let trained = |id: &u32| (*id as usize) < self.trained_vocab_size;
                    list.iter().copied().filter(trained).max().unwrap_or(0)
                }
                id => id,
            };
            let at = list.iter().position(|&id| id == wanted).unwrap_or(0);
            last_hidden_state.get(i)?.get(at)
        });
        Ok(Tensor::stack(
            &rows.collect::<candle_core::Result<Vec<_>>>()?,
            0,
        )?)
    }
}
