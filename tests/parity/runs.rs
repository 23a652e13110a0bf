//! Whole runs against diffusers' pipelines: same folder, prompt, seed, steps and scheduler.

use std::ops::ControlFlow;

use diffusion_core::model::TextTime;
use diffusion_core::rng::ImageRngs;
use diffusion_core::{Conditioning, Device, GenerateRequest, Pipeline, Progress, Tensor};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, emoji_pipeline, golden_json,
    model_path, psnr,
};
use serde_json::Value;

fn conditioning(golden: &Golden) -> TestResult<Conditioning> {
    let time_ids = golden.tensor("time_ids")?;
    let text_time = |pooled: &str| -> TestResult<TextTime> {
        Ok(TextTime {
            text_embeds: golden.tensor(pooled)?,
            time_ids: time_ids.clone(),
        })
    };
    Ok(Conditioning {
        prompt_embeds: golden.tensor("prompt_embeds")?,
        negative_prompt_embeds: Some(golden.tensor("negative_prompt_embeds")?),
        text_time: Some(text_time("pooled_prompt_embeds")?),
        negative_text_time: Some(text_time("negative_pooled_prompt_embeds")?),
        image_prompts: Vec::new(),
    })
}

fn text(case: &Value, key: &str) -> String {
    case[key].as_str().unwrap_or_default().to_owned()
}

fn number(case: &Value, key: &str) -> TestResult<usize> {
    Ok(case[key].as_u64().ok_or_else(|| format!("no {key}"))? as usize)
}

/// The request that a case describes, with all pictures in one batch as in the reference.
fn request(case: &Value) -> TestResult<GenerateRequest> {
    let seeds: Vec<u64> = serde_json::from_value(case["seeds"].clone())?;
    let mut request = GenerateRequest::txt2img(text(case, "prompt"))
        .negative_prompt(text(case, "negative_prompt"))
        .size(number(case, "width")?, number(case, "height")?)
        .num_steps(number(case, "steps")?)
        .guidance_scale(case["guidance"].as_f64().ok_or("no guidance")?)
        .seed(seeds[0])
        .num_images(seeds.len())
        .batch_size(seeds.len())
        .scheduler_config(case["scheduler"].clone());
    if let Some(eta) = case["eta"].as_f64().filter(|&eta| eta > 0.0) {
        request = request.eta(eta);
    }
    Ok(request)
}

