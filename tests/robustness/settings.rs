//! Settings of schedulers: each is known, is refused by name, or changes nothing.

use std::ops::ControlFlow;

use diffusion_core::denoise::{NoiseSchedule, NoiseScheduleConfig};
use diffusion_core::scheduler::{entries, from_config, from_name};
use diffusion_core::{Error, ErrorKind};
use diffusion_tests::conformance::{Expected, Run};
use diffusion_tests::{TestResult, golden_json};
use serde_json::{Value, json};

#[test]
fn fields_out_of_range() {
    for (class, field, value) in [
        ("DPMSolverMultistepScheduler", "solver_order", json!(0)),
        ("DPMSolverMultistepScheduler", "solver_order", json!(4)),
        (
            "DPMSolverSinglestepScheduler",
            "algorithm_type",
            json!("sde-dpmsolver"),
        ),
        ("UniPCMultistepScheduler", "solver_order", json!(9)),
        ("DEISMultistepScheduler", "solver_order", json!(0)),
        ("SASolverScheduler", "corrector_order", json!(0)),
        ("LMSDiscreteScheduler", "order", json!(5)),
        ("IPNDMScheduler", "max_order", json!(0)),
        ("DDIMScheduler", "clip_sample_range", json!(-1.0)),
        ("DDIMScheduler", "dynamic_thresholding_ratio", json!(2.0)),
        ("DDPMScheduler", "sample_max_value", json!(0.0)),
        ("DPMAdaptiveScheduler", "rtol", json!(0.0)),
        ("DPMAdaptiveScheduler", "solver_order", json!(1)),
        ("DPMAdaptiveScheduler", "accept_safety", json!(9.0)),
        ("EulerAncestralDiscreteScheduler", "eta", json!(2.0)),
        ("EulerDiscreteScheduler", "s_noise", json!(-1.0)),
        ("EulerDiscreteScheduler", "s_noise", json!(1e300)),
        ("EulerDiscreteScheduler", "s_tmin", json!(-1.0)),
        ("EulerDiscreteScheduler", "rho", json!(0.0)),
        ("EulerDiscreteScheduler", "rho", json!(1e300)),
        ("SASolverScheduler", "tau", json!(-1.0)),
        ("SASolverScheduler", "tau", json!(1e200)),
        ("LCMScheduler", "timestep_scaling", json!(-1.0)),
        ("LCMScheduler", "original_inference_steps", json!(0)),
        ("TCDScheduler", "eta", json!(1.5)),
        ("RestartScheduler", "restart_sigma_min", json!(-1.0)),
        ("DDPMScheduler", "sample_max_value", json!(1e-50)),
        ("GradientEstimationScheduler", "gamma", json!(1e300)),
        ("FlowMatchEulerDiscreteScheduler", "mu", json!(1e3)),
        (
            "FlowMatchEulerDiscreteScheduler",
            "shift_terminal",
            json!(1.0),
        ),
    ] {
        let error = from_config(&json!({"_class_name": class, field: value})).expect_err(field);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{class} {error}");
    }
    for (class, field, value) in [
        (
            "EulerDiscreteScheduler",
            "interpolation_type",
            json!("log_linear"),
        ),
        ("UniPCMultistepScheduler", "solver_p", json!({})),
        ("EulerDiscreteScheduler", "sigma_schedule", json!("none")),
        ("EulerDiscreteScheduler", "timestep_spacing", json!("odd")),
        ("DDPMScheduler", "variance_type", json!("learned")),
        (
            "DPMSolverMultistepScheduler",
            "variance_type",
            json!("learned_range"),
        ),
        (
            "DPMSolverMultistepScheduler",
            "use_dynamic_shifting",
            json!(true),
        ),
        ("SASolverScheduler", "tau_func", json!("half")),
        ("DEISMultistepScheduler", "solver_type", json!("odd")),
        ("LCMScheduler", "original_inference_steps", json!(-1)),
    ] {
        let config = json!({"_class_name": class, field: value});
        assert!(from_config(&config).is_err(), "{config}");
    }
    let both = json!({
        "_class_name": "EulerDiscreteScheduler",
        "use_karras_sigmas": true,
        "use_beta_sigmas": true,
    });
    assert!(from_config(&both).is_err());
    let lists = json!({
        "_class_name": "EulerDiscreteScheduler",
        "sigmas": [9.0, 0.0],
        "timesteps": [999, 0],
    });
    let error = from_config(&lists).expect_err("two lists").to_string();
    assert!(error.contains("either sigmas or timesteps"), "{error}");
}

