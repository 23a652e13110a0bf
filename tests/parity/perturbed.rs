//! Perturbed-attention guidance against diffusers.

use std::ops::ControlFlow;

use diffusion_core::model::{TextTime, UNetInput};
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, model_path,
};

use crate::networks::open_unet;

/// As in `perturbed.py`, some in the words of diffusers' first versions.
const LAYERS: [(&str, &str, &[&str]); 6] = [
    ("sd15", "mid", &["mid"]),
    ("sd15", "down", &["down.block_0"]),
    ("sd15", "two", &["mid", "up.block_1.attentions_0"]),
    ("sdxl", "mid", &["mid_block.attentions.0"]),
    ("sdxl", "inner", &["transformer_blocks.1"]),
    ("sdxl", "up", &["up_blocks.0.attentions.1"]),
];

#[test]
fn unets_whose_last_image_is_perturbed() -> TestResult {
    let golden = Golden::open("perturbed")?;
    for (model, case, layers) in LAYERS {
        let unet = open_unet(model)?;
        for batch in [2, 3] {
            let rows = |key: &str| -> TestResult<Tensor> {
                Ok(golden
                    .tensor(&format!("{model}.{key}"))?
                    .narrow(0, 0, batch)?)
            };
            let text_time = match model {
                "sdxl" => Some(TextTime {
                    text_embeds: rows("text_embeds")?,
                    time_ids: rows("time_ids")?,
                }),
                _ => None,
            };
            let perturbed = unet.perturbed_attention(layers, batch - 1)?;
            let timesteps = &golden.values(&format!("{model}.timesteps"))?[..batch];
            let (sample, text) = (rows("sample")?, rows("encoder_hidden_states")?);
            let plain = UNetInput {
                text_time: text_time.as_ref(),
                ..UNetInput::new(&sample, timesteps, &text)
            };
            let output = unet.forward(&UNetInput {
                perturbed: Some(&perturbed),
                ..plain
            })?;
            let what = format!("{model}.{case}.{batch}");
            assert_close(&what, &output, &golden.tensor(&what)?, TOLERANCE)?;
            let apart = (output - unet.forward(&plain)?)?.abs()?;
            let apart = |row: usize| apart.get(row)?.max_all()?.to_scalar::<f32>();
            assert!(apart(0)? < 1e-5 && apart(batch - 1)? > 1e-3, "{what}");
        }
    }
    Ok(())
}

#[test]
fn whole_runs() -> TestResult {
    let cases = golden_json("perturbed.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert!(cases.len() >= 7);
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let number = |key: &str| case[key].as_f64().unwrap_or_default();
        let layers = case["pag_layers"].as_array().into_iter().flatten();
        let pipe = Pipeline::builder()
            .weights(model_path(text("model")))
            .build()?;
        let request = GenerateRequest::txt2img(text("prompt"))
            .negative_prompt(text("negative_prompt"))
            .size(number("width") as usize, number("height") as usize)
            .num_steps(number("steps") as usize)
            .guidance_scale(number("guidance"))
            .seed(42)
            .num_images(2)
            .scheduler_config(case["scheduler"].clone());
        let perturbed = request
            .clone()
            .pag_scale(number("pag_scale"))
            .pag_adaptive_scale(number("pag_adaptive_scale"))
            .pag_layers(layers.filter_map(|layer| layer.as_str()));
        let name = text("name");
        let golden = Golden::open(&format!("perturbed/{name}"))?;
        let run = |request: &GenerateRequest| -> TestResult<Tensor> {
            let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
            Ok(sampled.latents)
        };
        let expected = golden.tensor("latents")?;
        for request in [perturbed.clone(), perturbed.batch_size(2)] {
            assert_close(name, &run(&request)?, &expected, RUN_TOLERANCE)?;
        }
        let apart = (run(&request)? - expected)?.abs()?.max_all()?;
        assert!(apart.to_scalar::<f32>()? > 1e-2, "{name}: nothing changed");
    }
    Ok(())
}

#[test]
fn settings_that_no_model_has_are_errors() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = || GenerateRequest::txt2img("a cat").num_steps(1).size(64, 64);
    for request in [
        request().pag_scale(-1.0),
        request().pag_scale(f64::NAN),
        request().pag_scale(1.0).pag_adaptive_scale(f64::INFINITY),
        request().pag_scale(1.0).pag_layers(["down_blocks.7"]),
        request().pag_scale(1.0).pag_layers(["blocks.(0|1)"]),
        request().pag_scale(1.0).pag_layers([""]),
    ] {
        let error = pipe.generate(&request).err().map(|error| error.kind());
        assert_eq!(error, Some(ErrorKind::InvalidArgument), "{request:?}");
    }
    Ok(())
}
