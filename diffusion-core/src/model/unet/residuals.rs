//! What networks beside a UNet add to it.

use crate::error::{Error, Result};
use crate::nn::Activation;

/// What ControlNets and T2I-Adapters add inside a [`UNet`](super::UNet): values of as many images as the UNet's
/// batch, or of one for all.
#[derive(Debug, Clone, Default)]
pub struct UNetResiduals {
    /// Added on the way up.
    pub control: Option<ControlResiduals>,
    /// A T2I-Adapter's features, added on the way down: one for each level, from the highest resolution, and
    /// perhaps one for the middle. Levels without attention take theirs behind the downsampling.
    pub features: Vec<Activation>,
}

/// What a ControlNet gives.
#[derive(Debug, Clone)]
pub struct ControlResiduals {
    /// For each of the UNet's skips, the first convolution's first: `(batch, height, width, channels)`, or
    /// `(batch, 1, 1, channels)` of models that pool their answer.
    pub down: Vec<Activation>,
    /// For the middle's output, of the same kind.
    pub mid: Activation,
}

impl ControlResiduals {
    /// The sum with those of another ControlNet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they are for another number of skips, [`Error::Tensor`] if shapes do not
    /// fit.
    pub fn add(&self, other: &Self) -> Result<Self> {
        let mut sum = self.clone();
        other.add_to(&mut sum.down, &mut sum.mid)?;
        Ok(sum)
    }

    /// Adds each residual to its place.
    pub(super) fn add_to(&self, skips: &mut [Activation], mid: &mut Activation) -> Result<()> {
        if skips.len() != self.down.len() {
            let expected = format!("a residual for each of {} skips", skips.len());
            return Err(Error::argument("residuals", expected, self.down.len()));
        }
        for (skip, residual) in skips.iter_mut().zip(&self.down) {
            *skip = skip.broadcast_add(residual)?;
        }
        *mid = mid.broadcast_add(&self.mid)?;
        Ok(())
    }

    /// Each residual changed in the same way.
    ///
    /// # Errors
    /// What `change` returns.
    pub fn map(&self, change: impl Fn(&Activation) -> Result<Activation>) -> Result<Self> {
        Ok(Self {
            down: self.down.iter().map(&change).collect::<Result<_>>()?,
            mid: change(&self.mid)?,
        })
    }
}
