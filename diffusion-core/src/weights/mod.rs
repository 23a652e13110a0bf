//! Checkpoints on disk.

mod checkpoint;
mod configs;
mod description;
mod family;
mod folder;
mod infer;
pub mod keys;
mod renamed;
mod safetensors;
mod save;
mod sections;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointComponent, OpenOptions};
pub use description::{ComponentDescription, ModelDescription};
pub use family::{Family, Task};
pub use folder::{Component, DiffusersFolder};
pub use renamed::RenamedTensors;
pub use safetensors::SafeTensorsSource;
pub use sections::{ComponentKind, Dialect};
