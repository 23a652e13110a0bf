//! Checkpoints on disk.

mod element;
mod embedding;
mod file;
mod folder;
mod gguf;
mod lora;
mod pickle;
mod reader;
mod safetensors;
mod stored;

pub use element::Element;
pub use embedding::Embedding;
pub use file::{Container, TensorFile, TensorFiles};
pub use folder::{Component, DiffusersFolder};
pub use lora::{Lora, LoraReport, LoraScale, MergedLoras, ModelPart, merge_loras};
pub use pickle::PickleValue;
pub use stored::StoredTensor;
