//! Noise levels as configurations write them.

use serde::{Deserialize, Serialize};

use super::{FinalSigmas, Levels, SigmaSchedule, TimestepSpacing, sigma_schedule};
use crate::error::{Error, Result};

/// [`Levels`] as configurations write them.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    timestep_spacing: TimestepSpacing,
    steps_offset: usize,
    final_sigmas_type: FinalSigmas,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    use_lu_lambdas: bool,
    use_flow_sigmas: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma_schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rho: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigmas: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timesteps: Option<Vec<f64>>,
}

impl Default for Fields {
    fn default() -> Self {
        Levels::new(SigmaSchedule::Native).into()
    }
}

impl From<Levels> for Fields {
    fn from(levels: Levels) -> Self {
        let is = |schedule: SigmaSchedule| levels.sigma_schedule.is(&schedule);
        let mut fields = Self {
            timestep_spacing: levels.timestep_spacing,
            steps_offset: levels.steps_offset,
            final_sigmas_type: levels.final_sigmas_type,
            use_karras_sigmas: is(SigmaSchedule::Karras),
            use_exponential_sigmas: is(SigmaSchedule::Exponential),
            use_beta_sigmas: is(SigmaSchedule::Beta),
            use_lu_lambdas: is(SigmaSchedule::Lu),
            use_flow_sigmas: is(SigmaSchedule::Flow),
            sigma_schedule: None,
            rho: levels.rho,
            sigmas: None,
            timesteps: None,
        };
        match levels.sigma_schedule {
            SigmaSchedule::Sigmas(sigmas) => fields.sigmas = Some(sigmas),
            SigmaSchedule::Timesteps(timesteps) => fields.timesteps = Some(timesteps),
            schedule => {
                fields.sigma_schedule = schedule.name().map(str::to_owned);
            }
        }
        fields
    }
}

impl Fields {
    fn flags(&self) -> impl Iterator<Item = (bool, SigmaSchedule)> {
        [
            (self.use_karras_sigmas, SigmaSchedule::Karras),
            (self.use_exponential_sigmas, SigmaSchedule::Exponential),
            (self.use_beta_sigmas, SigmaSchedule::Beta),
            (self.use_lu_lambdas, SigmaSchedule::Lu),
            (self.use_flow_sigmas, SigmaSchedule::Flow),
        ]
        .into_iter()
    }
}

impl TryFrom<Fields> for Levels {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self> {
        let mut flagged: Vec<SigmaSchedule> = fields
            .flags()
            .filter_map(|(is_set, schedule)| is_set.then_some(schedule))
            .collect();
        if flagged.len() > 1 {
            // Another curve may go with it: it then is that curve of a flow's shares.
            flagged.retain(|schedule| !schedule.is(&SigmaSchedule::Flow));
        }
        if flagged.len() > 1 {
            let expected = "at most one of use_karras_sigmas, use_exponential_sigmas, \
                use_beta_sigmas and use_lu_lambdas";
            return Err(Error::argument("sigma_schedule", expected, flagged.len()));
        }
        let named = match fields.sigma_schedule.as_deref() {
            Some(name) => Some(sigma_schedule(name)?),
            None => None,
        };
        let listed = match (fields.sigmas, fields.timesteps) {
            (Some(_), Some(_)) => {
                let found = "both";
                return Err(Error::argument(
                    "sigmas",
                    "either sigmas or timesteps",
                    found,
                ));
            }
            (Some(sigmas), None) => Some(SigmaSchedule::Sigmas(sigmas)),
            (None, timesteps) => timesteps.map(SigmaSchedule::Timesteps),
        };
        Ok(Self {
            timestep_spacing: fields.timestep_spacing,
            steps_offset: fields.steps_offset,
            // "native" is what a flag changes.
            sigma_schedule: listed
                .or(named.filter(|schedule| !schedule.is(&SigmaSchedule::Native)))
                .or(flagged.pop())
                .unwrap_or(SigmaSchedule::Native),
            final_sigmas_type: fields.final_sigmas_type,
            rho: fields.rho,
        })
    }
}
