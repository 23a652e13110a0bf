//! Pictures as prompts, against transformers and diffusers.

use std::collections::HashMap;
use std::ops::ControlFlow;

use diffusion_core::media::to_clip;
use diffusion_core::model::{
    ClipVisionConfig, ImageEncoder, IpAdapter, IpAdapterScale, TextTime, UNetInput,
};
use diffusion_core::nn::{ActivationFunction, ImageAttention, NamedTensors, TensorSource};
use diffusion_core::pipeline::{ImageEmbeds, ImageEncoderFiles, IpAdapterImage};
use diffusion_core::weights::{Lora, TensorFile};
use diffusion_core::{
    Conditioning, Control, ControlNet, DType, Device, GenerateRequest, Pipeline, Progress,
    RgbImage, Tensor, UNet,
};
use diffusion_tests::{
    Golden, RUN_TOLERANCE, TOLERANCE, TestResult, assert_close, golden_json, golden_path,
    model_path,
};
use serde_json::Value;

const PICTURES: [&str; 5] = ["landscape", "portrait", "small", "fitting", "thin"];

fn picture(golden: &Golden, name: &str) -> TestResult<RgbImage> {
    let pixels = golden.tensor(&format!("{name}.picture"))?;
    let (height, width, _) = pixels.dims3()?;
    let levels = golden.values(&format!("{name}.picture"))?;
    let levels = levels.into_iter().map(|level| level as u8).collect();
    RgbImage::from_raw(width as u32, height as u32, levels).ok_or_else(|| "no picture".into())
}

#[test]
fn pictures_are_cut_and_reduced_to_the_bit() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    for name in PICTURES {
        for side in [32, 50] {
            let ours = to_clip(&picture(&golden, name)?, side, &Device::Cpu)?;
            let reference = golden.tensor(&format!("{name}.pixels.{side}"))?;
            // A level is about 0.015; what is left is the last bit of f32.
            assert_close(&format!("{name} {side}"), &ours, &reference, 1e-6)?;
        }
    }
    Ok(())
}

fn encoder_files() -> TestResult<ImageEncoderFiles> {
    Ok(ImageEncoderFiles::open(golden_path(
        "ip_adapters/image_encoder",
    ))?)
}

fn pixels(golden: &Golden) -> TestResult<Tensor> {
    let both = [
        golden.tensor("landscape.pixels.32")?,
        golden.tensor("portrait.pixels.32")?,
    ];
    Ok(Tensor::cat(&both, 0)?)
}

#[test]
fn the_image_encoder_says_the_same() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    for (name, function) in [
        ("gelu", ActivationFunction::Gelu),
        ("quick_gelu", ActivationFunction::QuickGelu),
    ] {
        let files = encoder_files()?;
        let config = ClipVisionConfig {
            hidden_act: function,
            ..files.config
        };
        let encoder = ImageEncoder::new(config, &*files.tensors, DType::F32, &Device::Cpu)?;
        let said = encoder.forward(&pixels(&golden)?)?;
        for (what, ours) in [
            ("image_embeds", said.image_embeds),
            ("penultimate", said.penultimate_hidden_state),
        ] {
            let what = format!("{name}.{what}");
            assert_close(&what, &ours, &golden.tensor(&what)?, TOLERANCE)?;
        }
    }
    Ok(())
}

#[test]
fn the_image_encoder_says_about_the_same_in_half_precision() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    for dtype in [DType::F16, DType::BF16] {
        let encoder = encoder_files()?.load(dtype, &Device::Cpu)?;
        let said = encoder.forward(&pixels(&golden)?)?;
        let reference = golden.tensor("gelu.image_embeds")?;
        // The weights are f16 numbers, so that f16 loses nothing on the CPU.
        let tolerance = if dtype == DType::F16 { TOLERANCE } else { 3e-2 };
        let what = format!("{dtype:?}");
        assert_close(&what, &said.image_embeds, &reference, tolerance)?;
    }
    Ok(())
}

fn cases() -> TestResult<(Value, Vec<Value>)> {
    let json = golden_json("ip_adapters.json")?;
    let cases = json["cases"].as_array().ok_or("no cases")?.clone();
    Ok((json["run"].clone(), cases))
}

