//! The processor's kernels: plain functions of slices, each file one family of them.
//!
//! What a processor has is found at run time ([`dispatch`]); sums are in the same order on any number of threads.

mod attention;
mod buffer;
mod conv;
mod dispatch;
mod elementwise;
mod fixed;
mod linear;
mod math;
mod norm;
mod pack;
mod product;
mod simd;
mod threads;
mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use attention::{Attention, attention};
pub use buffer::Lease;
pub(crate) use buffer::{Buffer, give_back};
pub(crate) use conv::{Picture, Shape, convolve};
pub(crate) use dispatch::Precision;
pub(crate) use elementwise::{Function, apply, rows, zip};
pub(crate) use linear::linear;
pub(crate) use norm::{Affine, group_norm, group_norm_in_place, layer_norm};
pub(crate) use pack::Values;
pub(crate) use product::Epilogue;
pub use threads::Threads;
