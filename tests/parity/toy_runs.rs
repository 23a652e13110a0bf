//! Every solver over a toy model, step by step: diffusers' classes against diffusers, the others against
//! their equations in f64.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use diffusion_core::denoise::{Estimate, NoiseSchedule, NoiseScheduleConfig};
use diffusion_core::scheduler::{Sampler, StepReport, from_config, from_name};
use diffusion_core::{DType, Denoiser, Device, Error, Scheduler, Tensor};
use diffusion_tests::{Golden, TOLERANCE, TestResult, golden_json, relative_difference};
use serde_json::{Map, Value, json};

/// A recorded run.
struct Case<'a> {
    name: &'a str,
    scheduler: Arc<dyn Scheduler>,
    noise: NoiseSchedule,
    steps: usize,
    start: usize,
    eta: Option<f64>,
    /// Whether the latents are recorded in the scale that the model takes.
    is_scaled: bool,
    /// How much of the estimate without a prompt is left out, if there is one.
    guidance_scale: Option<f64>,
}

/// The model of diffusers' scheduler tests, `x * t / (t + 1)`, and half of its input without a prompt.
fn toy_estimate(
    case: &Case<'_>,
    latents: &Tensor,
    sigma: f64,
    timestep: f64,
) -> diffusion_core::Result<Estimate> {
    let input = (latents * case.noise.input_scale(sigma))?;
    let output = (&input * (timestep / (timestep + 1.0)))?;
    let denoised = case.noise.denoised(latents, &output, sigma)?;
    let Some(scale) = case.guidance_scale else {
        return Ok(Estimate {
            denoised,
            unconditional: None,
        });
    };
    let unconditional = case.noise.denoised(latents, &(input * 0.5)?, sigma)?;
    Ok(Estimate {
        denoised: (&unconditional + ((denoised - &unconditional)? * scale)?)?,
        unconditional: Some(unconditional),
    })
}

fn flat(tensor: &Tensor) -> TestResult<Vec<f64>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// Runs a case; returns each recorded step's distance from the reference.
fn distances(
    case: &Case<'_>,
    golden: &Golden,
    denoiser: &mut dyn Denoiser,
) -> TestResult<Vec<f64>> {
    let name = case.name;
    let sampler = Sampler {
        scheduler: &*case.scheduler,
        schedule: &case.noise,
        num_steps: case.steps,
        eta: case.eta,
    };
    let sigmas = sampler.sigmas()?;
    let scale = |sigma: f64| match case.is_scaled {
        true => case.noise.input_scale(sigma),
        false => 1.0,
    };
    let mut draws = 0;
    let is_sa_solver = name.starts_with("sasolver");
    let mut fresh_noise = |from: f64, to: f64| {
        // It draws in every step; what it does not use was not recorded.
        let timestep = case.scheduler.timestep(&case.noise, from);
        let is_used = (200.0..=800.0).contains(&timestep) && from != to;
        if is_sa_solver && !is_used {
            return Ok(Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu)?);
        }
        draws += 1;
        golden
            .tensor(&format!("{name}.noise{}", draws - 1))
            .map_err(|e| Error::custom(e.to_string()))
    };
    let mut distances = Vec::new();
    let mut failure = None;
    let mut observe = |report: &StepReport<'_>| {
        let key = format!("{name}.step{}", report.index);
        if !golden.contains(&key) {
            return ControlFlow::Continue(());
        }
        let distance = (report.latents * scale(report.sigma))
            .map_err(Into::into)
            .and_then(|ours| Ok(relative_difference(&flat(&ours)?, &golden.values(&key)?)));
        match distance {
            Ok(distance) => distances.push(distance),
            Err(error) => failure = Some(error),
        }
        ControlFlow::Continue(())
    };
    let start = (golden.tensor(&format!("{name}.start"))? / scale(sigmas[case.start]))?;
    let steps = case.start..sigmas.len() - 1;
    let result = sampler.run_steps(steps, &start, denoiser, &mut fresh_noise, &mut observe)?;
    if let Some(error) = failure {
        return Err(error);
    }
    let recorded = |kind: &str| {
        let prefix = format!("{name}.{kind}");
        let numbers = golden.names().filter_map(|key| key.strip_prefix(&prefix));
        numbers.filter(|rest| rest.parse::<usize>().is_ok()).count()
    };
    // diffusers draws for a last step, too, and gives it no weight.
    let unused = usize::from(name.starts_with("consistency_models") && draws > 0);
    for (kind, found) in [("step", distances.len()), ("noise", draws + unused)] {
        let expected = recorded(kind);
        if found != expected {
            return Err(format!("{expected} of {kind} recorded, {found} in this run").into());
        }
    }
    let whole = format!("{name}.result");
    if golden.contains(&whole) {
        distances.push(relative_difference(
            &flat(&result)?,
            &golden.values(&whole)?,
        ));
    }
    Ok(distances)
}

fn check(case: &Case<'_>, golden: &Golden, failures: &mut Vec<String>) {
    let mut denoiser =
        |latents: &Tensor, sigma: f64, timestep: f64| toy_estimate(case, latents, sigma, timestep);
    match distances(case, golden, &mut denoiser) {
        Ok(distances) if distances.is_empty() => {
            failures.push(format!("{}: nothing was recorded", case.name));
        }
        Ok(distances) => {
            let worst = distances.iter().copied().fold(0.0, f64::max);
            // Rounding in f32 changes the error that the adaptive one estimates, and so its steps.
            let tolerance = match case.name.starts_with("dpm_adaptive") {
                true => 1e-3,
                false => TOLERANCE,
            };
            if worst > tolerance {
                let distances: Vec<_> = distances.iter().map(|d| format!("{d:.0e}")).collect();
                failures.push(format!("{}: {}", case.name, distances.join(" ")));
            }
        }
        Err(error) => failures.push(format!("{}: {error}", case.name)),
    }
}