fn text<'a>(json: &'a Value, key: &str) -> TestResult<&'a str> {
    json[key].as_str().ok_or_else(|| format!("no {key}").into())
}

fn list<'a>(json: &'a Value, key: &str) -> TestResult<&'a Vec<Value>> {
    json[key]
        .as_array()
        .ok_or_else(|| format!("no {key}").into())
}

fn strings(json: &Value) -> TestResult<Vec<String>> {
    Ok(serde_json::from_value(json.clone())?)
}

/// A number, or numbers for blocks.
fn scale_of(json: &Value) -> TestResult<IpAdapterScale> {
    if let Some(number) = json.as_f64() {
        return Ok(number.into());
    }
    let number = |value: &Value| value.as_f64().ok_or("no number");
    let mut scale = IpAdapterScale::from(number(&json["everywhere"])?);
    for (block, value) in json.as_object().ok_or("no scale")? {
        scale = scale.block(block, number(value)?);
    }
    Ok(scale)
}

fn pipeline(case: &Value) -> TestResult<Pipeline> {
    let mut builder = Pipeline::builder().weights(model_path(text(case, "model")?));
    if text(case, "model")? == "sdxl" {
        // Elsewhere the one beside the adapter is found.
        builder = builder.image_encoder(golden_path("ip_adapters/image_encoder"));
    }
    for file in strings(&case["files"])? {
        builder = builder.ip_adapter(golden_path("ip_adapters").join(file));
    }
    Ok(builder.build()?)
}

/// The pictures of a case for each of its adapters, at its scales.
fn images(case: &Value, golden: &Golden) -> TestResult<Vec<IpAdapterImage>> {
    let pairs = list(case, "pictures")?.iter().zip(list(case, "scales")?);
    pairs
        .map(|(names, scale)| {
            let names = strings(names)?;
            let pictures = names.iter().map(|name| picture(golden, name));
            let pictures = pictures.collect::<TestResult<Vec<_>>>()?;
            Ok(IpAdapterImage::pictures(pictures).scale(scale_of(scale)?))
        })
        .collect()
}

fn with_images(
    mut request: GenerateRequest,
    images: impl IntoIterator<Item = IpAdapterImage>,
) -> GenerateRequest {
    for image in images {
        request = request.ip_adapter_image(image);
    }
    request
}

#[test]
fn tokens_and_unet_outputs_are_diffusers() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (_, cases) = cases()?;
    assert!(cases.len() >= 9);
    for case in &cases {
        let name = text(case, "name")?;
        let tensor = |what: &str| golden.tensor(&format!("{name}.{what}"));
        let pipe = pipeline(case)?;
        let request = with_images(GenerateRequest::txt2img(""), images(case, &golden)?);
        let prompts = pipe.encode_image_prompts(&request, true)?;
        let mut attention = ImageAttention::default();
        for (i, prompt) in prompts.iter().enumerate() {
            let negative = prompt.negative_tokens.as_ref().ok_or("no negative")?;
            let tokens = Tensor::cat(&[negative, &prompt.tokens], 0)?;
            let reference = tensor(&format!("tokens.{i}"))?;
            assert_close(&format!("{name} tokens"), &tokens, &reference, TOLERANCE)?;
            prompt
                .adapter
                .attend(&tokens, &prompt.scale, &mut attention)?;
        }
        let text_time = match golden.contains(&format!("{name}.time_ids")) {
            true => Some(TextTime {
                text_embeds: tensor("text_embeds")?,
                time_ids: tensor("time_ids")?,
            }),
            false => None,
        };
        let (sample, text) = (tensor("sample")?, tensor("encoder_hidden_states")?);
        let timesteps = golden.values(&format!("{name}.timesteps"))?;
        let input = UNetInput {
            text_time: text_time.as_ref(),
            image_attention: Some(&attention),
            ..UNetInput::new(&sample, &timesteps, &text)
        };
        let output = pipe.unet().forward(&input)?;
        assert_close(name, &output, &tensor("out")?, TOLERANCE)?;
    }
    Ok(())
}

