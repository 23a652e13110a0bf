//! Schedulers by every name that they have, and settings of one's own.

use std::ops::ControlFlow;

use diffusion_core::denoise::{NoiseSchedule, NoiseScheduleConfig};
use diffusion_core::scheduler::{
    Sampler, SigmaSchedule, entries, from_config, from_name, sigma_schedule,
};
use diffusion_core::{ErrorKind, GenerateRequest, Scheduler};
use diffusion_tests::{TestResult, emoji_pipeline};
use serde_json::{Value, json};

fn stable_diffusion() -> TestResult<NoiseSchedule> {
    Ok(NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion())?)
}

fn config_of(name: &str) -> TestResult<Value> {
    let scheduler = from_name(name, &json!({})).map_err(|e| format!("{name}: {e}"))?;
    Ok(scheduler.config().ok_or("no config")?)
}

#[test]
fn short_names_labels_and_classes() -> TestResult {
    for entry in entries() {
        for name in [&[entry.name, entry.class], entry.labels].concat() {
            assert_eq!(config_of(name)?["_class_name"], entry.class, "{name}");
        }
    }
    for (name, class, curve) in [
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", "karras"),
        ("DPM++ SDE Karras", "DPMSolverSDEScheduler", "karras"),
        ("euler_a_k", "EulerAncestralDiscreteScheduler", "karras"),
        ("dpm++2m", "DPMSolverMultistepScheduler", "native"),
        ("HeunDiscrete", "HeunDiscreteScheduler", "native"),
        (
            "DPM++ 2M SDE Exponential",
            "DPMPPMultistepSDEScheduler",
            "exponential",
        ),
        (
            "DPM++ 3M SDE Karras",
            "DPMPPMultistepSDEScheduler",
            "karras",
        ),
        ("DPM++ 2S a Karras", "DPMPP2SAncestralScheduler", "karras"),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", "karras"),
        ("LMS Karras", "LMSDiscreteScheduler", "karras"),
        (
            "Euler a SGM Uniform",
            "EulerAncestralDiscreteScheduler",
            "sgm_uniform",
        ),
        (
            "Euler Align Your Steps",
            "EulerDiscreteScheduler",
            "align_your_steps",
        ),
        (
            "k_dpmpp_2m-kl_optimal",
            "DPMSolverMultistepScheduler",
            "kl_optimal",
        ),
        (
            "dpmpp_2m_sde_heun_polyexponential",
            "DPMPPMultistepSDEScheduler",
            "polyexponential",
        ),
        ("ddim_uniform", "DDIMScheduler", "native"),
        ("heun_ddim_uniform", "HeunDiscreteScheduler", "ddim_uniform"),
        ("uni_pc_bh2_beta", "UniPCMultistepScheduler", "beta"),
    ] {
        let config = config_of(name)?;
        assert_eq!(config["_class_name"], class, "{name}");
        let found = config["sigma_schedule"].as_str().unwrap_or_default();
        assert_eq!(found, curve, "{name}");
    }
    assert_eq!(config_of("DPM++ 3M")?["solver_order"], 3);
    assert_eq!(config_of("uni_pc")?["solver_type"], "bh1");
    assert_eq!(config_of("euler_ancestral_cfg_pp")?["eta"], 1.0);
    assert_eq!(config_of("DDIM CFG++")?["cfg_pp"], true);
    assert_eq!(config_of("ddim")?["cfg_pp"], false);
    assert_eq!(config_of("DDPMParallel")?["_class_name"], "DDPMScheduler");
    // Fresh noise has no way back.
    let inverse = json!({
        "_class_name": "DPMSolverMultistepInverseScheduler",
        "algorithm_type": "sde-dpmsolver++",
    });
    let error = from_config(&inverse).expect_err("with fresh noise");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    Ok(())
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    for (name, nearest) in [
        ("dpmp_2m", "dpmpp_2m"),
        ("eular a", "Euler a"),
        ("DPM++ 2M Karas", "dpmpp_2m"),
        ("unipic", "unipc"),
        ("", "did you mean"),
        ("_", "did you mean"),
        ("++", "did you mean"),
        ("karras", "did you mean"),
        ("é_ö_karras", "did you mean"),
    ] {
        let error = from_name(name, &json!({})).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
        assert!(error.to_string().contains(nearest), "{name}: {error}");
    }
    let error = from_config(&json!({"_class_name": "EulerDiscretScheduler"})).expect_err("class");
    assert!(
        error.to_string().contains("EulerDiscreteScheduler"),
        "{error}"
    );
    let error = sigma_schedule("karas").expect_err("curve");
    assert!(error.to_string().contains("karras"), "{error}");
}

#[test]
fn settings_become_json_and_come_back() -> TestResult {
    let own = json!({"timestep_spacing": "trailing", "steps_offset": 3, "eta": 0.25, "rho": 5.0});
    for entry in entries() {
        for curve in SigmaSchedule::NAMED.map(|(name, _)| name) {
            let scheduler = from_name(&format!("{}_{curve}", entry.name), &own)?;
            let config = scheduler.config().ok_or("no config")?;
            let again = from_config(&config)?;
            assert_eq!(format!("{scheduler:?}"), format!("{again:?}"));
        }
    }
    let listed = from_name("euler", &json!({"sigmas": [9.0, 2.0, 0.0]}))?;
    let again = from_config(&listed.config().ok_or("no config")?)?;
    assert_eq!(again.sigmas(&stable_diffusion()?, 7)?, [9.0, 2.0, 0.0]);
    Ok(())
}

