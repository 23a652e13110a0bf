//! Every scheduler of the table passes the conformance battery, and broken ones do not.

#[path = "../examples/custom_scheduler.rs"]
#[allow(dead_code, unreachable_pub)]
mod custom_scheduler;

use std::sync::{Arc, Mutex};

use custom_scheduler::Ralston;
use diffusion_core::denoise::{NoiseScheduleConfig, PredictionType};
use diffusion_core::scheduler::{Entry, entries, from_config, from_name, karras_sigmas};
use diffusion_core::{NoiseSchedule, Result, Scheduler, SigmaSchedule, Solver, Step, Tensor};
use diffusion_tests::TestResult;
use diffusion_tests::conformance::{self, Check, Expected, Report, Run, bits};
use serde_json::{Value, json};

/// A scheduler under test.
struct Subject {
    name: String,
    scheduler: Arc<dyn Scheduler>,
    expected: Expected,
}

/// What an entry is built with.
fn config(entry: &Entry) -> Value {
    match entry.name {
        // The battery's clean latents are not within the range that these classes clip to by default.
        "ddim" | "ddim_cfg_pp" | "ddim_inverse" | "ddpm" => json!({"clip_sample": false}),
        "consistency_model" => json!({"clip_denoised": false}),
        // By default its errors are what its tolerance allows, which is the battery's bound.
        "dpm_adaptive" => json!({"rtol": 0.01}),
        _ => json!({}),
    }
}

/// Settings that make an entry deterministic if it is stochastic by default, and the other way round, if it
/// has any.
fn other_noise(entry: &Entry) -> Option<Value> {
    match entry.name {
        "sa_solver" => Some(json!({"tau": 0.0})),
        // The paper's.
        "tcd" => Some(json!({"eta": 0.3})),
        // Levels between which there is nothing to go back to.
        "restart" => Some(json!({"restart_sigma_min": 1.0, "restart_sigma_max": 1.0})),
        // The names say it.
        "euler_cfg_pp" | "euler_ancestral_cfg_pp" => None,
        "exp_heun_2_x0" | "exp_heun_2_x0_sde" => None,
        name if name.starts_with("res_multistep") => None,
        name => {
            let own = from_name(name, &config(entry)).ok()?.config()?;
            own.get("eta")?;
            Some(json!({"eta": if entry.is_stochastic { 0.0 } else { 1.0 }}))
        }
    }
}

/// The forms of models, of which every entry runs on each.
const FORMS: [&str; 4] = ["variances", "zero_snr", "flow", "edm"];

/// The form of model that an entry is for; that of some is its class's own.
fn own_form(entry: &Entry) -> &'static str {
    match entry.class {
        class if class.starts_with("FlowMatch") || class.starts_with("LTX") => "flow",
        class if class.starts_with("EDM") => "edm",
        class if class.starts_with("Cosine") || class.starts_with("CM") => class,
        _ => "variances",
    }
}

fn schedule_of(form: &str) -> Result<NoiseSchedule> {
    match form {
        "zero_snr" => NoiseSchedule::new(&NoiseScheduleConfig {
            prediction_type: PredictionType::VPrediction,
            rescale_betas_zero_snr: true,
            ..NoiseScheduleConfig::stable_diffusion()
        }),
        "flow" => NoiseSchedule::from_json(&json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "shift": 3.0,
        })),
        "edm" => NoiseSchedule::from_json(&json!({"_class_name": "EDMEulerScheduler"})),
        class if class.ends_with("Scheduler") => {
            NoiseSchedule::from_json(&json!({"_class_name": class}))
        }
        _ => NoiseSchedule::new(&NoiseScheduleConfig::stable_diffusion()),
    }
}

