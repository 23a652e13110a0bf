//! What a file's model predicts, of which noise.

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::infer::Notes;
use super::{Checkpoint, ComponentKind, Family, Task};
use crate::error::{Error, Result};
use crate::nn::TensorSource;

/// What a model predicts, as far as a file tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Prediction {
    Epsilon,
    Velocity,
    /// The velocity, with the last timestep pure noise.
    ZeroSnrVelocity,
    /// The velocity in the form of Karras et al., as CosXL.
    EdmVelocity {
        sigma_min: f64,
        sigma_max: f64,
    },
    /// The form of Karras et al. itself, as Playground 2.5.
    Edm,
}

/// The empty tensors by which trainers of SDXL say what it predicts.
const VELOCITY: &str = "v_pred";
const ZERO_SNR: &str = "ztsnr";
/// CosXL's lowest and highest noise level.
const EDM_VELOCITY: [&str; 2] = ["edm_vpred.sigma_min", "edm_vpred.sigma_max"];
/// CosXL's lowest level, where the file has the highest alone.
const EDM_SIGMA_MIN: f64 = 0.002;
/// The mean and the standard deviation of each channel of Playground's latents.
const EDM_LATENTS: [&str; 2] = ["edm_mean", "edm_std"];
/// All tensors that say what a model predicts.
pub(super) const MARKERS: [&str; 6] = [
    VELOCITY,
    ZERO_SNR,
    EDM_VELOCITY[0],
    EDM_VELOCITY[1],
    EDM_LATENTS[0],
    EDM_LATENTS[1],
];

/// SD 2 base's number of training steps, by which diffusers knows it.
const SD2_BASE_STEPS: f64 = 875_000.0;
/// The standard deviation of a bias above which ComfyUI takes an SD 2.x for one that predicts the velocity.
const SD2_VELOCITY_BIAS: f64 = 0.09;

impl Prediction {
    pub(super) fn is_velocity(self) -> bool {
        !matches!(self, Self::Epsilon | Self::Edm)
    }

    /// The settings of a scheduler that tell the model's noise, in place of the family's.
    pub(super) fn settings(self) -> Value {
        match self {
            Self::Epsilon => json!({"prediction_type": "epsilon"}),
            Self::Velocity => json!({"prediction_type": "v_prediction"}),
            Self::ZeroSnrVelocity => json!({
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": true,
                "timestep_spacing": "trailing",
            }),
            Self::EdmVelocity { .. } | Self::Edm => Value::Null,
        }
    }

    /// The whole configuration that models in the form of Karras et al. were published with.
    pub(super) fn edm_scheduler(self) -> Option<Value> {
        match self {
            Self::EdmVelocity {
                sigma_min,
                sigma_max,
            } => Some(json!({
                "_class_name": "EDMEulerScheduler",
                "num_train_timesteps": 1000,
                "prediction_type": "v_prediction",
                "rho": 7.0,
                "sigma_data": 1.0,
                "sigma_max": sigma_max,
                "sigma_min": sigma_min,
                "sigma_schedule": "exponential",
            })),
            Self::Edm => Some(json!({
                "_class_name": "EDMDPMSolverMultistepScheduler",
                "algorithm_type": "dpmsolver++",
                "euler_at_final": false,
                "final_sigmas_type": "zero",
                "lower_order_final": true,
                "num_train_timesteps": 1000,
                "prediction_type": "epsilon",
                "rho": 7.0,
                "sigma_data": 0.5,
                "sigma_max": 80.0,
                "sigma_min": 0.002,
                "solver_order": 2,
                "solver_type": "midpoint",
            })),
            _ => None,
        }
    }
}

