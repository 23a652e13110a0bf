//! Agreement with diffusers, transformers and torch, by the files in `tests/goldens`.

mod brownian;
mod containers;
mod controls;
mod conversions;
mod embeddings;
mod full_size;
mod gradients;
mod loras;
mod networks;
mod published;
mod rng;
mod runs;
mod schedulers;
mod single_files;
mod text;
mod toy_runs;
