//! The blocks on the way down, in the middle and on the way up.

use super::shrink::Skips;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Context, Downsample, Params, ResnetBlock, ResnetConfig, Transformer2d,
    TransformerConfig, Upsample, resize_bicubic,
};

/// What the blocks of one level share.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelConfig {
    /// Residual blocks: `output` is the level's channels, `input` is overridden for each.
    pub(super) resnet: ResnetConfig,
    /// The spatial transformer behind each residual block, if any; `layers` is overridden for each.
    pub(super) transformer: Option<TransformerConfig>,
}

/// The conditioning of all blocks of a forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditioning<'a> {
    pub(super) temb: &'a Activation,
    pub(super) context: Context<'a>,
}

/// A residual block and the spatial transformer behind it.
#[derive(Debug, Clone)]
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2d>,
}

impl Layer {
    fn new(
        params: Params<'_>,
        index: usize,
        input: usize,
        level: &LevelConfig,
        transformer_layers: &[usize],
    ) -> Result<Self> {
        let resnet = ResnetConfig {
            input,
            ..level.resnet
        };
        let attention = level
            .transformer
            .zip(transformer_layers.get(index))
            .map(|(config, &layers)| {
                params.at(format_args!("attentions.{index}"), |p| {
                    Transformer2d::new(p, &TransformerConfig { layers, ..config })
                })
            })
            .transpose()?;
        let resnet = params.at(format_args!("resnets.{index}"), |p| {
            ResnetBlock::new(p, resnet)
        })?;
        Ok(Self { resnet, attention })
    }

    fn forward(&self, x: &Activation, cond: Conditioning<'_>) -> Result<Activation> {
        let x = self.resnet.forward(x.clone(), Some(cond.temb))?;
        match &self.attention {
            Some(attention) => attention.forward(&x, cond.context),
            None => Ok(x),
        }
    }
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    /// `transformer_layers` has one number for each residual block; `downsample_padding` is that of the
    /// downsampling convolution, if there is one.
    pub(super) fn new(
        params: Params<'_>,
        input: usize,
        level: &LevelConfig,
        transformer_layers: &[usize],
        downsample_padding: Option<usize>,
    ) -> Result<Self> {
        let output = level.resnet.output;
        let layers = (0..transformer_layers.len())
            .map(|i| {
                let input = if i == 0 { input } else { output };
                Layer::new(params, i, input, level, transformer_layers)
            })
            .collect::<Result<_>>()?;
        let downsampler = downsample_padding
            .map(|padding| params.at("downsamplers.0", |p| Downsample::new(p, output, padding)))
            .transpose()?;
        Ok(Self {
            layers,
            downsampler,
        })
    }

    /// Appends what the way up will read to `skips`. A T2I-Adapter's `feature` is added where the blocks end;
    /// without attention, where the level ends.
    pub(super) fn forward(
        &self,
        x: &Activation,
        cond: Conditioning<'_>,
        feature: Option<&Activation>,
        skips: &mut Skips,
    ) -> Result<Activation> {
        let last_layer = self.layers.len().saturating_sub(1);
        let place = match &self.downsampler {
            Some(_) if !self.has_attention() => last_layer + 1,
            _ => last_layer,
        };
        let with_feature = |x: Activation, at: usize| match feature {
            Some(feature) if at == place => x.broadcast_add(feature),
            _ => Ok(x),
        };
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = skips.keep(with_feature(layer.forward(&x, cond)?, i)?)?;
        }
        if let Some(downsampler) = &self.downsampler {
            let smaller = with_feature(downsampler.forward(&x)?, self.layers.len())?;
            x = skips.keep(smaller)?;
        }
        Ok(x)
    }

    fn has_attention(&self) -> bool {
        self.layers.iter().any(|layer| layer.attention.is_some())
    }
}

/// `UNetMidBlock2D` and `UNetMidBlock2DCrossAttn`.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    rest: Option<(Transformer2d, ResnetBlock)>,
}

impl MidBlock {
    pub(super) fn new(
        params: Params<'_>,
        level: &LevelConfig,
        transformer_layers: usize,
    ) -> Result<Self> {
        let resnet = ResnetConfig {
            input: level.resnet.output,
            ..level.resnet
        };
        let resnet_at =
            |i: usize| params.at(format_args!("resnets.{i}"), |p| ResnetBlock::new(p, resnet));
        let rest = level
            .transformer
            .map(|config| {
                let config = TransformerConfig {
                    layers: transformer_layers,
                    ..config
                };
                let attention = params.at("attentions.0", |p| Transformer2d::new(p, &config))?;
                Ok::<_, Error>((attention, resnet_at(1)?))
            })
            .transpose()?;
        Ok(Self {
            first: resnet_at(0)?,
            rest,
        })
    }

    pub(super) fn forward(&self, x: &Activation, cond: Conditioning<'_>) -> Result<Activation> {
        let x = self.first.forward(x.clone(), Some(cond.temb))?;
        match &self.rest {
            Some((attention, resnet)) => {
                resnet.forward(attention.forward(&x, cond.context)?, Some(cond.temb))
            }
            None => Ok(x),
        }
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// `previous` is the channels from below, `skip` those of the level above, which the last of the
    /// skips has. `transformer_layers` has one number for each residual block.
    pub(super) fn new(
        params: Params<'_>,
        previous: usize,
        skip: usize,
        level: &LevelConfig,
        transformer_layers: &[usize],
        upsample: bool,
    ) -> Result<Self> {
        let output = level.resnet.output;
        let count = transformer_layers.len();
        let layers = (0..count)
            .map(|i| {
                let x = if i == 0 { previous } else { output };
                let skip = if i + 1 == count { skip } else { output };
                Layer::new(params, i, x + skip, level, transformer_layers)
            })
            .collect::<Result<_>>()?;
        let upsampler = upsample
            .then(|| params.at("upsamplers.0", |p| Upsample::new(p, output)))
            .transpose()?;
        Ok(Self { layers, upsampler })
    }

    /// How many skips it takes.
    pub(super) fn num_skips(&self) -> usize {
        self.layers.len()
    }

    /// Takes its skips from the end of `skips`, and the size of those that are larger. The picture grows to the size
    /// of the next of them, which is twice its own but for odd sizes.
    pub(super) fn forward(
        &self,
        x: &Activation,
        cond: Conditioning<'_>,
        skips: &mut Vec<Activation>,
    ) -> Result<Activation> {
        let mut x = x.clone();
        for layer in &self.layers {
            let skip = skips.pop().ok_or_else(|| {
                Error::argument("layers_per_block", "as many skips up as down", "fewer")
            })?;
            let (height, width) = skip.size()?;
            x = resize_bicubic(&x, height, width)?;
            x = layer.forward(&x.cat_channels(&skip)?, cond)?;
        }
        match &self.upsampler {
            Some(upsampler) => {
                let size = skips.last().map(Activation::size).transpose()?;
                upsampler.forward(&x, size)
            }
            None => Ok(x),
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
