//! Schedulers by name and by configuration.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Scheduler;
use super::algorithm::{Algorithm, from_fields, is_curve_flag};
use super::levels::SigmaSchedule;
use super::table::TABLE;
use crate::error::{Error, Result};

/// A scheduler that is known by name.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The short name, k-diffusion's and ComfyUI's where they have one.
    pub name: &'static str,
    /// Other names: A1111's labels, those of other programs.
    pub labels: &'static [&'static str],
    /// The class in configurations, diffusers' where it has one.
    pub class: &'static str,
    /// Other classes of diffusers that do the same.
    pub other_classes: &'static [&'static str],
    /// The order of convergence over 12 to 96 steps, without fresh noise where it is stochastic; 0 where it
    /// has none. That of methods over several steps counts their start at first order.
    pub order: u8,
    /// Evaluations of the model in a step; 0 where they vary.
    pub evaluations: u8,
    /// Whether it draws fresh noise by default.
    pub is_stochastic: bool,
    /// The paper or program that it comes from.
    pub source: &'static str,
    /// What its results are tested against.
    pub verified: &'static str,
    /// What the short name means in a configuration that may be another class's, as JSON.
    pub(super) fields: &'static str,
    /// From a configuration.
    pub(super) build: fn(&Value) -> Result<Arc<dyn Scheduler>>,
}

impl Entry {
    /// A row of the table; the builder adds what most rows do not need.
    pub(super) const fn new<A: Algorithm>(name: &'static str, order: u8, evaluations: u8) -> Self {
        Self {
            name,
            labels: &[],
            class: A::CLASS,
            other_classes: &[],
            order,
            evaluations,
            is_stochastic: false,
            source: "",
            verified: "",
            fields: "{}",
            build: from_fields::<A>,
        }
    }

    pub(super) const fn labels(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }

    pub(super) const fn other_classes(mut self, classes: &'static [&'static str]) -> Self {
        self.other_classes = classes;
        self
    }

    pub(super) const fn stochastic(mut self) -> Self {
        self.is_stochastic = true;
        self
    }

    pub(super) const fn fields(mut self, fields: &'static str) -> Self {
        self.fields = fields;
        self
    }

    pub(super) const fn source(mut self, source: &'static str, verified: &'static str) -> Self {
        self.source = source;
        self.verified = verified;
        self
    }

    /// The scheduler under one of its names, set as a configuration of whatever class says. A class alone
    /// does not say what a short name does.
    fn named(&self, name: &str, config: &Value) -> Result<Arc<dyn Scheduler>> {
        if self.name != name && self.is_class(name) {
            return (self.build)(config);
        }
        let mut fields = config.as_object().cloned().unwrap_or_default();
        let own: Map<String, Value> = serde_json::from_str(self.fields).map_err(Error::custom)?;
        fields.extend(own);
        (self.build)(&Value::Object(fields))
    }

    fn classes(&self) -> impl Iterator<Item = &'static str> {
        [self.class]
            .into_iter()
            .chain(self.other_classes.iter().copied())
    }

    fn is_class(&self, name: &str) -> bool {
        self.classes().any(|class| {
            let class = plain(class);
            class == name || class.strip_suffix("scheduler") == Some(name)
        })
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name
            || self.is_class(name)
            || self.labels.iter().any(|label| plain(label) == name)
    }
}

/// Curves under other names than their own.
const CURVE_LABELS: [(&str, &str); 10] = [
    ("k", "karras"),
    ("uniform", "native"),
    ("automatic", "native"),
    ("discrete", "native"),
    ("sgmuniform", "sgm_uniform"),
    ("ddim", "ddim_uniform"),
    ("ays", "align_your_steps"),
    ("ays_sdxl", "align_your_steps_sdxl"),
    ("align_your_steps_11", "align_your_steps"),
    ("align_your_steps_gits", "gits"),
];

/// All schedulers that are known by name, in the order of the documentation.
pub fn entries() -> &'static [Entry] {
    TABLE
}

/// The entry of a scheduler's own [`config`](Scheduler::config): of those of its class the one that says most of
/// what the configuration says.
pub fn entry_of(config: &Value) -> Option<&'static Entry> {
    let class = config["_class_name"].as_str()?;
    let said = |entry: &&'static Entry| {
        let own: Map<String, Value> = serde_json::from_str(entry.fields).ok()?;
        let fits = own.iter().all(|(name, value)| config[name] == *value);
        fits.then_some(own.len())
    };
    let of_class = TABLE.iter().filter(|entry| entry.class == class);
    of_class
        .filter(|entry| said(entry).is_some())
        .min_by_key(|entry| Reverse(said(entry)))
}

