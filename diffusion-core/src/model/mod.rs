//! Models: a `config.json` in, a forward pass out.

pub mod clip;
mod clip_tower;
pub mod clip_vision;
pub mod controlnet;
pub mod ip_adapter;
pub mod safety_checker;
pub mod t2i_adapter;
pub mod tokenizer;
pub mod unet;
pub mod vae;

pub use clip::{ClipTextConfig, TextEncoder, TextEncoding};
pub use clip_vision::{ClipVisionConfig, ImageEncoder, ImageEncoding};
pub use controlnet::{ChannelOrder, ControlNet, ControlNetConfig};
pub use ip_adapter::{ImageProjection, IpAdapter, IpAdapterConfig, IpAdapterScale};
pub use safety_checker::{SafetyChecker, SafetyReport};
pub use t2i_adapter::{AdapterType, T2iAdapter, T2iAdapterConfig};
pub use tokenizer::{Encoding, Token, Tokenizer};
pub use unet::{
    ControlResiduals, CrossAttention, DeepFeatures, Shrink, TextTime, UNet, UNetConfig, UNetInput,
    UNetResiduals,
};
pub use vae::{AutoencoderKl, AutoencoderTiny, Posterior, Vae, VaeTiling};
