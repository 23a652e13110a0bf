//! Schedulers by name and by configuration.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Ddim, DpmPp2m, Euler, Scheduler};
use crate::error::{Error, Result};
use crate::model::config::{parse, require_defaults};

type Build = fn(&Value) -> Result<Arc<dyn Scheduler>>;

/// Short name, diffusers' class, constructor.
const TABLE: &[(&str, &str, Build)] = &[
    ("ddim", "DDIMScheduler", |config| {
        require_defaults("DDIMScheduler", config, &[("thresholding", json!(false))])?;
        build::<Ddim>(config)
    }),
    ("euler", "EulerDiscreteScheduler", |config| {
        require_defaults(
            "EulerDiscreteScheduler",
            config,
            &[
                ("interpolation_type", json!("linear")),
                ("sigma_max", Value::Null),
                ("sigma_min", Value::Null),
                ("timestep_type", json!("discrete")),
                ("use_beta_sigmas", json!(false)),
                ("use_exponential_sigmas", json!(false)),
            ],
        )?;
        build::<Euler>(config)
    }),
    ("dpmpp_2m", "DPMSolverMultistepScheduler", |config| {
        require_defaults(
            "DPMSolverMultistepScheduler",
            config,
            &[
                ("algorithm_type", json!("dpmsolver++")),
                ("thresholding", json!(false)),
                ("use_beta_sigmas", json!(false)),
                ("use_exponential_sigmas", json!(false)),
                ("use_flow_sigmas", json!(false)),
                ("use_lu_lambdas", json!(false)),
                ("variance_type", Value::Null),
            ],
        )?;
        if let Some(order @ (0 | 3..)) = config["solver_order"].as_u64() {
            return Err(Error::argument("solver_order", "1 or 2", order));
        }
        build::<DpmPp2m>(config)
    }),
];

fn build<S: Scheduler + DeserializeOwned + 'static>(config: &Value) -> Result<Arc<dyn Scheduler>> {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    Ok(Arc::new(parse::<S>(
        Path::new("scheduler config"),
        &config,
    )?))
}

/// The short names that [`from_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

/// A scheduler by a diffusers configuration: `_class_name` chooses it, the other fields set it, and those
/// that are absent have the defaults of diffusers' class.
///
/// # Errors
/// [`Error::Unsupported`] for a class or an option that this version does not know, [`Error::Format`] for
/// fields of the wrong type.
pub fn from_config(config: &Value) -> Result<Arc<dyn Scheduler>> {
    let class = config["_class_name"].as_str().unwrap_or_default();
    match TABLE.iter().find(|(_, known, _)| *known == class) {
        Some((_, _, build)) => build(config),
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
    let (_, class, _) = TABLE
        .iter()
        .find(|(short, class, _)| plain == *short || plain == class.to_lowercase())
        .ok_or_else(|| unknown(name))?;
    let mut config = config.as_object().cloned().unwrap_or_default();
    config.insert("_class_name".into(), json!(class));
    if karras {
        config.insert("use_karras_sigmas".into(), json!(true));
    }
    from_config(&Value::Object(config))
}

fn unknown(name: &str) -> Error {
    let known: Vec<_> = TABLE
        .iter()
        .map(|(short, class, _)| format!("{short} ({class})"))
        .collect();
    Error::unsupported(
        format!("scheduler {name:?}"),
        format!(
            "choose one of {}, or pass a Scheduler of your own",
            known.join(", ")
        ),
    )
}
