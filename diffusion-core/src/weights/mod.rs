//! Checkpoints on disk.

mod element;
mod file;
mod folder;
mod gguf;
mod pickle;
mod reader;
mod safetensors;
mod stored;

pub use element::Element;
pub use file::{Container, TensorFile, TensorFiles};
pub use folder::{Component, DiffusersFolder};
pub use pickle::PickleValue;
pub use stored::StoredTensor;
