//! Checkpoints on disk.

mod checkpoint;
mod configs;
mod description;
mod element;
mod embedding;
mod family;
mod file;
mod floats;
mod folder;
mod gguf;
mod hub;
mod infer;
pub mod keys;
mod lora;
mod pickle;
mod prediction;
mod reader;
mod renamed;
mod safetensors;
mod save;
mod sections;
mod storage;
mod stored;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointComponent, OpenOptions};
pub use description::{ComponentDescription, ModelDescription, TensorSummary};
pub use element::Element;
pub use embedding::Embedding;
pub use family::{Family, Task};
pub use file::{Container, TensorFile, TensorFiles};
pub use folder::{Component, DiffusersFolder};
pub use hub::HubId;
#[cfg(feature = "hub")]
pub use hub::{HubOptions, HubProgress, HubProgressFn};
pub(crate) use hub::{Wanted, locate};
pub use lora::{Lora, LoraMode, LoraReport, LoraScale, MergedLoras, ModelPart, merge_loras};
pub use pickle::PickleValue;
pub use renamed::RenamedTensors;
pub use sections::{ComponentKind, Dialect};
pub use stored::StoredTensor;
