//! Learned words against diffusers, in tokenizer and text encoder together.

use std::collections::{BTreeMap, HashMap};

use diffusion_core::weights::{Embedding, ModelPart, TensorFile};
use diffusion_core::{DType, Device, GenerateRequest, Pipeline, Tensor};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, assert_close, golden_json, golden_path, model_path,
};

fn open(name: &str) -> TestResult<Embedding> {
    let path = golden_path(&format!("embeddings/{name}.safetensors"));
    Ok(Embedding::open(path, None)?)
}

fn vectors(count: usize) -> TestResult<Tensor> {
    let numbers = Tensor::arange(0f32, (count * 32) as f32, &Device::Cpu)?;
    Ok(numbers.sin()?.reshape((count, 32))?)
}

/// A safetensors file of f32 with free text.
fn save_with_note(
    tensors: &HashMap<String, Tensor>,
    note: HashMap<String, String>,
    path: &std::path::Path,
) -> TestResult {
    let mut header = serde_json::json!({ "__metadata__": note });
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header[name] = serde_json::json!({
            "dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, data.len()],
        });
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length, header.as_bytes(), &data].concat())?;
    Ok(())
}

#[test]
fn words_of_one_and_several_vectors() -> TestResult {
    let golden = Golden::open("embeddings")?;
    let mut builder = Pipeline::builder().weights(model_path("sd15"));
    for (name, token, count) in [
        ("cat-toy", "<cat-toy>", 1),
        ("worst-thing", "worst-thing", 3),
        ("pairs", "pairs", 2),
    ] {
        let embedding = open(name)?;
        assert_eq!((embedding.token(), embedding.num_vectors()), (token, count));
        builder = builder.embedding(embedding);
    }
    let pipe = builder.build()?;
    let (tokenizer, encoder) = pipe.tokenizer().zip(pipe.text_encoder()).ok_or("no text")?;
    let cases = golden_json("embeddings.json")?;
    for (i, case) in cases.as_array().ok_or("no cases")?.iter().enumerate() {
        let text = case["text"].as_str().ok_or("no text")?;
        let encoding = tokenizer.encode(text)?;
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        assert_eq!(encoding.ids, expected, "{text}");
        let ours = encoder.forward(&[encoding.ids])?.last_hidden_state;
        let reference = golden.tensor(&format!("{i}.last_hidden_state"))?;
        assert_close(text, &ours, &reference, TOLERANCE)?;
    }
    // Where diffusers puts in the first vector alone, a word in other letters means all of them too.
    let spelled = |text: &str| tokenizer.encode(text).map(|encoding| encoding.ids);
    assert_eq!(spelled("a Worst-Thing")?, spelled("a worst-thing")?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> TestResult {
    let word = |token: &str, width: usize| {
        let vectors = Tensor::ones((2, width), DType::F32, &Device::Cpu)?;
        Embedding::new(token, BTreeMap::from([(ModelPart::TextEncoder, vectors)]))
    };
    let mut pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let error = pipe
        .add_embedding(&word("wide", 48)?)
        .err()
        .ok_or("accepted")?
        .to_string();
    assert!(
        error.contains("32 channels") && error.contains("48"),
        "{error}"
    );
    pipe.add_embedding(&word("new-word", 32)?)?;
    assert!(
        pipe.add_embedding(&word("new-word", 32)?).is_err(),
        "a word twice"
    );
    assert!(
        pipe.add_embedding(&word("new-word_1", 32)?).is_err(),
        "part of a word"
    );
    assert!(word(" ", 32).is_err());
    Ok(())
}

#[test]
fn a_name_inside_and_the_files_are_both_words() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tensors = HashMap::from([("emb_params".to_owned(), vectors(2)?)]);
    let stated = |name: &str, stated: &str| -> TestResult<Embedding> {
        let file = folder.path().join(name);
        let note = HashMap::from([("name".to_owned(), stated.to_owned())]);
        save_with_note(&tensors, note, &file)?;
        Ok(Embedding::open(&file, None)?)
    };
    let tokens = |word: &Embedding| word.tokens().map(str::to_owned).collect::<Vec<_>>();
    let word = stated("bad-word.safetensors", "bad_word")?;
    assert_eq!(tokens(&word), ["bad_word", "bad-word"]);
    assert_eq!(tokens(&stated("same.safetensors", "same")?), ["same"]);
    assert_eq!(tokens(&stated("file.safetensors", " ")?), ["file"]);
    let mut pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    pipe.add_embedding(&word)?;
    // "a" is in the vocabulary already.
    pipe.add_embedding(&stated("free-word.safetensors", "a")?)?;
    let encoded = |text: &str| -> TestResult<Vec<f32>> {
        let (text, _) = pipe.encode_prompt(&GenerateRequest::txt2img(text))?;
        Ok(text.prompt_embeds.flatten_all()?.to_vec1()?)
    };
    let expected = encoded("two bad_word hearts")?;
    assert_eq!(encoded("two bad-word hearts")?, expected);
    assert_eq!(encoded("two free-word hearts")?, expected);
    assert_ne!(encoded("two bad hearts")?, expected);

    // Pickles state it, too.
    let file = folder.path().join("other.pt");
    std::fs::copy(golden_path("containers/embedding.pt"), &file)?;
    assert_eq!(tokens(&Embedding::open(&file, None)?), ["tiny", "other"]);
    assert_eq!(tokens(&Embedding::open(&file, Some("x"))?), ["x"]);
    Ok(())
}

#[test]
fn every_form_of_file() -> TestResult {
    let vectors = Tensor::ones((2, 8), DType::F32, &Device::Cpu)?;
    let read = |names: &[&str], token| {
        let tensors: HashMap<String, Tensor> = names
            .iter()
            .map(|name| ((*name).to_owned(), vectors.clone()))
            .collect();
        Embedding::read(&tensors, token)
    };
    assert_eq!(read(&["<word>"], None)?.token(), "<word>");
    assert_eq!(read(&["<word>"], Some("other"))?.token(), "other");
    assert_eq!(
        read(&["string_to_param.*", "string_to_token.*"], Some("w"))?.num_vectors(),
        2
    );
    for bare in ["", "tensor"] {
        assert!(read(&[bare], None).is_err(), "a bare tensor without a word");
        assert_eq!(read(&[bare], Some("w"))?.token(), "w");
    }
    let pair = read(&["clip_l", "clip_g"], Some("w"))?;
    assert!(pair.vectors(ModelPart::TextEncoder2).is_some());
    let second = read(&["clip_g"], Some("w"))?;
    assert!(second.vectors(ModelPart::TextEncoder).is_none());
    for names in [&["a", "b"][..], &["clip_l", "b"], &["a", "b", "c"], &[]] {
        assert!(read(names, Some("w")).is_err(), "{names:?}");
    }
    let odd = Tensor::ones((1, 2, 8), DType::F32, &Device::Cpu)?;
    assert!(Embedding::read(&HashMap::from([("w".to_owned(), odd)]), None).is_err());
    // A LoRA is no embedding.
    let path = golden_path("loras/kohya_a.safetensors");
    assert!(Embedding::read(&TensorFile::open(path)?, None).is_err());
    Ok(())
}
