//! How a `scheduler_config.json` describes a model's noise.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::parse;
use crate::error::{Error, Result};

/// What the model was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise. Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020.
    #[default]
    Epsilon,
    /// The velocity `alpha * noise - sigma * clean`. Salimans and Ho, "Progressive Distillation", 2022.
    VPrediction,
    /// The clean latents.
    Sample,
    /// The flow's velocity `noise - clean`, at the mixture `(1 - s) * clean + s * noise`. Liu, Gong and
    /// Liu, "Flow Straight and Fast", 2022, equation 1.
    FlowPrediction,
}

/// How the variances grow over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly. Ho, Jain and Abbeel, 2020.
    #[default]
    Linear,
    /// Evenly in their square roots. Rombach et al., 2021.
    ScaledLinear,
    /// So that the signal falls as a squared cosine. Nichol and Dhariwal, "Improved DDPM", 2021,
    /// equation 17.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosCapV2,
}

/// How noise and clean latents are mixed, and what the levels are called.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum NoiseForm {
    /// By the variances of the timesteps, the sum of squares kept at 1.
    #[default]
    Variances,
    /// On a straight line: the noise's share `s` goes from 1 to 0, and the timestep is `s` times the number
    /// of timesteps. Lipman et al., "Flow Matching for Generative Modeling", 2022.
    Flow {
        /// Moves the model's levels towards noise: `shift * s / (1 + (shift - 1) * s)`. Esser et al.,
        /// "Scaling Rectified Flow Transformers", 2024, equation 23.
        shift: f64,
    },
    /// Noise beside clean latents, the timestep being a quarter of the level's logarithm. Karras et al.,
    /// "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1.
    Edm {
        /// The lowest level.
        sigma_min: f64,
        /// The highest level.
        sigma_max: f64,
        /// The standard deviation of clean latents.
        sigma_data: f64,
    },
}

/// The part of a `scheduler_config.json` that describes the model and not the sampler.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct NoiseScheduleConfig {
    /// Number of timesteps that the model was trained on.
    pub num_train_timesteps: usize,
    /// The first variance.
    pub beta_start: f64,
    /// The last variance.
    pub beta_end: f64,
    /// How the variances grow in between.
    pub beta_schedule: BetaSchedule,
    /// The variances themselves, in place of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Whether the variances are rescaled so that the last timestep is pure noise. Lin et al., "Common
    /// Diffusion Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1.
    pub rescale_betas_zero_snr: bool,
    /// How noise and clean latents are mixed. The class that the configuration names says it.
    #[serde(skip)]
    pub form: NoiseForm,
}

/// How the names of classes for flow models begin.
const FLOW_CLASSES: [&str; 2] = ["FlowMatch", "LTXEulerAncestralRF"];

/// How the names of classes for models in the form of Karras et al. begin.
const EDM_CLASSES: [&str; 3] = ["EDM", "CosineDPMSolver", "CMStochasticIterative"];

fn is_one_of(beginnings: &[&str], class: &str) -> bool {
    beginnings.iter().any(|start| class.starts_with(start))
}

/// The configuration with what its class has in place of the usual defaults.
fn with_class_defaults(config: &Value) -> Value {
    let defaults = match config["_class_name"].as_str() {
        Some("CosineDPMSolverMultistepScheduler") => json!({
            "sigma_min": 0.3,
            "sigma_max": 500.0,
            "sigma_data": 1.0,
            "prediction_type": "v_prediction",
        }),
        Some("CMStochasticIterativeScheduler") => json!({"num_train_timesteps": 40}),
        _ => return config.clone(),
    };
    let (Value::Object(mut fields), Some(given)) = (defaults, config.as_object()) else {
        return config.clone();
    };
    let given = given.iter().filter(|(_, value)| !value.is_null());
    fields.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    Value::Object(fields)
}

/// What the classes of flow and EDM models have beside.
#[derive(Deserialize)]
#[serde(default)]
struct FormFields {
    #[serde(rename = "_class_name")]
    class: String,
    shift: f64,
    flow_shift: f64,
    use_flow_sigmas: bool,
    use_dynamic_shifting: bool,
    mu: Option<f64>,
    time_shift_type: String,
    timestep_type: String,
    sigma_min: f64,
    sigma_max: f64,
    sigma_data: f64,
}

