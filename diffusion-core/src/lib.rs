//! Stable Diffusion on candle: a prompt becomes a picture.
//!
//! ```no_run
//! use diffusion_core::{GenerateRequest, Pipeline};
//!
//! let pipe = Pipeline::builder().weights("examples/models/emoji").build()?;
//! let request = GenerateRequest::txt2img("a red heart, flat style").seed(1);
//! let output = pipe.generate(&request)?;
//! output.save(0, "heart.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The parts compose: [`Pipeline`] joins a [`TextEncoder`], a [`UNet`], a [`Vae`], a
//! [`NoiseSchedule`] and a [`Scheduler`], and each of them can be built, called and swapped alone.
//!
//! | room | what is in it |
//! |---|---|
//! | [`pipeline`] | builder, request, the public stages of a run |
//! | [`scheduler`] | the [`Scheduler`] and [`Solver`] traits, the sampling loop, the algorithms |
//! | [`denoise`] | noise schedule, [`Denoiser`], classifier-free guidance |
//! | [`model`] | CLIP text encoder, UNet, autoencoders, tokenizer |
//! | [`nn`] | layers on channels-last activations |
//! | [`config`] | reading JSON settings |
//! | [`weights`] | checkpoints on disk |
//! | [`rng`] | random numbers, equal to PyTorch's |
//! | [`media`] | pictures to tensors and back |

mod clip_vocab;
pub mod config;
pub mod denoise;
pub mod device;
pub mod error;
pub mod media;
pub mod model;
pub mod nn;
pub mod pipeline;
pub mod rng;
pub mod scheduler;
pub mod weights;

pub use candle_core::{DType, Device, Tensor};
pub use denoise::{Denoiser, NoiseSchedule, PredictionType};
pub use error::{Error, ErrorKind, Result};
pub use image::{GrayImage, RgbImage};
pub use model::{ControlNet, T2iAdapter, TextEncoder, Tokenizer, UNet, Vae};
pub use nn::Quantization;
pub use pipeline::{
    CancelToken, Conditioning, Control, GenerateRequest, Generated, Hires, InitImage,
    MaskedContent, PictureSizes, Pipeline, Progress, PromptEmbeds, PromptPlan, PromptSyntax,
    Upscaler, Warning,
};
pub use scheduler::{
    Ddim, DpmSolverMultistep, Euler, Scheduler, SigmaSchedule, Solver, Step, WithLevels,
};

/// The README's quickstart, compiled as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeQuickstart;

/// The page about pictures' files, compiled likewise.
#[cfg(doctest)]
#[doc = include_str!("../../docs/PROVENANCE.md")]
pub struct ProvenancePage;
