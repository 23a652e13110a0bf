//! Checkpoints on disk.

mod folder;
mod safetensors;

pub use folder::{Component, DiffusersFolder};
pub use safetensors::SafeTensorsSource;
