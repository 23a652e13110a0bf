//! Agreement with diffusers, transformers and torch, by the files in `tests/goldens`.

mod autoencoders;
mod brownian;
mod containers;
mod controls;
mod conversions;
mod embeddings;
mod full_size;
mod full_size_ip_adapters;
mod gradients;
mod ip_adapters;
mod loras;
mod networks;
mod prompts;
mod published;
mod rng;
mod runs;
mod schedulers;
mod sdxl;
mod single_files;
mod text;
mod toy_runs;