#[test]
fn classes_of_diffusers() -> TestResult {
    let rows = golden_json("toy_runs.json")?;
    let rows = rows["cases"].as_array().ok_or("no cases")?;
    assert!(rows.len() >= 360, "{}", rows.len());
    let mut files = HashMap::new();
    let mut failures = Vec::new();
    for row in rows {
        let name = row["name"].as_str().ok_or("no name")?;
        let (file, _) = name.split_once('.').unwrap_or((name, ""));
        // Its class has a noise schedule of its own; see below.
        if file == "ipndm" {
            continue;
        }
        // There the curve spans the variances that the class has beside the flow; ours the flow's shares.
        if name == "unipc_multistep.flow.karras" {
            continue;
        }
        if !files.contains_key(file) {
            files.insert(file.to_owned(), Golden::open(&format!("toy_runs_{file}"))?);
        }
        let case = Case {
            name,
            scheduler: from_config(&row["scheduler"])?,
            noise: NoiseSchedule::from_json(&row["scheduler"])?,
            steps: row["steps"].as_u64().ok_or("no steps")? as usize,
            start: row["start"].as_u64().ok_or("no start")? as usize,
            eta: row["eta"].as_f64(),
            is_scaled: row["scaled"].as_bool().ok_or("not scaled")?,
            guidance_scale: None,
        };
        check(&case, &files[file], &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn solvers_of_other_programs() -> TestResult {
    check_equations("equations", 26)?;
    check_equations("comfyui", 22)
}

/// At least so many runs of a script of equations.
fn check_equations(file: &str, at_least: usize) -> TestResult {
    let golden = Golden::open(file)?;
    let rows = golden_json(&format!("{file}.json"))?;
    let rows = rows["cases"].as_array().ok_or("no cases")?;
    assert!(rows.len() >= at_least, "{}", rows.len());
    let mut failures = Vec::new();
    for row in rows {
        let name = row["name"].as_str().ok_or("no name")?;
        let id = row["id"].as_str().ok_or("no id")?;
        let mut fields: Map<String, Value> =
            row["options"].as_object().ok_or("no options")?.clone();
        if let Some(order) = fields.remove("order") {
            fields.insert("solver_order".into(), order);
        }
        let eta = fields.get("eta").and_then(Value::as_f64);
        if !row["sigmas"].is_null() {
            fields.insert("sigmas".into(), row["sigmas"].clone());
        }
        let class = from_name(id, &json!({}))?.config().ok_or("no config")?;
        fields.insert("_class_name".into(), class["_class_name"].clone());
        // By its class, where options say what the short name would say otherwise.
        let scheduler = match fields.contains_key("solver_type") || id == "dpm_adaptive" {
            true => from_config(&Value::Object(fields))?,
            false => from_name(id, &Value::Object(fields))?,
        };
        let case = Case {
            name,
            guidance_scale: scheduler.needs_unconditional().then_some(1.5),
            scheduler,
            noise: NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion())?,
            steps: row["steps"].as_u64().ok_or("no steps")? as usize,
            start: 0,
            eta,
            is_scaled: false,
        };
        let sigmas = format!("{name}.sigmas");
        if golden.contains(&sigmas) {
            let ours = case.scheduler.sigmas(&case.noise, case.steps)?;
            let difference = relative_difference(&ours, &golden.values(&sigmas)?);
            assert!(difference < 1e-6, "{sigmas}: {ours:?}");
        }
        check(&case, &golden, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// diffusers' class has a noise schedule of its own, with the model's velocity and timesteps from 1 to 0.
#[test]
fn ipndm() -> TestResult {
    let golden = Golden::open("toy_runs_ipndm")?;
    let betas = golden.values("ipndm.betas")?;
    let alphas = golden.values("ipndm.alphas")?;
    // Its first level has no signal at all.
    let levels = betas.iter().zip(&alphas).map(|(b, a)| b / a.max(1e-12));
    let config = json!({"_class_name": "IPNDMScheduler", "sigmas": levels.collect::<Vec<_>>()});
    let case = Case {
        name: "ipndm",
        scheduler: from_config(&config)?,
        noise: NoiseSchedule::new(&NoiseScheduleConfig::default())?,
        steps: betas.len() - 1,
        start: 0,
        eta: None,
        is_scaled: true,
        guidance_scale: None,
    };
    let mut denoiser = |latents: &Tensor, sigma: f64, _: f64| {
        let alpha = sigma.hypot(1.0).recip();
        let beta = sigma * alpha;
        let timestep = sigma.atan() / std::f64::consts::FRAC_PI_2;
        let input = (latents * alpha)?;
        let velocity = (&input * (timestep / (timestep + 1.0)))?;
        // Where the reference divides by a signal of nearly 0, its estimate comes to 0.
        let is_pure_noise = sigma > 1e6;
        let denoised = match is_pure_noise {
            true => input.zeros_like()?,
            false => ((input * alpha)? - (velocity * beta)?)?,
        };
        Ok(Estimate {
            denoised,
            unconditional: None,
        })
    };
    let distances = distances(&case, &golden, &mut denoiser)?;
    let worst = distances.iter().copied().fold(0.0, f64::max);
    assert!(distances.len() == 10 && worst <= TOLERANCE, "{distances:?}");
    Ok(())
}
