//! Guidance away from what a UNet draws with perturbed self-attention.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::model::{ControlResiduals, TextTime, UNet, UNetInput, UNetResiduals};
use crate::nn::{Activation, Gate, ImageAttention, PerturbedAttention};

/// The timestep from which adaptive scales count down, whatever the model's number of timesteps.
const FIRST_TIMESTEP: f64 = 1000.0;

/// Perturbed-attention guidance: to the model's answer is added `scale * (answer - perturbed answer)`, both under the
/// prompt.
///
/// Source: Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024, equation 8, as
/// diffusers' `StableDiffusionPAGPipeline` adds it to guidance by the prompt.
#[derive(Debug, Clone)]
pub struct Perturbation {
    /// The layers that are perturbed, [`of all images`](UNet::perturbed_attention) of the batch.
    pub attention: PerturbedAttention,
    /// How strongly.
    pub scale: f64,
    /// What the scale loses with each timestep below 1000; it ends at 0.
    pub adaptive_scale: f64,
}

impl Perturbation {
    /// The scale at a timestep.
    pub fn scale_at(&self, timestep: f64) -> f64 {
        let lost = self.adaptive_scale * (FIRST_TIMESTEP - timestep);
        match self.adaptive_scale > 0.0 {
            true => (self.scale - lost).max(0.0),
            false => self.scale,
        }
    }

    /// What is added to the model's answer to `input`, of which `prompted` is that under the prompt: the last rows.
    /// Nothing where the scale has come to 0.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub(super) fn push(
        &self,
        unet: &UNet,
        input: &UNetInput<'_>,
        prompted: &Tensor,
        timestep: f64,
    ) -> Result<Option<Tensor>> {
        let scale = self.scale_at(timestep);
        if scale == 0.0 {
            return Ok(None);
        }
        let batch = prompted.dim(0)?;
        let rows = |tensor: &Tensor| last_rows(tensor, batch);
        let time = |time: &TextTime| {
            let (text_embeds, time_ids) = (rows(&time.text_embeds)?, rows(&time.time_ids)?);
            Ok::<_, Error>(TextTime {
                text_embeds,
                time_ids,
            })
        };
        let pictures = |all: &ImageAttention| all.map(|x| last_rows_of(x, batch));
        let residuals = |all: &UNetResiduals| residual_rows(all, batch);
        let perturbed = unet.forward(&UNetInput {
            sample: &rows(input.sample)?,
            encoder_hidden_states: &rows(input.encoder_hidden_states)?,
            text_time: input.text_time.map(time).transpose()?.as_ref(),
            timestep_cond: input.timestep_cond.map(rows).transpose()?.as_ref(),
            image_attention: input.image_attention.map(pictures).transpose()?.as_ref(),
            residuals: input.residuals.map(residuals).transpose()?.as_ref(),
            perturbed: Some(&self.attention),
            gate: input.gate.filter(|gate| matches!(gate, Gate::Shut(_))),
            ..*input
        })?;
        let difference = (prompted - perturbed.to_dtype(DType::F32)?)?;
        Ok(Some((difference * scale)?))
    }
}

/// The last rows, or the one row of all.
fn last_rows(tensor: &Tensor, batch: usize) -> Result<Tensor> {
    let len = tensor.dim(0)?;
    Ok(tensor.narrow(0, len.saturating_sub(batch), len.min(batch))?)
}

fn last_rows_of(x: &Activation, batch: usize) -> Result<Activation> {
    Ok(Activation::new(last_rows(&x.to_tensor()?, batch)?))
}

fn residual_rows(all: &UNetResiduals, batch: usize) -> Result<UNetResiduals> {
    let rows = |x: &Activation| last_rows_of(x, batch);
    let control = |control: &ControlResiduals| control.map(rows);
    Ok(UNetResiduals {
        control: all.control.as_ref().map(control).transpose()?,
        features: all.features.iter().map(rows).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adaptive_scales_count_down_to_zero() {
        let at = |adaptive_scale: f64, timestep: f64| {
            let attention = PerturbedAttention::default();
            Perturbation {
                attention,
                scale: 3.0,
                adaptive_scale,
            }
            .scale_at(timestep)
        };
        assert_eq!(at(0.0, 1.0), 3.0);
        assert_eq!(at(0.005, 1000.0), 3.0);
        assert_eq!(at(0.005, 600.0), 1.0);
        assert_eq!(at(0.005, 100.0), 0.0);
    }
}
