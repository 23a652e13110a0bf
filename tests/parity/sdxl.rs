//! SDXL and its refiner from prompts, against diffusers' pipelines.

use std::ops::ControlFlow;

use diffusion_core::weights::{Checkpoint, Embedding, Lora};
use diffusion_core::{GenerateRequest, PictureSizes, Pipeline, PromptSyntax, Tensor, Tokenizer};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, golden_path,
    model_path,
};
use serde_json::Value;

fn case(name: &str) -> TestResult<Value> {
    let cases = golden_json("sdxl.json")?;
    let found = cases["cases"].as_array().into_iter().flatten();
    let mut found = found.filter(|case| case["name"] == name);
    Ok(found
        .next()
        .ok_or_else(|| format!("no case {name}"))?
        .clone())
}

/// A pair of sizes, which diffusers writes with the height first.
fn size(case: &Value, key: &str) -> Option<(usize, usize)> {
    let number = |i: usize| case[key][i].as_u64().map(|n| n as usize);
    Some((number(1)?, number(0)?))
}

fn sizes(case: &Value, prefix: &str) -> PictureSizes {
    let size = |name: &str| size(case, &format!("{prefix}{name}"));
    PictureSizes {
        original: size("original_size"),
        crop: size("crops_coords_top_left").unwrap_or_default(),
        target: size("target_size"),
    }
}

fn images(case: &Value) -> usize {
    case["seeds"].as_array().map_or(0, Vec::len)
}

fn request(case: &Value) -> TestResult<GenerateRequest> {
    let number = |key: &str| case[key].as_u64().unwrap_or_default() as usize;
    let images = images(case);
    let mut request = GenerateRequest::txt2img("")
        .prompt_syntax(PromptSyntax::Plain)
        .size(number("width"), number("height"))
        .num_steps(number("steps"))
        .guidance_scale(case["guidance"].as_f64().ok_or("no guidance")?)
        .seed(case["seeds"][0].as_u64().ok_or("no seed")?)
        .num_images(images)
        .batch_size(images)
        .scheduler_config(case["scheduler"].clone())
        .sizes(sizes(case, ""));
    type Setter = fn(GenerateRequest, String) -> GenerateRequest;
    let texts: [(&str, Setter); 4] = [
        ("prompt", GenerateRequest::prompt),
        ("prompt_2", GenerateRequest::prompt_2),
        ("negative_prompt", GenerateRequest::negative_prompt),
        ("negative_prompt_2", GenerateRequest::negative_prompt_2),
    ];
    for (key, set) in texts {
        if let Some(text) = case[key].as_str() {
            request = set(request, text.to_owned());
        }
    }
    if case["negative_original_size"].is_array() {
        request = request.negative_sizes(sizes(case, "negative_"));
    }
    if let Some(score) = case["aesthetic_score"].as_f64() {
        request = request.aesthetic_score(score);
    }
    if let Some(score) = case["negative_aesthetic_score"].as_f64() {
        request = request.negative_aesthetic_score(score);
    }
    Ok(request)
}

/// What the UNet was told, the negative half first, once for each picture.
fn assert_conditioning(pipe: &Pipeline, request: &GenerateRequest, golden: &Golden) -> TestResult {
    let (ours, _) = pipe.encode_prompt(request)?;
    let positive = ours.text_time.ok_or("no sizes")?;
    let all = golden.tensor("time_ids")?.dim(0)?;
    let both = |negative: Option<Tensor>, positive: &Tensor| -> TestResult<Tensor> {
        let halves: Vec<_> = negative.into_iter().chain([positive.clone()]).collect();
        let rows = halves
            .iter()
            .flat_map(|half| vec![half; all / halves.len()]);
        Ok(Tensor::cat(&rows.collect::<Vec<_>>(), 0)?)
    };
    let negative = ours.negative_text_time;
    let texts = negative.as_ref().map(|time| time.text_embeds.clone());
    let ids = negative.map(|time| time.time_ids);
    let embeds = both(ours.negative_prompt_embeds, &ours.prompt_embeds)?;
    for (name, ours, tolerance) in [
        ("prompt_embeds", embeds, TOLERANCE),
        (
            "text_embeds",
            both(texts, &positive.text_embeds)?,
            TOLERANCE,
        ),
        ("time_ids", both(ids, &positive.time_ids)?, 0.0),
    ] {
        assert_close(name, &ours, &golden.tensor(name)?, tolerance)?;
    }
    Ok(())
}

fn assert_run(pipe: &Pipeline, request: &GenerateRequest, golden: &Golden) -> TestResult<Tensor> {
    assert_conditioning(pipe, request, golden)?;
    let sampled = pipe.generate_latents(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(sampled.latents)
}

fn open(model: &str) -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path(model)).build()?)
}

