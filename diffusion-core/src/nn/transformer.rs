//! The spatial transformer: self-attention, cross-attention and a gated feed-forward layer.

use super::image_attention::{ImageKeyValue, add_pictures};
use super::token_merging::MergedTokens;
use super::{Activation, Context, GroupNorm, LayerNorm, Linear, Mask, Params, attention};
use crate::error::{Error, Result};

/// The shape of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Channels of the queries.
    pub query: usize,
    /// Channels of the keys and values.
    pub context: usize,
    /// Width of all heads together.
    pub inner: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether scores and softmax are f32 whatever the activations are.
    pub upcast: bool,
}

/// The names of an attention layer's four projections in a checkpoint.
const NAMES: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
/// The same in autoencoders that were saved before diffusers 0.16.
const OLD_NAMES: [&str; 4] = ["query", "key", "value", "proj_attn"];

/// Multi-head attention with its projections.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    config: AttentionConfig,
}

impl Attention {
    /// Reads `to_q`, `to_k`, `to_v`, `to_out.0`, or their old names `query`, `key`, `value`,
    /// `proj_attn`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn new(params: Params<'_>, config: AttentionConfig) -> Result<Self> {
        if config.heads == 0 || !config.inner.is_multiple_of(config.heads) {
            let expected = format!("a divisor of {} channels", config.inner);
            return Err(Error::argument("attention heads", expected, config.heads));
        }
        let AttentionConfig {
            query,
            context,
            inner,
            qkv_bias,
            ..
        } = config;
        let [q, k, v, out] = if params.contains("query.weight") {
            OLD_NAMES
        } else {
            NAMES
        };
        Ok(Self {
            to_q: params.at(q, |p| Linear::new(p, query, inner, qkv_bias))?,
            to_k: params.at(k, |p| Linear::new(p, context, inner, qkv_bias))?,
            to_v: params.at(v, |p| Linear::new(p, context, inner, qkv_bias))?,
            to_out: params.at(out, |p| Linear::new(p, inner, query, true))?,
            config,
        })
    }

    /// Attends to `context`, or to `x` itself.
    ///
    /// # Shapes
    /// `x`: `(batch, tokens, query)`, `context`: `(batch, keys, context)`; returns the shape of `x`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation, context: Option<&Activation>) -> Result<Activation> {
        self.forward_with_pictures(x, context.unwrap_or(x), &[])
    }

    /// Attends to `x` itself, and from the image `first_row` of the batch on each token to itself alone.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward_perturbed(&self, x: &Activation, first_row: usize) -> Result<Activation> {
        let batch = x.dims().first().copied().unwrap_or(1);
        let first_row = first_row.min(batch);
        let mut parts = Vec::new();
        if first_row > 0 {
            parts.push(self.forward(&x.narrow(0, first_row)?, None)?);
        }
        if first_row < batch {
            let values = self
                .to_v
                .forward(&x.narrow(first_row, batch - first_row)?)?;
            parts.push(self.to_out.forward(&values)?);
        }
        Activation::cat(&parts)
    }

    /// Attends to `context` and, with the same queries, to pictures.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward); the batch of `pictures` is that of `x`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward_with_pictures(
        &self,
        x: &Activation,
        context: &Activation,
        pictures: &[ImageKeyValue],
    ) -> Result<Activation> {
        let (q, k, v) = (
            self.to_q.forward(x)?,
            self.to_k.forward(context)?,
            self.to_v.forward(context)?,
        );
        let AttentionConfig { heads, upcast, .. } = self.config;
        let found = attention(&q, &k, &v, heads, Mask::None, upcast)?;
        self.to_out
            .forward(&add_pictures(found, &q, pictures, heads, upcast)?)
    }
}

/// The gated feed-forward layer: `(x W + b) * gelu(x V + c)`, then a projection.
///
/// Source: Shazeer, "GLU Variants Improve Transformer", 2020, with the exact (erf) GELU.
#[derive(Debug, Clone)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(params: Params<'_>, channels: usize) -> Result<Self> {
        let inner = 4 * channels;
        Ok(Self {
            proj: params.at("net.0.proj", |p| Linear::new(p, channels, 2 * inner, true))?,
            out: params.at("net.2", |p| Linear::new(p, inner, channels, true))?,
        })
    }

    fn forward_add(&self, x: &Activation, add: Activation) -> Result<Activation> {
        self.out.forward_add(&self.proj.forward_gated(x)?, add)
    }
}

/// The shape of a spatial transformer.
#[derive(Debug, Clone, Copy)]
pub struct TransformerConfig {
    /// Channels in and out.
    pub channels: usize,
    /// Number of heads.
    pub heads: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Channels of the text conditioning.
    pub cross_attention_dim: usize,
    /// Groups of the norm in front.
    pub groups: usize,
    /// Whether the projections at both ends are stored as linear layers, not as 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Whether the first attention attends to the text too.
    pub only_cross_attention: bool,
    /// Whether scores and softmax are f32 whatever the activations are.
    pub upcast_attention: bool,
    /// Whether self-attention may be over merged tokens.
    pub merges_tokens: bool,
}

