//! Models from the Hugging Face Hub, in the cache that Python's `huggingface_hub` keeps.
//!
//! Behind the feature `hub`; without it an id is an error that says so. Nothing here is called for a path
//! that exists.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod id;
#[cfg(feature = "hub")]
mod options;
#[cfg(feature = "hub")]
mod plan;
#[cfg(feature = "hub")]
mod repository;

use std::path::{Path, PathBuf};

pub use id::HubId;
#[cfg(feature = "hub")]
pub use options::{HubOptions, HubProgress, HubProgressFn};

use super::OpenOptions;
use crate::error::Result;

/// What an id without a file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The parts of a whole model.
    Model,
    /// The file of a LoRA.
    Lora,
}

impl OpenOptions {
    /// Where on disk `path` is: where it says, or, if nothing is there and it has the form of a
    /// [`HubId`], in the hub's cache. What the cache lacks of it is downloaded first: of a model in the diffusers
    /// layout the parts that these options ask for, each in one format and variant; of others the one file of
    /// tensors.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if the repository, its revision or a part is missing, and, when
    /// offline or without the feature `hub`, what would have to be downloaded.
    /// [`Error::Io`](crate::Error::Io) if the hub cannot be reached or refuses (`PermissionDenied`, as for gated
    /// models without a token), or the cache cannot be written. [`Error::Format`](crate::Error::Format) if what was
    /// downloaded is not what the hub announced. [`Error::Cancelled`](crate::Error::Cancelled) if the progress
    /// function says so.
    pub fn locate(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        locate(path.as_ref(), self, Wanted::Model)
    }
}

/// [`OpenOptions::locate`], for any kind of file.
pub(crate) fn locate(path: &Path, options: &OpenOptions, wanted: Wanted) -> Result<PathBuf> {
    let id = path.to_str().and_then(HubId::parse);
    match id {
        Some(id) if !path.exists() => fetch(&id, options, wanted),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(feature = "hub")]
fn fetch(id: &HubId, options: &OpenOptions, wanted: Wanted) -> Result<PathBuf> {
    let settings = options.hub.clone().unwrap_or_else(HubOptions::from_env);
    repository::fetch(id, options, &settings, wanted)
}

#[cfg(not(feature = "hub"))]
fn fetch(id: &HubId, _: &OpenOptions, _: Wanted) -> Result<PathBuf> {
    Err(crate::error::Error::NotFound {
        path: id.to_string().into(),
        hint: "there is no such path; to download an id of the Hugging Face Hub, build with the feature `hub`".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_an_id_is_an_error_that_says_so() {
        let located = OpenOptions::default().locate("owner/name");
        let error = located.expect_err("there is no such path");
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
        assert!(error.to_string().contains("feature `hub`"), "{error}");
    }

    #[test]
    fn a_path_that_exists_is_itself() -> Result<()> {
        let path = Path::new("src/weights");
        assert_eq!(OpenOptions::default().locate(path)?, path);
        Ok(())
    }
}