fn assert_case(name: &str, pipe: &Pipeline) -> TestResult {
    let golden = Golden::open(&format!("sdxl/{name}"))?;
    let latents = assert_run(pipe, &request(&case(name)?)?, &golden)?;
    assert_close(name, &latents, &golden.tensor("latents")?, RUN_TOLERANCE)
}

#[test]
fn prompts() -> TestResult {
    let pipe = open("sdxl")?;
    for name in [
        "negative",
        "no_negative",
        "empty_negative",
        "no_guidance",
        "second_prompts",
        "sizes",
        "long",
    ] {
        assert_case(name, &pipe)?;
    }
    Ok(())
}

#[test]
fn what_did_not_fit_is_told_once() -> TestResult {
    let (_, warnings) = open("sdxl")?.encode_prompt(&request(&case("long")?)?)?;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    Ok(())
}

#[test]
fn a_word_of_both_text_encoders() -> TestResult {
    let mut pipe = open("sdxl")?;
    let word = Embedding::open(golden_path("sdxl/wheel.safetensors"), Some("<wheel>"))?;
    pipe.add_embedding(&word)?;
    assert_case("word", &pipe)
}

#[test]
fn a_lora_of_both_text_encoders_goes_in_and_out() -> TestResult {
    let mut pipe = open("sdxl")?;
    let lora = Lora::open(golden_path("sdxl/kohya.safetensors"))?;
    let request = request(&case("lora")?)?;
    let bits = |pipe: &Pipeline| -> TestResult<Vec<f32>> {
        let (conditioning, _) = pipe.encode_prompt(&request)?;
        Ok(conditioning.prompt_embeds.flatten_all()?.to_vec1()?)
    };
    let before = bits(&pipe)?;
    pipe.set_loras(&[(&lora, 1.0)])?;
    assert!(pipe.loras()[0].unused.is_empty(), "{:?}", pipe.loras());
    assert_case("lora", &pipe)?;
    pipe.clear_loras();
    assert_eq!(bits(&pipe)?, before);
    Ok(())
}

#[test]
fn one_file_gives_the_latents_of_its_folder() -> TestResult {
    let file = tempfile::tempdir()?;
    let file = file.path().join("sdxl.safetensors");
    Checkpoint::open(model_path("sdxl"))?.save_single_file(&file)?;
    let tokenizer = |name: &str| Tokenizer::open(model_path("sdxl").join(name));
    // Files have none, and this one's vocabulary is not CLIP's.
    let pipe = Pipeline::builder()
        .weights(&file)
        .tokenizer(tokenizer("tokenizer")?)
        .tokenizer_2(tokenizer("tokenizer_2")?)
        .build()?;
    assert_case("no_negative", &pipe)
}

/// The reference keeps the latents of all but Euler's solvers at unit variance.
fn to_reference(latents: &Tensor, case: &Value, sigma: f64) -> TestResult<Tensor> {
    match case["scheduler"]["_class_name"] == "EulerDiscreteScheduler" {
        true => Ok(latents.clone()),
        false => Ok((latents * (sigma.powi(2) + 1.0).sqrt().recip())?),
    }
}

#[test]
fn the_refiner_goes_on_where_the_base_ended() -> TestResult {
    let (base, refiner) = (open("sdxl")?, open("refiner")?);
    for name in [
        "hand_over_euler",
        "hand_over_ddim",
        "hand_over_dpmpp_2m",
        "hand_over_scores",
    ] {
        let case = case(name)?;
        let share = case["share"].as_f64().ok_or("no share")?;
        let golden = Golden::open(&format!("sdxl/{name}"))?;
        let first = request(&case)?.denoising_end(share);
        assert_conditioning(&base, &first, &golden)?;
        let (mut sigma, mut steps) = (0.0, (0, 0));
        let sampled = base.generate_latents(&first, &mut |progress| {
            sigma = progress.sigma;
            steps = (progress.step, progress.num_steps);
            ControlFlow::Continue(())
        })?;
        assert_eq!(steps.0, steps.1);
        let ours = to_reference(&sampled.latents, &case, sigma)?;
        assert_close(name, &ours, &golden.tensor("latents")?, RUN_TOLERANCE)?;

        let golden = Golden::open(&format!("sdxl/{name}_refined"))?;
        let second = request(&case)?
            .denoising_start(share)
            .latents(sampled.latents);
        let mut steps_after = 0;
        assert_conditioning(&refiner, &second, &golden)?;
        let refined = refiner.generate_latents(&second, &mut |_| {
            steps_after += 1;
            ControlFlow::Continue(())
        })?;
        assert_eq!(Some((steps.0 + steps_after) as u64), case["steps"].as_u64());
        assert_close(
            name,
            &refined.latents,
            &golden.tensor("latents")?,
            RUN_TOLERANCE,
        )?;
    }
    Ok(())
}
