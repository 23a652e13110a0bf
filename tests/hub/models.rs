//! What an id brings, and what it does not.

use diffusion_core::weights::{Checkpoint, Lora, OpenOptions};
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline};
use diffusion_tests::{TestResult, golden_path, model_path};

use crate::server::{COMMIT, Repository};
use crate::{Hub, noise};

/// The tiny model, with what published ones have beside it.
fn published() -> TestResult<Repository> {
    let mut repository = Repository::of_folder(&model_path("sd15"))?;
    let index = repository.files["model_index.json"].clone();
    let mut index: serde_json::Value = serde_json::from_slice(&index)?;
    index["safety_checker"] =
        serde_json::json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    let index = serde_json::to_vec(&index)?;
    repository.files.insert("model_index.json".into(), index);
    for name in [
        "README.md",
        "model.ckpt",
        "model.safetensors",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "text_encoder/flax_model.msgpack",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx",
        "vae/openvino_model.bin",
    ] {
        repository.files.insert(name.into(), noise(20_000));
    }
    Ok(repository)
}

/// What a pipeline of the tiny model reads.
const NEEDED: [&str; 12] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The files that were asked for, once each.
fn files_of(lines: &[String]) -> Vec<String> {
    let start = format!("GET /owner/name/resolve/{COMMIT}/");
    let files = lines.iter().filter_map(|line| line.strip_prefix(&start));
    let mut files: Vec<_> = files.map(str::to_owned).collect();
    files.sort();
    files
}

#[test]
fn an_id_becomes_a_pipeline_by_what_is_needed_and_no_more() -> TestResult {
    let hub = Hub::start(published()?)?;
    let build = || {
        Pipeline::builder()
            .weights("owner/name")
            .hub(hub.settings())
            .build()
    };
    let pipeline = build()?;
    let first = hub.server.take_lines();
    assert_eq!(files_of(&first), NEEDED);
    assert_eq!(first[0], "GET /api/models/owner/name/revision/main");

    let request = GenerateRequest::txt2img("a red heart").num_steps(2).seed(3);
    let local = Pipeline::builder().weights(model_path("sd15")).build()?;
    assert_eq!(
        pipeline.generate(&request)?.images,
        local.generate(&request)?.images
    );

    build()?;
    let second = hub.server.take_lines();
    assert_eq!(second, ["GET /api/models/owner/name/revision/main"]);
    Ok(())
}

#[test]
fn a_commit_that_is_here_is_not_asked_for() -> TestResult {
    let hub = Hub::start(published()?)?;
    let options = OpenOptions {
        revision: Some(COMMIT.into()),
        ..hub.options()
    };
    let path = options.locate("owner/name")?;
    assert_eq!(path, hub.cached(&format!("snapshots/{COMMIT}")));
    assert!(!hub.server.take_lines().is_empty());
    assert_eq!(options.locate("owner/name")?, path);
    assert!(hub.server.take_lines().is_empty());
    Ok(())
}

#[test]
fn branches_tags_and_pull_requests_are_revisions() -> TestResult {
    let hub = Hub::start(published()?)?;
    for revision in ["v1", "refs/pr/1"] {
        let options = OpenOptions {
            revision: Some(revision.into()),
            ..hub.options()
        };
        Checkpoint::open_with("owner/name", &options)?;
        let noted = std::fs::read_to_string(hub.cached("refs").join(revision))?;
        assert_eq!(noted, COMMIT);
    }
    let lines = hub.server.take_lines();
    assert!(lines.contains(&"GET /api/models/owner/name/revision/refs%2Fpr%2F1".to_owned()));
    assert_eq!(
        files_of(&lines),
        NEEDED,
        "the second revision is the same commit"
    );
    Ok(())
}

#[test]
fn a_variant_is_asked_for_where_there_is_one() -> TestResult {
    let mut repository = published()?;
    let unet = repository.files["unet/diffusion_pytorch_model.safetensors"].clone();
    let name = "unet/diffusion_pytorch_model.fp16.safetensors";
    repository.files.insert(name.into(), unet);
    let hub = Hub::start(repository)?;
    let pipeline = |variant: &str| {
        let builder = Pipeline::builder().weights("owner/name").variant(variant);
        builder.hub(hub.settings()).build()
    };
    pipeline("fp16")?;
    let files = files_of(&hub.server.take_lines());
    assert!(files.contains(&name.to_owned()));
    assert!(!files.contains(&"unet/diffusion_pytorch_model.safetensors".to_owned()));
    assert!(files.contains(&"vae/diffusion_pytorch_model.safetensors".to_owned()));

    let error = pipeline("int8").expect_err("no such variant");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error
            .to_string()
            .contains("no weights of the variant \"int8\""),
        "{error}"
    );
    assert!(files_of(&hub.server.take_lines()).is_empty());
    Ok(())
}

