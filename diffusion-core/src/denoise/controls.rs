//! Pictures beside the prompt: ControlNets and T2I-Adapters in a run.

use std::ops::Range;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{ControlNet, ControlResiduals, TextTime, UNetInput, UNetResiduals};
use crate::nn::Activation;

/// Which steps of a run a control takes part in: shares of their number, from 0 to 1. A step counts that lies
/// in between with all its length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Where it begins.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
}

impl Window {
    /// All steps.
    pub const ALL: Self = Self {
        start: 0.0,
        end: 1.0,
    };

    /// Whether the step `index` of `num_steps` is in it.
    pub fn contains(&self, index: usize, num_steps: usize) -> bool {
        let share = |steps: usize| steps as f64 / num_steps as f64;
        share(index) >= self.start && share(index + 1) <= self.end
    }
}

/// A ControlNet in a run.
#[derive(Debug, Clone)]
pub struct NetControl<'a> {
    /// The network.
    pub net: &'a ControlNet,
    /// [`ControlNet::embed`]'s of one picture, or of one for each picture of the run.
    pub hint: Activation,
    /// The strength.
    pub scale: f64,
    /// When it counts.
    pub window: Window,
    /// Whether the answer without the prompt is left alone, and residuals of high resolution are weaker.
    pub guess_mode: bool,
}

/// A T2I-Adapter's features in a run.
#[derive(Debug, Clone)]
pub struct FeatureControl {
    /// [`T2iAdapter::forward`](crate::model::T2iAdapter::forward)'s, times the strength: of one picture, or of
    /// one for each picture of the run.
    pub features: Vec<Activation>,
    /// When they count.
    pub window: Window,
}

/// All controls of a run. They add up.
#[derive(Debug, Clone, Default)]
pub struct Controls<'a> {
    /// ControlNets.
    pub nets: Vec<NetControl<'a>>,
    /// T2I-Adapters.
    pub features: Vec<FeatureControl>,
}

impl Controls<'_> {
    /// The controls of some of the run's pictures.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there are fewer.
    pub fn of_images(&self, images: &Range<usize>) -> Result<Self> {
        let mut controls = self.clone();
        let hints = controls.nets.iter_mut().map(|control| &mut control.hint);
        let features = controls.features.iter_mut().flat_map(|c| &mut c.features);
        for rows in hints.chain(features).filter(|rows| is_for_each(rows)) {
            *rows = rows.narrow(images.start, images.len())?;
        }
        Ok(controls)
    }

    /// What they add to a UNet's evaluation of `input` in a step, its number and how many there are; all take
    /// part if it is not known. The batch has several parts under guidance; the last is with the prompt.
    pub(super) fn residuals(
        &self,
        input: &UNetInput<'_>,
        step: Option<(usize, usize)>,
        parts: usize,
    ) -> Result<Option<UNetResiduals>> {
        let takes_part = |window: &Window| {
            step.is_none_or(|(index, num_steps)| window.contains(index, num_steps))
        };
        let mut sum = UNetResiduals::default();
        for control in self.nets.iter().filter(|c| takes_part(&c.window)) {
            let residuals = control.residuals(input, parts)?;
            sum.control = Some(match sum.control {
                Some(others) => others.add(&residuals)?,
                None => residuals,
            });
        }
        for control in self.features.iter().filter(|c| takes_part(&c.window)) {
            for (i, feature) in control.features.iter().enumerate() {
                let feature = for_parts(feature, parts)?;
                match sum.features.get_mut(i) {
                    Some(others) => *others = others.broadcast_add(&feature)?,
                    None => sum.features.push(feature),
                }
            }
        }
        let is_empty = sum.control.is_none() && sum.features.is_empty();
        Ok((!is_empty).then_some(sum))
    }
}

impl NetControl<'_> {
    fn residuals(&self, input: &UNetInput<'_>, parts: usize) -> Result<ControlResiduals> {
        let guess_mode = self.guess_mode || self.net.config().global_pool_conditions;
        let forward = |input: &UNetInput<'_>, hint: &Activation| {
            self.net.forward(input, hint, self.scale, guess_mode)
        };
        if !guess_mode || parts == 1 {
            return forward(input, &for_parts(&self.hint, parts)?);
        }
        let prompted = |tensor: &Tensor| {
            let part = tensor.dim(0)? / parts;
            Ok::<_, Error>(tensor.narrow(0, part * (parts - 1), part)?)
        };
        let time = |time: &TextTime| {
            Ok::<_, Error>(TextTime {
                text_embeds: prompted(&time.text_embeds)?,
                time_ids: prompted(&time.time_ids)?,
            })
        };
        let residuals = forward(
            &UNetInput {
                sample: &prompted(input.sample)?,
                encoder_hidden_states: &prompted(input.encoder_hidden_states)?,
                text_time: input.text_time.map(time).transpose()?.as_ref(),
                ..*input
            },
            &self.hint,
        )?;
        residuals.map(|residual| {
            let prompted = residual.to_tensor()?;
            let mut rows = vec![prompted.zeros_like()?; parts - 1];
            rows.push(prompted);
            Ok(Activation::new(Tensor::cat(&rows, 0)?))
        })
    }
}

/// Whether there is a row for each picture, and not one for all.
fn is_for_each(rows: &Activation) -> bool {
    rows.dims()[0] > 1
}

/// The rows for all parts of a batch under guidance.
fn for_parts(rows: &Activation, parts: usize) -> Result<Activation> {
    match parts > 1 && is_for_each(rows) {
        true => Activation::cat(&vec![rows.clone(); parts]),
        false => Ok(rows.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_of_diffusers() {
        // 1.0 - float(i / n < start or (i + 1) / n > end)
        let steps = |start, end| {
            let window = Window { start, end };
            (0..10)
                .filter(|&i| window.contains(i, 10))
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(0.0, 1.0), (0..10).collect::<Vec<_>>());
        assert_eq!(steps(0.25, 0.75), [3, 4, 5, 6]);
        assert_eq!(steps(0.3, 0.6), [3, 4, 5]);
        assert_eq!(steps(0.0, 0.05), [0; 0]);
        assert_eq!(steps(0.5, 0.5), [0; 0]);
    }
}
