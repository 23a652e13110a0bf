//! Agreement with diffusers, transformers and torch, by the files in `tests/goldens`.

mod gradients;
mod networks;
mod rng;
mod runs;
mod schedulers;
mod text;
