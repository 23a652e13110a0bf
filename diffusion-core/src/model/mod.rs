//! Models: a `config.json` in, a forward pass out.

pub mod clip;
pub mod controlnet;
pub mod t2i_adapter;
pub mod tokenizer;
pub mod unet;
pub mod vae;

pub use clip::{ClipTextConfig, TextEncoder, TextEncoding};
pub use controlnet::{ChannelOrder, ControlNet, ControlNetConfig};
pub use t2i_adapter::{AdapterType, T2iAdapter, T2iAdapterConfig};
pub use tokenizer::{Encoding, Tokenizer};
pub use unet::{ControlResiduals, TextTime, UNet, UNetConfig, UNetInput, UNetResiduals};
pub use vae::{AutoencoderKl, AutoencoderTiny, Posterior, Vae};