fn run_request(run: &Value, guidance: f64) -> TestResult<GenerateRequest> {
    let number = |key: &str| run[key].as_u64().ok_or_else(|| format!("no {key}"));
    let seeds: Vec<u64> = serde_json::from_value(run["seeds"].clone())?;
    Ok(GenerateRequest::txt2img(text(run, "prompt")?)
        .negative_prompt(text(run, "negative_prompt")?)
        .size(number("width")? as usize, number("height")? as usize)
        .num_steps(number("steps")? as usize)
        .guidance_scale(guidance)
        .seed(seeds[0])
        .num_images(seeds.len())
        .batch_size(seeds.len()))
}

/// The embeddings that a run of a model without text encoders starts from.
fn conditioning(golden: &Golden, name: &str) -> TestResult<Conditioning> {
    let tensor = |what: &str| golden.tensor(&format!("{name}.{what}"));
    let text_time = |pooled: &str| -> TestResult<_> {
        Ok(Some(TextTime {
            text_embeds: tensor(pooled)?,
            time_ids: tensor("run_time_ids")?,
        }))
    };
    Ok(Conditioning {
        prompt_embeds: tensor("prompt_embeds")?,
        negative_prompt_embeds: Some(tensor("negative_prompt_embeds")?),
        text_time: text_time("pooled_prompt_embeds")?,
        negative_text_time: text_time("negative_pooled_prompt_embeds")?,
        image_prompts: Vec::new(),
    })
}

/// The latents that a request comes to.
fn latents(
    pipe: &Pipeline,
    request: &GenerateRequest,
    given: Option<Conditioning>,
) -> TestResult<Tensor> {
    let mut progress = |_: &Progress<'_>| ControlFlow::Continue(());
    let sampled = match given {
        None => pipe.generate_latents(request, &mut progress)?,
        Some(mut conditioning) => {
            conditioning.image_prompts = pipe.encode_image_prompts(request, true)?;
            pipe.sample(&conditioning, request, &mut progress)?
        }
    };
    Ok(sampled.latents)
}

#[test]
fn whole_runs_are_diffusers() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, cases) = cases()?;
    let mut count = 0;
    for case in &cases {
        let Some(guidance) = case["guidance"].as_f64() else {
            continue;
        };
        let name = text(case, "name")?;
        let request = with_images(run_request(&run, guidance)?, images(case, &golden)?);
        let given = match text(case, "model")? {
            "sdxl" => Some(conditioning(&golden, name)?),
            _ => None,
        };
        let ours = latents(&pipeline(case)?, &request, given)?;
        let reference = golden.tensor(&format!("{name}.latents"))?;
        assert_close(name, &ours, &reference, RUN_TOLERANCE)?;
        count += 1;
    }
    assert_eq!(count, 6);
    Ok(())
}

#[test]
fn a_controlnet_does_not_see_the_pictures() -> TestResult {
    let (golden, pictures) = (Golden::open("together")?, Golden::open("ip_adapters")?);
    let pipe = Pipeline::builder()
        .weights(model_path("sd15"))
        .ip_adapter(golden_path("ip_adapters/sd15.safetensors"))
        .build()?;
    let net = ControlNet::open(golden_path("controls/a"), DType::F32, &Device::Cpu)?;
    let seen = IpAdapterImage::from(picture(&pictures, "landscape")?).scale(0.6);
    let request = GenerateRequest::txt2img("two cats! on a red roof")
        .negative_prompt("blurry")
        .size(96, 64)
        .num_steps(5)
        .guidance_scale(5.0)
        .seed(42)
        .control(Control::new(net, picture(&golden, "followed")?).scale(0.8))
        .ip_adapter_image(seen);
    let ours = latents(&pipe, &request, None)?;
    assert_close("latents", &ours, &golden.tensor("latents")?, RUN_TOLERANCE)
}

fn bits(tensor: &Tensor) -> TestResult<Vec<u32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn case_named(wanted: &str) -> TestResult<(Value, Value)> {
    let (run, cases) = cases()?;
    let case = cases.into_iter().find(|case| case["name"] == wanted);
    Ok((run, case.ok_or("no case")?))
}