/// Every parameter of diffusers' classes is a field here, describes the model, or is refused by name where a
/// configuration has another value than the default.
#[test]
fn no_parameter_is_dropped() -> TestResult {
    /// A shift that is not dynamic has no type.
    const SHIFT: &str = "time_shift_type";
    /// The seed of fresh noise is the request's.
    const SEED: &str = "noise_sampler_seed";
    /// diffusers' classes do not read them, or only for timesteps below 0, to which they never come.
    const UNREAD: [(&str, &str); 9] = [
        // Of latents that grow on the way, which are refused.
        ("FlowMatchLCMScheduler", "upscale_mode"),
        ("LCMScheduler", "set_alpha_to_one"),
        ("TCDScheduler", "set_alpha_to_one"),
        ("TCDScheduler", "clip_sample"),
        ("TCDScheduler", "clip_sample_range"),
        ("TCDScheduler", "thresholding"),
        ("TCDScheduler", "dynamic_thresholding_ratio"),
        ("TCDScheduler", "sample_max_value"),
        ("TCDScheduler", "timestep_scaling"),
    ];
    let noise = |config: &Value| {
        NoiseScheduleConfig::from_json(config)
            .ok()
            .map(|config| format!("{config:?}"))
    };
    let rows = golden_json("parameters.json")?;
    let known: Vec<&str> = entries().iter().map(|entry| entry.class).collect();
    let mut dropped = Vec::new();
    let mut checked = 0;
    for row in rows["classes"].as_array().ok_or("no classes")? {
        let class = row["class"].as_str().ok_or("no class")?;
        if !known.contains(&class) {
            continue;
        }
        let plain = from_config(&json!({"_class_name": class}))?
            .config()
            .ok_or("no config")?;
        let fields = plain.as_object().ok_or("no object")?;
        for (name, default) in row["parameters"].as_object().ok_or("no parameters")? {
            checked += 1;
            let name = name.as_str();
            let describes_model = NoiseScheduleConfig::FIELDS.contains(&name)
                || noise(&json!({"_class_name": class, name: 0.125}))
                    != noise(&json!({"_class_name": class}));
            let has_no_effect = [SHIFT, SEED].contains(&name) || UNREAD.contains(&(class, name));
            if fields.contains_key(name) || describes_model || has_no_effect {
                continue;
            }
            let same = from_config(&json!({"_class_name": class, name: default}));
            let other = from_config(&json!({"_class_name": class, name: "another value"}));
            if same.is_err() || other.is_ok() {
                dropped.push(format!("{class}: {name} = {default}"));
            }
        }
    }
    assert!(checked > 300, "{checked}");
    assert!(dropped.is_empty(), "{}", dropped.join("\n"));
    Ok(())
}

/// A configuration that another class wrote has options which do not concern the scheduler that is named.
#[test]
fn options_of_another_class_do_not_count() -> TestResult {
    let edm = json!({
        "_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0,
    });
    let flow = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true, "mu": 0.8,
    });
    for config in [&edm, &flow] {
        for entry in entries() {
            // The flow's own classes want the shift that a dynamic one is set to.
            let is_own = entry.name.starts_with("flow_match") && *config == flow;
            if !is_own && entry.class != config["_class_name"] {
                let scheduler =
                    from_name(entry.name, config).map_err(|e| format!("{}: {e}", entry.name))?;
                scheduler.sigmas(&NoiseSchedule::from_json(config)?, 10)?;
            }
        }
    }
    // The dynamic shift is the model's, whoever samples it.
    let shares = |name: &str| {
        let sigmas = from_name(name, &flow)?.sigmas(&NoiseSchedule::from_json(&flow)?, 4)?;
        Ok::<_, Error>(
            sigmas
                .into_iter()
                .map(|sigma| sigma / (1.0 + sigma))
                .collect::<Vec<_>>(),
        )
    };
    let shifted = |share: f64| {
        let factor = 0.8f64.exp();
        factor * share / (1.0 + (factor - 1.0) * share)
    };
    for (name, second) in [("flow_match_euler_simple", 0.75), ("euler_simple", 0.75)] {
        assert!(
            (shares(name)?[1] - shifted(second)).abs() < 1e-9,
            "{name}: {:?}",
            shares(name)?
        );
    }
    let rho = |name: &str| {
        Ok::<_, Error>(from_name(name, &edm)?.config().unwrap_or_default()["rho"].clone())
    };
    assert_eq!(rho("dpmpp_2m_karras")?, 7.0);
    assert_eq!(rho("dpmpp_2m_polyexponential")?, Value::Null);
    Ok(())
}

/// Every number of every class at its extremes: a typed error, or finite latents.
#[test]
fn extreme_numbers_are_refused_or_harmless() -> TestResult {
    const VALUES: [f64; 10] = [-1.0, 0.0, 1e-300, 1e-50, 1e-6, 0.3, 7.0, 1e6, 1e30, 1e300];
    let expected = Expected::new(None)?;
    let mut harmful = Vec::new();
    let mut ran = 0;
    for entry in entries() {
        let plain = from_name(entry.name, &json!({}))?
            .config()
            .ok_or("no config")?;
        let mut fields = plain.as_object().ok_or("no object")?.clone();
        // Those that are absent by default.
        for name in ["rho", "s_tmax", "mu", "shift_terminal"] {
            fields.insert(name.into(), json!(1.0));
        }
        for (name, value) in &fields {
            for number in VALUES {
                let value = match value {
                    Value::Number(number_now) if number_now.is_u64() => json!(number.abs() as u64),
                    Value::Number(_) => json!(number),
                    _ => continue,
                };
                let mut config = plain.clone();
                config[name] = value;
                let Ok(scheduler) = from_config(&config) else {
                    continue;
                };
                let run = Run::new(&scheduler, &expected, 4);
                let mut reports = 0;
                let end = run.finish_with(&mut |_| {
                    reports += 1;
                    // Tolerances of nearly 0 want steps without end.
                    if reports < 200 {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                let values = match end {
                    Ok(end) => end.flatten_all()?.to_vec1::<f32>()?,
                    Err(_) => continue,
                };
                ran += 1;
                if values.iter().any(|value| !value.is_finite()) {
                    harmful.push(format!("{} with {name} = {number}", entry.name));
                }
            }
        }
    }
    assert!(ran > 500, "{ran}");
    assert!(harmful.is_empty(), "{}", harmful.join("\n"));
    Ok(())
}
