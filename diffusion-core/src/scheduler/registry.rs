//! Schedulers by name and by configuration.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Ddim, DpmPp2m, Euler, Scheduler};
use crate::config::{parse, require_defaults};
use crate::error::{Error, Result};

/// A scheduler that is known by name.
struct Entry {
    /// The short name.
    name: &'static str,
    /// diffusers' class.
    class: &'static str,
    /// Sets what the short name means in a configuration that may be another class's.
    mean: fn(&mut Map<String, Value>),
    /// From a configuration. Karras et al.'s noise levels may be asked for beside it.
    build: fn(&Value, karras: bool) -> Result<Arc<dyn Scheduler>>,
}

const TABLE: &[Entry] = &[
    Entry {
        name: "ddim",
        class: "DDIMScheduler",
        mean: |_| {},
        build: ddim,
    },
    Entry {
        name: "euler",
        class: "EulerDiscreteScheduler",
        mean: |_| {},
        build: euler,
    },
    Entry {
        name: "dpmpp_2m",
        class: "DPMSolverMultistepScheduler",
        mean: |fields| {
            fields.insert("algorithm_type".into(), json!("dpmsolver++"));
            fields.insert("solver_order".into(), json!(2));
        },
        build: dpmpp_2m,
    },
];

/// Where errors say that a field stands.
const PLACE: &str = "scheduler config";

fn ddim(config: &Value, karras: bool) -> Result<Arc<dyn Scheduler>> {
    require_defaults("DDIMScheduler", config, &[("thresholding", json!(false))])?;
    let scheduler: Ddim = parse(Path::new(PLACE), config)?;
    Ok(Arc::new(Ddim {
        use_karras_sigmas: karras,
        ..scheduler
    }))
}

fn euler(config: &Value, karras: bool) -> Result<Arc<dyn Scheduler>> {
    let defaults = [
        ("interpolation_type", json!("linear")),
        ("sigma_max", Value::Null),
        ("sigma_min", Value::Null),
        ("timestep_type", json!("discrete")),
        ("use_beta_sigmas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
    ];
    require_defaults("EulerDiscreteScheduler", config, &defaults)?;
    let mut scheduler: Euler = parse(Path::new(PLACE), config)?;
    scheduler.use_karras_sigmas |= karras;
    Ok(Arc::new(scheduler))
}

fn dpmpp_2m(config: &Value, karras: bool) -> Result<Arc<dyn Scheduler>> {
    let defaults = [
        ("algorithm_type", json!("dpmsolver++")),
        ("lambda_min_clipped", Value::Null),
        ("thresholding", json!(false)),
        ("use_beta_sigmas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
        ("use_flow_sigmas", json!(false)),
        ("use_lu_lambdas", json!(false)),
        ("variance_type", Value::Null),
    ];
    require_defaults("DPMSolverMultistepScheduler", config, &defaults)?;
    let mut scheduler: DpmPp2m = parse(Path::new(PLACE), config)?;
    if !(1..=2).contains(&scheduler.solver_order) {
        return Err(Error::argument(
            "solver_order",
            "1 or 2",
            scheduler.solver_order,
        ));
    }
    scheduler.use_karras_sigmas |= karras;
    Ok(Arc::new(scheduler))
}

/// The short names that [`from_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|entry| entry.name)
}

/// A scheduler by a diffusers configuration: `_class_name` chooses it, the other fields set it, and those
/// that are absent have the defaults of diffusers' class.
///
/// # Errors
/// [`Error::Unsupported`] for a class or an option that this version does not know, [`Error::Format`] for
/// fields of the wrong type.
pub fn from_config(config: &Value) -> Result<Arc<dyn Scheduler>> {
    let class = config["_class_name"].as_str().unwrap_or_default();
    match TABLE.iter().find(|entry| entry.class == class) {
        Some(entry) => (entry.build)(config, false),
        None => Err(unknown(class)),
    }
}

/// A scheduler by name, set as `config` (a `scheduler_config.json`, of whatever class) says. Names are
/// those of [`names`] or diffusers' classes; the ending `_karras` turns on Karras et al.'s noise levels.
/// Case, spaces and `+` signs do not matter: "DPM++ 2M Karras" is one.
///
/// # Errors
/// As [`from_config`].
pub fn from_name(name: &str, config: &Value) -> Result<Arc<dyn Scheduler>> {
    let plain = name
        .trim()
        .to_lowercase()
        .replace("++", "pp")
        .replace([' ', '-'], "_");
    let (plain, karras) = match plain.strip_suffix("_karras") {
        Some(rest) => (rest, true),
        None => (plain.as_str(), false),
    };
    let mut fields = config.as_object().cloned().unwrap_or_default();
    let entry = if let Some(entry) = TABLE.iter().find(|entry| entry.name == plain) {
        (entry.mean)(&mut fields);
        entry
    } else {
        let by_class = TABLE
            .iter()
            .find(|entry| entry.class.to_lowercase() == plain);
        by_class.ok_or_else(|| unknown(name))?
    };
    (entry.build)(&Value::Object(fields), karras)
}

fn unknown(name: &str) -> Error {
    let known: Vec<_> = TABLE
        .iter()
        .map(|entry| format!("{} ({})", entry.name, entry.class))
        .collect();
    Error::unsupported(
        format!("scheduler {name:?}"),
        format!(
            "name one of {} in the request, or pass a Scheduler",
            known.join(", ")
        ),
    )
}
