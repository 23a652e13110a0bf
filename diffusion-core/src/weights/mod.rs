//! Checkpoints on disk.

mod folder;
pub mod keys;
mod safetensors;

pub use folder::{Component, DiffusersFolder};
pub use safetensors::SafeTensorsSource;
