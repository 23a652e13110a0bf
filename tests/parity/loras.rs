//! Adapters of every dialect against diffusers, PEFT and the formulas of LyCORIS.

use std::collections::HashMap;
use std::ops::ControlFlow;

use diffusion_core::model::{TextTime, UNetConfig, UNetInput};
use diffusion_core::nn::{WeightChanges, Weights};
use diffusion_core::weights::{
    DiffusersFolder, Embedding, Lora, LoraMode, LoraReport, LoraScale, ModelPart, merge_loras,
};
use diffusion_core::{
    DType, Device, ErrorKind, GenerateRequest, Pipeline, Tensor, TextEncoder, UNet,
};
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

fn open_lora(name: &str) -> TestResult<Lora> {
    let path = golden_path(&format!("loras/{name}.safetensors"));
    Ok(Lora::open(path)?)
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

fn unet_out(unet: &UNet, golden: &Golden, model: &str) -> TestResult<Tensor> {
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

fn text_out(encoder: &TextEncoder, golden: &Golden) -> TestResult<Tensor> {
    let ids = golden.values("input_ids")?;
    let ids = vec![ids.into_iter().map(|id| id as u32).collect()];
    Ok(encoder.forward(&ids)?.last_hidden_state)
}

/// The cases of nothing but products of two matrices.
const PRODUCTS: [&str; 9] = [
    "kohya",
    "processors",
    "layers",
    "peft",
    "several",
    "numbered",
    "numbered_attention",
    "peft_patterns",
    "sdxl_original",
];

/// Runs the models with the case's files, and returns the reports.
fn assert_case(case: &Value, golden: &Golden, mode: LoraMode) -> TestResult<Vec<LoraReport>> {
    let name = case["name"].as_str().ok_or("no name")?;
    let model = case["model"].as_str().ok_or("no model")?;
    let unet = open_unet(model)?;
    let encoder = (model == "sd15")
        .then(|| open_text_encoder(model))
        .transpose()?;
    let mut files = Vec::new();
    let scales = case["scales"].as_array().ok_or("no scales")?;
    for (scale, letter) in scales.iter().zip(["a", "b"]) {
        let lora = match case["folder"].as_bool() {
            Some(true) => Lora::open(golden_path(&format!("loras/{name}")))?,
            _ => open_lora(&format!("{name}_{letter}"))?,
        };
        files.push((lora, scale_of(scale)?));
    }
    let loras: Vec<_> = files.iter().map(|(lora, scale)| (lora, scale)).collect();
    let mut parts = vec![(ModelPart::UNet, unet.weights())];
    parts.extend(
        encoder
            .as_ref()
            .map(|e| (ModelPart::TextEncoder, e.weights())),
    );
    let mut merged = merge_loras(&parts, &loras, mode).map_err(|e| format!("{name}: {e}"))?;

    let changes = merged.take(ModelPart::UNet);
    if mode == LoraMode::AtRunTime && PRODUCTS.contains(&name) {
        assert!(
            changes.tensors.is_empty(),
            "{name}: {:?}",
            changes.tensors.keys()
        );
        assert!(!changes.low_rank.is_empty(), "{name}");
    }
    let changed = unet.with_changes(changes)?;
    let reference = golden.tensor(&format!("{name}.unet"))?;
    assert_close(
        name,
        &unet_out(&changed, golden, model)?,
        &reference,
        TOLERANCE,
    )?;
    if let Some(encoder) = &encoder {
        let changed = encoder.with_changes(merged.take(ModelPart::TextEncoder))?;
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
        let merged = assert_case(case, &golden, LoraMode::Merged)?;
        let at_run_time = assert_case(case, &golden, LoraMode::AtRunTime)?;
        assert_eq!(merged, at_run_time);
        for report in merged {
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
    let lora = open_lora("numbered_a")?;
    let words: Vec<_> = lora.embeddings().iter().map(|word| word.token()).collect();
    assert_eq!(words, ["<s1>", "<s2>"]);
    Ok(())
}

#[test]
fn a_lora_of_another_family_is_refused() -> TestResult {
    // The text that this one reads is 40 wide, the model's 32.
    let lora = open_lora("sdxl_original_a")?;
    let unet = open_unet("sd15")?;
    let parts = [(ModelPart::UNet, unet.weights())];
    let error = merge_loras(&parts, &[(&lora, &1.0.into())], LoraMode::Merged)
        .err()
        .ok_or("accepted")?
        .to_string();
    assert!(
        error.contains("32 channels") && error.contains("40 channels"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_fitting_text_encoder_does_not_hide_another_unet() -> TestResult {
    let lora = open_lora("numbered_a")?;
    let (unet, encoder) = (open_unet("sdxl")?, open_text_encoder("sd15")?);
    let (unet, encoder) = (unet.weights(), encoder.weights());
    let parts = [(ModelPart::UNet, unet), (ModelPart::TextEncoder, encoder)];
    assert!(merge_loras(&parts, &[(&lora, &1.0.into())], LoraMode::Merged).is_err());
    Ok(())
}

#[test]
fn what_a_model_has_no_place_for_is_reported() -> TestResult {
    let lora = open_lora("kohya_a")?;
    let unet = open_unet("sd15")?;
    let weights: &Weights = unet.weights();
    let merged = merge_loras(
        &[(ModelPart::UNet, weights)],
        &[(&lora, &1.0.into())],
        LoraMode::Merged,
    )?;
    let unused = &merged.reports[0].unused;
    assert_eq!(unused.len(), 9, "{unused:?}");
    assert!(
        unused.iter().all(|key| key.starts_with("lora_te_")),
        "{unused:?}"
    );
    Ok(())
}

/// The bits of all weights of both models.
fn bits(pipe: &Pipeline) -> TestResult<Vec<Vec<u32>>> {
    let encoder = pipe.text_encoder().ok_or("no text encoder")?;
    let mut names: Vec<_> = pipe.unet().weights().tensors().iter().collect();
    names.extend(encoder.weights().tensors());
    names.sort_by_key(|(name, _)| name.as_str());
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    names
        .into_iter()
        .map(|(_, tensor)| Ok(values(tensor)?.into_iter().map(f32::to_bits).collect()))
        .collect()
}

#[test]
fn loras_come_and_go_between_runs() -> TestResult {
    let path = |name: &str| golden_path(&format!("loras/{name}.safetensors"));
    let request = GenerateRequest::txt2img("a heart")
        .seed(3)
        .num_steps(2)
        .size(64, 64);
    for dtype in [DType::F32, DType::F16] {
        let mut pipe = Pipeline::builder()
            .weights(model_path("sd15"))
            .dtype(dtype)
            .build()?;
        let (base_bits, base) = (bits(&pipe)?, pipe.generate(&request)?);
        let (kohya, numbered) = (
            Lora::open(path("kohya_a"))?,
            Lora::open(path("numbered_a"))?,
        );

        pipe.set_loras(&[(&kohya, 0.8)])?;
        let with_one = pipe.generate(&request)?;
        assert_ne!(with_one.images, base.images);
        assert_eq!(pipe.loras()[0].num_modules, kohya.num_modules());
        pipe.set_loras(&[(&kohya, 0.8), (&numbered, 0.5)])?;
        assert_ne!(pipe.generate(&request)?.images, with_one.images);

        // One that is refused leaves those of before.
        let bits_of_two = bits(&pipe)?;
        let other_family = Lora::open(path("sdxl_original_a"))?;
        assert!(pipe.set_loras(&[(&other_family, 1.0)]).is_err());
        assert_eq!((bits(&pipe)?, pipe.loras().len()), (bits_of_two, 2));

        pipe.set_loras(&[(&kohya, 0.8)])?;
        assert_eq!(pipe.generate(&request)?.images, with_one.images);
        let built = Pipeline::builder()
            .weights(model_path("sd15"))
            .dtype(dtype)
            .lora(path("kohya_a"), 0.8)
            .build()?;
        assert_eq!(built.generate(&request)?.images, with_one.images);
        pipe.set_loras(&[(&kohya, 0.0)])?;
        assert_eq!(pipe.generate(&request)?.images, base.images);

        pipe.clear_loras();
        assert_eq!(bits(&pipe)?, base_bits);
        assert!(pipe.loras().is_empty());
        assert_eq!(pipe.generate(&request)?.images, base.images);
    }
    Ok(())
}

#[test]
fn loras_at_run_time_leave_the_weights_alone() -> TestResult {
    let mut pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let lora = Lora::open(golden_path("loras/kohya_a.safetensors"))?;
    let request = GenerateRequest::txt2img("a heart <word>")
        .seed(3)
        .num_steps(2)
        .size(64, 64);
    let mut latents = |mode: Option<LoraMode>| -> TestResult<Tensor> {
        match mode {
            Some(mode) => pipe.set_loras_as(mode, &[(&lora, 0.8)])?,
            None => pipe.clear_loras(),
        }
        let sampled = pipe.generate_latents(&request, &mut |_| ControlFlow::Continue(()))?;
        let changed = pipe.unet().weights().low_rank().len();
        assert_eq!(changed > 0, mode == Some(LoraMode::AtRunTime));
        Ok(sampled.latents)
    };
    let (base, merged) = (latents(None)?, latents(Some(LoraMode::Merged))?);
    let at_run_time = latents(Some(LoraMode::AtRunTime))?;
    assert_close("at run time", &at_run_time, &merged, TOLERANCE)?;
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    assert!(relative_difference(&flat(&base)?, &flat(&merged)?) > 0.01);
    assert_close("taken out", &latents(None)?, &base, 0.0)?;
    // A word that comes after them leaves them in place.
    let before = bits(&pipe)?;
    pipe.set_loras_as(LoraMode::AtRunTime, &[(&lora, 0.8)])?;
    assert_eq!(bits(&pipe)?, before);
    let vectors = Tensor::ones((1, 32), DType::F32, &Device::Cpu)?;
    let word = Embedding::new("<word>", [(ModelPart::TextEncoder, vectors)].into())?;
    let changed = |pipe: &Pipeline| pipe.text_encoder().map(|e| e.weights().low_rank().len());
    let count = changed(&pipe);
    pipe.add_embedding(&word)?;
    assert!(count > Some(0));
    assert_eq!(changed(&pipe), count);
    Ok(())
}

#[test]
fn unchanged_weights_share_their_memory() -> TestResult {
    let unet = open_unet("sd15")?;
    let again = unet.with_changes(WeightChanges::default())?;
    for (name, tensor) in unet.weights().tensors() {
        let other = &again.weights().tensors()[name];
        let place = |tensor: &Tensor| {
            let (storage, layout) = tensor.storage_and_layout();
            let candle_core::Storage::Cpu(candle_core::CpuStorage::F32(values)) = &*storage else {
                return Err(format!("{name} is not f32 on the CPU"));
            };
            Ok((values.as_ptr(), layout.clone()))
        };
        let (ours, theirs) = (place(tensor)?, place(other)?);
        assert_eq!(ours.0, theirs.0, "{name}");
        assert_eq!(ours.1.stride(), theirs.1.stride(), "{name}");
    }
    Ok(())
}

#[test]
fn a_core_takes_no_more_memory_than_its_file() -> TestResult {
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
    // From the wrong side the numbers in between are 9 * 65536 for each rank.
    let (many, ranks) = (65_536, 1_000_000);
    for (output, input, ranks) in [(many, 1, (1, ranks)), (1, many, (ranks, 1))] {
        let weight = ones(&[output, input, 3, 3])?;
        let tensors = HashMap::from([("conv_in.weight".to_owned(), weight)]);
        let weights = Weights::new(tensors, DType::F32, Device::Cpu);
        let lora = HashMap::from([
            (
                "lora_unet_conv_in.lora_down.weight".to_owned(),
                ones(&[ranks.1, input, 1, 1])?,
            ),
            (
                "lora_unet_conv_in.lora_mid.weight".to_owned(),
                ones(&[ranks.0, ranks.1, 3, 3])?,
            ),
            (
                "lora_unet_conv_in.lora_up.weight".to_owned(),
                ones(&[output, ranks.0, 1, 1])?,
            ),
        ]);
        let lora = Lora::read(&lora, &Value::Null)?;
        let parts = [(ModelPart::UNet, &weights)];
        let mut merged = merge_loras(&parts, &[(&lora, &1.0.into())], LoraMode::Merged)?;
        let changed = merged.take(ModelPart::UNet).tensors;
        let changed = changed["conv_in.weight"].flatten_all()?.to_vec1::<f32>()?;
        assert!(changed.iter().all(|&x| (x - 1_000_001.0).abs() < 2.0));
    }
    Ok(())
}

#[test]
fn numbers_that_are_none_are_named() -> TestResult {
    for number in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut down = vec![0.0; 72];
        down[40] = number;
        let down = Tensor::from_vec(down, (2, 4, 3, 3), &Device::Cpu)?;
        let lora = HashMap::from([
            ("lora_unet_conv_in.lora_down.weight".to_owned(), down),
            (
                "lora_unet_conv_in.lora_up.weight".to_owned(),
                Tensor::ones((16, 2, 1, 1), DType::F32, &Device::Cpu)?,
            ),
        ]);
        let error = Lora::read(&lora, &Value::Null).err().ok_or("accepted")?;
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(error.to_string().contains("conv_in.lora_down"), "{error}");
    }
    Ok(())
}

#[test]
fn damaged_adapters_are_errors() -> TestResult {
    let lora = |tensors: &[(&str, &[usize])]| {
        let tensors = tensors.iter().map(|(end, shape)| {
            let ones = Tensor::ones(*shape, DType::F32, &Device::Cpu)?;
            Ok((format!("lora_unet_conv_in.{end}"), ones))
        });
        let tensors: HashMap<String, Tensor> =
            tensors.collect::<Result<_, candle_core::Error>>()?;
        Lora::read(&tensors, &Value::Null)
    };
    let (down, up) = ("lora_down.weight", "lora_up.weight");
    for (what, tensors) in [
        ("half a pair", &[(down, &[2, 4, 3, 3][..])][..]),
        (
            "other ranks",
            &[(down, &[2, 4, 3, 3]), (up, &[16, 3, 1, 1])],
        ),
        ("no rank", &[(down, &[0, 4, 3, 3]), (up, &[16, 0, 1, 1])]),
        (
            "an alpha of two",
            &[(down, &[2, 4, 3, 3]), (up, &[16, 2, 1, 1]), ("alpha", &[2])],
        ),
        (
            "a flat core",
            &[
                (down, &[2, 4, 1, 1]),
                (up, &[16, 2, 1, 1]),
                ("lora_mid.weight", &[2, 2]),
            ],
        ),
        ("lengths alone", &[("dora_scale", &[16])]),
        (
            "half a LoHa",
            &[("hada_w1_a", &[16, 2]), ("hada_w1_b", &[2, 36])],
        ),
        ("half a LoKr", &[("lokr_w1", &[4, 2])]),
        ("nothing", &[("oft_blocks", &[4, 2])]),
        ("a number", &[("diff", &[])]),
    ] {
        assert!(lora(tensors).is_err(), "{what}");
    }
    let unet = open_unet("sd15")?;
    for (what, tensors) in [
        (
            "other channels",
            &[(down, &[2, 5, 3, 3][..]), (up, &[16, 2, 1, 1])][..],
        ),
        (
            "absurdly many",
            &[("lokr_w1", &[100_000, 1]), ("lokr_w2", &[100_000, 1])],
        ),
        (
            "lengths",
            &[
                (down, &[2, 4, 3, 3]),
                (up, &[16, 2, 1, 1]),
                ("dora_scale", &[3, 1]),
            ],
        ),
        ("bias", &[("diff_b", &[17])]),
    ] {
        let lora = lora(tensors)?;
        let merged = merge_loras(
            &[(ModelPart::UNet, unet.weights())],
            &[(&lora, &1.0.into())],
            LoraMode::default(),
        );
        assert!(merged.is_err(), "{what}");
    }
    Ok(())
}
