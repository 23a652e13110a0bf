//! Which steps a run takes.

use std::ops::Range;
use std::sync::Arc;

use super::start::Inputs;
use super::{GenerateRequest, Pipeline};
use crate::denoise::NoiseSchedule;
use crate::error::{Error, Result};
use crate::scheduler::{Sampler, Scheduler};

/// The strength of img2img that names none, as in diffusers.
const STRENGTH: f64 = 0.8;

/// The scheduler of a run and the steps of its plan.
pub(super) struct Plan {
    pub(super) scheduler: Arc<dyn Scheduler>,
    pub(super) steps: Range<usize>,
    pub(super) from_noise: bool,
}

impl Pipeline {
    /// Which steps a request takes: all, those that its strength asks for, or those between the shares at which
    /// models hand over.
    pub(super) fn plan(
        &self,
        request: &GenerateRequest,
        scheduler: Arc<dyn Scheduler>,
        noise: &NoiseSchedule,
    ) -> Result<Plan> {
        let (start, end) = (request.denoising_start, request.denoising_end);
        let shares = [
            ("denoising_start", start),
            ("denoising_end", end),
            ("strength", request.strength),
        ];
        for (name, share) in shares {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Error::argument(name, "0 to 1", share));
            }
        }
        // Masks and instructions change as much as there is, others a part.
        let is_all = request.inpainting.mask.is_some()
            || request.margins.is_some()
            || self.inputs()? == Inputs::Picture;
        let strength = match (&request.image, request.strength) {
            (None, _) => 1.0,
            (Some(_), Some(strength)) => strength,
            (Some(_), None) if is_all => 1.0,
            (Some(_), None) => STRENGTH,
        };
        if start.is_some() && (request.latents.is_none() || request.image.is_some()) {
            let expected = "the latents that a run with denoising_end left, for denoising_start, and no picture";
            return Err(Error::argument("latents", expected, "none, or a picture"));
        }
        let from_noise = request.image.is_none() || (is_all && strength == 1.0);
        let shortened = match self.unet.config().time_cond_proj_dim {
            // A distilled model's few levels are chosen below the one that it starts from.
            Some(_) => scheduler.shortened(strength),
            None => None,
        };
        let strength = match shortened {
            Some(_) => 1.0,
            None => strength,
        };
        let scheduler = shortened.unwrap_or(scheduler);
        let sampler = request.sampler(&*scheduler, noise);
        let count = sampler.sigmas()?.len() - 1;
        let first = match start {
            Some(share) => sampler.step_at(share)?,
            None => count - ((count as f64 * strength) as usize).min(count),
        };
        let last = match end {
            Some(share) => sampler.step_at(share)?,
            None => count,
        };
        if first >= last && strength > 0.0 {
            let expected = "a share that leaves steps to do; ask for more steps or another share";
            let found = match start.or(end) {
                Some(_) => format!("{start:?} to {end:?} of {count} steps"),
                None => format!("{strength} of {count} steps"),
            };
            let name = match start.or(end) {
                Some(_) => "denoising_start to denoising_end",
                None => "strength",
            };
            return Err(Error::argument(name, expected, found));
        }
        Ok(Plan {
            scheduler,
            steps: first..last.max(first),
            from_noise,
        })
    }
}

impl GenerateRequest {
    pub(super) fn sampler<'a>(
        &self,
        scheduler: &'a dyn Scheduler,
        schedule: &'a NoiseSchedule,
    ) -> Sampler<'a> {
        Sampler {
            scheduler,
            schedule,
            num_steps: self.num_steps,
            eta: self.eta,
        }
    }
}
