//! Models: a `config.json` in, a forward pass out.

pub mod clip;
pub mod tokenizer;
pub mod unet;
pub mod vae;

pub use clip::{ClipTextConfig, TextEncoder, TextEncoding};
pub use tokenizer::{Encoding, Tokenizer};
pub use unet::{TextTime, UNet, UNetConfig, UNetInput};
pub use vae::{AutoencoderKl, AutoencoderTiny, Posterior, Vae};
