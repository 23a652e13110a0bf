//! What lies between two prompts.

use candle_core::Tensor;

use super::Conditioning;
use crate::error::{Error, Result};
use crate::model::TextTime;

impl Conditioning {
    /// `(1 - t) * self + t * other`, of all that comes from words and sizes. Pictures beside the prompt are those of
    /// `self`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one has parts or a shape that the other has not.
    pub fn lerp(&self, other: &Self, t: f64) -> Result<Self> {
        let Self {
            prompt_embeds,
            negative_prompt_embeds,
            text_time,
            negative_text_time,
            image_prompts,
        } = self;
        let mix = |a: &Tensor, b: &Tensor| mix(a, b, t);
        let mix_time = |a: &TextTime, b: &TextTime| {
            Ok(TextTime {
                text_embeds: mix(&a.text_embeds, &b.text_embeds)?,
                time_ids: mix(&a.time_ids, &b.time_ids)?,
            })
        };
        let negative = &other.negative_prompt_embeds;
        Ok(Self {
            prompt_embeds: mix(prompt_embeds, &other.prompt_embeds)?,
            negative_prompt_embeds: both(negative_prompt_embeds, negative, mix)?,
            text_time: both(text_time, &other.text_time, mix_time)?,
            negative_text_time: both(negative_text_time, &other.negative_text_time, mix_time)?,
            image_prompts: image_prompts.clone(),
        })
    }
}

fn mix(a: &Tensor, b: &Tensor, t: f64) -> Result<Tensor> {
    if a.dims() != b.dims() {
        let expected = format!("the shape of the other, {:?}", a.dims());
        let found = format!("{:?}", b.dims());
        return Err(Error::argument("conditioning", expected, found));
    }
    Ok(((a * (1.0 - t))? + (b * t)?)?)
}

fn both<T>(
    a: &Option<T>,
    b: &Option<T>,
    mix: impl FnOnce(&T, &T) -> Result<T>,
) -> Result<Option<T>> {
    match (a, b) {
        (Some(a), Some(b)) => mix(a, b).map(Some),
        (None, None) => Ok(None),
        _ => {
            let expected = "the same parts in both";
            Err(Error::argument(
                "conditioning",
                expected,
                "one that only one has",
            ))
        }
    }
}