#[test]
fn shards_are_those_of_the_index() -> TestResult {
    let mut repository = Repository::of_folder(&model_path("sd15"))?;
    let folder = "unet/diffusion_pytorch_model";
    let weights = repository.files.remove(&format!("{folder}.safetensors"));
    let shard = format!("{folder}-00001-of-00001.safetensors");
    repository.files.insert(shard, weights.ok_or("no weights")?);
    let other = format!("{folder}-00001-of-00009.safetensors");
    repository.files.insert(other.clone(), noise(20_000));
    let index = br#"{"weight_map": {"x": "diffusion_pytorch_model-00001-of-00001.safetensors"}}"#;
    let index_name = format!("{folder}.safetensors.index.json");
    repository.files.insert(index_name.clone(), index.to_vec());
    let hub = Hub::start(repository)?;
    Pipeline::builder()
        .weights("owner/name")
        .hub(hub.settings())
        .build()?;
    assert!(!files_of(&hub.server.take_lines()).contains(&other));

    let outside = br#"{"weight_map": {"x": "../../secret.safetensors"}}"#;
    let mut repository = Repository::of_folder(&model_path("sd15"))?;
    repository.files.remove(&format!("{folder}.safetensors"));
    repository.files.insert(index_name, outside.to_vec());
    let hub = Hub::start(repository)?;
    let error = hub.options().locate("owner/name").expect_err("outside");
    assert!(
        error.to_string().contains("not a plain file name"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_repository_of_one_file_and_a_file_of_a_repository() -> TestResult {
    let file = std::fs::read(model_path("sd15").join("vae/diffusion_pytorch_model.safetensors"))?;
    let hub = Hub::start(Repository::of_files(&[
        ("README.md", b"a model"),
        ("model.ckpt", &noise(20_000)),
        ("model.safetensors", &file),
    ]))?;
    let whole = Checkpoint::open_with("owner/name", &hub.options())?;
    assert_eq!(files_of(&hub.server.take_lines()), ["model.safetensors"]);
    let named = Checkpoint::open_with("owner/name/model.safetensors", &hub.options())?;
    assert_eq!(named.description(), whole.description());
    let line = "HEAD /owner/name/resolve/main/model.safetensors";
    assert_eq!(hub.server.take_lines(), [line]);
    let page = "https://huggingface.co/owner/name/blob/v1/model.ckpt";
    let path = hub.options().locate(page)?;
    assert_eq!(std::fs::read(path)?, noise(20_000));
    Ok(())
}

#[test]
fn several_files_are_listed() -> TestResult {
    let names = [("a.safetensors", &b"a"[..]), ("b.safetensors", b"b")];
    let hub = Hub::start(Repository::of_files(&names))?;
    let error = hub.options().locate("owner/name").expect_err("two files");
    let text = error.to_string();
    assert!(
        text.contains("a.safetensors, b.safetensors; name one"),
        "{text}"
    );
    assert!(text.contains("owner/name/a.safetensors"), "{text}");
    let hub = Hub::start(Repository::of_files(&[("README.md", b"nothing")]))?;
    let error = hub.options().locate("owner/name").expect_err("no file");
    assert!(
        error.to_string().contains("neither model_index.json nor"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_model_that_lacks_parts_is_refused_before_its_weights_are_fetched() -> TestResult {
    let mut repository = published()?;
    repository.files.remove("vae/config.json");
    let hub = Hub::start(repository)?;
    let error = hub.options().locate("owner/name").expect_err("not whole");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("vae/config.json"), "{error}");
    assert_eq!(files_of(&hub.server.take_lines()), ["model_index.json"]);
    Ok(())
}

#[test]
fn loras_have_ids_too() -> TestResult {
    let folder = golden_path("loras");
    let first = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> = first
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    let local = files
        .iter()
        .find(|path| {
            let lora = Lora::open(path);
            lora.is_ok()
                && Pipeline::builder()
                    .weights(model_path("sd15"))
                    .lora(*path, 0.5)
                    .build()
                    .is_ok()
        })
        .ok_or("no LoRA fits")?;
    let bytes = std::fs::read(local)?;
    let hub = Hub::start(Repository::of_files(&[("style.safetensors", &bytes)]))?;
    let builder = || Pipeline::builder().weights(model_path("sd15"));
    let ours = builder()
        .lora("owner/name", 0.5)
        .hub(hub.settings())
        .build()?;
    let theirs = builder().lora(local, 0.5).build()?;
    let request = GenerateRequest::txt2img("a red heart").num_steps(1).seed(3);
    assert_eq!(
        ours.generate(&request)?.images,
        theirs.generate(&request)?.images
    );
    assert_eq!(ours.loras().len(), 1);
    Ok(())
}
