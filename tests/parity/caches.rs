//! Evaluations that take over what earlier ones found, and attention over fewer tokens, against diffusers' modules.

use std::ops::ControlFlow;

use diffusion_core::denoise::DeepShrink;
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{Golden, RUN_TOLERANCE, TestResult, assert_close, golden_json, model_path};
use serde_json::Value;

fn max_difference(a: &Tensor, b: &Tensor) -> TestResult<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar()?)
}

fn latents(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Tensor> {
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(sampled.latents)
}

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("two cats! on a red roof")
        .negative_prompt("blurry, dark")
        .size(96, 64)
        .num_steps(6)
        .seed(42)
        .num_images(2)
}

/// Compares the runs of a golden, of which `changed` makes the request.
fn compare(
    golden: &str,
    count: usize,
    changed: impl Fn(&Value) -> TestResult<GenerateRequest>,
) -> TestResult {
    let cases = golden_json(&format!("{golden}.json"))?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert_eq!(cases.len(), count);
    let golden = Golden::open(golden)?;
    for case in cases {
        let name = case["name"].as_str().ok_or("no name")?;
        let model = case["model"].as_str().ok_or("no model")?;
        let pipe = Pipeline::builder().weights(model_path(model)).build()?;
        let ours = latents(&pipe, &changed(case)?)?;
        assert_close(name, &ours, &golden.tensor(name)?, RUN_TOLERANCE)?;
        let whole = latents(&pipe, &request())?;
        assert!(
            max_difference(&ours, &whole)? > 1e-3,
            "{name}: nothing was left out"
        );
    }
    Ok(())
}

#[test]
fn inner_levels_in_some_evaluations_alone() -> TestResult {
    compare("deep_cache", 4, |case| {
        let interval = case["interval"].as_u64().ok_or("no interval")?;
        Ok(request().deep_cache(interval as usize))
    })
}

#[test]
fn less_attention() -> TestResult {
    compare("attention_caches", 10, |case| {
        Ok(
            match (case["tgate"].as_u64(), case["token_merging"].as_f64()) {
                (Some(num_steps), None) => request().tgate(num_steps as usize),
                (None, Some(ratio)) => request().token_merging(ratio),
                _ => return Err("neither of both".into()),
            },
        )
    })
}

#[test]
fn what_leaves_nothing_out_changes_nothing() -> TestResult {
    for model in ["sd15", "sdxl"] {
        let pipe = Pipeline::builder().weights(model_path(model)).build()?;
        let whole = latents(&pipe, &request())?;
        for request in [
            request().deep_cache(1),
            request().tgate(6),
            request().tgate(usize::MAX),
            request().token_merging(0.0),
            // Less than one of the tokens.
            request().token_merging(0.01),
        ] {
            assert_eq!(max_difference(&latents(&pipe, &request)?, &whole)?, 0.0);
        }
    }
    Ok(())
}

/// Each picture has its own groups of tokens and its own cache.
#[test]
fn pictures_at_once_are_those_one_by_one() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    for request in [request().tgate(3), request().token_merging(0.5)] {
        let at_once = latents(&pipe, &request.clone().batch_size(2))?;
        let one_by_one = latents(&pipe, &request.batch_size(1))?;
        assert_eq!(max_difference(&at_once, &one_by_one)?, 0.0);
    }
    Ok(())
}

/// All at once, where each evaluation has other levels, other rows and other sizes.
#[test]
fn they_go_together() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = request()
        .deep_cache(2)
        .tgate(4)
        .token_merging(0.5)
        .pag_scale(1.0)
        .scheduler_name("heun")
        .deep_shrink(DeepShrink {
            end: 0.9,
            ..DeepShrink::default()
        });
    let values = latents(&pipe, &request)?.flatten_all()?.to_vec1::<f32>()?;
    assert!(values.iter().all(|value| value.is_finite()));
    // Solvers that ask for the answer without the prompt get the one answer there is.
    latents(&pipe, &request.scheduler_name("euler_cfg_pp"))?;
    Ok(())
}

#[test]
fn what_makes_no_sense_is_an_error() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let cases = [
        (request().deep_cache(0), ErrorKind::InvalidArgument),
        (request().deep_cache(1001), ErrorKind::InvalidArgument),
        (request().deep_cache(usize::MAX), ErrorKind::InvalidArgument),
        (request().tgate(0), ErrorKind::InvalidArgument),
        (request().token_merging(-0.1), ErrorKind::InvalidArgument),
        (request().token_merging(0.91), ErrorKind::InvalidArgument),
        (
            request().token_merging(f64::NAN),
            ErrorKind::InvalidArgument,
        ),
        // The parts of a composition lead away from an answer that is there no more.
        (
            GenerateRequest::txt2img("a cat AND a dog").tgate(1),
            ErrorKind::Unsupported,
        ),
    ];
    for (request, kind) in cases {
        let found = pipe.generate(&request).err().map(|error| error.kind());
        assert_eq!(found, Some(kind), "{request:?}");
    }
    Ok(())
}