fn expected(
    entry: &Entry,
    form: &str,
    is_native: bool,
    is_stochastic: bool,
) -> TestResult<Expected> {
    let order = match entry.name {
        // The walk of each of its steps adapts; see `loose_tolerances_leave_steps_of_third_order`.
        "dpm_adaptive" => None,
        // On the model's own levels these take strides of whole timesteps, whatever the plan.
        "ddim" | "ddim_cfg_pp" | "pndm" | "plms" | "tcd" if is_native => None,
        _ => (entry.order > 0).then_some(f64::from(entry.order)),
    };
    let mut expected = Expected::new(order)?;
    expected.is_stochastic = is_stochastic;
    expected.couples_batch = entry.name == "dpm_adaptive";
    let jumps = ["lcm", "consistency_model", "flow_match_lcm"];
    expected.is_distilled = jumps.contains(&entry.name);
    match entry.name {
        "lcm" | "tcd" => expected.max_steps = 50,
        "consistency_model" => expected.max_steps = 40,
        _ => {}
    }
    expected.variance = variance_of(entry.name, form, is_native);
    expected.schedule = schedule_of(form)?;
    Ok(expected)
}

/// Where it is not 1: from the exact recursion of the published update over the battery's model.
fn variance_of(name: &str, form: &str, is_native: bool) -> f64 {
    match (name, form, is_native) {
        // A share of each step's way stays, however many steps there are.
        ("tcd", "zero_snr", true) => 0.818,
        ("tcd", "zero_snr", false) => 0.712,
        ("tcd", "flow", true) => 0.755,
        ("tcd", "flow", false) => 0.778,
        ("tcd", "edm", true) => 0.584,
        ("tcd", "edm", false) => 0.582,
        ("tcd", ..) => 0.821,
        // The best estimates at its model's lowest level, 0.3, vary less than the clean latents.
        ("cosine_dpmpp_2m_sde", form, _) if form.ends_with("Scheduler") => 0.869,
        // Karras's levels spend most of the steps far above the clean latents: 0.958 at 500, 0.988 at 2000.
        (
            "euler_ancestral" | "euler_ancestral_cfg_pp" | "ddim" | "ddim_cfg_pp" | "ddpm",
            "zero_snr",
            false,
        ) => 0.920,
        _ => 1.0,
    }
}

/// An entry on one form of model, and the same with Karras's levels where those are others than its own.
fn push(
    subjects: &mut Vec<Subject>,
    (entry, form): (&Entry, &str),
    (suffix, config): (&str, &Value),
    is_stochastic: bool,
) -> TestResult {
    let native = from_name(entry.name, config)?;
    let karras = from_name(&format!("{}_karras", entry.name), config)?;
    let expected_native = expected(entry, form, true, is_stochastic)?;
    let levels = |s: &Arc<dyn Scheduler>| s.sigmas(&expected_native.schedule, 20);
    if levels(&karras)? != levels(&native)? {
        subjects.push(Subject {
            name: format!("{}_karras{suffix} on {form}", entry.name),
            scheduler: karras,
            expected: expected(entry, form, false, is_stochastic)?,
        });
    }
    subjects.push(Subject {
        name: format!("{}{suffix} on {form}", entry.name),
        scheduler: native,
        expected: expected_native,
    });
    Ok(())
}

/// Every entry of the table, as it is and with more or less fresh noise, on its own form of model or on all
/// others.
fn subjects(own: bool) -> TestResult<Vec<Subject>> {
    let mut subjects = Vec::new();
    for entry in entries() {
        let form = own_form(entry);
        let forms: Vec<&str> = match own {
            true => vec![form],
            false => FORMS.into_iter().filter(|other| *other != form).collect(),
        };
        for form in forms {
            let (place, own) = ((entry, form), config(entry));
            push(&mut subjects, place, ("", &own), entry.is_stochastic)?;
            if let Some(Value::Object(other)) = other_noise(entry) {
                let suffix = format!(" {}", Value::Object(other.clone()));
                let mut fields = own.as_object().cloned().unwrap_or_default();
                fields.extend(other);
                let config = (suffix.as_str(), &Value::Object(fields));
                push(&mut subjects, place, config, !entry.is_stochastic)?;
            }
        }
    }
    Ok(subjects)
}

/// Runs one check on everything, each on its own form of model, and fails with all failures.
fn all(check: Check) -> TestResult {
    check_subjects(check, &subjects(true)?)
}

/// The same, each on the other forms.
fn all_elsewhere(check: Check) -> TestResult {
    check_subjects(check, &subjects(false)?)
}

