//! Opening an image encoder.

use std::path::Path;

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::model::{ClipVisionConfig, ImageEncoder};
use crate::nn::TensorSource;
use crate::weights::{Component, TensorFile};

/// The files of CLIP's vision model: a folder with `config.json` and weights, as transformers saves it, or the
/// weights of a published model alone.
pub struct ImageEncoderFiles {
    /// Its configuration, of the folder or by the shapes of the tensors.
    pub config: ClipVisionConfig,
    /// Its weights.
    pub tensors: Box<dyn TensorSource>,
}

impl ImageEncoderFiles {
    /// Opens a folder or a file.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, [`Error::Format`] if a file is damaged or not that of a vision model
    /// with a projection, [`Error::Unsupported`] for weights without `config.json` that are of no published model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            let file = TensorFile::open(path)?;
            let config = ClipVisionConfig::from_tensors(&file)?;
            let tensors = Box::new(file);
            return Ok(Self { config, tensors });
        }
        let folder = Component::open(path, None)?;
        let tensors = folder.open_weights()?;
        if !ClipVisionConfig::describes(&tensors) {
            let reason = "not a CLIPVisionModelWithProjection: its tensors are not those of one";
            return Err(Error::format(&folder.path, reason));
        }
        let config = ClipVisionConfig::from_json(&folder.config_path, &folder.config)?;
        let tensors = Box::new(tensors);
        Ok(Self { config, tensors })
    }

    /// Reads the model.
    ///
    /// # Errors
    /// As [`ImageEncoder::new`].
    pub fn load(self, dtype: DType, device: &Device) -> Result<ImageEncoder> {
        ImageEncoder::new(self.config, &*self.tensors, dtype, device)
    }
}
