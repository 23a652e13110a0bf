//! Kohya's Deep Shrink against torch.

use std::ops::ControlFlow;

use diffusion_core::denoise::DeepShrink;
use diffusion_core::model::{Shrink, UNetInput};
use diffusion_core::nn::{Activation, resize_bicubic};
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close, model_path};

use crate::networks::open_unet;

fn shrink(block: usize, factor: f64, after_skip: bool) -> Shrink {
    Shrink {
        block,
        factor,
        after_skip,
    }
}

#[test]
fn inner_levels_that_are_smaller() -> TestResult {
    let golden = Golden::open("shrink")?;
    let unet = open_unet("sd15")?;
    let text = golden.tensor("encoder_hidden_states")?;
    let timesteps = golden.values("timesteps")?;
    for case in ["square", "wide", "odd"] {
        let sample = golden.tensor(&format!("{case}.sample"))?;
        for (way, shrink) in [
            ("default", Shrink::default()),
            ("early", shrink(1, 1.5, true)),
            ("late", shrink(5, 2.0, true)),
            ("before", shrink(3, 2.0, false)),
        ] {
            let output = unet.forward(&UNetInput {
                shrink: Some(shrink),
                ..UNetInput::new(&sample, &timesteps, &text)
            })?;
            let what = format!("{case}.{way}");
            assert_close(&what, &output, &golden.tensor(&what)?, TOLERANCE)?;
        }
    }
    Ok(())
}

#[test]
fn bicubic_resizing() -> TestResult {
    let golden = Golden::open("shrink")?;
    let picture = Activation::from_nchw(&golden.tensor("picture")?)?;
    for name in ["down", "half", "up", "mixed"] {
        let expected = golden.tensor(&format!("resized.{name}"))?;
        let (_, _, height, width) = expected.dims4()?;
        let resized = resize_bicubic(&picture, height, width)?.to_nchw()?;
        assert_close(name, &resized, &expected, TOLERANCE)?;
    }
    Ok(())
}

fn latents(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Tensor> {
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(sampled.latents)
}

#[test]
fn the_first_part_of_a_run_shrinks() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = || {
        let request = GenerateRequest::txt2img("a cat").num_steps(4).seed(1);
        request.size(96, 64)
    };
    let window = |start: f64, end: f64| {
        let deep_shrink = DeepShrink {
            start,
            end,
            ..DeepShrink::default()
        };
        latents(&pipe, &request().deep_shrink(deep_shrink))
    };
    let apart =
        |a: &Tensor, b: &Tensor| -> TestResult<f32> { Ok((a - b)?.abs()?.max_all()?.to_scalar()?) };
    let plain = latents(&pipe, &request())?;
    // Timesteps 751, 501, 251 and 1: the window ends between two of them.
    let (first, second) = (window(0.0, 0.35)?, window(0.0, 0.6)?);
    assert!(apart(&first, &plain)? > 1e-3 && apart(&first, &second)? > 1e-3);
    assert_eq!(apart(&window(0.0, 0.2)?, &plain)?, 0.0, "no step is in it");
    assert_eq!(
        apart(&window(0.2, 0.4)?, &first)?,
        0.0,
        "the same step is in it"
    );
    Ok(())
}

#[test]
fn settings_that_no_model_has_are_errors() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let default = DeepShrink::default();
    for deep_shrink in [
        DeepShrink {
            shrink: shrink(6, 2.0, true),
            ..default
        },
        DeepShrink {
            shrink: shrink(3, 0.5, true),
            ..default
        },
        DeepShrink {
            shrink: shrink(3, f64::NAN, true),
            ..default
        },
        DeepShrink {
            end: 1.5,
            ..default
        },
        DeepShrink {
            start: f64::NAN,
            ..default
        },
    ] {
        let request = GenerateRequest::txt2img("a cat").num_steps(1).size(64, 64);
        let error = pipe.generate(&request.deep_shrink(deep_shrink)).err();
        let kind = error.map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::InvalidArgument), "{deep_shrink:?}");
    }
    Ok(())
}
