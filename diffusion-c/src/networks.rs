//! What happens within the networks.

use diffusion_core::GenerateRequest;
use diffusion_core::denoise::DeepShrink;
use diffusion_core::model::VaeTiling;
use diffusion_core::model::unet::Shrink;
use diffusion_core::nn::Seamless;

use crate::abi::{dfn_bool, optional_text};
use crate::params::dfn_generate_params;
use crate::status::Failure;

/// Smaller inner levels in the first part of a run, so that a picture larger than those that the model knows is laid out
/// as one: Kohya's Deep Shrink.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct dfn_deep_shrink {
    /// Behind which output of the model's way down, as ComfyUI counts its input blocks. Default: 3, the first
    /// downsampling in Stable Diffusion.
    pub block: u32,
    /// 1: the skip keeps its size. Default: 1.
    pub after_skip: dfn_bool,
    /// What both sides are divided by, from 1 to 16. Default: 2.
    pub factor: f64,
    /// From which share of the model's timesteps on, from 0 (pure noise) to 1. Default: 0.
    pub start: f64,
    /// To which. Default: 0.35.
    pub end: f64,
}

impl dfn_deep_shrink {
    pub(crate) const DEFAULT: Self = Self {
        block: 3,
        after_skip: 1,
        factor: 2.0,
        start: 0.0,
        end: 0.35,
    };
}

/// Side and overlap.
pub(crate) const DEFAULT_TILES: (u32, f64) = (512, 0.25);

/// Sets what the parameters say of the networks.
///
/// # Safety
/// Each text is null or ends in NUL.
pub(crate) unsafe fn networks(
    request: GenerateRequest,
    params: &dfn_generate_params,
) -> Result<GenerateRequest, Failure> {
    // SAFETY: the caller's promise.
    let (layers, tiling) = unsafe {
        (
            optional_text(params.pag_layers, "pag_layers")?,
            optional_text(params.vae_tiling, "vae_tiling")?,
        )
    };
    let layers = layers.into_iter().flat_map(|names| names.split(','));
    let mut request = request
        .pag_scale(params.pag_scale)
        .pag_adaptive_scale(params.pag_adaptive_scale)
        .pag_layers(layers.map(str::trim))
        .deep_cache(params.deep_cache as usize)
        .token_merging(params.token_merging)
        .vae_slicing(params.vae_slicing != 0)
        .seamless(Seamless {
            x: params.seamless_x != 0,
            y: params.seamless_y != 0,
        });
    if params.tgate != 0 {
        request = request.tgate(params.tgate as usize);
    }
    let tiles = (params.vae_tile_size, params.vae_tile_overlap);
    let tiling = match tiling {
        None => None,
        Some("off") => Some(VaeTiling::Off),
        Some("auto") => Some(VaeTiling::Auto),
        Some("tiles") => Some(VaeTiling::Tiles {
            size: tiles.0 as usize,
            overlap: tiles.1,
        }),
        Some(name) => {
            let expected = "\"off\", \"auto\" or \"tiles\"";
            let found = format!("{name:?}");
            return Err(Failure::argument("vae_tiling", expected, found));
        }
    };
    // A value whose switch is off was meant to count.
    if tiles != DEFAULT_TILES && !matches!(tiling, Some(VaeTiling::Tiles { .. })) {
        let expected = "\"tiles\", since vae_tile_size or vae_tile_overlap is set";
        return Err(Failure::argument("vae_tiling", expected, "another"));
    }
    if let Some(tiling) = tiling {
        request = request.vae_tiling(tiling);
    }
    let raw = params.deep_shrink;
    match (params.has_deep_shrink != 0, raw) {
        (true, _) => Ok(request.deep_shrink(DeepShrink {
            shrink: Shrink {
                block: raw.block as usize,
                factor: raw.factor,
                after_skip: raw.after_skip != 0,
            },
            start: raw.start,
            end: raw.end,
        })),
        (false, dfn_deep_shrink::DEFAULT) => Ok(request),
        (false, _) => {
            let expected = "its defaults without has_deep_shrink (set has_deep_shrink to 1)";
            Err(Failure::argument(
                "deep_shrink",
                expected,
                format!("{raw:?}"),
            ))
        }
    }
}
