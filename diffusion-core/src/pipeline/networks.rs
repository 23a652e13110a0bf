//! The networks as a request wants them.

use std::borrow::Cow;

use super::{ControlModel, GenerateRequest, Pipeline};
use crate::denoise::{MAX_SCALE, Perturbation};
use crate::error::{Error, Result};
use crate::model::{UNet, Vae};
use crate::nn::Seamless;

/// The layers that are perturbed where a request names none.
const PAG_LAYERS: &str = "mid";

/// The most evaluations for which inner levels are asked once.
const MAX_INTERVAL: usize = 1000;

/// The largest share of merged tokens that a request may ask for.
const MAX_MERGED: f64 = 0.9;

impl Pipeline {
    /// The UNet of a request, in the same memory.
    pub(super) fn unet_of(&self, request: &GenerateRequest) -> Result<Cow<'_, UNet>> {
        Ok(match request.seamless {
            Seamless::NONE => Cow::Borrowed(&self.unet),
            seamless => Cow::Owned(self.unet.with_seamless(seamless)?),
        })
    }

    /// The autoencoder of a request, in the same memory.
    pub(super) fn vae_of(&self, request: &GenerateRequest) -> Result<Cow<'_, Vae>> {
        let mut vae = Cow::Borrowed(&self.vae);
        if request.seamless != Seamless::NONE {
            vae = Cow::Owned(vae.with_seamless(request.seamless)?);
        }
        if let Some(tiling) = request.vae_tiling {
            vae = Cow::Owned(vae.with_tiling(tiling)?);
        }
        if request.vae_slicing {
            vae = Cow::Owned(vae.with_slicing(true));
        }
        Ok(vae)
    }

    /// The pipeline with a request's autoencoder in place of its own, in the same memory: what decodes the request's
    /// latents as [`generate`](Self::generate) does.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the request's tiles do not fit the autoencoder.
    pub fn with_vae_of(&self, request: &GenerateRequest) -> Result<Self> {
        Ok(Self {
            vae: self.vae_of(request)?.into_owned(),
            ..self.clone()
        })
    }

    /// What a request guides away from.
    pub(super) fn perturbation_of(
        &self,
        request: &GenerateRequest,
    ) -> Result<Option<Perturbation>> {
        if request.pag_scale == 0.0 {
            return Ok(None);
        }
        let attention = match request.pag_layers.as_slice() {
            [] => self.unet.perturbed_attention(&[PAG_LAYERS], 0)?,
            layers => self.unet.perturbed_attention(layers, 0)?,
        };
        Ok(Some(Perturbation {
            attention,
            scale: request.pag_scale,
            adaptive_scale: request.pag_adaptive_scale,
        }))
    }

    /// Checks what a request wants of the networks.
    pub(super) fn check_networks(&self, request: &GenerateRequest) -> Result<()> {
        for (name, value) in [
            ("pag_scale", request.pag_scale),
            ("pag_adaptive_scale", request.pag_adaptive_scale),
        ] {
            if !(0.0..=MAX_SCALE).contains(&value) {
                let expected = format!("a number from 0 to {MAX_SCALE}");
                return Err(Error::argument(name, expected, value));
            }
        }
        if !(1..=MAX_INTERVAL).contains(&request.deep_cache) {
            let expected = format!("1 to {MAX_INTERVAL}");
            return Err(Error::argument("deep_cache", expected, request.deep_cache));
        }
        if request.tgate == Some(0) {
            return Err(Error::argument("tgate", "1 step or more", 0));
        }
        if !(0.0..=MAX_MERGED).contains(&request.token_merging) {
            let expected = format!("a number from 0 to {MAX_MERGED}");
            let found = request.token_merging;
            return Err(Error::argument("token_merging", expected, found));
        }
        self.perturbation_of(request)?;
        let Some(deep_shrink) = request.deep_shrink else {
            return Ok(());
        };
        deep_shrink.check(&self.unet)?;
        let mut models = request.controls.iter().map(|control| &control.model);
        match models.any(|model| matches!(model, ControlModel::T2iAdapter(_))) {
            true => Err(Error::unsupported(
                "deep_shrink with a T2I-Adapter",
                "its features are of the whole size; leave out one of them, or take a ControlNet",
            )),
            false => Ok(()),
        }
    }
}
