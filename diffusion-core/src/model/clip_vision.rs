//! CLIP's vision model.

use std::fmt;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::clip_tower::{Tower, TowerConfig};
use crate::config::parse_model;
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationFunction, Conv2d, Conv2dConfig, LayerNorm, Linear, Mask, Padding, Params,
    TensorSource, Weights,
};

/// The largest side of a picture, in pixels; published models have at most 378.
const MAX_IMAGE_SIZE: usize = 4096;

/// Tensors of files that hold the whole of CLIP, and buffers.
const IGNORED: &[&str] = &[
    "position_ids",
    "logit_scale",
    "text_model.",
    "text_projection.weight",
];

const PATCH_EMBEDDING: &str = "vision_model.embeddings.patch_embedding.weight";
const POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";
const PROJECTION: &str = "visual_projection.weight";

/// The `config.json` of `CLIPVisionModelWithProjection`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Channels.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Channels of the projected embedding.
    pub projection_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Height and width of a picture, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Non-linearity of the feed-forward layers.
    pub hidden_act: ActivationFunction,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: ActivationFunction::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// What the shapes of a published model do not say: its width, heads, non-linearity and name.
const PUBLISHED: [(usize, usize, ActivationFunction, &str); 4] = [
    (768, 12, ActivationFunction::QuickGelu, "ViT-B"),
    (1024, 16, ActivationFunction::QuickGelu, "ViT-L"),
    (1280, 16, ActivationFunction::Gelu, "ViT-H"),
    (1664, 16, ActivationFunction::Gelu, "ViT-bigG"),
];

impl ClipVisionConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not one of a CLIP vision model.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        // A whole CLIP model's configuration has the vision model's inside, and the projection beside it.
        let mut inner = json.get("vision_config").unwrap_or(json).clone();
        if let (Some(inner), Some(outer)) = (inner.as_object_mut(), json.get("projection_dim")) {
            inner.insert("projection_dim".into(), outer.clone());
        }
        parse_model(path, &inner)
    }

    /// Whether these are the tensors of a CLIP vision model.
    pub fn describes(source: &dyn TensorSource) -> bool {
        source.shape(PATCH_EMBEDDING).is_some()
    }

    /// The configuration of a published model by the shapes of its tensors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a width that no published model has, [`Error::Format`] if these are not the
    /// tensors of a vision model with a projection.
    pub fn from_tensors(source: &dyn TensorSource) -> Result<Self> {
        let name = source.name();
        let shape = |tensor: &str| source.shape(tensor).unwrap_or_default();
        let (&[hidden, channels, patch, _], &[positions, _], &[projection, _]) = (
            shape(PATCH_EMBEDDING).as_slice(),
            shape(POSITIONS).as_slice(),
            shape(PROJECTION).as_slice(),
        ) else {
            let reason = format!("expected {PATCH_EMBEDDING}, {POSITIONS} and {PROJECTION}");
            return Err(Error::format(Path::new(&name), reason));
        };
        let layer = |i: usize| format!("vision_model.encoder.layers.{i}.mlp.fc1.weight");
        let intermediate = shape(&layer(0)).first().copied();
        let published = PUBLISHED.iter().find(|(width, ..)| *width == hidden);
        let Some((_, heads, function, _)) = published else {
            let what = format!("{name}: a vision model of {hidden} channels without config.json");
            return Err(Error::unsupported(what, "give the folder that has both"));
        };
        Ok(Self {
            hidden_size: hidden,
            intermediate_size: intermediate.unwrap_or(4 * hidden),
            projection_dim: projection,
            num_hidden_layers: (0..).take_while(|&i| !shape(&layer(i)).is_empty()).count(),
            num_attention_heads: *heads,
            num_channels: channels,
            image_size: positions.saturating_sub(1).isqrt().saturating_mul(patch),
            patch_size: patch,
            hidden_act: *function,
            ..Self::default()
        })
    }

    /// The published model of this width, such as `ViT-H`.
    pub fn published_name(&self) -> Option<&'static str> {
        let named = |(width, .., name): &(usize, usize, ActivationFunction, &'static str)| {
            (*width == self.hidden_size).then_some(*name)
        };
        PUBLISHED.iter().find_map(named)
    }

    fn tower(&self) -> TowerConfig {
        TowerConfig {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            function: self.hidden_act,
            eps: self.layer_norm_eps,
            mask: Mask::None,
        }
    }

    /// Patches along each side of a picture.
    fn check(&self) -> Result<usize> {
        let sizes = 1..=MAX_IMAGE_SIZE;
        if !sizes.contains(&self.image_size) || !(1..=self.image_size).contains(&self.patch_size) {
            let expected = format!("up to {MAX_IMAGE_SIZE} pixels, and patches that fit into it");
            let found = format!("{} with patches of {}", self.image_size, self.patch_size);
            return Err(Error::argument("image_size", expected, found));
        }
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            let expected = format!("a divisor of {} channels", self.hidden_size);
            return Err(Error::argument("num_attention_heads", expected, heads));
        }
        if self.num_hidden_layers == 0 {
            return Err(Error::argument("num_hidden_layers", "at least 1", 0));
        }
        if self.num_channels != 3 {
            let found = self.num_channels;
            return Err(Error::argument("num_channels", "3, of RGB pictures", found));
        }
        Ok(self.image_size / self.patch_size)
    }
}

