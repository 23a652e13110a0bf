//! The words that LoRAs bring with them: they come and go with their files.

use std::collections::HashMap;

use diffusion_core::weights::{Embedding, Lora, ModelPart};
use diffusion_core::{DType, Device, GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{TestResult, model_path};
use serde_json::Value;

/// Vectors `(count, 32)` that differ with `seed`.
fn vectors(seed: f32, count: usize) -> TestResult<Tensor> {
    let numbers = Tensor::arange(0f32, (count * 32) as f32, &Device::Cpu)?;
    Ok((numbers * f64::from(seed))?.sin()?.reshape((count, 32))?)
}

/// A LoRA of text encoder and UNet with words.
fn lora(words: &[(&str, &Tensor)]) -> TestResult<Lora> {
    let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu);
    let mut tensors = HashMap::new();
    for module in [
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    ] {
        let outputs = if module.contains("unet") { 16 } else { 32 };
        tensors.insert(format!("{module}.lora_down.weight"), ones((1, 32))?);
        tensors.insert(format!("{module}.lora_up.weight"), ones((outputs, 1))?);
    }
    for (word, vectors) in words {
        let key = format!("bundle_emb.{word}.string_to_param.*");
        tensors.insert(key, (*vectors).clone());
    }
    Ok(Lora::read(&tensors, &Value::Null)?)
}

fn open() -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path("sd15")).build()?)
}

/// What the UNet reads of a prompt with all words of these tests.
fn encoded(pipe: &Pipeline) -> TestResult<Vec<f32>> {
    let request = GenerateRequest::txt2img("<s0> a <s1> heart <own>");
    let (text, _) = pipe.encode_prompt(&request)?;
    Ok(text.prompt_embeds.flatten_all()?.to_vec1()?)
}

/// The same with words of the caller's own, which `embeddings` holds against diffusers.
fn with_words(words: &[(&str, &Tensor)]) -> TestResult<Vec<f32>> {
    let mut pipe = open()?;
    for (word, vectors) in words {
        let parts = [(ModelPart::TextEncoder, (*vectors).clone())];
        pipe.add_embedding(&Embedding::new(*word, parts.into())?)?;
    }
    encoded(&pipe)
}

#[test]
fn each_lora_has_its_own_vectors() -> TestResult {
    let (a, b, own) = (vectors(0.7, 1)?, vectors(1.3, 2)?, vectors(2.1, 1)?);
    let (lora_a, lora_b) = (lora(&[("<s0>", &a)])?, lora(&[("<s0>", &b), ("<s1>", &a)])?);
    let mut pipe = open()?;
    let table = |pipe: &Pipeline| -> TestResult<usize> {
        let encoder = pipe.text_encoder().ok_or("no text encoder")?;
        Ok(encoder.config().vocab_size)
    };
    let (base, rows) = (encoded(&pipe)?, table(&pipe)?);
    let (of_a, of_b) = (
        with_words(&[("<s0>", &a)])?,
        with_words(&[("<s0>", &b), ("<s1>", &a)])?,
    );
    assert_ne!(of_a, of_b);
    for _ in 0..2 {
        pipe.set_loras(&[(&lora_a, 0.0)])?;
        assert_eq!(encoded(&pipe)?, of_a);
        pipe.set_loras(&[(&lora_b, 0.0)])?;
        assert_eq!(encoded(&pipe)?, of_b, "those of the file before");
        pipe.set_loras(&[(&lora(&[])?, 0.0)])?;
        assert_eq!(encoded(&pipe)?, base);
    }
    pipe.set_loras(&[(&lora_b, 0.5)])?;
    assert_ne!(encoded(&pipe)?, of_b);

    // A word of the caller's own stays, whenever it was added.
    let own_word = Embedding::new("<own>", [(ModelPart::TextEncoder, own.clone())].into())?;
    pipe.add_embedding(&own_word)?;
    pipe.set_loras(&[(&lora_b, 0.0)])?;
    let all = [("<s0>", &b), ("<s1>", &a), ("<own>", &own)];
    assert_eq!(encoded(&pipe)?, with_words(&all)?);
    pipe.clear_loras();
    assert_eq!(encoded(&pipe)?, with_words(&[("<own>", &own)])?);
    assert_eq!(table(&pipe)?, rows + 1);
    Ok(())
}

#[test]
fn words_of_one_name_must_be_one_word() -> TestResult {
    let (a, b) = (vectors(0.7, 1)?, vectors(1.3, 1)?);
    let (lora_a, lora_b) = (lora(&[("<s0>", &a)])?, lora(&[("<s0>", &b)])?);
    let mut pipe = open()?;
    pipe.set_loras(&[(&lora_a, 0.3), (&lora_a, 0.4)])?;
    let before = encoded(&pipe)?;
    let error = pipe.set_loras(&[(&lora_a, 1.0), (&lora_b, 1.0)]).err();
    let error = error.ok_or("accepted")?.to_string();
    assert!(error.contains("<s0>"), "{error}");
    assert_eq!((encoded(&pipe)?, pipe.loras().len()), (before, 2));

    // The caller's own word counts as one of them.
    let mut pipe = open()?;
    pipe.add_embedding(&Embedding::new(
        "<s0>",
        [(ModelPart::TextEncoder, a)].into(),
    )?)?;
    pipe.set_loras(&[(&lora_a, 0.0)])?;
    assert!(pipe.set_loras(&[(&lora_b, 0.0)]).is_err());
    Ok(())
}

#[test]
fn a_refused_lora_leaves_no_words() -> TestResult {
    let word = vectors(0.7, 1)?;
    let fits = lora(&[("<s0>", &word)])?;
    let mut pipe = open()?;
    let base = encoded(&pipe)?;
    assert!(pipe.set_loras(&[(&fits, f64::NAN)]).is_err());
    assert_eq!(encoded(&pipe)?, base);
    // The word that came with the refused file is free.
    let other = lora(&[("<s0>", &vectors(1.3, 1)?)])?;
    pipe.set_loras(&[(&other, 0.0)])?;
    pipe.clear_loras();
    assert_eq!(encoded(&pipe)?, base);
    Ok(())
}

#[test]
fn a_word_that_does_not_fit_refuses_its_lora() -> TestResult {
    let wide = Tensor::ones((1, 48), DType::F32, &Device::Cpu)?;
    let mut pipe = open()?;
    let error = pipe.set_loras(&[(&lora(&[("<s0>", &wide)])?, 1.0)]).err();
    let error = error.ok_or("accepted")?.to_string();
    assert!(error.contains("<s0>") && error.contains("48"), "{error}");
    let odd = Tensor::ones((1, 2, 32), DType::F32, &Device::Cpu)?;
    let error = lora(&[("<s0>", &odd)]).err().ok_or("accepted")?.to_string();
    assert!(error.contains("<s0>"), "{error}");
    Ok(())
}