#[test]
fn any_number_of_steps_has_a_plan_or_an_error() -> TestResult {
    let pipe = emoji_pipeline()?;
    for noise in [pipe.noise_schedule(), &stable_diffusion()?] {
        for entry in entries() {
            for curve in SigmaSchedule::NAMED.map(|(name, _)| name) {
                let spacings = ["leading", "linspace", "trailing"];
                let is_spaced = curve == "native" || entry.name == "euler";
                for spacing in &spacings[..if is_spaced { 3 } else { 1 }] {
                    let config = json!({"timestep_spacing": spacing, "steps_offset": 1});
                    let name = format!("{}_{curve}", entry.name);
                    let scheduler = from_name(&name, &config)?;
                    for steps in [0, 1, 2, 3, 7, 30, 333, 1000, 1001] {
                        assert_plan(&name, &scheduler, noise, steps);
                    }
                }
            }
        }
    }
    Ok(())
}

fn assert_plan(name: &str, scheduler: &dyn Scheduler, schedule: &NoiseSchedule, steps: usize) {
    let sampler = Sampler {
        scheduler,
        schedule,
        num_steps: steps,
        eta: None,
    };
    match sampler.sigmas() {
        Ok(sigmas) => assert!(sigmas.len() >= 2, "{name} {steps}"),
        Err(error) => {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name} {steps}");
            // Beyond the model's timesteps; or few that the distilled model knows.
            assert!(
                text.contains("num_steps") && steps != 1,
                "{name} {steps}: {text}"
            );
        }
    }
    // Without the checks of a run.
    let _ = scheduler.sigmas(schedule, steps);
}

#[test]
fn every_curve_changes_the_plan() -> TestResult {
    let noise = stable_diffusion()?;
    for entry in entries() {
        let plan = |name: &str, config: Value| from_name(name, &config)?.sigmas(&noise, 12);
        if matches!(entry.name, "dpm_fast" | "dpm_adaptive") {
            // Of these the ends alone count.
            let sigmas = plan(entry.name, json!({"sigmas": [9.0, 5.0, 0.5, 0.0]}))?;
            assert_eq!(
                (sigmas.first(), sigmas.last()),
                (Some(&9.0), Some(&0.5)),
                "{}",
                entry.name
            );
            continue;
        }
        let native = plan(&format!("{}_native", entry.name), json!({}))?;
        for (curve, _) in SigmaSchedule::NAMED.into_iter().skip(1) {
            let sigmas = plan(&format!("{}_{curve}", entry.name), json!({}))?;
            // The model's own levels are those for these two.
            let is_same = curve == "flow" && entry.name.starts_with("flow_match");
            assert_eq!(sigmas == native, is_same, "{}_{curve}", entry.name);
        }
    }
    Ok(())
}

#[test]
fn short_lists_are_errors_for_every_scheduler() -> TestResult {
    let schedule = stable_diffusion()?;
    for entry in entries() {
        for list in [
            json!({"sigmas": []}),
            json!({"sigmas": [14.6]}),
            json!({"timesteps": []}),
        ] {
            let scheduler = from_name(entry.name, &list)?;
            let sampler = Sampler {
                scheduler: &scheduler,
                schedule: &schedule,
                num_steps: 40,
                eta: None,
            };
            // Those with levels of their own have no use for a list.
            let _ = sampler.sigmas();
            assert!(
                scheduler.sigmas(&schedule, usize::MAX).is_err(),
                "{}",
                entry.name
            );
        }
    }
    Ok(())
}

#[test]
fn a_class_by_name_keeps_what_the_configuration_says() -> TestResult {
    let own =
        json!({"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_karras_sigmas": true});
    let config = from_name("DPMSolverMultistepScheduler", &own)?
        .config()
        .ok_or("no config")?;
    assert_eq!(config["algorithm_type"], "sde-dpmsolver++");
    assert_eq!(config["solver_order"], 3);
    for name in ["dpm_fast", "dpm_adaptive", "restart"] {
        let config = from_name(name, &json!({"use_exponential_sigmas": true}))?.config();
        assert_eq!(
            config.ok_or("no config")?["sigma_schedule"],
            "exponential",
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn lists_of_one_s_own() -> TestResult {
    let pipe = emoji_pipeline()?;
    let run = |name: &str, list: &str, values: Value| {
        let config = json!({list: values});
        let request = GenerateRequest::txt2img("a red heart, flat style")
            .scheduler(from_name(name, &config)?)
            .num_steps(20)
            .seed(1);
        let mut steps = 0;
        pipe.generate_latents(&request, &mut |progress| {
            steps = progress.num_steps;
            ControlFlow::Continue(())
        })?;
        Ok::<usize, diffusion_core::Error>(steps)
    };
    assert_eq!(run("euler", "sigmas", json!([14.6, 3.0, 0.5, 0.0]))?, 3);
    assert_eq!(run("ddim", "timesteps", json!([999, 500, 100]))?, 3);
    for values in [
        json!([]),
        json!([1.0]),
        json!([1.0, 2.0]),
        json!([3.0, 0.0, 0.0]),
        json!([3.0, -1.0]),
        json!([1e300, 1.0, 0.0]),
    ] {
        let error = run("dpmpp_2m", "sigmas", values.clone()).expect_err("a bad list");
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Format),
            "{values}: {error}"
        );
    }
    Ok(())
}