impl Checkpoint {
    /// What the model predicts: by its tensors where trainers left a mark, then by the file's notes.
    pub(super) fn predict(&mut self, notes: &Notes) -> Result<Prediction> {
        let has = |name: &str| self.leftovers.iter().any(|leftover| leftover == name);
        let [sigma_min, sigma_max] = EDM_VELOCITY;
        if self.edm_latents()?.is_some() {
            return Ok(Prediction::Edm);
        }
        if has(sigma_max) {
            let sigma_min = match has(sigma_min) {
                true => self.numbers(sigma_min)?[0],
                false => EDM_SIGMA_MIN,
            };
            return Ok(Prediction::EdmVelocity {
                sigma_min,
                sigma_max: self.numbers(sigma_max)?[0],
            });
        }
        if has(VELOCITY) {
            return Ok(match has(ZERO_SNR) {
                true => Prediction::ZeroSnrVelocity,
                false => Prediction::Velocity,
            });
        }
        match notes.predicts_velocity {
            Some(true) => return Ok(Prediction::Velocity),
            Some(false) => return Ok(Prediction::Epsilon),
            None if notes.has_scheduler() => return Ok(Prediction::Epsilon),
            None => {}
        }
        let is_sd2 = self.model.family == Some(Family::StableDiffusion2);
        // Of SD 2's others only those with an input of noisy latents alone predict the velocity.
        if is_sd2 && matches!(self.model.task, Task::TextToImage | Task::ImageVariation) {
            let steps = self.numbers("global_step").ok();
            if steps.is_some_and(|steps| steps[0] == SD2_BASE_STEPS) {
                return Ok(Prediction::Epsilon);
            }
            let found = self.last_norm_spread();
            let is_velocity = found.is_some_and(|found| found > SD2_VELOCITY_BIAS);
            let (name, size, prediction) = match is_velocity {
                true => ("v_prediction", 768, Prediction::Velocity),
                false => ("epsilon", 512, Prediction::Epsilon),
            };
            self.assumptions.push(format!(
                "prediction_type {name}, of SD 2.x at {size} pixels, by ComfyUI's rule of thumb (a bias that \
                 scatters by {:.3}; above {SD2_VELOCITY_BIAS} it is v_prediction): configure_scheduler says otherwise",
                found.unwrap_or_default()
            ));
            return Ok(prediction);
        }
        if self.parts.contains_key(&ComponentKind::UNet) {
            let text = "prediction_type epsilon: no tensor says so; configure_scheduler changes it";
            self.assumptions.push(text.into());
        }
        Ok(Prediction::Epsilon)
    }

    /// The mean and the standard deviation of each channel of the latents, if they are not around 0 and 1.
    pub(super) fn edm_latents(&self) -> Result<Option<[Vec<f64>; 2]>> {
        let has = |name: &&&str| self.leftovers.iter().any(|leftover| leftover == **name);
        match EDM_LATENTS.iter().filter(has).count() {
            0 => Ok(None),
            2 => {
                let [mean, std] = EDM_LATENTS;
                Ok(Some([self.numbers(mean)?, self.numbers(std)?]))
            }
            _ => Err(Error::format(
                &self.path,
                format!("one of {} is missing", EDM_LATENTS.join(" and ")),
            )),
        }
    }

    /// The numbers of a tensor beside the components, at least one and all finite.
    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let missing = || Error::format(&self.path, format!("{name} has no finite numbers"));
        let source = self.sources.iter().find(|s| s.shape(name).is_some());
        let tensor = source
            .ok_or_else(missing)?
            .load(name, DType::F64, &Device::Cpu)?;
        let numbers = tensor.flatten_all()?.to_vec1::<f64>()?;
        match !numbers.is_empty() && numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers),
            false => Err(missing()),
        }
    }

    /// The standard deviation of a bias by which ComfyUI tells SD 2.x: that of the first norm of the last
    /// transformer.
    fn last_norm_spread(&self) -> Option<f64> {
        let tensors = self.component(ComponentKind::UNet)?.tensors;
        let is_norm = |name: &String| {
            name.starts_with("up_blocks.") && name.ends_with("transformer_blocks.0.norm1.bias")
        };
        let name = tensors.tensor_names().into_iter().filter(is_norm).max()?;
        let bias = tensors.load(&name, DType::F64, &Device::Cpu).ok()?;
        let mean = bias.mean_all().ok()?;
        let squares = bias.broadcast_sub(&mean).ok()?.sqr().ok()?;
        let variance: f64 = squares.mean_all().ok()?.to_scalar().ok()?;
        Some(variance.sqrt())
    }
}
