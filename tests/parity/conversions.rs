//! From dialect to dialect and back, to the bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{Checkpoint, ComponentKind, OpenOptions, TensorFile};
use diffusion_core::{DType, Device, ErrorKind, GenerateRequest, Pipeline, Tokenizer};
use diffusion_tests::{TestResult, copy_folder, golden_json, golden_path, model_path};
use serde_json::Value;

const FILES: [&str; 9] = [
    "sd1",
    "sd1_inpaint",
    "sd1_pix2pix",
    "sd1_lcm",
    "sd1_bk_small",
    "sd2",
    "sdxl",
    "sdxl_ssd",
    "refiner",
];

type Bits = BTreeMap<String, (DType, Vec<usize>, Vec<u8>)>;

fn bits(source: &dyn TensorSource) -> TestResult<Bits> {
    let mut all = Bits::new();
    for name in source.tensor_names() {
        let dtype = source.dtype(&name).ok_or("no dtype")?;
        let tensor = source.load(&name, dtype, &Device::Cpu)?;
        let mut bytes = Vec::new();
        tensor.write_bytes(&mut bytes)?;
        all.insert(name, (dtype, tensor.dims().to_vec(), bytes));
    }
    Ok(all)
}

fn parts(checkpoint: &Checkpoint) -> TestResult<BTreeMap<ComponentKind, (Value, Bits)>> {
    checkpoint
        .components()
        .map(|kind| {
            let part = checkpoint.required(kind)?;
            Ok((kind, (part.config.clone(), bits(&part.tensors)?)))
        })
        .collect()
}

fn file_bits(path: &Path) -> TestResult<Bits> {
    bits(&TensorFile::open(path)?)
}

#[test]
fn file_to_folder_to_file() -> TestResult {
    let root = tempfile::tempdir()?;
    for name in FILES {
        let path = golden_path(&format!("single_files/{name}.safetensors"));
        let mut original = Checkpoint::open(&path)?;
        // A setting that no shape tells must survive, too.
        let settings = &golden_json("single_files/settings.json")?[name];
        for kind in original.components().collect::<Vec<_>>() {
            original.configure(kind, &settings[kind.folder()])?;
        }
        let folder = root.path().join(name);
        original.save_diffusers(&folder)?;
        let saved = Checkpoint::open(&folder)?;
        assert_eq!(parts(&saved)?, parts(&original)?, "{name}");
        assert_eq!(
            saved.scheduler_config(),
            original.scheduler_config(),
            "{name}"
        );
        assert_eq!(saved.pipeline_class(), original.pipeline_class(), "{name}");

        let file = root.path().join(format!("{name}.safetensors"));
        saved.save_single_file(&file)?;
        let again = Checkpoint::open(&file)?;
        assert_eq!(parts(&again)?, parts(&original)?, "{name}");
        assert_eq!(
            again.scheduler_config(),
            original.scheduler_config(),
            "{name}"
        );
        let mut expected = file_bits(&path)?;
        let description = original.description();
        expected.retain(|tensor, _| {
            !description.leftovers.contains(tensor) && !tensor.starts_with("model_ema.")
        });
        assert_eq!(
            file_bits(&file)?,
            expected,
            "{name}: every tensor that is used, to the bit"
        );
    }
    Ok(())
}

#[test]
fn folder_to_file_to_folder() -> TestResult {
    let root = tempfile::tempdir()?;
    for name in ["sd15", "sd21", "sdxl", "emoji"] {
        let original = Checkpoint::open(model_path(name))?;
        let file = root.path().join(format!("{name}.safetensors"));
        original.save_single_file(&file)?;
        let folder = root.path().join(name);
        Checkpoint::open(&file)?.save_diffusers(&folder)?;
        let again = Checkpoint::open(&folder)?;
        assert_eq!(parts(&again)?, parts(&original)?, "{name}");
        assert_eq!(
            again.scheduler_config(),
            original.scheduler_config(),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_overwritten_unless_told() -> TestResult {
    let root = tempfile::tempdir()?;
    let open = || Checkpoint::open(golden_path("single_files/sd1.safetensors"));
    let (file, folder) = (
        root.path().join("model.safetensors"),
        root.path().join("model"),
    );
    fs::write(&file, "mine")?;
    fs::create_dir(&folder)?;
    fs::write(folder.join("notes.txt"), "mine")?;
    for result in [
        open()?.save_single_file(&file),
        open()?.save_diffusers(&folder),
    ] {
        assert_eq!(
            result.err().map(|e| e.kind()),
            Some(ErrorKind::InvalidArgument)
        );
    }
    assert_eq!(fs::read(&file)?, b"mine");
    assert!(folder.join("notes.txt").is_file());
    open()?.overwrite(true).save_single_file(&file)?;
    open()?.overwrite(true).save_diffusers(&folder)?;
    Checkpoint::open(&file)?;
    Checkpoint::open(&folder)?;
    assert!(!folder.join("notes.txt").exists());
    let left: Vec<_> = fs::read_dir(root.path())?.collect();
    assert_eq!(left.len(), 2, "drafts are gone: {left:?}");

    let nowhere = root.path().join("no/such/folder/model.safetensors");
    let error = open()?.save_single_file(&nowhere).err();
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::Io));
    let other = golden_path("rng.safetensors");
    let error = Checkpoint::open(other)?
        .save_diffusers(root.path().join("x"))
        .err();
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::Format));
    Ok(())
}

