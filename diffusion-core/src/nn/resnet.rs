//! The residual block of UNet and autoencoder.

use super::{Activation, ActivationFunction, Conv2d, Conv2dConfig, GroupNorm, Linear, Params};
use crate::error::Result;

/// How the timestep enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added before the second norm.
    #[default]
    Default,
    /// Scales and shifts what comes out of the second norm.
    ScaleShift,
}

/// The shape of a residual block.
#[derive(Debug, Clone, Copy)]
pub struct ResnetConfig {
    /// Channels in.
    pub input: usize,
    /// Channels out; a 1x1 shortcut stands in where they differ from those in.
    pub output: usize,
    /// Width of the timestep's vector; `None` in autoencoders.
    pub temb: Option<usize>,
    /// Groups of both norms.
    pub groups: usize,
    /// Epsilon of both norms.
    pub eps: f64,
    /// The non-linearity.
    pub function: ActivationFunction,
    /// How the timestep enters.
    pub time_scale_shift: TimeScaleShift,
    /// The sum is divided by this.
    pub output_scale_factor: f64,
}

/// Norm, non-linearity and convolution, twice, around a shortcut.
///
/// Source: He et al., "Deep Residual Learning for Image Recognition", 2015, in the form of Ho, Jain and
/// Abbeel, 2020.
#[derive(Debug, Clone)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    config: ResnetConfig,
}

impl ResnetBlock {
    /// Reads `norm1`, `conv1`, `time_emb_proj`, `norm2`, `conv2`, `conv_shortcut`.
    ///
    /// # Errors
    /// If the groups do not fit the channels or reading fails.
    pub fn new(params: Params<'_>, config: ResnetConfig) -> Result<Self> {
        let ResnetConfig {
            input,
            output,
            groups,
            eps,
            ..
        } = config;
        let temb_output = match config.time_scale_shift {
            TimeScaleShift::Default => output,
            TimeScaleShift::ScaleShift => 2 * output,
        };
        let conv3x3 = Conv2dConfig::same(3);
        Ok(Self {
            norm1: params.at("norm1", |p| GroupNorm::new(p, input, groups, eps))?,
            conv1: params.at("conv1", |p| Conv2d::new(p, input, output, conv3x3))?,
            time_emb_proj: config
                .temb
                .map(|temb| params.at("time_emb_proj", |p| Linear::new(p, temb, temb_output, true)))
                .transpose()?,
            norm2: params.at("norm2", |p| GroupNorm::new(p, output, groups, eps))?,
            conv2: params.at("conv2", |p| Conv2d::new(p, output, output, conv3x3))?,
            conv_shortcut: (input != output)
                .then(|| {
                    params.at("conv_shortcut", |p| {
                        Conv2d::new(p, input, output, Conv2dConfig::same(1))
                    })
                })
                .transpose()?,
            config,
        })
    }

    /// # Shapes
    /// `x`: `(batch, height, width, input)`, `temb`: `(batch, temb)`; returns
    /// `(batch, height, width, output)`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shapes do not fit.
    pub fn forward(&self, x: Activation, temb: Option<&Activation>) -> Result<Activation> {
        let function = self.config.function;
        // As much as may be is done in the memory of values that are not needed any more.
        let (shortcut, mut hidden) = match &self.conv_shortcut {
            Some(shortcut) => (
                shortcut.forward(&x)?,
                self.norm1.forward_then_within(x, function)?,
            ),
            None => {
                let hidden = self.norm1.forward_then(&x, function)?;
                (x, hidden)
            }
        };
        hidden = self.conv1.forward(&hidden)?;
        let temb = match (&self.time_emb_proj, temb) {
            (Some(projection), Some(temb)) => Some(projection.forward(&function.apply(temb)?)?),
            _ => None,
        };
        hidden = match (temb, self.config.time_scale_shift) {
            (Some(temb), TimeScaleShift::Default) => {
                let hidden = hidden.add_vectors(&temb)?;
                self.norm2.forward_then_within(hidden, function)?
            }
            (Some(temb), TimeScaleShift::ScaleShift) => {
                function.apply(&self.norm2.forward(&hidden)?.modulate(&temb)?)?
            }
            (None, _) => self.norm2.forward_then_within(hidden, function)?,
        };
        let sum = self.conv2.forward_add(&hidden, shortcut)?;
        match self.config.output_scale_factor {
            1.0 => Ok(sum),
            factor => sum.affine(factor.recip(), 0.0),
        }
    }
}
