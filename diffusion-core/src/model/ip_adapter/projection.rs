//! From an image encoder's embeddings to tokens.

use candle_core::{D, Tensor};

use super::{HEAD_WIDTH, ImageProjection, IpAdapterConfig};
use crate::error::Result;
use crate::nn::{Activation, ActivationFunction, LayerNorm, Linear, Mask, Params, attention};

const EPS: f64 = 1e-5;

/// The layers of each kind.
#[derive(Debug, Clone)]
pub(super) enum Projection {
    Linear {
        proj: Linear,
        norm: LayerNorm,
        tokens: usize,
    },
    EachPatch {
        first: Linear,
        second: Linear,
        norm: LayerNorm,
    },
    Resampler(Resampler),
}

impl Projection {
    pub(super) fn new(params: Params<'_>, config: &IpAdapterConfig) -> Result<Self> {
        let (input, output) = (config.image_embed_dim, config.cross_attention_dim);
        let linear = |name, input, output| params.at(name, |p| Linear::new(p, input, output, true));
        let norm = |name| params.at(name, |p| LayerNorm::new(p, output, EPS));
        Ok(match config.projection {
            ImageProjection::Linear { tokens } => Self::Linear {
                proj: linear("proj", input, tokens * output)?,
                norm: norm("norm")?,
                tokens,
            },
            ImageProjection::EachPatch { inner } => Self::EachPatch {
                first: linear("proj.0", input, inner)?,
                second: linear("proj.2", inner, output)?,
                norm: norm("proj.3")?,
            },
            ImageProjection::Resampler {
                tokens,
                hidden,
                inner,
                feed_forward,
                layers,
            } => {
                let layer = |i: usize| {
                    params.at(format_args!("layers.{i}"), |p| {
                        ResamplerLayer::new(p, hidden, inner, feed_forward)
                    })
                };
                Self::Resampler(Resampler {
                    latents: params.tensor("latents", &[1, tokens, hidden])?,
                    proj_in: linear("proj_in", input, hidden)?,
                    layers: (0..layers).map(layer).collect::<Result<_>>()?,
                    proj_out: linear("proj_out", hidden, output)?,
                    norm_out: norm("norm_out")?,
                })
            }
        })
    }

    /// `(pictures, input)` or `(pictures, patches, input)` to `(pictures, tokens, output)`.
    pub(super) fn forward(&self, embeds: &Activation) -> Result<Activation> {
        match self {
            Self::Linear { proj, norm, tokens } => {
                let split = proj.forward(embeds)?.to_tensor()?;
                let pictures = split.dim(0)?;
                norm.forward(&Activation::new(split.reshape((pictures, *tokens, ()))?))
            }
            Self::EachPatch {
                first,
                second,
                norm,
            } => {
                let hidden = ActivationFunction::Gelu.apply(&first.forward(embeds)?)?;
                norm.forward(&second.forward(&hidden)?)
            }
            Self::Resampler(resampler) => resampler.forward(embeds),
        }
    }
}

/// Source: Alayrac et al., "Flamingo: a Visual Language Model for Few-Shot Learning", 2022, section 2.1.
#[derive(Debug, Clone)]
pub(super) struct Resampler {
    latents: Tensor,
    proj_in: Linear,
    layers: Vec<ResamplerLayer>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

impl Resampler {
    fn forward(&self, patches: &Activation) -> Result<Activation> {
        let patches = self.proj_in.forward(patches)?;
        let (_, tokens, hidden) = self.latents.dims3()?;
        let shape = (patches.to_tensor()?.dim(0)?, tokens, hidden);
        let latents = self.latents.to_dtype(patches.dtype())?;
        let mut latents = Activation::new(latents.broadcast_as(shape)?.contiguous()?);
        for layer in &self.layers {
            latents = layer.forward(&patches, &latents)?;
        }
        self.norm_out.forward(&self.proj_out.forward(&latents)?)
    }
}

#[derive(Debug, Clone)]
struct ResamplerLayer {
    norm_patches: LayerNorm,
    norm_latents: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    heads: usize,
}

impl ResamplerLayer {
    fn new(params: Params<'_>, hidden: usize, inner: usize, feed_forward: usize) -> Result<Self> {
        let linear =
            |name, input, output| params.at(name, |p| Linear::new(p, input, output, false));
        let norm = |name| params.at(name, |p| LayerNorm::new(p, hidden, EPS));
        Ok(Self {
            norm_patches: norm("0.norm1")?,
            norm_latents: norm("0.norm2")?,
            to_q: linear("0.to_q", hidden, inner)?,
            to_kv: linear("0.to_kv", hidden, 2 * inner)?,
            to_out: linear("0.to_out", inner, hidden)?,
            norm: norm("1.0")?,
            first: linear("1.1", hidden, feed_forward)?,
            second: linear("1.3", feed_forward, hidden)?,
            heads: inner / HEAD_WIDTH,
        })
    }

    /// Queries look at the patches and at each other.
    fn forward(&self, patches: &Activation, latents: &Activation) -> Result<Activation> {
        let normed = self.norm_latents.forward(latents)?;
        let patches = self.norm_patches.forward(patches)?;
        let all = Tensor::cat(&[patches.to_tensor()?, normed.to_tensor()?], 1)?;
        let halves = self.to_kv.forward(&Activation::new(all))?;
        let halves = halves.to_tensor()?.chunk(2, D::Minus1)?;
        let (key, value) = (halves[0].contiguous()?, halves[1].contiguous()?);
        let attended = attention(
            &self.to_q.forward(&normed)?,
            &Activation::new(key),
            &Activation::new(value),
            self.heads,
            Mask::None,
            false,
        )?;
        let latents = latents.add(&self.to_out.forward(&attended)?)?;
        let hidden = self.first.forward(&self.norm.forward(&latents)?)?;
        let hidden = ActivationFunction::Gelu.apply(&hidden)?;
        latents.add(&self.second.forward(&hidden)?)
    }
}