/// A copy of the tiny SD 1.5 with CLIP's vocabulary in place of its small one.
fn with_clip_vocabulary(folder: &Path) -> TestResult {
    copy_folder(&model_path("sd15"), folder)?;
    for entry in fs::read_dir(folder.join("tokenizer"))? {
        fs::remove_file(entry?.path())?;
    }
    let from = golden_path("clip-tokenizer");
    for name in [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        fs::copy(from.join(name), folder.join("tokenizer").join(name))?;
    }
    let path = folder.join("text_encoder/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let key = "text_model.embeddings.token_embedding.weight";
    let small = tensors.remove(key).ok_or("no embedding")?;
    let ids: Vec<u32> = (0..49408).map(|id| id % 2048).collect();
    let ids = candle_core::Tensor::new(ids, &Device::Cpu)?;
    tensors.insert(key.into(), small.index_select(&ids, 0)?);
    candle_core::safetensors::save(&tensors, &path)?;
    let path = folder.join("text_encoder/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["vocab_size"] = 49408.into();
    fs::write(path, config.to_string())?;
    Ok(())
}

#[test]
fn a_pipeline_of_one_file_makes_the_same_pictures() -> TestResult {
    let root = tempfile::tempdir()?;
    let folder = root.path().join("folder");
    with_clip_vocabulary(&folder)?;
    let file = root.path().join("model.safetensors");
    Checkpoint::open(&folder)?.save_single_file(&file)?;
    let request = GenerateRequest::txt2img("a cat, 2 hats! (und ein Café)")
        .num_steps(3)
        .seed(5);
    let of_folder = Pipeline::builder()
        .weights(&folder)
        .build()?
        .generate(&request)?;
    let of_file = Pipeline::builder()
        .weights(&file)
        .build()?
        .generate(&request)?;
    assert_eq!(of_file.images, of_folder.images);

    // The folder that is made of the file has the tokenizer of the first one.
    let again = root.path().join("again");
    Checkpoint::open(&file)?.save_diffusers(&again)?;
    let read = |folder: &Path, name: &str| fs::read(folder.join("tokenizer").join(name));
    assert_eq!(read(&again, "merges.txt")?, read(&folder, "merges.txt")?);
    let vocab = |folder: &Path| -> TestResult<Value> {
        Ok(serde_json::from_slice(&read(folder, "vocab.json")?)?)
    };
    assert_eq!(vocab(&again)?, vocab(&folder)?);
    let of_again = Pipeline::builder()
        .weights(&again)
        .build()?
        .generate(&request)?;
    assert_eq!(of_again.images, of_folder.images);
    Ok(())
}

#[test]
fn the_tokenizer_of_files_is_clips() -> TestResult {
    let published = Tokenizer::open(golden_path("clip-tokenizer"))?;
    let (clip, open_clip) = (Tokenizer::clip()?, Tokenizer::open_clip()?);
    for text in [
        "",
        "a photo of a cat",
        "HELLO World!!! it's 12 <|endoftext|>",
        "café 日本語 👩‍👧",
    ] {
        assert_eq!(clip.encode(text)?, published.encode(text)?);
    }
    let ids = open_clip.encode("cat")?.ids;
    assert_eq!(ids[..5], [49406, 2368, 49407, 0, 0]);
    Ok(())
}

#[test]
fn parts_in_files_of_their_own_are_joined() -> TestResult {
    let root = tempfile::tempdir()?;
    let whole = Checkpoint::open(golden_path("single_files/sdxl.safetensors"))?;
    let folder = root.path().join("model");
    whole.save_diffusers(&folder)?;
    let files = [
        folder.join("unet/diffusion_pytorch_model.safetensors"),
        folder.join("vae/diffusion_pytorch_model.safetensors"),
        folder.join("text_encoder/model.safetensors"),
    ];
    for (file, kind) in files.iter().zip(ComponentKind::ALL) {
        let alone = Checkpoint::open(file)?;
        assert_eq!(alone.components().collect::<Vec<_>>(), [kind]);
        assert_eq!(alone.description().unused, [""; 0]);
    }
    let alone = Checkpoint::open(&files[1])?.description();
    assert_eq!(alone.family, None);
    assert!(
        alone
            .assumptions
            .iter()
            .any(|text| text.contains("0.13025"))
    );
    for (file, kind) in files.iter().zip(ComponentKind::ALL) {
        let alone = Checkpoint::open(file)?;
        let renamed = root.path().join(format!("{kind}.safetensors"));
        alone.save_single_file(&renamed)?;
        let again = Checkpoint::open(&renamed)?;
        assert_eq!(
            parts(&again)?,
            parts(&alone)?,
            "{kind} under its original names"
        );
    }
    let joined = Checkpoint::open_files(&files, &OpenOptions::default())?;
    let (joined, whole) = (parts(&joined)?, parts(&whole)?);
    assert_eq!(joined.len(), 3);
    for (kind, (_, tensors)) in joined {
        assert_eq!(tensors, whole[&kind].1, "{kind}");
    }
    Ok(())
}
