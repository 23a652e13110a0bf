//! Tokenizer and text encoder against transformers.

use std::fs;
use std::path::{Path, PathBuf};

use diffusion_core::model::ClipTextConfig;
use diffusion_core::weights::DiffusersFolder;
use diffusion_core::{DType, Device, TextEncoder, Tokenizer};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, golden_json, golden_path, model_path,
};
use serde_json::Value;

fn assert_ids(name: &str, tokenizer: &Tokenizer) -> TestResult {
    let cases = golden_json("tokenizer.json")?;
    let cases = cases[name].as_array().ok_or("no cases")?;
    assert!(cases.len() >= 30);
    for case in cases {
        let text = case["text"].as_str().ok_or("no text")?;
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        assert_eq!(tokenizer.encode(text)?.ids, expected, "{name}: {text:?}");
    }
    Ok(())
}

#[test]
fn clip_tokenizer_from_vocab_and_merges() -> TestResult {
    assert_ids("clip", &Tokenizer::open(golden_path("clip-tokenizer"))?)
}

#[test]
fn padding_of_stable_diffusion_2() -> TestResult {
    let folder = copy_of(
        &golden_path("clip-tokenizer"),
        &["vocab.json", "merges.txt"],
    )?;
    fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"pad_token": {"content": "!"}}"#,
    )?;
    assert_ids("sd2", &Tokenizer::open(folder.path())?)
}

#[test]
fn which_file_names_the_padding() -> TestResult {
    let folder = copy_of(
        &golden_path("clip-tokenizer"),
        &["vocab.json", "merges.txt"],
    )?;
    let config = folder.path().join("tokenizer_config.json");
    let special = folder.path().join("special_tokens_map.json");
    // The files of Stable Diffusion 2 disagree; transformers believes the second.
    fs::write(&config, r#"{"pad_token": "<|endoftext|>"}"#)?;
    fs::write(&special, r#"{"pad_token": "!"}"#)?;
    assert_ids("sd2", &Tokenizer::open(folder.path())?)?;
    let listed = r#"{"added_tokens_decoder": {}, "pad_token": "<|endoftext|>"}"#;
    fs::write(&config, listed)?;
    assert_ids("clip", &Tokenizer::open(folder.path())?)
}

#[test]
fn tokens_that_were_added_to_the_vocabulary() -> TestResult {
    let folder = copy_of(
        &golden_path("clip-tokenizer"),
        &["vocab.json", "merges.txt"],
    )?;
    let list = folder.path().join("added_tokens.json");
    fs::write(&list, r#"{"<new2>": 49409, "<new1>": 49408}"#)?;
    let ids = Tokenizer::open(folder.path())?
        .encode("a <new1> cat <new2>")?
        .ids;
    assert_eq!(ids[..6], [49406, 320, 49408, 2368, 49409, 49407]);
    fs::write(&list, r#"{"<new1>": 50000}"#)?;
    assert!(Tokenizer::open(folder.path()).is_err());
    Ok(())
}

#[test]
fn both_forms_of_the_emoji_tokenizer() -> TestResult {
    let source = model_path("emoji").join("tokenizer");
    assert_ids("emoji", &Tokenizer::open(&source)?)?;
    let folder = copy_of(&source, &["tokenizer.json", "tokenizer_config.json"])?;
    assert_ids("emoji", &Tokenizer::open(folder.path())?)
}

fn copy_of(source: &Path, names: &[&str]) -> TestResult<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for name in names {
        fs::copy(source.join(name), folder.path().join(name))?;
    }
    Ok(folder)
}

#[test]
fn a_long_prompt_is_cut_and_says_so() -> TestResult {
    let tokenizer = Tokenizer::open(model_path("emoji").join("tokenizer"))?;
    let encoding = tokenizer.encode(&"heart ".repeat(100))?;
    assert_eq!(encoding.ids.len(), 32);
    assert_eq!(encoding.truncated, Some("heart ".repeat(70)));
    assert_eq!(tokenizer.encode("a heart")?.truncated, None);
    Ok(())
}

fn assert_encoder(name: &str, encoder: &TextEncoder) -> TestResult {
    let golden = Golden::open(name)?;
    let ids = golden.tensor("input_ids")?.to_vec2::<f32>()?;
    let ids: Vec<Vec<u32>> = ids
        .into_iter()
        .map(|row| row.into_iter().map(|id| id as u32).collect())
        .collect();
    let encoding = encoder.forward(&ids)?;
    for (i, hidden) in encoding.hidden_states.iter().enumerate() {
        let key = format!("hidden_states.{i}");
        assert_close(
            &format!("{name}: {key}"),
            hidden,
            &golden.tensor(&key)?,
            TOLERANCE,
        )?;
    }
    assert!(!golden.contains(&format!("hidden_states.{}", encoding.hidden_states.len())));
    let last = golden.tensor("last_hidden_state")?;
    assert_close(name, &encoding.last_hidden_state, &last, TOLERANCE)?;
    if golden.contains("pooler_output") {
        assert_close(
            name,
            &encoding.pooled,
            &golden.tensor("pooler_output")?,
            TOLERANCE,
        )?;
    }
    if golden.contains("text_embeds") {
        let ours = encoding.text_embeds.ok_or("no projection")?;
        assert_close(name, &ours, &golden.tensor("text_embeds")?, TOLERANCE)?;
    }
    Ok(())
}

fn open_encoder(model: &str) -> TestResult<TextEncoder> {
    let part = DiffusersFolder::open(model_path(model), None)?.required("text_encoder")?;
    let config = TextEncoder::parse_config(&part.config_path, &part.config)?;
    Ok(TextEncoder::new(
        config,
        &part.open_weights()?,
        DType::F32,
        &Device::Cpu,
    )?)
}

#[test]
fn quick_gelu_and_the_old_end_of_text_rule() -> TestResult {
    assert_encoder("clip_sd15", &open_encoder("sd15")?)
}

#[test]
fn gelu_the_new_end_of_text_rule_and_no_prefix() -> TestResult {
    assert_encoder("clip_sd21", &open_encoder("sd21")?)
}

#[test]
fn projection() -> TestResult {
    let json: Value = golden_json("clip_projection.json")?;
    let config: ClipTextConfig = TextEncoder::parse_config(&PathBuf::from("golden"), &json)?;
    let weights = Golden::open("clip_projection")?.below("weights.");
    let encoder = TextEncoder::new(config, &weights, DType::F32, &Device::Cpu)?;
    assert_encoder("clip_projection", &encoder)
}
