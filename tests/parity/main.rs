//! Agreement with diffusers, transformers and torch, by the files in `tests/goldens`.

mod brownian;
mod containers;
mod embeddings;
mod gradients;
mod loras;
mod networks;
mod published;
mod rng;
mod runs;
mod schedulers;
mod text;
mod toy_runs;
