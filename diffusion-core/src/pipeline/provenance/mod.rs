//! How pictures came about: noted in a run, written into their files, read back into a request.

mod infotext;
mod needs;
mod recall;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use needs::note_pictures;
pub(super) use needs::{hash_picture, hash_tensor};
pub use recall::{RecallWarning, Recalled};

use super::check::Checked;
use super::request::SchedulerChoice;
use super::{GenerateRequest, Generated, Hires, Pipeline, Sampled};
use crate::denoise::row_for_each;
use crate::error::{Error, Result};
use crate::media::{self, Provenance};
use crate::scheduler::{self, Scheduler};

/// The form of the record. Readers of a later one are told.
const VERSION: u64 = 1;

/// The program that makes the pictures.
const LIBRARY: &str = concat!("diffusion-core ", env!("CARGO_PKG_VERSION"));

/// What a run notes about itself: all of its pictures' provenance but for their seeds.
#[derive(Debug, Clone)]
pub(super) struct RunRecord {
    /// The request's fields, as far as they are data.
    request: Map<String, Value>,
    /// What is not data and must be given again, by a short description.
    needs: Map<String, Value>,
    /// The same of the latents that each picture starts from, if they were given.
    latents: Vec<Value>,
    /// The same of the noise.
    noise: Vec<Value>,
    model: Option<String>,
    /// A1111's names of the sampler and its curve.
    sampler: (String, Option<&'static str>),
    seeds: Vec<u64>,
}

impl Pipeline {
    /// Notes a run before it begins.
    pub(super) fn record(&self, request: &GenerateRequest, checked: &Checked) -> Result<RunRecord> {
        let mut resolved = request.clone();
        // Margins say how large the picture becomes, and allow no size beside them.
        if request.margins.is_none() {
            resolved.width = Some(checked.width);
            resolved.height = Some(checked.height);
        }
        if request.scheduler.is_none() {
            resolved.scheduler = Some(SchedulerChoice::Value(checked.scheduler.clone()));
        }
        let mut needs = note_pictures(request)?;
        let is_known = checked.scheduler.config().is_some();
        if matches!(resolved.scheduler, Some(SchedulerChoice::Value(_))) && !is_known {
            needs.insert(
                "scheduler".into(),
                format!("{:?}", checked.scheduler).into(),
            );
        }
        let loras = self.loras().iter();
        let loras: Vec<Value> = loras
            .map(|lora| json!({"name": lora.name, "scale": lora.scale}))
            .collect();
        let words = self.words();
        for (name, values) in [("loras", loras), ("embeddings", words)] {
            if !values.is_empty() {
                needs.insert(name.into(), values.into());
            }
        }
        let of_images = |tensor: Option<&Tensor>| match tensor {
            Some(tensor) => (0..checked.seeds.len())
                .map(|i| hash_tensor(&row_for_each(tensor, &(i..i + 1), checked.seeds.len())?))
                .collect::<Result<_>>(),
            None => Ok(Vec::new()),
        };
        let noise = of_images(checked.given_noise.as_ref())?;
        let latents = of_images(checked.latents.as_ref())?;
        Ok(RunRecord {
            request: fields_of(&resolved)?,
            needs,
            latents,
            noise,
            model: self.name.clone(),
            sampler: sampler_label(&*checked.scheduler),
            seeds: checked.seeds.clone(),
        })
    }
}

impl RunRecord {
    /// Notes that a stage was given a tensor that no request has.
    pub(super) fn needs_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.needs.insert(name.into(), hash_tensor(tensor)?);
        Ok(())
    }

    /// The same of a run of two passes, of which this is the first.
    pub(super) fn with_second_pass(mut self, hires: &Hires) -> Result<Self> {
        let hires = serde_json::to_value(hires).map_err(Error::custom)?;
        self.request.insert("hires".into(), hires);
        Ok(self)
    }

    /// The provenance of one picture: a request for it alone, of its own seed.
    fn of_picture(&self, index: usize) -> Result<Provenance> {
        let seed = self.seeds.get(index).ok_or_else(|| {
            let expected = format!("the number of one of {} pictures", self.seeds.len());
            Error::argument("index", expected, index)
        })?;
        let mut request = self.request.clone();
        request.insert("seed".into(), (*seed).into());
        request.insert("num_images".into(), 1.into());
        let parameters = infotext::write(&request, &self.sampler, self.model.as_deref());
        let mut needs = self.needs.clone();
        for (name, given) in [("latents", &self.latents), ("noise", &self.noise)] {
            if let Some(given) = given.get(index) {
                needs.insert(name.into(), given.clone());
            }
        }
        // Further pictures have further seeds to vary by.
        if let Some(Value::Object(variation)) = request.get_mut("variation") {
            let first = variation.get("seed").and_then(Value::as_u64).unwrap_or(0);
            variation.insert("seed".into(), first.wrapping_add(index as u64).into());
        }
        let record = json!({
            "version": VERSION,
            "library": LIBRARY,
            "model": self.model,
            "request": request,
            "needs": needs,
        });
        Ok(Provenance::new(Some(parameters), Some(record.to_string())))
    }
}