#[test]
fn without_strength_or_pictures_the_base_is_left_to_the_bit() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, case) = case_named("both")?;
    let request = run_request(&run, 5.0)?;
    let base = Pipeline::builder().weights(model_path("sd15")).build()?;
    let base = bits(&latents(&base, &request, None)?)?;

    let mut pipe = pipeline(&case)?;
    assert_eq!(pipe.ip_adapters().len(), 2);
    assert_eq!(bits(&latents(&pipe, &request, None)?)?, base);
    let images = images(&case, &golden)?;
    let silent = images.iter().map(|image| image.clone().scale(0.0));
    let silent = with_images(request.clone(), silent);
    assert_eq!(bits(&latents(&pipe, &silent, None)?)?, base);
    let loud = with_images(request.clone(), images);
    assert_ne!(bits(&latents(&pipe, &loud, None)?)?, base);
    pipe.clear_ip_adapters();
    assert_eq!(bits(&latents(&pipe, &request, None)?)?, base);
    Ok(())
}

#[test]
fn loras_come_and_go_beside_pictures() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, case) = case_named("plain")?;
    let mut pipe = pipeline(&case)?;
    let request = with_images(run_request(&run, 5.0)?, images(&case, &golden)?);
    let before = bits(&latents(&pipe, &request, None)?)?;
    let lora = Lora::open(golden_path("loras/several_a.safetensors"))?;
    pipe.set_loras(&[(&lora, 1.0)])?;
    let with_both = bits(&latents(&pipe, &request, None)?)?;
    assert_ne!(with_both, before);
    let lora_alone = run_request(&run, 5.0)?;
    assert_ne!(with_both, bits(&latents(&pipe, &lora_alone, None)?)?);
    pipe.clear_loras();
    assert_eq!(bits(&latents(&pipe, &request, None)?)?, before);
    Ok(())
}

#[test]
fn embeddings_stand_for_their_pictures() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, case) = case_named("both")?;
    let pipe = pipeline(&case)?;
    let request = run_request(&run, 5.0)?;
    let by_pictures = with_images(request.clone(), images(&case, &golden)?);
    let expected = bits(&latents(&pipe, &by_pictures, None)?)?;

    let mut by_embeds = request.clone();
    let pairs = list(&case, "pictures")?.iter().zip(list(&case, "scales")?);
    for (i, (names, scale)) in pairs.enumerate() {
        let names = strings(names)?;
        let pictures = names.iter().map(|name| picture(&golden, name));
        let pictures = pictures.collect::<TestResult<Vec<_>>>()?;
        let mut embeds = pipe.encode_image(i, &pictures, true)?;
        if i == 0 {
            // Zeros, which follow from the kind.
            embeds.negative_embeds = None;
        }
        let image = IpAdapterImage::embeds(embeds).scale(scale_of(scale)?);
        by_embeds = by_embeds.ip_adapter_image(image);
    }
    assert_eq!(bits(&latents(&pipe, &by_embeds, None)?)?, expected);

    // One row for each picture of the batch is the same as one row for all.
    let (mut conditioning, _) = pipe.encode_prompt(&by_pictures)?;
    for prompt in &mut conditioning.image_prompts {
        prompt.tokens = prompt.tokens.repeat((2, 1, 1))?;
    }
    let by_rows = pipe.sample(&conditioning, &request, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(bits(&by_rows.latents)?, expected);
    Ok(())
}

#[test]
fn pickle_and_safetensors_hold_the_same() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (_, case) = case_named("plus")?;
    let pipe = pipeline(&case)?;
    let path = golden_path("ip_adapters/sd15_plus.bin");
    let pickle = TensorFile::open(&path)?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("plus.safetensors");
    let mut all = HashMap::new();
    for part in ["image_proj", "ip_adapter"] {
        for (name, tensor) in candle_core::pickle::read_all_with_key(&path, Some(part))? {
            all.insert(format!("{part}.{name}"), tensor);
        }
    }
    candle_core::safetensors::save(&all, &copy)?;
    let layers = pipe.unet().cross_attentions();
    let said = golden.tensor("gelu.penultimate")?;
    let tokens = |file: &TensorFile| -> TestResult<_> {
        let adapter = IpAdapter::new(file, &layers, DType::F32, &Device::Cpu)?;
        bits(&adapter.tokens(&said)?)
    };
    assert_eq!(tokens(&pickle)?, tokens(&TensorFile::open(&copy)?)?);
    Ok(())
}