/// The short names that [`from_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|entry| entry.name)
}

/// A scheduler by a diffusers configuration: `_class_name` chooses it, the other fields set it, and those
/// that are absent have the defaults of diffusers' class. Beside diffusers' fields there is `sigma_schedule`,
/// the name of a [`SigmaSchedule`], and there are `sigmas` or `timesteps`, a list of one's own.
///
/// # Errors
/// [`Error::Unsupported`] for a class or an option that this version does not know, [`Error::Format`] for
/// fields of the wrong type, [`Error::InvalidArgument`] for fields out of range.
pub fn from_config(config: &Value) -> Result<Arc<dyn Scheduler>> {
    let class = config["_class_name"].as_str().unwrap_or_default();
    let answers = |entry: &&Entry| entry.classes().any(|known| known == class);
    match TABLE.iter().find(answers) {
        Some(entry) => (entry.build)(config),
        None => {
            let classes = TABLE.iter().flat_map(Entry::classes);
            Err(unknown(class, nearest(class, classes)))
        }
    }
}

/// A scheduler by name, set as `config` (a `scheduler_config.json`, of whatever class) says. Names are
/// those of [`names`], A1111's labels or diffusers' classes, each of them alone or followed by a curve of
/// noise levels, as in "DPM++ 2M Karras" or `dpmpp_2m_sgm_uniform`. Case does not matter, nor which signs
/// stand between words.
///
/// # Errors
/// As [`from_config`].
pub fn from_name(name: &str, config: &Value) -> Result<Arc<dyn Scheduler>> {
    let wanted = plain(name);
    let prefix = ["k_", "sample_"]
        .into_iter()
        .find_map(|prefix| wanted.strip_prefix(prefix));
    let wanted = prefix.unwrap_or(&wanted);
    let find = |name: &str| TABLE.iter().find(|entry| entry.answers_to(name));
    if let Some(entry) = find(wanted) {
        return entry.named(wanted, config);
    }
    let split = wanted.match_indices('_').find_map(|(i, _)| {
        let entry = find(&wanted[..i])?;
        Some((entry, &wanted[..i], curve(&wanted[i + 1..])?))
    });
    let Some((entry, sampler, curve)) = split else {
        let names = TABLE.iter().map(|entry| entry.name);
        let labels = TABLE.iter().flat_map(|entry| entry.labels).copied();
        let classes = TABLE.iter().map(|entry| entry.class);
        let known = names.chain(labels).chain(classes);
        return Err(unknown(name, nearest(wanted, known)));
    };
    let mut fields = config.as_object().cloned().unwrap_or_default();
    fields.retain(|name, _| !matches!(name.as_str(), "sigmas" | "timesteps"));
    fields.retain(|name, _| !is_curve_flag(name));
    // What belongs to the curve of the configuration's own class.
    let is_edm = config["_class_name"]
        .as_str()
        .is_some_and(|class| class.starts_with("EDM"));
    if is_edm && curve != "karras" {
        fields.remove("rho");
    }
    fields.insert("sigma_schedule".into(), curve.into());
    entry.named(sampler, &Value::Object(fields))
}

/// A curve's own name, if a name means one.
fn curve(name: &str) -> Option<&'static str> {
    let own = SigmaSchedule::NAMED.into_iter().map(|(own, _)| (own, own));
    let mut known = own.chain(CURVE_LABELS);
    known.find_map(|(label, own)| (label == name).then_some(own))
}

/// In lower case, with one underscore between words and `pp` for `++`.
fn plain(name: &str) -> String {
    let lower = name.to_lowercase().replace("++", "pp");
    let words = lower.split(|c: char| !c.is_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("_")
}

/// The three nearest of the known names.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let name = plain(name);
    let mut known: Vec<&str> = known.collect();
    let likeness = |other: &&str| strsim::jaro_winkler(&name, &plain(other));
    known.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
    known.dedup_by_key(|name| plain(name));
    known.truncate(3);
    known
}

fn unknown(name: &str, nearest: Vec<&str>) -> Error {
    let hint = format!(
        "did you mean {}? docs/SCHEDULERS.md has all names",
        nearest.join(", ")
    );
    Error::unsupported(format!("scheduler {name:?}"), hint)
}