impl Sampled {
    /// How a picture comes about that is decoded of the latents of this number.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such picture.
    pub fn provenance(&self, index: usize) -> Result<Provenance> {
        self.record.of_picture(index)
    }
}

impl Generated {
    /// How a picture came about, for [`media::to_png`] and its like: a request for it
    /// alone, of its own seed. Pictures and tensors of the request are named by their size and a hash.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such picture.
    pub fn provenance(&self, index: usize) -> Result<Provenance> {
        self.record.of_picture(index)
    }

    /// Writes a picture into a file of the kind that its ending says, PNG, JPEG or WebP, with how it came
    /// about: [`Recalled`] reads it back. [`media::save`] without a provenance writes the
    /// pixels alone.
    ///
    /// # Errors
    /// As [`provenance`](Self::provenance) and [`media::save`].
    pub fn save(&self, index: usize, path: impl AsRef<std::path::Path>) -> Result<()> {
        let provenance = self.provenance(index)?;
        media::save(&self.images[index], path, Some(&provenance))
    }
}

/// The fields of a request that are data and set.
fn fields_of(request: &GenerateRequest) -> Result<Map<String, Value>> {
    let value = serde_json::to_value(request).map_err(Error::custom)?;
    let Value::Object(mut fields) = value else {
        return Ok(Map::new());
    };
    fields.retain(|_, value| !value.is_null());
    Ok(fields)
}

