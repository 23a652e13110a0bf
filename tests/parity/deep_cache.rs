//! DeepCache against diffusers' modules.

use diffusion_core::{ErrorKind, Pipeline, Tensor};
use diffusion_tests::{Golden, RUN_TOLERANCE, TestResult, assert_close, golden_json, model_path};

use crate::guidance::{latents, request};

fn max_difference(a: &Tensor, b: &Tensor) -> TestResult<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar()?)
}

#[test]
fn inner_levels_in_some_evaluations_alone() -> TestResult {
    let golden = Golden::open("deep_cache")?;
    let cases = golden_json("deep_cache.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().ok_or("no name")?;
        let model = case["model"].as_str().ok_or("no model")?;
        let pipe = Pipeline::builder().weights(model_path(model)).build()?;
        let interval = case["interval"].as_u64().ok_or("no interval")? as usize;
        let ours = latents(&pipe, &request().deep_cache(interval))?;
        assert_close(name, &ours, &golden.tensor(name)?, RUN_TOLERANCE)?;
        let whole = latents(&pipe, &request())?;
        assert!(
            max_difference(&ours, &whole)? > 1e-3,
            "{name}: nothing was taken over"
        );
        let all = latents(&pipe, &request().deep_cache(1))?;
        assert_eq!(max_difference(&all, &whole)?, 0.0);
    }
    Ok(())
}

#[test]
fn an_interval_of_nothing_is_an_error() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    for interval in [0, 1001, usize::MAX] {
        let error = pipe.generate(&request().deep_cache(interval)).err();
        let kind = error.map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::InvalidArgument), "{interval}");
    }
    Ok(())
}
