//! Requests out of pictures' files.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::VERSION;
use super::infotext::{self, FIELDS, Infotext, VARIATION};
use crate::error::{Error, Result};
use crate::media::Provenance;
use crate::pipeline::GenerateRequest;
use crate::scheduler;

/// A request that was read out of a picture's file, and what it lacks to give the same picture again.
///
/// ```no_run
/// use diffusion_core::Pipeline;
/// use diffusion_core::pipeline::Recalled;
///
/// let pipe = Pipeline::builder().weights("examples/models/emoji").build()?;
/// let recalled = Recalled::read("heart.png")?;
/// for warning in &recalled.warnings {
///     eprintln!("warning: {warning}");
/// }
/// let more = pipe.generate(&recalled.request.num_images(4))?;
/// # Ok::<(), diffusion_core::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recalled {
    /// All that the file says and a request can hold.
    pub request: GenerateRequest,
    /// The name of the model.
    pub model: Option<String>,
    /// What keeps the request from giving the same picture.
    pub warnings: Vec<RecallWarning>,
}

/// Something in a picture's file that did not become a part of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecallWarning {
    /// A setting that requests do not have.
    Unknown {
        /// Its name in the file.
        key: String,
        /// Its value in the file.
        value: String,
    },
    /// A setting whose value is none of its kind; the default stays.
    Unreadable {
        /// Its name in the file.
        key: String,
        /// Its value in the file.
        value: String,
    },
    /// Something that no file holds and that must be given again: a picture, a tensor, a LoRA.
    Needed {
        /// What it is.
        what: String,
        /// How its owner finds it: size and hash, or name and strength.
        description: String,
    },
    /// The noise was drawn by another generator than ours, so the seed gives another picture.
    OtherNoise {
        /// A1111's name of the generator.
        generator: String,
    },
    /// The record is of a later version of this library.
    NewerRecord {
        /// Its version.
        version: u64,
    },
    /// The record is damaged, and A1111's text was read in its place.
    DamagedRecord {
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for RecallWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { key, value } => write!(f, "{key}: {value} has no place in a request"),
            Self::Unreadable { key, value } => {
                write!(f, "{key}: {value} cannot be read; the default stays")
            }
            Self::Needed { what, description } => {
                write!(f, "{what} must be given again: {description}")
            }
            Self::OtherNoise { generator } => write!(
                f,
                "the noise was drawn by the generator {generator:?}; ours is \"CPU\", so the seed gives another picture"
            ),
            Self::NewerRecord { version } => write!(
                f,
                "the record has version {version}, and this library knows {VERSION}; some of it may be lost"
            ),
            Self::DamagedRecord { reason } => {
                write!(f, "the record is damaged ({reason}); A1111's text was read")
            }
        }
    }
}

impl Recalled {
    /// Reads a picture's file. This library's record counts where there is one, else A1111's text.
    ///
    /// # Errors
    /// As [`Provenance::read`], and [`Error::Format`] if the file says nothing of how the picture came about.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of_provenance(&Provenance::read(path)?, path)
    }

    /// Reads what a picture's file says.
    ///
    /// # Errors
    /// [`Error::Format`] if it says nothing, or if its record is damaged and there is no text.
    pub fn from_provenance(provenance: &Provenance) -> Result<Self> {
        Self::of_provenance(provenance, Path::new("picture"))
    }

    /// Reads a record of this library, JSON.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not one.
    pub fn from_record(json: &str) -> Result<Self> {
        Self::of_record(json).map_err(|reason| Error::format(Path::new("record"), reason))
    }

    /// Reads a text in A1111's form; one without settings is a prompt. What is not understood is a warning.
    pub fn from_parameters(text: &str) -> Self {
        let Infotext {
            prompt,
            negative_prompt,
            settings,
        } = infotext::parse(text);
        let mut read = Reading::default();
        let prompt = read.take_loras(&prompt);
        read.set("prompt", "Prompt", prompt.into());
        read.set("negative_prompt", "Negative prompt", negative_prompt.into());
        let value_of = |key: &str| {
            let mut found = settings.iter().filter(|(found, _)| found == key);
            found.next().map(|(_, value)| &**value)
        };
        if let Some(sampler) = value_of("Sampler") {
            read.set_sampler(sampler, value_of("Schedule type"));
        }
        let variation = VARIATION.map(|(key, field)| (field, value_of(key).map(number)));
        if let [(seed, Some(of)), (strength, Some(share))] = variation {
            let both = json!({seed: of, strength: share});
            read.set("variation", VARIATION[0].0, both);
        }
        let mut model = None;
        for (key, value) in &settings {
            match key.as_str() {
                "Sampler" | "Schedule type" | "Version" | "Model hash" | "RNG" => {}
                "Model" => model = Some(value.clone()),
                "Size" => read.set_size(value),
                key if VARIATION.iter().any(|(known, _)| *known == key) => {}
                key => match FIELDS.iter().find(|(known, _)| *known == key) {
                    Some((_, field)) => read.set(field, key, number(value)),
                    None => read.warnings.push(RecallWarning::Unknown {
                        key: key.into(),
                        value: value.clone(),
                    }),
                },
            }
        }
        let generator = value_of("RNG").unwrap_or("GPU");
        if generator != "CPU" && !settings.is_empty() {
            let generator = generator.to_owned();
            read.warnings.push(RecallWarning::OtherNoise { generator });
        }
        read.finish(model)
    }

    fn of_provenance(provenance: &Provenance, path: &Path) -> Result<Self> {
        let record = provenance.record.as_deref().map(Self::of_record);
        match (record, &provenance.parameters) {
            (Some(Ok(recalled)), _) => Ok(recalled),
            (Some(Err(reason)), Some(text)) => {
                let mut recalled = Self::from_parameters(text);
                let warning = RecallWarning::DamagedRecord { reason };
                recalled.warnings.insert(0, warning);
                Ok(recalled)
            }
            (Some(Err(reason)), None) => Err(Error::format(path, reason)),
            (None, Some(text)) => Ok(Self::from_parameters(text)),
            (None, None) => {
                let reason = "it says nothing of how it came about; editors often drop such texts";
                Err(Error::format(path, reason))
            }
        }
    }

    fn of_record(json: &str) -> Result<Self, String> {
        let record: Map<String, Value> =
            serde_json::from_str(json).map_err(|e| format!("the record is not JSON: {e}"))?;
        let Some(Value::Object(request)) = record.get("request") else {
            return Err("the record has no request".into());
        };
        let mut read = Reading::default();
        let version = record.get("version").and_then(Value::as_u64).unwrap_or(0);
        if version > VERSION {
            read.warnings.push(RecallWarning::NewerRecord { version });
        }
        for (field, value) in request {
            read.set(field, field, value.clone());
        }
        let needs = record.get("needs").and_then(Value::as_object);
        for (what, description) in needs.into_iter().flatten() {
            read.warnings.push(RecallWarning::Needed {
                what: what.clone(),
                description: plain(description),
            });
        }
        let model = record.get("model").and_then(Value::as_str);
        Ok(read.finish(model.map(str::to_owned)))
    }
}