/// What A1111 calls a sampler and the curve of its noise levels. Schedulers of the caller's own have the name of
/// their type, and lists of noise levels none.
fn sampler_label(scheduler: &dyn Scheduler) -> (String, Option<&'static str>) {
    let config = scheduler.config().unwrap_or_default();
    let Some(entry) = scheduler::entry_of(&config) else {
        let debug = format!("{scheduler:?}");
        let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
        return (debug.chars().take_while(is_name).collect(), None);
    };
    let label = entry.labels.first().unwrap_or(&entry.name);
    let curve = config["sigma_schedule"].as_str();
    ((*label).to_owned(), curve.and_then(infotext::curve_label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoise::DeepShrink;
    use crate::media::{Margins, Resampling, ResizeMode};
    use crate::model::VaeTiling;
    use crate::nn::Seamless;
    use crate::{MaskedContent, PictureSizes, PromptSyntax, Upscaler};

    /// A request with no field as by default, and what is not data left out.
    fn changed() -> GenerateRequest {
        GenerateRequest {
            margins: Some(Margins::all(8)),
            is_instruction: true,
            ..GenerateRequest::txt2img("猫, \"quoted\"\nsecond line")
        }
        .prompt_2("second")
        .negative_prompt("blue")
        .negative_prompt_2("red")
        .sizes(PictureSizes {
            original: Some((7, 8)),
            crop: (1, 2),
            target: Some((9, 10)),
        })
        .negative_sizes(PictureSizes::default())
        .aesthetic_score(5.5)
        .negative_aesthetic_score(1.25)
        .size(64, 128)
        .num_steps(11)
        .guidance_scale(0.1 + 0.2)
        .seed(u64::MAX)
        .num_images(3)
        .batch_size(2)
        .eta(0.25)
        .scheduler_name("DPM++ 2M Karras")
        .denoising_start(0.125)
        .denoising_end(0.75)
        .guidance_curve([1.0, 2.5])
        .guidance_interval(0.25, 0.75)
        .guidance_rescale(0.5)
        .prompt_syntax(PromptSyntax::Plain)
        .clip_skip(2)
        .pag_scale(3.0)
        .pag_adaptive_scale(0.01)
        .pag_layers(["mid", "up"])
        .deep_shrink(DeepShrink::default())
        .deep_cache(3)
        .tgate(2)
        .token_merging(0.25)
        .seamless(Seamless { x: true, y: false })
        .vae_tiling(VaeTiling::Off)
        .vae_slicing(true)
        .image_guidance_scale(1.25)
        .cfg_zero_star(2)
        .variation(u64::MAX, 0.5)
        .resize_mode(ResizeMode::Fill)
        .strength(0.625)
        .mask_blur(3.5)
        .only_masked(16)
        .paste_back(false)
        .masked_content(MaskedContent::Noise)
        .hires(Hires {
            upscaler: Upscaler::Pixels(Resampling::Bicubic),
            num_steps: Some(7),
            prompt: Some("larger".into()),
            ..Hires::new(192, 256)
        })
    }

    #[test]
    fn every_field_that_is_data_comes_back() -> Result<()> {
        let written = fields_of(&changed())?;
        let default = serde_json::to_value(GenerateRequest::default()).map_err(Error::custom)?;
        for (field, value) in default.as_object().into_iter().flatten() {
            // A new field that this request leaves at its default shows here.
            let found = written.get(field);
            assert!(found.is_some_and(|found| found != value), "{field}");
        }
        let record = json!({"version": VERSION, "request": written}).to_string();
        let recalled = Recalled::from_record(&record)?;
        assert_eq!(recalled.warnings, []);
        assert_eq!(fields_of(&recalled.request)?, written);
        Ok(())
    }

    #[test]
    fn a_record_that_is_strange_says_so() -> Result<()> {
        let record = r#"{"version": 9, "request": {"prompt": "a", "frobnicate": 2, "num_steps": -1, "seed": 5},
            "needs": {"latents": {"shape": [1]}}, "model": "emoji"}"#;
        let recalled = Recalled::from_record(record)?;
        let texts: Vec<String> = recalled.warnings.iter().map(ToString::to_string).collect();
        let expected = [
            "the record has version 9, and this library knows 1; some of it may be lost",
            "frobnicate: 2 has no place in a request",
            "num_steps: -1 cannot be read; the default stays",
            "latents must be given again: {\"shape\":[1]}",
        ];
        assert_eq!(texts, expected);
        assert_eq!(recalled.model.as_deref(), Some("emoji"));
        assert_eq!(
            (recalled.request.seed, recalled.request.num_steps),
            (Some(5), 50)
        );
        for broken in ["", "[]", "{}", "{\"request\": 3}"] {
            assert!(matches!(
                Recalled::from_record(broken),
                Err(Error::Format { .. })
            ));
        }
        Ok(())
    }

    #[test]
    fn texts_of_a1111_become_requests() -> Result<()> {
        let text = "a cat <lora:style:0.8>\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, \
                    Schedule type: Automatic, CFG scale: 7, Seed: 965400086, Size: 512x768, \
                    Model hash: 45dee52b, Model: v1-5, Denoising strength: 0.7, Version: v1.10.1";
        let recalled = Recalled::from_parameters(text);
        let expected = GenerateRequest::txt2img("a cat")
            .negative_prompt("dog")
            .num_steps(20)
            .scheduler_name("DPM++ 2M Karras")
            .guidance_scale(7.0)
            .seed(965_400_086)
            .size(512, 768)
            .strength(0.7);
        assert_eq!(fields_of(&recalled.request)?, fields_of(&expected)?);
        assert_eq!(recalled.model.as_deref(), Some("v1-5"));
        let texts: Vec<String> = recalled.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "a network must be given again: lora:style:0.8");
        assert!(
            texts[1].contains("generator \"GPU\"") && texts.len() == 2,
            "{texts:?}"
        );

        // Older texts have the curve in the sampler's name.
        for (sampler, name) in [
            ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras"),
            ("Sampler: Euler a", "Euler a"),
            (
                "Sampler: Euler a, Schedule type: Automatic",
                "Euler a Uniform",
            ),
            (
                "Sampler: DPM++ 2M, Schedule type: SGM Uniform",
                "DPM++ 2M SGM Uniform",
            ),
        ] {
            let recalled =
                Recalled::from_parameters(&format!("a\nSteps: 1, Seed: 2, {sampler}, RNG: CPU"));
            assert_eq!(recalled.warnings, []);
            assert_eq!(fields_of(&recalled.request)?["scheduler"], name);
        }
        let strange =
            Recalled::from_parameters("a\nSteps: x, Seed: 2, Sampler: Magic, Size: 3, RNG: CPU");
        assert_eq!(strange.warnings.len(), 3);
        Ok(())
    }

    #[test]
    fn every_scheduler_is_named_by_its_configuration() -> Result<()> {
        for name in scheduler::names() {
            let known = scheduler::from_name(name, &Value::Null)?;
            let config = known.config().unwrap_or_default();
            let (label, curve) = sampler_label(&*known);
            let again = format!("{label} {}", curve.unwrap_or_default());
            let again = scheduler::from_name(&again, &Value::Null)?;
            let found = again.config().unwrap_or_default();
            assert_eq!(found, config, "{name}: {label} {curve:?}");
        }
        Ok(())
    }
}
