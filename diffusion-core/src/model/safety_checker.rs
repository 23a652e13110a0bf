//! The safety checker of Stable Diffusion: how near a picture is to concepts that not everybody wants to see.

use candle_core::{DType, Device, Tensor};

use super::{ClipVisionConfig, ImageEncoder};
use crate::error::Result;
use crate::nn::{Params, TensorSource};

/// The vision model inside, which older files have under a name within its own.
const VISION: &str = "vision_model.";
const PROJECTION: &str = "visual_projection.";
/// What a score is raised by if the picture has something that asks for special care.
const CARE: f32 = 0.01;

/// What the checker says of a picture. It judges and changes nothing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SafetyReport {
    /// For each of the checker's concepts how far the picture is beyond the threshold, in cosines from -2 to 2, rounded to
    /// thousandths: above 0 it is flagged.
    pub scores: Vec<f32>,
    /// The numbers of the concepts that are flagged.
    pub concepts: Vec<usize>,
    /// The same scores of the concepts that ask for special care. One above 0 makes the others stricter by 0.01 and
    /// flags nothing by itself.
    pub special_scores: Vec<f32>,
}

impl SafetyReport {
    /// Whether any concept is flagged; diffusers' `nsfw_content_detected`.
    pub fn is_flagged(&self) -> bool {
        !self.concepts.is_empty()
    }
}

/// CLIP's vision model with the embeddings and thresholds of some concepts; diffusers'
/// `StableDiffusionSafetyChecker`.
///
/// Source: Rando et al., "Red-Teaming the Stable Diffusion Safety Filter", 2022.
#[derive(Debug, Clone)]
pub struct SafetyChecker {
    encoder: ImageEncoder,
    concepts: Concepts,
    special_care: Concepts,
}

/// Concepts as CLIP sees them, each of length 1, and how near is too near.
#[derive(Debug, Clone)]
struct Concepts {
    /// `(projection_dim, concepts)`, f32.
    directions: Tensor,
    thresholds: Vec<f32>,
}

impl SafetyChecker {
    /// Reads the tensors. Weights of the vision model are held as `dtype`.
    ///
    /// # Errors
    /// As [`ImageEncoder::new`].
    pub fn new(
        config: ClipVisionConfig,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let ignored = &[VISION, PROJECTION];
        let width = config.projection_dim;
        let (concepts, special_care) =
            Params::build(source, DType::F32, device, ignored, |params| {
                let read = |name: &str| {
                    let count = source.shape(name).and_then(|shape| shape.first().copied());
                    let count = count.unwrap_or(1);
                    let embeds = params.tensor(name, &[count, width])?;
                    let thresholds = params.tensor(&format!("{name}_weights"), &[count])?;
                    Concepts::new(&embeds, &thresholds)
                };
                Ok((read("concept_embeds")?, read("special_care_embeds")?))
            })?;
        let vision = VisionTensors::new(source);
        Ok(Self {
            encoder: ImageEncoder::new(config, &vision, dtype, device)?,
            concepts,
            special_care,
        })
    }

    /// The vision model inside.
    pub fn encoder(&self) -> &ImageEncoder {
        &self.encoder
    }

    /// Judges pictures. [`check`](Self::check) takes them as they are.
    ///
    /// # Shapes
    /// `pixels`: `(batch, 3, image_size, image_size)`, as [`to_clip`](crate::media::to_clip) makes them.
    ///
    /// # Errors
    /// As [`ImageEncoder::forward`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Vec<SafetyReport>> {
        let embeds = self.encoder.forward(pixels)?.image_embeds;
        let directions = unit_length(&embeds.to_dtype(DType::F32)?)?;
        let special_care = self.special_care.excesses(&directions)?;
        let concepts = self.concepts.excesses(&directions)?;
        let reports = concepts.iter().zip(&special_care);
        Ok(reports
            .map(|(concepts, care)| report(concepts, care))
            .collect())
    }
}

impl Concepts {
    fn new(embeds: &Tensor, thresholds: &Tensor) -> Result<Self> {
        Ok(Self {
            directions: unit_length(embeds)?.t()?.contiguous()?,
            thresholds: thresholds.to_vec1()?,
        })
    }

    /// How far each of some directions is beyond each threshold.
    fn excesses(&self, directions: &Tensor) -> Result<Vec<Vec<f32>>> {
        let cosines = directions.matmul(&self.directions)?.to_vec2::<f32>()?;
        let beyond = |cosines: Vec<f32>| {
            let pairs = cosines.iter().zip(&self.thresholds);
            pairs
                .map(|(cosine, threshold)| cosine - threshold)
                .collect()
        };
        Ok(cosines.into_iter().map(beyond).collect())
    }
}

/// Scores in thousandths, made stricter by what asks for special care: the care after it, too.
fn report(concepts: &[f32], special_care: &[f32]) -> SafetyReport {
    let mut raised = 0.0;
    let thousandths = |excess: f32| (excess * 1000.0).round_ties_even() / 1000.0;
    let special_scores = special_care.iter().map(|excess| {
        let score = thousandths(excess + raised);
        if score > 0.0 {
            raised = CARE;
        }
        score
    });
    let special_scores = special_scores.collect();
    let scores: Vec<f32> = concepts
        .iter()
        .map(|excess| thousandths(excess + raised))
        .collect();
    SafetyReport {
        concepts: (0..scores.len()).filter(|&i| scores[i] > 0.0).collect(),
        scores,
        special_scores,
    }
}

/// Rows of length 1, as `torch.nn.functional.normalize`.
fn unit_length(rows: &Tensor) -> Result<Tensor> {
    let lengths = rows.sqr()?.sum_keepdim(1)?.sqrt()?.clamp(1e-12, f32::MAX)?;
    Ok(rows.broadcast_div(&lengths)?)
}

/// The vision model's tensors among those of a checker, by the names that it has alone.
struct VisionTensors<'a> {
    source: &'a dyn TensorSource,
    is_nested: bool,
}

impl<'a> VisionTensors<'a> {
    fn new(source: &'a dyn TensorSource) -> Self {
        let nested = format!("{VISION}{VISION}");
        let names = source.tensor_names();
        Self {
            source,
            is_nested: names.iter().any(|name| name.starts_with(&nested)),
        }
    }

    fn outer(&self, name: &str) -> String {
        match self.is_nested && name.starts_with(VISION) {
            true => format!("{VISION}{name}"),
            false => name.to_owned(),
        }
    }
}

impl TensorSource for VisionTensors<'_> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn tensor_names(&self) -> Vec<String> {
        let mut names = self.source.tensor_names();
        names.retain(|name| name.starts_with(VISION) || name.starts_with(PROJECTION));
        let inner = |name: String| match name.strip_prefix(VISION) {
            Some(inner) if self.is_nested => inner.to_owned(),
            _ => name,
        };
        names.into_iter().map(inner).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(&self.outer(name))
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.source.load(&self.outer(name), dtype, device)
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.source.dtype(&self.outer(name))
    }
}
