//! Layers on channels-last activations, one file a concept.
//!
//! A model is written once against [`Activation`]; what runs underneath is the layers' business.
//! Every layer here either has a right gradient for its input and its weights or reports an error;
//! none cuts the graph silently.

mod activation;
mod array;
mod attention;
mod conv;
mod engine;
mod function;
mod gate;
mod image_attention;
mod innermost;
mod interpolate;
mod kernels;
mod linear;
mod low_rank;
mod norm;
mod params;
mod perturbed;
mod resample;
mod resnet;
mod seamless;
mod timestep;
mod token_merging;
mod transformer;
mod weight;

pub use activation::Activation;
pub(crate) use attention::scores_at_once;
pub use attention::{Mask, attention};
pub use conv::{Conv2d, Conv2dConfig, Padding};
pub use function::ActivationFunction;
pub use gate::{CrossAttentionCache, Gate};
pub use image_attention::{Context, ImageAttention, ImageKeyValue};
pub(crate) use innermost::innermost;
pub use interpolate::{Interpolation, interpolate};
pub(crate) use kernels::cpu::give_back;
pub use kernels::cpu::{Lease, Threads};
pub use linear::Linear;
pub use low_rank::{LowRank, LowRanks};
pub use norm::{GroupNorm, LayerNorm};
pub use params::{NamedTensors, Params, TensorSource, WeightChanges, Weights};
pub(crate) use params::{channels_last, missing as missing_tensor};
pub use perturbed::PerturbedAttention;
pub use resample::{Downsample, Upsample, resize_bicubic, upsample_nearest};
pub use resnet::{ResnetBlock, ResnetConfig, TimeScaleShift};
pub use seamless::Seamless;
pub(crate) use seamless::wrap;
pub use timestep::{TimestepEmbedding, guidance_embedding, sinusoidal_embedding};
pub use transformer::{Attention, AttentionConfig, Transformer2d, TransformerConfig};
pub use weight::{Quantization, Quantized, Weight};
