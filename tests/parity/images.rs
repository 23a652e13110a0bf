//! Runs that start from pictures, against diffusers' pipelines.

use std::ops::ControlFlow;

use diffusion_core::nn::Interpolation;
use diffusion_core::{GenerateRequest, GrayImage, Hires, Pipeline, RgbImage, Tensor, Upscaler};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, model_path,
};
use serde_json::Value;

/// The cases whose names begin so, with the requests that they ask for.
fn cases(prefix: &str) -> TestResult<Vec<(String, Value)>> {
    let cases = golden_json("images/cases.json")?;
    let named = cases["cases"].as_array().into_iter().flatten();
    let named = named.filter_map(|case| Some((case["name"].as_str()?.to_owned(), case.clone())));
    let found: Vec<_> = named.filter(|(name, _)| name.starts_with(prefix)).collect();
    assert!(found.len() >= 3, "{prefix}");
    Ok(found)
}

fn inputs() -> TestResult<Golden> {
    Golden::open("images/inputs")
}

fn levels(golden: &Golden, name: &str) -> TestResult<(Vec<u8>, u32, u32)> {
    let levels = golden.tensor(name)?.to_dtype(diffusion_core::DType::U8)?;
    let (height, width) = (levels.dim(0)? as u32, levels.dim(1)? as u32);
    Ok((levels.flatten_all()?.to_vec1()?, width, height))
}

fn picture(name: &str) -> TestResult<RgbImage> {
    let (levels, width, height) = levels(&inputs()?, name)?;
    Ok(RgbImage::from_raw(width, height, levels).ok_or("no picture")?)
}

fn mask(name: &str) -> TestResult<GrayImage> {
    let (levels, width, height) = levels(&inputs()?, name)?;
    Ok(GrayImage::from_raw(width, height, levels).ok_or("no mask")?)
}

fn number(case: &Value, key: &str) -> TestResult<f64> {
    Ok(case[key].as_f64().ok_or_else(|| format!("no {key}"))?)
}

fn request(case: &Value) -> TestResult<GenerateRequest> {
    let odd = case["odd"] == true;
    let image = picture(if odd { "odd" } else { "even" })?;
    let mut request = match case["mask"] == true {
        true => {
            let mask = mask(if odd { "odd_mask" } else { "mask" })?;
            GenerateRequest::inpaint("", image, mask).size(96, 64)
        }
        false => GenerateRequest::img2img("", image),
    };
    if case["image_guidance"].is_number() {
        request = GenerateRequest::instruct("", picture("even")?)
            .image_guidance_scale(number(case, "image_guidance")?);
    }
    if case["strength"].is_number() {
        request = request.strength(number(case, "strength")?);
    }
    settings(request, case)
}

/// What every case says.
fn settings(mut request: GenerateRequest, case: &Value) -> TestResult<GenerateRequest> {
    let images = case["seeds"].as_array().map_or(0, Vec::len);
    if let Some(negative) = case["negative_prompt"].as_str() {
        request = request.negative_prompt(negative);
    }
    Ok(request
        .prompt(case["prompt"].as_str().ok_or("no prompt")?)
        .num_steps(number(case, "steps")? as usize)
        .guidance_scale(number(case, "guidance")?)
        .seed(case["seeds"][0].as_u64().ok_or("no seed")?)
        .num_images(images)
        .batch_size(images)
        .scheduler_config(case["scheduler"].clone()))
}

fn latents(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Tensor> {
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(sampled.latents)
}

fn assert_cases(prefix: &str) -> TestResult {
    let golden = Golden::open("images/latents")?;
    let mut pipe: Option<(String, Pipeline)> = None;
    for (name, case) in cases(prefix)? {
        let model = case["model"].as_str().ok_or("no model")?;
        if pipe.as_ref().is_none_or(|(open, _)| open != model) {
            let opened = Pipeline::builder().weights(model_path(model)).build()?;
            pipe = Some((model.to_owned(), opened));
        }
        let (_, pipe) = pipe.as_ref().ok_or("no model")?;
        let request = request(&case)?;
        let together = latents(pipe, &request)?;
        assert_close(&name, &together, &golden.tensor(&name)?, RUN_TOLERANCE)?;
        // One after another they are the same pictures.
        let apart = latents(pipe, &request.batch_size(1))?;
        assert_close(&name, &apart, &together, TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn img2img() -> TestResult {
    assert_cases("img2img_")
}

#[test]
fn inpainting_of_ordinary_models() -> TestResult {
    assert_cases("inpaint_")
}

#[test]
fn inpainting_of_models_that_see_the_mask() -> TestResult {
    assert_cases("inpaint9_")
}

#[test]
fn img2img_of_sdxl() -> TestResult {
    assert_cases("sdxl_img2img_")
}

#[test]
fn inpainting_of_sdxl() -> TestResult {
    assert_cases("sdxl_inpaint_")
}

#[test]
fn img2img_of_a_consistency_model() -> TestResult {
    assert_cases("lcm_img2img_")
}

#[test]
fn instructions() -> TestResult {
    assert_cases("pix2pix_")
}

#[test]
fn two_passes_over_latents() -> TestResult {
    let golden = Golden::open("images/latents")?;
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    for (name, case) in cases("hires_")? {
        let how = match case["mode"].as_str() {
            Some("nearest-exact") => Interpolation::Nearest,
            Some("bilinear") => Interpolation::Bilinear,
            Some("bicubic") => Interpolation::Bicubic,
            other => return Err(format!("{other:?}").into()),
        };
        let first = settings(GenerateRequest::txt2img("").size(96, 64), &case)?;
        let hires = Hires {
            upscaler: Upscaler::Latents(how),
            strength: number(&case, "strength")?,
            ..Hires::new(144, 96)
        };
        let ours = latents(&pipe, &first.hires(hires))?;
        assert_close(&name, &ours, &golden.tensor(&name)?, RUN_TOLERANCE)?;
    }
    Ok(())
}
