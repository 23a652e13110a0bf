//! What happens within the networks.

use diffusion_core::denoise::DeepShrink;
use diffusion_core::model::VaeTiling;
use diffusion_core::model::unet::Shrink;
use diffusion_core::nn::Seamless;
use diffusion_core::{GenerateRequest, Result};
use pyo3::prelude::*;

use crate::request::{named, set};

/// A dictionary of Python's arguments.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct RawNetworks {
    /// Scale, adaptive scale, names of layers.
    pag: (f64, f64, Vec<String>),
    /// Block, factor, whether the skip keeps its size, start, end.
    deep_shrink: Option<(usize, f64, bool, f64, f64)>,
    deep_cache: usize,
    tgate: Option<usize>,
    token_merging: f64,
    seamless: (bool, bool),
    vae_tiling: Option<RawTiling>,
    vae_slicing: bool,
}

/// A name, or the side of a tile and the share that the next one covers.
#[derive(FromPyObject)]
enum RawTiling {
    Named(String),
    Tiles(usize, f64),
}

const TILINGS: &[(&str, VaeTiling)] = &[("off", VaeTiling::Off), ("auto", VaeTiling::Auto)];

impl RawNetworks {
    pub(crate) fn set(self, request: GenerateRequest) -> Result<GenerateRequest> {
        let (scale, adaptive_scale, layers) = self.pag;
        let (x, y) = self.seamless;
        let request = request
            .pag_scale(scale)
            .pag_adaptive_scale(adaptive_scale)
            .pag_layers(layers)
            .deep_cache(self.deep_cache)
            .token_merging(self.token_merging)
            .seamless(Seamless { x, y })
            .vae_slicing(self.vae_slicing);
        let request = set(request, self.tgate, GenerateRequest::tgate);
        let tiling = self.vae_tiling.map(|tiling| match tiling {
            RawTiling::Named(name) => named("vae_tiling", &name, TILINGS),
            RawTiling::Tiles(size, overlap) => Ok(VaeTiling::Tiles { size, overlap }),
        });
        let request = set(request, tiling.transpose()?, GenerateRequest::vae_tiling);
        let deep_shrink = self
            .deep_shrink
            .map(|(block, factor, after_skip, start, end)| DeepShrink {
                shrink: Shrink {
                    block,
                    factor,
                    after_skip,
                },
                start,
                end,
            });
        Ok(set(request, deep_shrink, GenerateRequest::deep_shrink))
    }
}
