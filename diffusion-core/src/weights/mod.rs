//! Checkpoints on disk.

mod embedding;
mod folder;
mod lora;
mod safetensors;

pub use embedding::Embedding;
pub use folder::{Component, DiffusersFolder};
pub use lora::{Lora, LoraReport, LoraScale, MergedLoras, ModelPart, merge_loras};
pub use safetensors::SafeTensorsSource;
