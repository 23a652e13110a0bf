//! Guidance beyond one scale, against diffusers.

use std::ops::ControlFlow;

use diffusion_core::denoise::Guidance;
use diffusion_core::{GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, model_path,
};

pub(crate) fn latents(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Tensor> {
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(sampled.latents)
}

pub(crate) fn request() -> GenerateRequest {
    GenerateRequest::txt2img("two cats! on a red roof")
        .negative_prompt("blurry, dark")
        .size(96, 64)
        .num_steps(6)
        .seed(42)
        .num_images(2)
}

#[test]
fn rescaled_guidance() -> TestResult {
    let golden = Golden::open("guidance")?;
    let cases = golden_json("guidance.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert_eq!(cases.len(), 6);
    for case in cases {
        let name = case["name"].as_str().ok_or("no name")?;
        let model = case["model"].as_str().ok_or("no model")?;
        let pipe = Pipeline::builder().weights(model_path(model)).build()?;
        let share = case["rescale"].as_f64().ok_or("no rescale")?;
        let ours = latents(&pipe, &request().guidance_rescale(share))?;
        assert_close(name, &ours, &golden.tensor(name)?, RUN_TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn zero_star_fits_the_answer_without_the_prompt() -> TestResult {
    let golden = Golden::open("guidance")?;
    let outputs = [
        golden.tensor("zero_star.negative")?,
        golden.tensor("zero_star.positive")?,
    ];
    let guidance = Guidance {
        zero_star: Some(1),
        ..Guidance::scale(4.5)
    };
    let ours = guidance.combine(&outputs, Some((1, 6)))?;
    assert_close(
        "guided",
        &ours,
        &golden.tensor("zero_star.guided")?,
        TOLERANCE,
    )?;
    let first = guidance.combine(&outputs, Some((0, 6)))?;
    assert_eq!(first.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
    Ok(())
}

/// A curve and an interval say the same where the curve is at most 1 outside of the interval.
#[test]
fn curves_and_intervals_turn_guidance_off_and_on() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = request().num_images(1);
    let plain = latents(&pipe, &request)?;
    let same = |a: &Tensor, b: &Tensor| -> TestResult<bool> {
        Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0)
    };
    let constant = latents(&pipe, &request.clone().guidance_curve([7.5]))?;
    assert!(same(&constant, &plain)?);
    let middle = latents(&pipe, &request.clone().guidance_interval(0.3, 0.7))?;
    let curve = latents(
        &pipe,
        &request
            .clone()
            .guidance_curve([1.0, 1.0, 7.5, 7.5, 1.0, 1.0]),
    )?;
    assert!(same(&curve, &middle)?);
    assert!(!same(&middle, &plain)?);
    let never = latents(&pipe, &request.clone().guidance_interval(0.5, 0.5))?;
    let unguided = latents(&pipe, &request.clone().guidance_scale(1.0))?;
    // One asks with both halves allocated, the other never; the numbers are the same.
    assert!(same(&never, &unguided)?);
    let halfway = Guidance {
        curve: vec![2.0, 8.0],
        ..Guidance::default()
    };
    let line = vec![2.0, 3.2, 4.4, 5.6, 6.8, 8.0];
    let stepwise = latents(&pipe, &request.clone().guidance_curve(line))?;
    assert_close(
        "line",
        &latents(&pipe, &request.guidance(halfway))?,
        &stepwise,
        TOLERANCE,
    )
}
