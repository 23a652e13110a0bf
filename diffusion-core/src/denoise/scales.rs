//! How answers under several conditions become one.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::Window;
use crate::error::{Error, Result};
use crate::model::UNet;

/// Far beyond any use, and far below what f32 holds.
pub(crate) const MAX_SCALE: f64 = 1e6;

/// What keeps a division by the size of an answer finite.
const TINY: f64 = 1e-8;

/// How far, when and in which way a picture follows its prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guidance {
    /// How far the picture follows the prompt, from 0 to a million. At most 1 means without guidance, in half
    /// the time. Default: 7.5.
    ///
    /// Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6, with the scale
    /// counted as `1 + w`.
    #[serde(rename = "guidance_scale")]
    pub scale: f64,
    /// Scales that lie evenly along the run, the first for its first step and the last for its last, with
    /// straight lines between them; `scale` does not count then. Default: none.
    #[serde(rename = "guidance_curve")]
    pub curve: Vec<f64>,
    /// Which steps are guided; the others take half the time. Default: all.
    ///
    /// Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution
    /// Quality in Diffusion Models", 2024.
    #[serde(rename = "guidance_interval")]
    pub window: Window,
    /// How far a guided answer gets back the contrast of the one with the prompt, from 0 to 1. Default: 0.
    ///
    /// Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, section 3.4.
    #[serde(rename = "guidance_rescale")]
    pub rescale: f64,
    /// How far the picture follows the one that an instruct-pix2pix model is told to change, from 0 to a
    /// million; below 1 means without guidance. Default: 1.5.
    ///
    /// Source: Brooks et al., "InstructPix2Pix: Learning to Follow Image Editing Instructions", 2023, equation 3.
    #[serde(rename = "image_guidance_scale")]
    pub image_scale: f64,
    /// CFG-Zero*: how many of the first steps leave the latents where the model says nothing (0 to all), while
    /// the answer without the prompt is fitted to the other in all steps. Default: off.
    ///
    /// Source: Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025,
    /// algorithm 1.
    #[serde(rename = "cfg_zero_star")]
    pub zero_star: Option<usize>,
}

impl Default for Guidance {
    fn default() -> Self {
        Self {
            scale: 7.5,
            curve: Vec::new(),
            window: Window::ALL,
            rescale: 0.0,
            image_scale: 1.5,
            zero_star: None,
        }
    }
}

impl Guidance {
    /// The same all along the run.
    pub fn scale(scale: f64) -> Self {
        Self {
            scale,
            ..Self::default()
        }
    }

    /// Refuses values out of range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for them.
    pub fn check(&self) -> Result<()> {
        let scales = [
            ("guidance_scale", self.scale),
            ("image_guidance_scale", self.image_scale),
        ];
        let curve = self.curve.iter().map(|scale| ("guidance_curve", *scale));
        for (name, scale) in scales.into_iter().chain(curve) {
            if !(0.0..=MAX_SCALE).contains(&scale) {
                let expected = format!("a number from 0 to {MAX_SCALE}");
                return Err(Error::argument(name, expected, scale));
            }
        }
        for (name, share) in [
            ("guidance_rescale", self.rescale),
            ("guidance_start", self.window.start),
            ("guidance_end", self.window.end),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::argument(name, "0 to 1", share));
            }
        }
        Ok(())
    }

    /// Whether a model is ever asked without the prompt, too: at scales above 1, or where the scheduler needs
    /// that answer.
    pub fn is_on(&self, unet: &UNet, needs_unconditional: bool) -> bool {
        let is_distilled = unet.config().time_cond_proj_dim.is_some();
        let scales = match self.curve.as_slice() {
            [] => std::slice::from_ref(&self.scale),
            curve => curve,
        };
        (needs_unconditional || scales.iter().any(|scale| *scale > 1.0)) && !is_distilled
    }

    /// The scale of a step, its number and how many there are: 1 outside of the window. A run that does not
    /// count its steps has the first scale.
    pub(super) fn scale_at(&self, step: Option<(usize, usize)>) -> f64 {
        let (index, steps) = step.unwrap_or((0, 1));
        if step.is_some() && !self.window.contains(index, steps) {
            return 1.0;
        }
        let Some(last) = self.curve.len().checked_sub(1) else {
            return self.scale;
        };
        let place = last as f64 * index as f64 / (steps.max(2) - 1) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        let between = place - below as f64;
        self.curve[below] * (1.0 - between) + self.curve[above] * between
    }

    /// One answer out of the model's: without the prompt, with the picture that it changes alone where there is
    /// one, and with the prompt. `step` is the number of the step and how many there are.
    ///
    /// # Shapes
    /// `outputs`: two or three, each `(batch, channels, height, width)`, f32, as the model gives them; returns the
    /// same.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for fewer, [`Error::Tensor`] if the shapes differ.
    pub fn combine(&self, outputs: &[Tensor], step: Option<(usize, usize)>) -> Result<Tensor> {
        let [negative, .., positive] = outputs else {
            return Err(Error::argument("outputs", "two or three", outputs.len()));
        };
        let scale = self.scale_at(step);
        Ok(match (outputs, self.zero_star) {
            ([_, picture, _], _) => {
                let text = ((positive - picture)? * scale)?;
                let picture = ((picture - negative)? * self.image_scale)?;
                ((negative + text)? + picture)?
            }
            (_, None) => (negative + ((positive - negative)? * scale)?)?,
            (_, Some(zeros)) if step.is_some_and(|(index, _)| index < zeros) => {
                positive.zeros_like()?
            }
            (_, Some(_)) => {
                let negative = fitted(negative, positive)?;
                (&negative + ((positive - &negative)? * scale)?)?
            }
        })
    }

    /// A guided answer with [`rescale`](Self::rescale)'s share of the contrast of the one with the prompt.
    pub(super) fn rescaled(&self, guided: Tensor, positive: &Tensor) -> Result<Tensor> {
        match self.rescale {
            0.0 => Ok(guided),
            share => {
                let contrast = deviation(positive)?.broadcast_div(&deviation(&guided)?)?;
                let rescaled = guided.broadcast_mul(&contrast)?;
                Ok(((rescaled * share)? + (guided * (1.0 - share))?)?)
            }
        }
    }
}

/// The standard deviation of each picture of a batch, `(batch, 1, 1, 1)`, at least a tiny one.
fn deviation(outputs: &Tensor) -> Result<Tensor> {
    let rows = outputs.flatten_from(1)?;
    let centered = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(variance
        .sqrt()?
        .maximum(TINY)?
        .unsqueeze(D::Minus1)?
        .unsqueeze(D::Minus1)?)
}

/// The multiple of `outputs` that comes nearest to `target`, for each picture.
fn fitted(outputs: &Tensor, target: &Tensor) -> Result<Tensor> {
    let product = |a: &Tensor, b: &Tensor| {
        let rows = (a * b)?.flatten_from(1)?;
        Ok::<_, Error>(rows.sum_keepdim(D::Minus1)?)
    };
    let size = (product(outputs, outputs)? + TINY)?;
    let factor = product(target, outputs)?.broadcast_div(&size)?;
    let factor = factor.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?;
    Ok(outputs.broadcast_mul(&factor)?)
}
