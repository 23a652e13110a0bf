//! One run of a scheduler over the battery's model.

use std::ops::ControlFlow;

use diffusion_core::rng::{BrownianNoise, ImageRngs, NoiseKind, NoiseSource};
use diffusion_core::scheduler::{Observer, Sampler};
use diffusion_core::{Device, Result, Scheduler, Tensor};

use super::Expected;
use super::gaussian::{CHANNELS, Gaussian, latents_at};

/// What a run depends on.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// Plans and solves.
    pub scheduler: &'a dyn Scheduler,
    /// Says the noise schedule and the kind of model.
    pub expected: &'a Expected,
    /// Number of steps.
    pub num_steps: usize,
    /// The request's share of fresh noise.
    pub eta: Option<f64>,
    /// One an image; they make the noise to start from.
    pub seeds: Vec<u64>,
    /// One an image; they make the fresh noise.
    pub fresh_seeds: Vec<u64>,
    /// Height and width of the latents.
    pub side: usize,
}

impl<'a> Run<'a> {
    /// One image of 8 by 8 elements with the scheduler's own `eta`.
    pub fn new(scheduler: &'a dyn Scheduler, expected: &'a Expected, num_steps: usize) -> Self {
        Self {
            scheduler,
            expected,
            num_steps: num_steps.min(expected.max_steps),
            eta: None,
            seeds: vec![0],
            fresh_seeds: vec![0],
            side: 8,
        }
    }

    /// With other seeds.
    pub fn seeds(mut self, seeds: &[u64]) -> Self {
        self.seeds = seeds.to_vec();
        self.fresh_seeds = seeds.to_vec();
        self
    }

    /// The scheduler in the sampling loop.
    pub fn sampler(&self) -> Sampler<'_> {
        Sampler {
            scheduler: self.scheduler,
            schedule: &self.expected.schedule,
            num_steps: self.num_steps,
            eta: self.eta,
        }
    }

    /// The latents that the run starts from, and their noise level: as the model's clean latents with noise
    /// are distributed there.
    ///
    /// # Errors
    /// As [`Sampler::sigmas`].
    pub fn start(&self) -> Result<(Tensor, f64)> {
        let sigma = self.sampler().sigmas()?[0];
        let (noise, _) = initial_noise(&self.sampler(), &self.seeds, &self.shape(), &Device::Cpu)?;
        Ok((latents_at(&noise, sigma)?, sigma))
    }

    /// The latents that the run ends at.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn finish(&self) -> Result<Tensor> {
        self.finish_with(&mut |_| ControlFlow::Continue(()))
    }

    /// The latents that the run ends at, watched.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn finish_with(&self, observe: &mut Observer<'_>) -> Result<Tensor> {
        let sampler = self.sampler();
        let (start, sigma) = self.start()?;
        let scale = self.scheduler.init_noise_sigma(sampler.schedule, sigma);
        let (seeds, shape) = (&self.fresh_seeds, self.shape());
        let (_, mut fresh_noise) = initial_noise(&sampler, seeds, &shape, &Device::Cpu)?;
        let mut model = Gaussian {
            is_distilled: self.expected.is_distilled,
        };
        sampler.run(&mut model, &(start / scale)?, &mut *fresh_noise, observe)
    }

    fn shape(&self) -> [usize; 3] {
        [CHANNELS, self.side, self.side]
    }
}

/// The noise that a run starts from and the source of its fresh noise, as the pipeline makes them of one
/// seed an image.
///
/// # Shapes
/// `shape`: without the batch dimension; the noise is `(seeds, shape...)`, f32, unit variance.
///
/// # Errors
/// As [`Sampler::sigma_range`].
pub fn initial_noise(
    sampler: &Sampler<'_>,
    seeds: &[u64],
    shape: &[usize],
    device: &Device,
) -> Result<(Tensor, Box<dyn NoiseSource>)> {
    let mut rngs = ImageRngs::new(seeds, shape, device);
    let noise = rngs.draw()?;
    let fresh: Box<dyn NoiseSource> = match sampler.scheduler.noise_kind() {
        NoiseKind::Gaussian => Box::new(rngs),
        NoiseKind::Brownian => {
            let (lowest, highest) = sampler.sigma_range()?;
            Box::new(BrownianNoise::new(seeds, shape, device, lowest, highest))
        }
    };
    Ok((noise, fresh))
}

/// All elements, to be compared bit for bit.
///
/// # Errors
/// If the tensor is not f32.
pub fn bits(latents: &Tensor) -> Result<Vec<u32>> {
    let values = latents.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}