fn check_subjects(check: Check, subjects: &[Subject]) -> TestResult {
    let mut failures = Vec::new();
    for Subject {
        name,
        scheduler,
        expected,
    } in subjects
    {
        match check(scheduler, expected) {
            Ok(measured) => println!("{name}: {measured}"),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(format!("{} failures\n{}", failures.len(), failures.join("\n")).into()),
    }
}

#[test]
fn order() -> TestResult {
    all(conformance::order)
}

#[test]
fn agreement() -> TestResult {
    all(conformance::agreement)
}

#[test]
fn variance() -> TestResult {
    all(conformance::variance)
}

#[test]
fn determinism() -> TestResult {
    all(conformance::determinism)
}

#[test]
fn batch() -> TestResult {
    all(conformance::batch)
}

#[test]
fn threads() -> TestResult {
    all(conformance::threads)
}

#[test]
fn cancel() -> TestResult {
    all(conformance::cancel)
}

#[test]
fn step_counts() -> TestResult {
    all(conformance::step_counts)
}

#[test]
fn agreement_on_other_forms() -> TestResult {
    all_elsewhere(conformance::agreement)
}

#[test]
fn variance_on_other_forms() -> TestResult {
    all_elsewhere(conformance::variance)
}

/// Whether a curve has so few low levels on a form that 160 steps are too few: these go down evenly in the
/// noise level itself, or by a distribution around 1.
fn is_coarse(curve: &str, form: &str) -> bool {
    match curve {
        "linear_quadratic" => form != "flow",
        "beta" => matches!(form, "zero_snr" | "edm"),
        "laplace" => matches!(form, "flow" | "edm"),
        _ => false,
    }
}

/// On each form, for solvers that integrate slopes, clean latents, and noise.
#[test]
fn every_curve_leads_to_the_end_on_every_form() -> TestResult {
    let mut subjects = Vec::new();
    for form in FORMS {
        let curves = SigmaSchedule::NAMED.map(|(curve, _)| curve).into_iter();
        for curve in curves.filter(|curve| !is_coarse(curve, form)) {
            for solver in ["heun", "lms", "dpmpp_2m", "dpm_solver", "unipc"] {
                let name = format!("{solver}_{curve}");
                let mut expected = Expected::new(None)?;
                expected.schedule = schedule_of(form)?;
                subjects.push(Subject {
                    scheduler: from_name(&name, &json!({}))?,
                    name: format!("{name} on {form}"),
                    expected,
                });
            }
        }
    }
    check_subjects(conformance::agreement, &subjects)
}

#[test]
fn determinism_on_other_forms() -> TestResult {
    all_elsewhere(conformance::determinism)
}

#[test]
fn step_counts_on_other_forms() -> TestResult {
    all_elsewhere(conformance::step_counts)
}

/// Where no step is refused, the steps are those of the plan.
#[test]
fn loose_tolerances_leave_steps_of_third_order() -> TestResult {
    let scheduler = from_name(
        "dpm_adaptive",
        &json!({"rtol": 1e9, "atol": 1e9, "h_init": 1e9}),
    )?;
    let measured = conformance::order(&scheduler, &Expected::new(Some(3.0))?)?;
    println!("{measured}");
    Ok(())
}

/// A request's `eta` comes before the scheduler's own.
#[test]
fn eta_of_a_request_is_that_of_the_configuration() -> TestResult {
    for entry in entries()
        .iter()
        .filter(|entry| entry.name != "dpm_adaptive")
    {
        let Some(mut config) = from_name(entry.name, &config(entry))?.config() else {
            return Err(format!("{} has no configuration", entry.name).into());
        };
        if config.get("eta").is_none() {
            continue;
        }
        let expected = expected(entry, own_form(entry), true, true)?;
        for eta in [0.0, 0.5] {
            config["eta"] = eta.into();
            let set = bits(&Run::new(&from_config(&config)?, &expected, 20).finish()?)?;
            config["eta"] = 0.25.into();
            let scheduler = from_config(&config)?;
            let mut run = Run::new(&scheduler, &expected, 20);
            run.eta = Some(eta);
            assert_eq!(bits(&run.finish()?)?, set, "{} at {eta}", entry.name);
        }
    }
    Ok(())
}

/// The example of a scheduler outside the crate.
#[test]
fn the_custom_scheduler_passes() -> TestResult {
    let report = Report::of(&Ralston, &Expected::new(Some(3.0))?);
    println!("{report}");
    conformance::check(&Ralston, &Expected::new(Some(3.0))?)
}

/// How [`Euler`] goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Goes a little too far.
    Overshoots,
    /// The scheduler remembers the last estimate, from run to run.
    Remembers,
    /// Draws noise that belongs to no seed and no level.
    AddsNoise,
    /// Takes the mean of the batch for each picture.
    Mixes,
    /// Plans a level that is no number, in runs of three steps.
    CannotCountToThree,
}

