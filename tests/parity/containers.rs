//! Files of tensors against what torch, safetensors and gguf read from them.

use candle_core::{DType, Device, Tensor};
use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{Container, TensorFile};
use diffusion_tests::{Golden, TestResult, golden_path};

fn open(name: &str) -> TestResult<TensorFile> {
    Ok(TensorFile::open(golden_path("containers").join(name))?)
}

fn values(tensor: &Tensor) -> TestResult<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// Every tensor of the golden file must be in ours, with the same shape and the same values.
fn assert_same(file: &TensorFile, golden: &str) -> TestResult {
    let golden = Golden::open(&format!("containers/{golden}"))?;
    let mut names: Vec<&str> = golden.names().collect();
    names.sort_unstable();
    assert_eq!(file.tensor_names(), names);
    for name in names {
        let expected = golden.values(name)?;
        let shape = file.shape(name);
        assert_eq!(shape, Some(golden.tensor(name)?.dims().to_vec()), "{name}");
        let ours = file.load(name, DType::F64, &Device::Cpu)?;
        assert_eq!(values(&ours)?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn pickles_of_every_form() -> TestResult {
    for (name, container) in [
        ("zip.pt", Container::TorchZip),
        ("protocol4.pt", Container::TorchZip),
        ("legacy.pt", Container::TorchLegacy),
    ] {
        let file = open(name)?;
        assert_eq!(file.container(), container, "{name}");
        assert_same(&file, "pickled")?;
    }
    assert_same(&open("parameters.pt")?, "parameters")
}

#[test]
fn what_a_trainer_saves_beside_the_weights() -> TestResult {
    for name in ["zip.pt", "protocol4.pt", "legacy.pt"] {
        let file = open(name)?;
        let root = file.pickle().ok_or("no pickle")?;
        let at = |key: &str| root.get(key).ok_or_else(|| format!("no {key}"));
        assert_eq!(at("epoch")?.as_int(), Some(3));
        assert_eq!(at("global_step")?.as_int(), Some(1 << 40));
        assert_eq!(at("loss")?.as_float(), Some(0.1));
        assert_eq!(
            at("instance")?.class_name().as_deref().map(last_part),
            Some("ModelCheckpoint")
        );
        let counts: Vec<_> = at("counts")?.items().ok_or("no list")?.collect();
        assert_eq!(counts[1].as_int(), Some(-2));
        assert_eq!(counts[2].as_float(), Some(3.5));
        assert_eq!(counts[4].as_bool(), Some(true));
        let five = counts[6].items().ok_or("no tuple")?.nth(1);
        assert_eq!(five.and_then(|five| five.as_str()), Some("five"));
        let shape = at("shape")?.items().ok_or("no size")?;
        assert_eq!(shape.filter_map(|n| n.as_int()).collect::<Vec<_>>(), [2, 3]);

        let (class, callback) = at("callbacks")?
            .entries()
            .and_then(|mut entries| entries.next())
            .ok_or("no callback")?;
        assert_eq!(
            class.class_name().as_deref().map(last_part),
            Some("ModelCheckpoint")
        );
        let score = callback.get("best_model_score").and_then(|s| s.as_tensor());
        let score = file.read(score.ok_or("no score")?, DType::F32, &Device::Cpu)?;
        assert_eq!(score.to_scalar::<f32>()?, 0.25);
    }
    Ok(())
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[test]
fn an_embedding_in_a_parameter_dict() -> TestResult {
    let file = open("embedding.pt")?;
    let root = file.pickle().ok_or("no pickle")?;
    assert_eq!(root.get("name").and_then(|n| n.as_str()), Some("tiny"));
    let vectors = root
        .get("string_to_param")
        .and_then(|dict| dict.get("*")?.as_tensor())
        .ok_or("no vectors")?;
    let vectors = file.read(vectors, DType::F32, &Device::Cpu)?;
    let golden = Golden::open("containers/embedding")?;
    assert_eq!(vectors.dims(), [2, 4]);
    assert_eq!(values(&vectors)?, golden.values("vectors")?);
    assert!(
        file.tensor_names()
            .contains(&"string_to_param.*".to_owned())
    );
    Ok(())
}

#[test]
fn every_code_of_float8() -> TestResult {
    let golden = Golden::open("containers/float8")?;
    for file in [open("float8.stored.safetensors")?, open("float8.pt")?] {
        for name in ["e4m3", "e5m2"] {
            for (target, dtype) in [
                ("float64", DType::F64),
                ("float32", DType::F32),
                ("float16", DType::F16),
                ("bfloat16", DType::BF16),
            ] {
                let ours = file.load(name, dtype, &Device::Cpu)?;
                assert_eq!(ours.dtype(), dtype);
                let ours = values(&ours)?;
                let expected = golden.values(&format!("{name}.{target}"))?;
                assert_eq!((ours.len(), expected.len()), (256, 256));
                for (code, (a, b)) in ours.iter().zip(&expected).enumerate() {
                    let is_same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                    assert!(is_same, "{name} {code:#x} to {target}: {a}, expected {b}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_type_of_gguf() -> TestResult {
    let file = open("kinds.gguf")?;
    assert_eq!(file.container(), Container::Gguf);
    let golden = Golden::open("containers/gguf")?;
    let mut names: Vec<&str> = golden.names().collect();
    names.sort_unstable();
    assert_eq!(file.tensor_names(), names);
    for name in names {
        let ours = file.load(name, DType::F32, &Device::Cpu)?;
        diffusion_tests::assert_close(name, &ours, &golden.tensor(name)?, 1e-6)?;
    }
    Ok(())
}