/// The fields of a request as they are found, each tried by itself.
#[derive(Default)]
struct Reading {
    fields: Map<String, Value>,
    warnings: Vec<RecallWarning>,
}

impl Reading {
    /// Sets a field under its name in a request; `key` is that in the file.
    fn set(&mut self, field: &str, key: &str, value: Value) {
        let (key, found) = (key.to_owned(), plain(&value));
        let alone = json!({ field: value });
        if !is_field(field) {
            self.warnings
                .push(RecallWarning::Unknown { key, value: found });
        } else if serde_json::from_value::<GenerateRequest>(alone).is_err() {
            self.warnings
                .push(RecallWarning::Unreadable { key, value: found });
        } else {
            self.fields.insert(field.into(), value);
        }
    }

    /// A1111's sampler and curve as one of our names.
    fn set_sampler(&mut self, sampler: &str, curve: Option<&str>) {
        let name = match curve {
            // Before curves were settings of their own they stood behind the sampler's name.
            None => sampler.to_owned(),
            Some("Automatic") => format!("{sampler} {}", infotext::automatic_curve(sampler)),
            Some(curve) => format!("{sampler} {curve}"),
        };
        match scheduler::from_name(&name, &Value::Null) {
            Ok(_) => self.set("scheduler", "Sampler", name.into()),
            Err(_) => self.warnings.push(RecallWarning::Unknown {
                key: "Sampler".into(),
                value: name,
            }),
        }
    }

    fn set_size(&mut self, size: &str) {
        let sides = size.split_once('x').and_then(|(width, height)| {
            Some((width.parse::<usize>().ok()?, height.parse::<usize>().ok()?))
        });
        match sides {
            Some((width, height)) => {
                self.fields.insert("width".into(), width.into());
                self.fields.insert("height".into(), height.into());
            }
            None => self.warnings.push(RecallWarning::Unreadable {
                key: "Size".into(),
                value: size.into(),
            }),
        }
    }

    /// A prompt without `<lora:name:0.8>` and its like, which are no words of it and must be loaded.
    fn take_loras(&mut self, prompt: &str) -> String {
        let mut kept = String::new();
        let mut rest = prompt;
        while let Some((before, behind)) = rest.split_once('<') {
            kept += before;
            let network = behind.split_once('>').filter(|(inside, _)| {
                let kind = inside.split(':').next().unwrap_or_default();
                matches!(kind, "lora" | "lyco" | "hypernet")
            });
            rest = match network {
                Some((inside, behind)) => {
                    self.warnings.push(RecallWarning::Needed {
                        what: "a network".into(),
                        description: inside.into(),
                    });
                    behind
                }
                None => {
                    kept.push('<');
                    behind
                }
            };
        }
        (kept + rest).trim().to_owned()
    }

    fn finish(self, model: Option<String>) -> Recalled {
        // Each of the fields was read by itself before.
        let request = serde_json::from_value(self.fields.into());
        Recalled {
            request: request.unwrap_or_default(),
            model,
            warnings: self.warnings,
        }
    }
}

/// Whether requests have such a field.
fn is_field(name: &str) -> bool {
    let all = serde_json::to_value(GenerateRequest::default());
    all.is_ok_and(|fields| fields.get(name).is_some())
}

/// A number in the narrowest form that holds it, or the text.
fn number(text: &str) -> Value {
    let whole = text.parse::<u64>().map(Value::from);
    let signed = whole.or_else(|_| text.parse::<i64>().map(Value::from));
    let any = signed.or_else(|_| text.parse::<f64>().map(Value::from));
    any.unwrap_or_else(|_| text.into())
}

/// A value as a reader wants it: texts without quotes.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