/// A line for people.
impl fmt::Display for ClipVisionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CLIP vision model {}of {} layers with {} channels, projected to {}; pictures of {} pixels in patches of {}",
            self.published_name()
                .map_or(String::new(), |name| format!("{name} ")),
            self.num_hidden_layers,
            self.hidden_size,
            self.projection_dim,
            self.image_size,
            self.patch_size
        )
    }
}

/// What the vision model says about a batch of pictures.
#[derive(Debug, Clone)]
pub struct ImageEncoding {
    /// `(batch, 1 + patches, hidden)`: what goes into the last layer, a vector for the whole picture first.
    pub penultimate_hidden_state: Tensor,
    /// `(batch, projection_dim)`: the picture as CLIP compares it with texts.
    pub image_embeds: Tensor,
}

/// CLIP's vision model with its projection, by which IP-Adapters see.
///
/// Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
#[derive(Debug, Clone)]
pub struct ImageEncoder {
    class_embedding: Tensor,
    patch_embedding: Conv2d,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    encoder: Tower,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    config: ClipVisionConfig,
    dtype: DType,
    weights: Weights,
}

impl ImageEncoder {
    /// Reads the tensors. Weights are held as `dtype`; arithmetic is [`compute_dtype`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the configuration does not fit together, [`Error::Weights`] if the tensors
    /// do not fit it; otherwise if reading fails.
    pub fn new(
        config: ClipVisionConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let patches = config.check()?.pow(2);
        Params::build(source, dtype, device, IGNORED, |params| {
            let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
            let norm = |p: Params<'_>, name| p.at(name, |p| LayerNorm::new(p, hidden, eps));
            params.at("vision_model", |p| {
                Ok(Self {
                    class_embedding: p.tensor("embeddings.class_embedding", &[hidden])?,
                    patch_embedding: p.at("embeddings.patch_embedding", |p| {
                        let patch = Conv2dConfig::same(config.patch_size)
                            .with_padding(Padding::default())
                            .with_stride(config.patch_size)
                            .without_bias();
                        Conv2d::new(p, config.num_channels, hidden, patch)
                    })?,
                    position_embedding: p.tensor(
                        "embeddings.position_embedding.weight",
                        &[1 + patches, hidden],
                    )?,
                    // The checkpoints' spelling.
                    pre_layernorm: norm(p, "pre_layrnorm")?,
                    encoder: p.at("encoder", |p| Tower::new(p, config.tower()))?,
                    post_layernorm: norm(p, "post_layernorm")?,
                    visual_projection: params.at("visual_projection", |p| {
                        Linear::new(p, hidden, config.projection_dim, false)
                    })?,
                    dtype: compute_dtype(device, dtype),
                    weights: params.weights(),
                    config,
                })
            })
        })
    }

    /// The weights that the model was built from.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Encodes pictures.
    ///
    /// # Shapes
    /// `pixels`: `(batch, 3, image_size, image_size)`, as [`to_clip`](crate::media::to_clip) makes them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<ImageEncoding> {
        let side = self.config.image_size;
        let batch = match *pixels.dims() {
            [batch, 3, height, width] if (height, width) == (side, side) && batch > 0 => batch,
            ref found => {
                let expected = format!("shape (batch, 3, {side}, {side})");
                return Err(Error::argument("pixels", expected, format!("{found:?}")));
            }
        };
        let pixels = Activation::from_nchw(&pixels.to_dtype(self.dtype)?)?;
        let patches = self.patch_embedding.forward(&pixels)?.to_tokens()?;
        let whole = self.class_embedding.to_dtype(self.dtype)?;
        let whole = whole.broadcast_as((batch, 1, self.config.hidden_size))?;
        let positions = self.position_embedding.to_dtype(self.dtype)?;
        let embedded = Tensor::cat(&[whole, patches.to_tensor()?], 1)?.broadcast_add(&positions)?;
        let embedded = self.pre_layernorm.forward(&Activation::new(embedded))?;

        let mut hidden_states = self.encoder.forward(embedded)?;
        let last = hidden_states.swap_remove(self.config.num_hidden_layers);
        let pooled = Activation::new(last.narrow(1, 0, 1)?.squeeze(1)?);
        let pooled = self.post_layernorm.forward(&pooled)?;
        Ok(ImageEncoding {
            penultimate_hidden_state: hidden_states.swap_remove(self.config.num_hidden_layers - 1),
            image_embeds: self.visual_projection.forward(&pooled)?.to_tensor()?,
        })
    }
}