impl Default for FormFields {
    fn default() -> Self {
        Self {
            class: String::new(),
            shift: 1.0,
            flow_shift: 1.0,
            use_flow_sigmas: false,
            use_dynamic_shifting: false,
            mu: None,
            time_shift_type: "exponential".into(),
            timestep_type: "discrete".into(),
            sigma_min: 0.002,
            sigma_max: 80.0,
            sigma_data: 0.5,
        }
    }
}

impl Default for NoiseScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
            form: NoiseForm::Variances,
        }
    }
}

impl NoiseScheduleConfig {
    /// The names of all fields, by which a `scheduler_config.json` shows that it describes the model.
    pub const FIELDS: [&str; 11] = [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
        "shift",
        "flow_shift",
        "use_flow_sigmas",
        "sigma_data",
    ];

    /// Stable Diffusion 1.x: 1000 timesteps, `scaled_linear` from 0.00085 to 0.012, epsilon.
    pub fn stable_diffusion() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Self::default()
        }
    }

    /// Reads the fields of a `scheduler_config.json`. Flow and EDM models are known by their class, or by
    /// `prediction_type` and `use_flow_sigmas`.
    ///
    /// # Errors
    /// [`Error::Format`] for fields of the wrong type or unknown names, [`Error::InvalidArgument`] for a dynamic
    /// shift without `mu`, [`Error::Unsupported`] for models that are told continuous timesteps.
    pub fn from_json(config: &Value) -> Result<Self> {
        let place = Path::new("scheduler config");
        let config = &with_class_defaults(config);
        let mut parsed: Self = parse(place, config)?;
        let fields: FormFields = parse(place, config)?;
        if fields.timestep_type == "continuous" && !is_one_of(&EDM_CLASSES, &fields.class) {
            let what =
                "a model that is told the logarithms of noise levels (timestep_type continuous)";
            return Err(Error::unsupported(what, "take another model"));
        }
        let is_flow_class = is_one_of(&FLOW_CLASSES, &fields.class);
        let is_flow = is_flow_class
            || fields.use_flow_sigmas
            || parsed.prediction_type == PredictionType::FlowPrediction;
        if is_flow {
            parsed.prediction_type = PredictionType::FlowPrediction;
            let shift = match (fields.use_dynamic_shifting && is_flow_class, fields.mu) {
                (true, Some(mu)) if fields.time_shift_type == "linear" => mu,
                (true, Some(mu)) => mu.exp(),
                (true, None) => {
                    let expected =
                        "a number with use_dynamic_shifting, for the size of the picture";
                    return Err(Error::argument("mu", expected, "none"));
                }
                (false, _) if is_flow_class => fields.shift,
                (false, _) => fields.flow_shift,
            };
            parsed.form = NoiseForm::Flow { shift };
        } else if is_one_of(&EDM_CLASSES, &fields.class) {
            parsed.form = NoiseForm::Edm {
                sigma_min: fields.sigma_min,
                sigma_max: fields.sigma_max,
                sigma_data: fields.sigma_data,
            };
        }
        Ok(parsed)
    }

    pub(super) fn checked_timesteps(&self) -> Result<usize> {
        match self.num_train_timesteps {
            n @ 2..=1_000_000 => Ok(n),
            n => Err(Error::argument("num_train_timesteps", "2 to 1000000", n)),
        }
    }

    pub(super) fn betas(&self) -> Result<Vec<f64>> {
        let n = self.checked_timesteps()?;
        let (start, end) = (self.beta_start, self.beta_end);
        let lerp = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / (n - 1) as f64;
        let betas: Vec<f64> = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => betas.clone(),
            (None, BetaSchedule::Linear) => (0..n).map(|i| lerp(start, end, i)).collect(),
            (None, BetaSchedule::ScaledLinear) => (0..n)
                .map(|i| lerp(start.sqrt(), end.sqrt(), i).powi(2))
                .collect(),
            (None, BetaSchedule::SquaredCosCapV2) => {
                let signal = |t: f64| {
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                        .cos()
                        .powi(2)
                };
                (0..n)
                    .map(|i| {
                        let (from, to) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                        (1.0 - signal(to) / signal(from)).min(0.999)
                    })
                    .collect()
            }
        };
        match betas.iter().find(|&&beta| !(beta > 0.0 && beta < 1.0)) {
            Some(beta) => Err(Error::argument("betas", "values between 0 and 1", beta)),
            None => Ok(betas),
        }
    }
}
