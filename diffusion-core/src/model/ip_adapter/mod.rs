//! IP-Adapter: pictures as prompts.

mod config;
mod projection;
mod scale;

use candle_core::{DType, Device, Tensor};

pub use config::{ImageProjection, IpAdapterConfig};
use projection::Projection;
pub use scale::IpAdapterScale;

use super::CrossAttention;
use crate::device::compute_dtype;
use crate::error::{Error, Result};
use crate::nn::{Activation, ImageAttention, ImageKeyValue, Linear, Params, TensorSource};

/// Width of each head of a resampler.
const HEAD_WIDTH: usize = 64;

/// A network that makes tokens of pictures, and keys and values of the tokens for a UNet's cross-attention
/// layers. The UNet itself stays as it is.
///
/// Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
/// 2023, section 3.2.
#[derive(Debug, Clone)]
pub struct IpAdapter {
    projection: Projection,
    layers: Vec<Layer>,
    config: IpAdapterConfig,
    dtype: DType,
}

/// Keys and values for one cross-attention layer.
#[derive(Debug, Clone)]
struct Layer {
    path: String,
    to_k_ip: Linear,
    to_v_ip: Linear,
}

impl IpAdapter {
    /// Reads an original file's tensors for a UNet with the layers
    /// [`cross_attentions`](super::UNet::cross_attentions). Weights are held as `dtype`; arithmetic is
    /// [`compute_dtype`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the adapter is of another family than the UNet, [`Error::Weights`] if
    /// tensors are missing, misshapen or of no adapter of the kind; otherwise as
    /// [`IpAdapterConfig::from_tensors`], or if reading fails.
    pub fn new(
        source: &dyn TensorSource,
        cross_attentions: &[CrossAttention],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let config = IpAdapterConfig::from_tensors(source)?;
        config.check_layers(&source.name(), cross_attentions)?;
        let ignored: Vec<&str> = config.unused.iter().map(String::as_str).collect();
        Params::build(source, dtype, device, &ignored, |params| {
            // Files count all attention layers from 0; those to the text are the odd ones.
            let layer = |(i, layer): (usize, &CrossAttention)| {
                params.at(format_args!("ip_adapter.{}", 2 * i + 1), |p| {
                    let linear =
                        |name| p.at(name, |p| Linear::new(p, layer.context, layer.inner, false));
                    Ok(Layer {
                        path: layer.path.clone(),
                        to_k_ip: linear("to_k_ip")?,
                        to_v_ip: linear("to_v_ip")?,
                    })
                })
            };
            Ok(Self {
                projection: params.at("image_proj", |p| Projection::new(p, &config))?,
                layers: cross_attentions
                    .iter()
                    .enumerate()
                    .map(layer)
                    .collect::<Result<_>>()?,
                dtype: compute_dtype(device, dtype),
                config: config.clone(),
            })
        })
    }

    /// What the adapter is.
    pub fn config(&self) -> &IpAdapterConfig {
        &self.config
    }

    /// Makes tokens of pictures, which the UNet sees together.
    ///
    /// # Shapes
    /// `embeds`: `(pictures, image_embed_dim)`, the projected embeddings, or for adapters that
    /// [take patches](ImageProjection::takes_patches) `(pictures, 1 + patches, image_embed_dim)`, the penultimate
    /// hidden states; returns `(1, tokens of all pictures, cross_attention_dim)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another shape.
    pub fn tokens(&self, embeds: &Tensor) -> Result<Tensor> {
        let dim = self.config.image_embed_dim;
        let is_right = match embeds.dims() {
            [_, found] => *found == dim && !self.config.projection.takes_patches(),
            [_, _, found] => *found == dim && self.config.projection.takes_patches(),
            _ => false,
        };
        if !is_right || embeds.elem_count() == 0 {
            let expected = match self.config.projection.takes_patches() {
                true => format!("shape (pictures, patches, {dim})"),
                false => format!("shape (pictures, {dim})"),
            };
            let found = format!("{:?}", embeds.dims());
            return Err(Error::argument("image embeds", expected, found));
        }
        let embeds = Activation::new(embeds.to_dtype(self.dtype)?);
        let tokens = self.projection.forward(&embeds)?.to_tensor()?;
        Ok(tokens.reshape((1, (), self.config.cross_attention_dim))?)
    }

    /// Lets the cross-attention layers attend to tokens, each as strongly as `scale` says. Layers of strength 0
    /// are left as they are.
    ///
    /// # Shapes
    /// `tokens`: `(batch, tokens, cross_attention_dim)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `scale` is not finite, [`Error::Tensor`] if the shape does not fit.
    pub fn attend(
        &self,
        tokens: &Tensor,
        scale: &IpAdapterScale,
        attention: &mut ImageAttention,
    ) -> Result<()> {
        scale.check()?;
        let tokens = Activation::new(tokens.to_dtype(self.dtype)?);
        for layer in &self.layers {
            let scale = scale.at(&layer.path);
            if scale != 0.0 {
                let pictures = ImageKeyValue {
                    key: layer.to_k_ip.forward(&tokens)?,
                    value: layer.to_v_ip.forward(&tokens)?,
                    scale,
                };
                attention.add(layer.path.as_str(), pictures);
            }
        }
        Ok(())
    }
}
