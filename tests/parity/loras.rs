//! Adapters of every dialect against diffusers, PEFT and the formulas of LyCORIS.

use diffusion_core::model::{TextTime, UNetConfig, UNetInput};
use diffusion_core::nn::Weights;
use diffusion_core::weights::{
    DiffusersFolder, Lora, LoraReport, LoraScale, ModelPart, SafeTensorsSource, merge_loras,
};
use diffusion_core::{DType, Device, TextEncoder, UNet};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, golden_json, golden_path, model_path,
    relative_difference,
};
use serde_json::Value;

fn open_unet(model: &str) -> TestResult<UNet> {
    let part = DiffusersFolder::open(model_path(model), None)?.required("unet")?;
    let config = UNetConfig::from_json(&part.config_path, &part.config)?;
    let weights = part.open_weights()?;
    Ok(UNet::new(config, &weights, DType::F32, &Device::Cpu)?)
}

fn open_text_encoder(model: &str) -> TestResult<TextEncoder> {
    let part = DiffusersFolder::open(model_path(model), None)?.required("text_encoder")?;
    let config = TextEncoder::parse_config(&part.config_path, &part.config)?;
    let weights = part.open_weights()?;
    Ok(TextEncoder::new(
        config,
        &weights,
        DType::F32,
        &Device::Cpu,
    )?)
}

fn open_lora(name: &str, config: &Value) -> TestResult<Lora> {
    let path = golden_path(&format!("loras/{name}.safetensors"));
    Ok(Lora::read(&SafeTensorsSource::open(&[path])?, config)?)
}

/// A scale of the table of cases: a number, or numbers for parts and blocks.
fn scale_of(json: &Value) -> TestResult<LoraScale> {
    if let Some(number) = json.as_f64() {
        return Ok(number.into());
    }
    let number = |value: &Value| value.as_f64().ok_or("not a number");
    let mut scale =
        LoraScale::from(number(&json["unet"])?).text_encoder(number(&json["text_encoder"])?);
    for (block, factor) in json["blocks"].as_object().ok_or("no blocks")? {
        scale = scale.block(block, number(factor)?);
    }
    Ok(scale)
}

fn unet_out(unet: &UNet, golden: &Golden, model: &str) -> TestResult<diffusion_core::Tensor> {
    let tensor = |name: &str| golden.tensor(&format!("{model}.{name}"));
    let text_time = match model {
        "sdxl" => Some(TextTime {
            text_embeds: tensor("text_embeds")?,
            time_ids: tensor("time_ids")?,
        }),
        _ => None,
    };
    let timesteps = golden.values(&format!("{model}.timesteps"))?;
    Ok(unet.forward(&UNetInput {
        text_time: text_time.as_ref(),
        ..UNetInput::new(
            &tensor("sample")?,
            &timesteps,
            &tensor("encoder_hidden_states")?,
        )
    })?)
}

fn text_out(encoder: &TextEncoder, golden: &Golden) -> TestResult<diffusion_core::Tensor> {
    let ids = golden.values("input_ids")?;
    let ids = vec![ids.into_iter().map(|id| id as u32).collect()];
    Ok(encoder.forward(&ids)?.last_hidden_state)
}

/// Runs the models with the case's files merged, and returns the reports.
fn assert_case(case: &Value, golden: &Golden) -> TestResult<Vec<LoraReport>> {
    let name = case["name"].as_str().ok_or("no name")?;
    let model = case["model"].as_str().ok_or("no model")?;
    let unet = open_unet(model)?;
    let encoder = (model == "sd15")
        .then(|| open_text_encoder(model))
        .transpose()?;
    let mut files = Vec::new();
    let scales = case["scales"].as_array().ok_or("no scales")?;
    for (scale, letter) in scales.iter().zip(["a", "b"]) {
        let lora = open_lora(&format!("{name}_{letter}"), &case["config"])?;
        files.push((lora, scale_of(scale)?));
    }
    let loras: Vec<_> = files.iter().map(|(lora, scale)| (lora, scale)).collect();
    let mut parts = vec![(ModelPart::UNet, unet.weights())];
    parts.extend(
        encoder
            .as_ref()
            .map(|e| (ModelPart::TextEncoder, e.weights())),
    );
    let mut merged = merge_loras(&parts, &loras).map_err(|e| format!("{name}: {e}"))?;

    let changed = unet.with_tensors(merged.take(ModelPart::UNet))?;
    let reference = golden.tensor(&format!("{name}.unet"))?;
    assert_close(
        name,
        &unet_out(&changed, golden, model)?,
        &reference,
        TOLERANCE,
    )?;
    if let Some(encoder) = &encoder {
        let changed = encoder.with_tensors(merged.take(ModelPart::TextEncoder))?;
        let reference = golden.tensor(&format!("{name}.text"))?;
        assert_close(name, &text_out(&changed, golden)?, &reference, TOLERANCE)?;
    }
    Ok(merged.reports)
}

#[test]
fn every_dialect_and_kind() -> TestResult {
    let golden = Golden::open("loras")?;
    let cases = golden_json("loras.json")?;
    let cases = cases.as_array().ok_or("no cases")?;
    for case in cases {
        for report in assert_case(case, &golden)? {
            assert_eq!(report.unused, Vec::<String>::new(), "{}", report.name);
            assert!(report.num_modules > 0);
        }
        // A file that changed nothing would not show otherwise.
        let name = case["name"].as_str().ok_or("no name")?;
        let base = match case["model"].as_str() {
            Some("sdxl") => "base_sdxl.unet",
            _ => "base.unet",
        };
        let changed = golden.values(&format!("{name}.unet"))?;
        assert!(
            relative_difference(&changed, &golden.values(base)?) > 0.02,
            "{name}"
        );
    }
    assert!(cases.len() >= 18, "{} cases", cases.len());
    Ok(())
}

#[test]
fn the_words_of_a_lora() -> TestResult {
    let lora = open_lora("numbered_a", &Value::Null)?;
    let words: Vec<_> = lora.embeddings().iter().map(|word| word.token()).collect();
    assert_eq!(words, ["<s1>", "<s2>"]);
    Ok(())
}

#[test]
fn a_lora_of_another_family_is_refused() -> TestResult {
    // The text that this one reads is 40 wide, the model's 32.
    let lora = open_lora("sdxl_original_a", &Value::Null)?;
    let unet = open_unet("sd15")?;
    let parts = [(ModelPart::UNet, unet.weights())];
    let error = merge_loras(&parts, &[(&lora, &1.0.into())])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("32 channels") && error.contains("40 channels"),
        "{error}"
    );
    Ok(())
}

#[test]
fn what_a_model_has_no_place_for_is_reported() -> TestResult {
    let lora = open_lora("kohya_a", &Value::Null)?;
    let unet = open_unet("sd15")?;
    let weights: &Weights = unet.weights();
    let merged = merge_loras(&[(ModelPart::UNet, weights)], &[(&lora, &1.0.into())])?;
    let unused = &merged.reports[0].unused;
    assert_eq!(unused.len(), 9, "{unused:?}");
    assert!(
        unused.iter().all(|key| key.starts_with("lora_te_")),
        "{unused:?}"
    );
    Ok(())
}
