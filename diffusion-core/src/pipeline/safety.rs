//! Opening a safety checker, and having runs judged by it.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use image::RgbImage;

use super::{Generated, Pipeline};
use crate::device::check_weights_dtype;
use crate::error::Result;
use crate::media;
use crate::model::{ClipVisionConfig, SafetyChecker, SafetyReport};
use crate::weights::Component;

impl SafetyChecker {
    /// Opens a folder with `config.json` and weights, as the `safety_checker` beside a model's other parts.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is none, [`Error::Format`](crate::Error::Format) if a file is damaged, [`Error::Weights`](crate::Error::Weights) if its tensors
    /// are not those of a `StableDiffusionSafetyChecker`.
    pub fn open(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let folder = Component::open(path.as_ref(), None)?;
        let config = ClipVisionConfig::from_json(&folder.config_path, &folder.config)?;
        let tensors = folder.open_weights()?;
        Self::new(config, &tensors, check_weights_dtype(dtype)?, device)
    }

    /// Judges pictures of any size, one by one, so that memory does not grow with their number.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a picture without pixels, [`Error::Tensor`](crate::Error::Tensor) if the device fails.
    pub fn check(&self, pictures: &[RgbImage]) -> Result<Vec<SafetyReport>> {
        let side = self.encoder().config().image_size;
        let device = self.encoder().weights().device();
        let mut reports = Vec::with_capacity(pictures.len());
        for picture in pictures {
            reports.extend(self.forward(&media::to_clip(picture, side, device)?)?);
        }
        Ok(reports)
    }
}

impl Pipeline {
    /// Has the pictures of later runs judged, in [`Generated::safety`], or no longer judged. They stay as they
    /// are whatever is said of them. Default: not judged.
    pub fn set_safety_checker(&mut self, checker: impl Into<Option<SafetyChecker>>) {
        self.safety_checker = checker.into().map(Arc::new);
    }

    /// What judges the pictures, if anything does.
    pub fn safety_checker(&self) -> Option<&SafetyChecker> {
        self.safety_checker.as_deref()
    }

    /// Judges pictures by the pipeline's checker; without one there are no reports.
    pub(super) fn judge(&self, pictures: &[RgbImage]) -> Result<Vec<SafetyReport>> {
        match &self.safety_checker {
            Some(checker) => checker.check(pictures),
            None => Ok(Vec::new()),
        }
    }
}

impl Generated {
    /// Judges the pictures afterwards, in place of what was said of them before.
    ///
    /// # Errors
    /// As [`SafetyChecker::check`].
    pub fn judge(&mut self, checker: &SafetyChecker) -> Result<&[SafetyReport]> {
        self.safety = checker.check(&self.images)?;
        Ok(&self.safety)
    }
}
