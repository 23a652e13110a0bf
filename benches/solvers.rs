//! What solvers cost beside the model: `cargo bench -p diffusion-benches --bench solvers`.
//!
//! The model is free here, so that a run of 20 steps over the latents of a picture of 512 x 512 (and of
//! SDXL's 1024 x 1024) is all solver. A guided step of Stable Diffusion 1.5 takes some seconds on a CPU and
//! some tens of milliseconds on a GPU.

use std::error::Error;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use diffusion_core::denoise::{Estimate, NoiseSchedule, NoiseScheduleConfig};
use diffusion_core::rng::{BrownianNoise, ImageRngs, NoiseKind, NoiseSource};
use diffusion_core::scheduler::{Sampler, from_name};
use diffusion_core::{Device, Result, Scheduler, Solver, Step, Tensor};
use serde_json::json;

/// Euler's method from outside the crate, with a closure as solver.
#[derive(Debug)]
struct Custom;

impl Scheduler for Custom {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        from_name("euler", &json!({}))?.sigmas(noise, num_steps)
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(|step: &mut Step<'_>, latents: &Tensor| {
            let denoised = step.denoise(latents, step.sigma())?;
            let keep = step.sigma_next() / step.sigma();
            step.combine(&[(keep, latents), (1.0 - keep, &denoised)])
        })
    }
}

fn run(scheduler: &dyn Scheduler, schedule: &NoiseSchedule, noise: &Tensor) -> Result<Tensor> {
    let sampler = Sampler {
        scheduler,
        schedule,
        num_steps: 20,
        eta: None,
    };
    let shape = &noise.dims()[1..];
    let mut fresh_noise: Box<dyn NoiseSource> = match scheduler.noise_kind() {
        NoiseKind::Gaussian => Box::new(ImageRngs::new(&[1], shape, &Device::Cpu)),
        NoiseKind::Brownian => {
            let (lowest, highest) = sampler.sigma_range()?;
            Box::new(BrownianNoise::new(
                &[1],
                shape,
                &Device::Cpu,
                lowest,
                highest,
            ))
        }
    };
    let mut denoiser = |latents: &Tensor, _: f64, _: f64| {
        Ok(Estimate {
            denoised: latents.clone(),
            unconditional: None,
        })
    };
    sampler.run(&mut denoiser, noise, &mut *fresh_noise, &mut |_| {
        ControlFlow::Continue(())
    })
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion())?;
    for side in [64, 128] {
        let noise = Tensor::randn(0f32, 1.0, (1, 4, side, side), &Device::Cpu)?;
        let mut group = criterion.benchmark_group(format!("20 steps of 4x{side}x{side}"));
        group.bench_function("custom euler", |b| {
            b.iter(|| black_box(run(&Custom, &schedule, &noise)));
        });
        for name in [
            "euler",
            "pndm",
            "dpmpp_2m",
            "heun",
            "unipc",
            "euler_ancestral",
            "dpmpp_sde",
        ] {
            let scheduler = from_name(name, &json!({}))?;
            group.bench_with_input(BenchmarkId::from_parameter(name), &scheduler, |b, s| {
                b.iter(|| black_box(run(s, &schedule, &noise)));
            });
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