fn assert_run(case: &Value) -> TestResult {
    let name = text(case, "name");
    let golden = Golden::open(&format!("runs/{name}"))?;
    let pipe = Pipeline::builder()
        .weights(model_path(&text(case, "model")))
        .build()?;
    let request = request(case)?;

    let initial = golden.tensor("initial_noise")?;
    let seeds: Vec<u64> = serde_json::from_value(case["seeds"].clone())?;
    let noise = ImageRngs::new(&seeds, &initial.dims()[1..], &Device::Cpu).draw()?;
    assert_close(&format!("{name}: noise"), &noise, &initial, TOLERANCE)?;

    let exploding = text(&case["scheduler"], "_class_name") == "EulerDiscreteScheduler";
    let mut failure = None;
    let mut steps = 0;
    let mut observe = |progress: &Progress<'_>| {
        steps += 1;
        let what = format!("step{}", progress.step - 1);
        let scale = if exploding {
            1.0
        } else {
            (progress.sigma.powi(2) + 1.0).sqrt().recip()
        };
        let check = || -> TestResult {
            let ours = (progress.latents * scale)?;
            assert_close(
                &format!("{name}: {what}"),
                &ours,
                &golden.tensor(&what)?,
                RUN_TOLERANCE,
            )
        };
        if golden.contains(&what)
            && let Err(error) = check()
        {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let sampled = if case["prompt"].is_null() {
        pipe.sample(&conditioning(&golden)?, &request, &mut observe)
    } else {
        pipe.generate_latents(&request, &mut observe)
    };
    if let Some(error) = failure {
        return Err(error);
    }
    let sampled = sampled?;
    assert_eq!(steps, number(case, "steps")?);
    let last = golden.tensor(&format!("step{}", steps - 1))?;
    assert_close(
        &format!("{name}: final latents"),
        &sampled.latents,
        &last,
        RUN_TOLERANCE,
    )?;
    if golden.contains("image") {
        let (image, _) = pipe.decode_tensor(&sampled.latents)?;
        assert_close(
            &format!("{name}: picture"),
            &image,
            &golden.tensor("image")?,
            RUN_TOLERANCE,
        )?;
    }
    Ok(())
}

fn assert_runs(model: &str, at_least: usize) -> TestResult {
    let cases = golden_json("runs.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    let cases: Vec<_> = cases.iter().filter(|case| case["model"] == model).collect();
    assert!(cases.len() >= at_least, "{} runs of {model}", cases.len());
    cases.into_iter().try_for_each(assert_run)
}

#[test]
fn emoji() -> TestResult {
    assert_runs("emoji", 5)
}

#[test]
fn shape_of_stable_diffusion_1() -> TestResult {
    assert_runs("sd15", 19)
}

#[test]
fn shape_of_stable_diffusion_2() -> TestResult {
    assert_runs("sd21", 3)
}

#[test]
fn shape_of_sdxl() -> TestResult {
    assert_runs("sdxl", 3)
}

#[test]
fn a_consistency_model_is_told_the_guidance_scale() -> TestResult {
    let golden = Golden::open("lcm")?;
    let pipe = Pipeline::builder().weights(model_path("lcm")).build()?;
    let cases = golden_json("lcm.json")?;
    let cases = cases["cases"].as_array().ok_or("no cases")?;
    assert_eq!(cases.len(), 3);
    for case in cases {
        let images = case["seeds"].as_array().map_or(0, Vec::len);
        let request = GenerateRequest::txt2img(text(case, "prompt"))
            .size(number(case, "width")?, number(case, "height")?)
            .num_steps(number(case, "steps")?)
            .guidance_scale(case["guidance"].as_f64().ok_or("no guidance")?)
            .seed(case["seeds"][0].as_u64().ok_or("no seed")?)
            .num_images(images)
            .batch_size(images);
        let ours = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
        let name = text(case, "name");
        assert_close(&name, &ours.latents, &golden.tensor(&name)?, RUN_TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn prompt_conditioning() -> TestResult {
    let golden = Golden::open("runs/emoji_ddim")?;
    let pipe = emoji_pipeline()?;
    let (ours, _) = pipe.encode_prompt(&GenerateRequest::txt2img("a red heart, flat style"))?;
    let negative = ours.negative_prompt_embeds.ok_or("no negative prompt")?;
    let both = Tensor::cat(&[&negative, &ours.prompt_embeds], 0)?;
    assert_close(
        "prompt_embeds",
        &both,
        &golden.tensor("prompt_embeds")?,
        TOLERANCE,
    )
}

#[test]
fn the_folder_s_own_scheduler_and_the_noise_as_an_argument() -> TestResult {
    let golden = Golden::open("runs/emoji_ddim")?;
    let pipe = emoji_pipeline()?;
    let request = GenerateRequest::txt2img("a red heart, flat style")
        .num_steps(25)
        .guidance_scale(5.0)
        .latents(golden.tensor("initial_noise")?);
    let ours = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
    assert_close(
        "final latents",
        &ours.latents,
        &golden.tensor("step24")?,
        RUN_TOLERANCE,
    )
}

#[test]
fn half_precision_weights_keep_the_picture() -> TestResult {
    let request = GenerateRequest::txt2img("a red heart, flat style")
        .num_steps(25)
        .guidance_scale(5.0)
        .seed(1);
    let picture = |dtype| -> TestResult<Vec<u8>> {
        let pipe = Pipeline::builder()
            .weights(model_path("emoji"))
            .dtype(dtype)
            .build()?;
        Ok(pipe.generate(&request)?.images.remove(0).into_raw())
    };
    let reference = picture(diffusion_core::DType::F32)?;
    for dtype in [diffusion_core::DType::F16, diffusion_core::DType::BF16] {
        let psnr = psnr(&picture(dtype)?, &reference);
        assert!(psnr >= 30.0, "{dtype:?}: {psnr:.1} dB");
    }
    Ok(())
}