#[derive(Debug, Clone)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
    merges_tokens: bool,
    /// Where the block is in its model, by which what is told to it alone is found.
    path: String,
}

impl TransformerBlock {
    fn new(params: Params<'_>, config: &TransformerConfig) -> Result<Self> {
        let channels = config.channels;
        let norm = |name: &str| params.at(name, |p| LayerNorm::new(p, channels, 1e-5));
        let attention = |name: &str, context: usize| {
            let config = AttentionConfig {
                query: channels,
                context,
                inner: channels,
                heads: config.heads,
                qkv_bias: false,
                upcast: config.upcast_attention,
            };
            params.at(name, |p| Attention::new(p, config))
        };
        let first_context = if config.only_cross_attention {
            config.cross_attention_dim
        } else {
            channels
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", first_context)?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", config.cross_attention_dim)?,
            norm3: norm("norm3")?,
            ff: params.at("ff", |p| FeedForward::new(p, channels))?,
            only_cross_attention: config.only_cross_attention,
            merges_tokens: config.merges_tokens,
            path: params.path().to_owned(),
        })
    }

    /// `size`: the height and width of the pictures whose tokens `x` has.
    fn forward(
        &self,
        x: &Activation,
        context: Context<'_>,
        size: (usize, usize),
    ) -> Result<Activation> {
        let x = x.add(&self.attend_to_itself(x, context, size)?)?;
        let x = x.add(&self.attend_to_context(&x, context)?)?;
        self.ff.forward_add(&self.norm3.forward(&x)?, x)
    }

    fn attend_to_itself(
        &self,
        x: &Activation,
        context: Context<'_>,
        size: (usize, usize),
    ) -> Result<Activation> {
        let normed = self.norm1.forward(x)?;
        let text = self.only_cross_attention.then_some(context.text);
        let perturbed = context.perturbed.and_then(|p| p.first_row_at(&self.path));
        if let (None, Some(first_row)) = (text, perturbed) {
            return self.attn1.forward_perturbed(&normed, first_row);
        }
        let merged = match self.merges_tokens {
            true => MergedTokens::find(x, size, context.token_merging)?,
            false => None,
        };
        match merged {
            Some(merged) => merged.unmerge(&self.attn1.forward(&merged.merge(&normed)?, text)?),
            None => self.attn1.forward(&normed, text),
        }
    }

    fn attend_to_context(&self, x: &Activation, context: Context<'_>) -> Result<Activation> {
        let recalled = context.gate.and_then(|g| g.recall(&self.path, x.dims()));
        if let Some(found) = recalled {
            return Ok(found);
        }
        let pictures = context.pictures.map_or(&[][..], |all| all.at(&self.path));
        let normed = self.norm2.forward(x)?;
        let found = self
            .attn2
            .forward_with_pictures(&normed, context.text, pictures)?;
        if let Some(gate) = context.gate {
            gate.leave(&self.path, &found)?;
        }
        Ok(found)
    }
}

/// Attention over a picture's pixels, conditioned on text.
///
/// Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
/// section 3.3.
#[derive(Debug, Clone)]
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl Transformer2d {
    /// Reads `norm`, `proj_in`, `transformer_blocks.N`, `proj_out`.
    ///
    /// # Errors
    /// If the configuration does not fit together or reading fails.
    pub fn new(params: Params<'_>, config: &TransformerConfig) -> Result<Self> {
        let channels = config.channels;
        let projection = |name: &str| {
            params.at(name, |p| match config.use_linear_projection {
                true => Linear::new(p, channels, channels, true),
                false => Linear::from_conv1x1(p, channels, channels),
            })
        };
        Ok(Self {
            norm: params.at("norm", |p| GroupNorm::new(p, channels, config.groups, 1e-6))?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..config.layers)
                .map(|i| {
                    params.at(format_args!("transformer_blocks.{i}"), |p| {
                        TransformerBlock::new(p, config)
                    })
                })
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// # Shapes
    /// `x`: `(batch, height, width, channels)`, the text of `context`: `(batch, tokens, cross_attention_dim)`;
    /// returns the shape of `x`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: &Activation, context: Context<'_>) -> Result<Activation> {
        let (height, width) = x.size()?;
        let mut hidden = self.proj_in.forward(&self.norm.forward(x)?.to_tokens()?)?;
        for block in &self.transformer_blocks {
            hidden = block.forward(&hidden, context, (height, width))?;
        }
        self.proj_out
            .forward_add(&hidden, x.to_tokens()?)?
            .to_picture(height, width)
    }
}
