//! Pictures that go on at their opposite side.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// In which directions a picture shall go on at its opposite side, so that copies of it side by side show no seam.
/// All convolutions then read there what is beyond a side, in place of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seamless {
    /// From right to left.
    pub x: bool,
    /// From bottom to top.
    pub y: bool,
}

impl Seamless {
    /// In no direction.
    pub const NONE: Self = Self { x: false, y: false };
    /// In both.
    pub const BOTH: Self = Self { x: true, y: true };
}

/// `x` with `before` and `after` lines of its opposite sides along `dim`.
pub(crate) fn wrap(x: &Tensor, dim: usize, before: usize, after: usize) -> Result<Tensor> {
    let len = x.dim(dim)?;
    if before + after == 0 || len == 0 {
        return Ok(x.clone());
    }
    let whole = before.next_multiple_of(len);
    let lines = (0..before + len + after).map(|i| ((whole - before + i) % len) as u32);
    let lines = Tensor::from_iter(lines, x.device())?;
    Ok(x.contiguous()?.index_select(&lines, dim)?)
}
