//! Models: a `config.json` in, a forward pass out.

pub mod clip;
mod clip_tower;
pub mod clip_vision;
pub mod ip_adapter;
pub mod tokenizer;
pub mod unet;
pub mod vae;

pub use clip::{ClipTextConfig, TextEncoder, TextEncoding};
pub use clip_vision::{ClipVisionConfig, ImageEncoder, ImageEncoding};
pub use ip_adapter::{ImageProjection, IpAdapter, IpAdapterConfig, IpAdapterScale};
pub use tokenizer::{Encoding, Tokenizer};
pub use unet::{CrossAttention, TextTime, UNet, UNetConfig, UNetInput};
pub use vae::{AutoencoderKl, AutoencoderTiny, Posterior, Vae};
