//! Noise schedules, plans and solvers against diffusers.

use std::ops::ControlFlow;

use diffusion_core::denoise::{
    BetaSchedule, Estimate, NoiseSchedule, NoiseScheduleConfig, PredictionType,
};
use diffusion_core::scheduler::{Sampler, StepReport, from_config, from_name};
use diffusion_core::{Scheduler, Tensor};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, golden_json, relative_difference,
};
use serde_json::{Value, json};

#[test]
fn noise_schedules() -> TestResult {
    let golden = Golden::open("noise_schedule")?;
    let stable_diffusion = NoiseScheduleConfig::stable_diffusion();
    for (name, config) in [
        ("linear", NoiseScheduleConfig::default()),
        ("scaled_linear", stable_diffusion.clone()),
        (
            "squaredcos_cap_v2",
            NoiseScheduleConfig {
                beta_schedule: BetaSchedule::SquaredCosCapV2,
                ..NoiseScheduleConfig::default()
            },
        ),
        (
            "zero_snr",
            NoiseScheduleConfig {
                rescale_betas_zero_snr: true,
                prediction_type: PredictionType::VPrediction,
                ..stable_diffusion
            },
        ),
    ] {
        let noise = NoiseSchedule::new(&config)?;
        let reference = golden.values(&format!("{name}.alphas_cumprod"))?;
        let difference = relative_difference(noise.alphas_cumprod(), &reference);
        // Products of a thousand f32 in the reference.
        assert!(difference < 1e-5, "{name}: {difference}");
    }
    Ok(())
}

#[test]
fn planned_sigmas_and_timesteps() -> TestResult {
    let stable_diffusion = NoiseScheduleConfig::stable_diffusion();
    assert!(assert_plans("schedules", &stable_diffusion)? >= 90);
    let cosine = NoiseScheduleConfig {
        beta_schedule: BetaSchedule::SquaredCosCapV2,
        ..NoiseScheduleConfig::default()
    };
    assert!(assert_plans("schedules_cosine", &cosine)? >= 24);
    Ok(())
}

fn assert_plans(file: &str, config: &NoiseScheduleConfig) -> TestResult<usize> {
    let golden = Golden::open(file)?;
    let noise = NoiseSchedule::new(config)?;
    let mut checked = 0;
    for name in golden
        .names()
        .filter_map(|name| name.strip_suffix(".timesteps"))
    {
        let [kind, spacing, karras, steps] = name.split('.').collect::<Vec<_>>()[..] else {
            return Err("a name of another form".into());
        };
        let steps: usize = steps.parse()?;
        let config = json!({
            "timestep_spacing": spacing,
            "steps_offset": 1,
            "use_karras_sigmas": karras == "karras",
        });
        let scheduler = from_name(kind, &config)?;
        let sigmas = scheduler.sigmas(&noise, steps)?;
        if golden.contains(&format!("{name}.sigmas")) {
            let reference = golden.values(&format!("{name}.sigmas"))?;
            let difference = relative_difference(&sigmas, &reference);
            // The reference takes 1 - a in f32, which costs it digits at low noise.
            assert!(difference <= TOLERANCE, "{name}: {sigmas:?} {reference:?}");
        }
        let reference = golden.values(&format!("{name}.timesteps"))?;
        let timesteps: Vec<f64> = sigmas[..steps]
            .iter()
            .map(|&sigma| scheduler.timestep(&noise, sigma))
            .collect();
        let difference = relative_difference(&timesteps, &reference);
        assert!(
            difference <= TOLERANCE,
            "{name}: {timesteps:?} {reference:?}"
        );
        checked += 1;
    }
    Ok(checked)
}

/// The model of diffusers' scheduler tests, `x * t / (t + 1)`, step by step.
fn assert_toy_run(
    name: &str,
    config: &Value,
    steps: usize,
    eta: f64,
    golden: &Golden,
) -> TestResult {
    let scheduler = from_config(config)?;
    let noise = NoiseSchedule::from_json(config)?;
    let mut denoiser = |latents: &Tensor, sigma: f64, timestep: f64| {
        let input = (latents * noise.input_scale(sigma))?;
        let output = (input * (timestep / (timestep + 1.0)))?;
        Ok(Estimate {
            denoised: noise.denoised(latents, &output, sigma)?,
            unconditional: None,
        })
    };
    let mut draws = 0;
    let mut fresh_noise = |_: f64, _: f64| {
        draws += 1;
        golden
            .tensor(&format!("{name}.noise{}", draws - 1))
            .map_err(|e| diffusion_core::Error::custom(e.to_string()))
    };
    let exploding = config["_class_name"] == "EulerDiscreteScheduler";
    let mut failure = None;
    let mut observe = |report: &StepReport<'_>| {
        let scale = if exploding {
            1.0
        } else {
            noise.input_scale(report.sigma)
        };
        let what = format!("{name}.step{}", report.index);
        let checked = (report.latents * scale)
            .map_err(Into::into)
            .and_then(|ours| assert_close(&what, &ours, &golden.tensor(&what)?, TOLERANCE));
        if let Err(error) = checked {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let sampler = Sampler {
        scheduler: &*scheduler,
        schedule: &noise,
        num_steps: steps,
        eta: Some(eta),
    };
    let sample = golden.tensor("sample")?;
    let result = sampler.run(&mut denoiser, &sample, &mut fresh_noise, &mut observe);
    if let Some(error) = failure {
        return Err(error);
    }
    assert_eq!(result?.dims(), sample.dims());
    Ok(())
}

#[test]
fn toy_runs_step_by_step() -> TestResult {
    let golden = Golden::open("toy_runs")?;
    let cases = golden_json("toy_runs.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert!(cases.len() >= 40);
    for case in cases {
        let name = case["name"].as_str().ok_or("no name")?;
        let steps = case["steps"].as_u64().ok_or("no steps")? as usize;
        let eta = case["eta"].as_f64().ok_or("no eta")?;
        assert_toy_run(name, &case["scheduler"], steps, eta, &golden)
            .map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_plan_must_not_rise() {
    #[derive(Debug)]
    struct Fixed(Vec<f64>);
    impl Scheduler for Fixed {
        fn sigmas(&self, _: &NoiseSchedule, _: usize) -> diffusion_core::Result<Vec<f64>> {
            Ok(self.0.clone())
        }
        fn solver(&self) -> Box<dyn diffusion_core::Solver> {
            Box::new(|_: &mut diffusion_core::Step<'_>, latents: &Tensor| Ok(latents.clone()))
        }
    }
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).expect("the default");
    for sigmas in [
        vec![],
        vec![1.0],
        vec![0.0, 0.0],
        vec![1.0, 2.0],
        vec![f64::NAN, 0.0],
        vec![1.0, -1.0],
    ] {
        let scheduler = Fixed(sigmas);
        let sampler = Sampler {
            scheduler: &scheduler,
            schedule: &schedule,
            num_steps: 1,
            eta: None,
        };
        assert!(sampler.sigmas().is_err(), "{scheduler:?}");
    }
}