/// A pipeline that was made to hold its weights in half precision runs its adapters so.
#[test]
fn half_precision_is_close() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, case) = case_named("plain")?;
    let pipe = Pipeline::builder()
        .weights(model_path("sd15"))
        .dtype(DType::F16)
        .ip_adapter(golden_path("ip_adapters/sd15.safetensors"))
        .build()?;
    let request = with_images(run_request(&run, 7.5)?, images(&case, &golden)?);
    let ours = latents(&pipe, &request, None)?;
    let reference = golden.tensor("plain.latents")?;
    // Weights are f16 numbers, arithmetic is f32 on the CPU.
    assert_close("f16", &ours, &reference, RUN_TOLERANCE)
}

/// Tokens, keys and values have gradients, as training adapters needs.
#[test]
fn adapters_can_be_trained() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (_, case) = case_named("plain")?;
    let pipe = pipeline(&case)?;
    let file = TensorFile::open(golden_path("ip_adapters/sd15.safetensors"))?;
    let mut variables = HashMap::new();
    let mut tensors = NamedTensors::new();
    for name in file.tensor_names() {
        let tensor = file.load(&name, DType::F32, &Device::Cpu)?;
        let variable = candle_core::Var::from_tensor(&tensor)?;
        tensors.insert(name.clone(), variable.as_tensor().clone());
        variables.insert(name, variable);
    }
    let layers = pipe.unet().cross_attentions();
    let adapter = IpAdapter::new(&tensors, &layers, DType::F32, &Device::Cpu)?;
    let loss = |unet: &UNet| -> TestResult<Tensor> {
        let tokens = adapter.tokens(&golden.tensor("gelu.image_embeds")?)?;
        let mut attention = ImageAttention::default();
        adapter.attend(&tokens, &1.0.into(), &mut attention)?;
        let sample = golden.tensor("plain.sample")?.narrow(0, 0, 1)?;
        let text = golden
            .tensor("plain.encoder_hidden_states")?
            .narrow(0, 0, 1)?;
        let input = UNetInput {
            image_attention: Some(&attention),
            ..UNetInput::new(&sample, &[500.0], &text)
        };
        Ok(unet.forward(&input)?.sqr()?.sum_all()?)
    };
    let gradients = loss(pipe.unet())?.backward()?;
    for name in ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"] {
        let variable = &variables[name];
        let gradient = gradients.get(variable).ok_or("no gradient")?;
        let slope = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
        // Along the gradient the loss grows as its length says.
        let step = 1e-3 / f64::from(slope).sqrt();
        let before = variable.as_tensor().copy()?;
        let at = |sign: f64| -> TestResult<f64> {
            variable.set(&(&before + (gradient * (sign * step))?)?)?;
            Ok(f64::from(loss(pipe.unet())?.to_scalar::<f32>()?))
        };
        let measured = (at(1.0)? - at(-1.0)?) / (2.0 * step);
        variable.set(&before)?;
        let expected = f64::from(slope);
        assert!(
            (measured / expected - 1.0).abs() < 0.05,
            "{name}: {measured} for {expected}"
        );
    }
    Ok(())
}

#[test]
fn embeddings_without_negative_are_enough_without_guidance() -> TestResult {
    let golden = Golden::open("ip_adapters")?;
    let (run, case) = case_named("plus")?;
    let pipe = pipeline(&case)?;
    let embeds = ImageEmbeds {
        embeds: golden.tensor("gelu.penultimate")?,
        negative_embeds: None,
    };
    let request = |guidance| -> TestResult<_> {
        let image = IpAdapterImage::embeds(embeds.clone());
        Ok(run_request(&run, guidance)?.ip_adapter_image(image))
    };
    latents(&pipe, &request(1.0)?, None)?;
    assert!(latents(&pipe, &request(5.0)?, None).is_err());
    Ok(())
}
