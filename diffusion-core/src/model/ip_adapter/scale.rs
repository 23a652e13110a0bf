//! How strongly pictures count, and where.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::nn::innermost;

/// The strength of a picture: one number, and others for single blocks of the UNet.
///
/// ```
/// use diffusion_core::model::IpAdapterScale;
///
/// let everywhere = IpAdapterScale::from(0.6);
/// // Style alone, in SDXL.
/// let style = IpAdapterScale::from(0.0).block("up_blocks.0.attentions.1", 1.0);
/// # assert_ne!(everywhere, style);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IpAdapterScale {
    everywhere: f64,
    blocks: Vec<(String, f64)>,
}

impl Default for IpAdapterScale {
    fn default() -> Self {
        1.0.into()
    }
}

impl From<f64> for IpAdapterScale {
    fn from(scale: f64) -> Self {
        Self {
            everywhere: scale,
            blocks: Vec::new(),
        }
    }
}

impl IpAdapterScale {
    /// Another strength in the cross-attention layers below `block`, a name of diffusers such as `down_blocks`,
    /// `up_blocks.1` or `up_blocks.1.attentions.0`. Of several that fit a layer the longest name counts.
    pub fn block(mut self, block: impl Into<String>, scale: f64) -> Self {
        self.blocks.push((block.into(), scale));
        self
    }

    /// The strength in the transformer block at `path`.
    pub fn at(&self, path: &str) -> f64 {
        innermost(&self.blocks, &[path]).unwrap_or(self.everywhere)
    }

    /// Refuses what is not a number.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a strength that is not finite.
    pub fn check(&self) -> Result<()> {
        let mut all = self.blocks.iter().map(|(_, scale)| *scale);
        let broken = |scale: &f64| !scale.is_finite();
        match all.find(broken).or(Some(self.everywhere).filter(broken)) {
            Some(scale) => Err(Error::argument(
                "ip_adapter scale",
                "a finite number",
                scale,
            )),
            None => Ok(()),
        }
    }
}