/// Euler's method with a closure as solver.
#[derive(Debug)]
struct Euler {
    fault: Fault,
    last: Arc<Mutex<Option<Tensor>>>,
}

impl Euler {
    fn new(fault: Fault) -> Self {
        let last = Arc::default();
        Self { fault, last }
    }
}

impl Scheduler for Euler {
    fn sigmas(&self, noise: &NoiseSchedule, num_steps: usize) -> Result<Vec<f64>> {
        let mut sigmas = karras_sigmas(noise.sigma_min(), noise.sigma_max(), num_steps)?;
        if self.fault != Fault::CannotCountToThree || num_steps != 3 {
            sigmas.push(0.0);
        } else {
            sigmas[1] = f64::NAN;
        }
        Ok(sigmas)
    }

    fn solver(&self) -> Box<dyn Solver> {
        let (fault, last) = (self.fault, self.last.clone());
        Box::new(move |step: &mut Step<'_>, latents: &Tensor| {
            let (sigma, next) = (step.sigma(), step.sigma_next());
            let mut denoised = step.denoise(latents, sigma)?;
            if fault == Fault::Mixes {
                let mean = denoised.mean_keepdim(0)?;
                denoised = mean.broadcast_as(denoised.shape())?.contiguous()?;
            }
            let mut keep = next / sigma;
            if fault == Fault::Overshoots {
                keep *= 1.02;
            }
            let moved = step.combine(&[(keep, latents), (1.0 - keep, &denoised)])?;
            match (fault, last.lock()) {
                (Fault::Remembers, Ok(mut last)) => {
                    let before = last.replace(denoised.clone());
                    let fits = |before: &Tensor| before.dims() == denoised.dims();
                    let before = before.filter(fits).unwrap_or(denoised);
                    step.combine(&[(0.99, &moved), (0.01, &before)])
                }
                (Fault::AddsNoise, _) => {
                    let noise = step.noise(sigma, next)?;
                    step.combine(&[(1.0, &moved), (0.3, &noise)])
                }
                _ => Ok(moved),
            }
        })
    }
}

#[test]
fn a_closure_passes() -> TestResult {
    conformance::check(&Euler::new(Fault::None), &Expected::new(Some(1.0))?)
}

/// The names of the checks that a faulty scheduler fails.
fn failed(fault: Fault, expected: &Expected) -> Vec<&'static str> {
    let report = Report::of(&Euler::new(fault), expected);
    println!("{fault:?}\n{report}");
    report.failed()
}

#[test]
fn broken_schedulers_fail() -> TestResult {
    let first = Expected::new(Some(1.0))?;
    assert_eq!(failed(Fault::None, &Expected::new(Some(2.0))?), ["order"]);
    assert_eq!(failed(Fault::Overshoots, &first), ["order", "agreement"]);
    let remembers = failed(Fault::Remembers, &first);
    for check in ["determinism", "batch", "threads", "cancel"] {
        assert!(remembers.contains(&check), "{check}: {remembers:?}");
    }
    assert!(failed(Fault::AddsNoise, &first).contains(&"determinism"));
    let stochastic = Expected {
        is_stochastic: true,
        ..first.clone()
    };
    assert_eq!(failed(Fault::AddsNoise, &stochastic), ["variance"]);
    assert_eq!(failed(Fault::None, &stochastic), ["determinism"]);
    assert_eq!(failed(Fault::Mixes, &first), ["batch"]);
    assert_eq!(failed(Fault::CannotCountToThree, &first), ["step_counts"]);
    Ok(())
}
