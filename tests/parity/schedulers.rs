//! Noise schedules and plans of noise levels against diffusers.

use diffusion_core::denoise::{BetaSchedule, NoiseSchedule, NoiseScheduleConfig, PredictionType};
use diffusion_core::scheduler::{Sampler, from_config, from_name, sigma_schedule};
use diffusion_core::{DpmSolverMultistep, Scheduler, Tensor, WithLevels};
use diffusion_tests::{Golden, TOLERANCE, TestResult, golden_json, relative_difference};
use serde_json::json;

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
        let alphas_cumprod: Vec<f64> = noise
            .sigmas()
            .iter()
            .map(|sigma| 1.0 / (1.0 + sigma * sigma))
            .collect();
        let difference = relative_difference(&alphas_cumprod, &reference);
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

/// The largest difference, each as a share of its own reference, so that low levels count as much as high
/// ones.
fn largest_share(ours: &[f64], reference: &[f64]) -> f64 {
    let shares = ours
        .iter()
        .zip(reference)
        .map(|(ours, reference)| match ours == reference {
            true => 0.0,
            false => (ours - reference).abs() / reference.abs(),
        });
    shares.fold(0.0, f64::max)
}

/// Every class of diffusers, spacing and curve.
#[test]
fn plans_of_every_class() -> TestResult {
    let golden = Golden::open("schedules_all")?;
    let rows = golden_json("schedules_all.json")?;
    let rows = rows["plans"].as_array().ok_or("no plans")?;
    assert!(rows.len() > 500, "{}", rows.len());
    let mut failures = Vec::new();
    for row in rows {
        let name = row["name"].as_str().ok_or("no name")?;
        let steps = row["steps"].as_u64().ok_or("no steps")? as usize;
        let noise = NoiseSchedule::from_json(&row["scheduler"])?;
        let scheduler = from_config(&row["scheduler"])?;
        let mut sigmas = scheduler.sigmas(&noise, steps)?;
        let class = row["scheduler"]["_class_name"].as_str().unwrap_or_default();
        let told = match class {
            // The way back is told where each step goes to.
            "DDIMInverseScheduler" => &sigmas[1..],
            _ => &sigmas[..steps],
        };
        let timesteps: Vec<f64> = told
            .iter()
            .map(|&sigma| scheduler.timestep(&noise, sigma))
            .collect();
        if class.starts_with("FlowMatch") || class.starts_with("LTX") {
            sigmas.iter_mut().for_each(|sigma| *sigma /= 1.0 + *sigma);
        }
        // With a curve these two repeat their only level and so leave the noise as it is; ours goes down.
        let is_idle = steps == 1 && matches!(class, "DEISMultistepScheduler" | "SASolverScheduler");
        if is_idle {
            sigmas.truncate(1);
        }
        for (what, ours) in [("sigmas", &sigmas), ("timesteps", &timesteps)] {
            let key = format!("{name}.{what}");
            if !golden.contains(&key) {
                continue;
            }
            let mut reference = golden.values(&key)?;
            if is_idle {
                reference.truncate(1);
            }
            if ours.len() != reference.len() || largest_share(ours, &reference) > TOLERANCE {
                failures.push(format!("{key}: {ours:?} for {reference:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The curves of k-diffusion and the user interfaces, against their definitions.
#[test]
fn sigma_schedules() -> TestResult {
    let golden = Golden::open("sigma_schedules")?;
    let noise = NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion())?;
    let rows = golden_json("sigma_schedules.json")?;
    let rows = rows["schedules"].as_array().ok_or("no schedules")?;
    assert!(rows.len() > 90, "{}", rows.len());
    let mut failures = Vec::new();
    for row in rows {
        let name = row["name"].as_str().ok_or("no name")?;
        let steps = row["steps"].as_u64().ok_or("no steps")? as usize;
        let curve = row["schedule"].as_str().ok_or("no schedule")?;
        let (curve, rho) = match curve.split_once(".rho") {
            Some((curve, rho)) => (curve, Some(rho.parse()?)),
            None => (curve, None),
        };
        let curve = match curve {
            "align_your_steps.sd15" => "align_your_steps",
            "align_your_steps.sdxl" => "align_your_steps_sdxl",
            curve => curve,
        };
        let mut scheduler = DpmSolverMultistep::default().sigma_schedule(sigma_schedule(curve)?);
        scheduler.levels.rho = rho;
        let ours = scheduler.sigmas(&noise, steps)?;
        let reference = golden.values(name)?;
        if ours.len() != reference.len() || largest_share(&ours, &reference) > 1e-6 {
            failures.push(format!("{name}: {ours:?} for {reference:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
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
