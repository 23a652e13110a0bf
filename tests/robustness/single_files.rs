//! One-file checkpoints that are cut off, incomplete, misshapen or of something else.

use std::collections::HashMap;
use std::fs;

use diffusion_core::model::{UNetConfig, Vae};
use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{Checkpoint, ComponentKind, OpenOptions, TensorFile};
use diffusion_core::{
    DType, Device, Error, ErrorKind, Pipeline, Result, Tensor, TextEncoder, UNet,
};
use diffusion_tests::{TestResult, golden_path};

fn file(name: &str) -> std::path::PathBuf {
    golden_path(&format!("single_files/{name}.safetensors"))
}

/// The shapes of a file, one of them changed, and zeros in all.
struct Changed {
    shapes: HashMap<String, Vec<usize>>,
}

impl TensorSource for Changed {
    fn name(&self) -> String {
        "changed".into()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape(name).unwrap_or_default();
        let count: usize = shape.iter().product();
        assert!(count < 1 << 24, "{name}: {shape:?} was asked for");
        Ok(Tensor::zeros(shape, dtype, device)?)
    }
}

/// Opens the file and builds all of its parts.
fn build(shapes: HashMap<String, Vec<usize>>) -> Result<()> {
    let source = Box::new(Changed { shapes });
    let checkpoint = Checkpoint::from_sources("changed", vec![source], &OpenOptions::default())?;
    assert!(!checkpoint.description().to_string().is_empty());
    let (dtype, device) = (DType::F32, &Device::Cpu);
    let part = checkpoint.required(ComponentKind::UNet)?;
    let config = UNetConfig::from_json(part.config_path, part.config)?;
    UNet::new(config, &part.tensors, dtype, device)?;
    let part = checkpoint.required(ComponentKind::Vae)?;
    Vae::new(part.config_path, part.config, &part.tensors, dtype, device)?;
    for kind in [ComponentKind::TextEncoder, ComponentKind::TextEncoder2] {
        if let Some(part) = checkpoint.component(kind) {
            let config = TextEncoder::parse_config(part.config_path, part.config)?;
            TextEncoder::new(config, &part.tensors, dtype, device)?;
        }
    }
    Ok(())
}

#[test]
fn any_shape_in_any_place_is_an_error_or_a_model() -> TestResult {
    let mut errors = 0;
    for name in ["sd1_bk_small", "sd2", "sdxl_ssd"] {
        let source = TensorFile::open(file(name))?;
        let shapes: HashMap<_, _> = source
            .tensor_names()
            .into_iter()
            .filter_map(|name| Some((name.clone(), source.shape(&name)?)))
            .collect();
        let mut names: Vec<_> = shapes.keys().cloned().collect();
        names.sort();
        let strange: [Option<Vec<usize>>; 6] = [
            None,
            Some(vec![]),
            Some(vec![0, 0]),
            Some(vec![usize::MAX, 3]),
            Some(vec![1 << 40, 1 << 40, 3, 3]),
            Some(vec![5, 7, 1]),
        ];
        for (i, tensor) in names.iter().enumerate().step_by(2) {
            let mut changed = shapes.clone();
            match &strange[i / 2 % strange.len()] {
                Some(shape) => changed.insert(tensor.clone(), shape.clone()),
                None => changed.remove(tensor),
            };
            errors += usize::from(build(changed).is_err());
        }
    }
    assert!(errors > 100, "{errors}");
    Ok(())
}

#[test]
fn cut_off_anywhere() -> TestResult {
    let folder = tempfile::tempdir()?;
    let whole = fs::read(file("sd1_bk_small"))?;
    let path = folder.path().join("model.safetensors");
    for part in 0..64 {
        fs::write(&path, &whole[..whole.len() * part / 64])?;
        let error = Checkpoint::open(&path).err().map(|e| e.kind());
        assert!(
            matches!(error, Some(ErrorKind::Format | ErrorKind::Io)),
            "{part}: {error:?}"
        );
    }
    Ok(())
}

#[test]
fn a_pipeline_names_what_a_file_lacks() -> TestResult {
    let root = tempfile::tempdir()?;
    let folder = root.path().join("model");
    Checkpoint::open(file("sd1"))?.save_diffusers(&folder)?;
    let vae = folder.join("vae/diffusion_pytorch_model.safetensors");
    for path in [vae, golden_path("rng.safetensors")] {
        let error = Pipeline::builder().weights(&path).build().err();
        let error = error.ok_or("it opened")?;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
    let error = Checkpoint::open(root.path().join("nothing")).err();
    assert!(matches!(error, Some(Error::NotFound { .. })));
    let none: [&str; 0] = [];
    let error = Checkpoint::open_files(&none, &OpenOptions::default()).err();
    assert!(matches!(error, Some(Error::InvalidArgument { .. })));
    Ok(())
}
