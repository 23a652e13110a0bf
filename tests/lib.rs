//! What the tests share: golden files and the measure of closeness.

pub mod conformance;

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffusion_core::Pipeline;
use serde_json::Value;

/// The result of a test.
pub type TestResult<T = ()> = Result<T, Box<dyn Error>>;

/// The bound on `max|difference| / max|reference|` for single forward passes in f32.
pub const TOLERANCE: f64 = 1e-4;

/// The bound for whole runs.
pub const RUN_TOLERANCE: f64 = 1e-3;

/// A file or folder below `tests/goldens`.
pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("goldens")
        .join(name)
}

/// The folder of a model that goldens were made with.
pub fn model_path(name: &str) -> PathBuf {
    match name {
        "emoji" => Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji"),
        tiny => golden_path("models").join(tiny),
    }
}

/// Copies a folder and all that is in it.
pub fn copy_folder(from: &Path, to: &Path) -> TestResult {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().ok_or("no name")?);
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            std::fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// The emoji model, loaded.
pub fn emoji_pipeline() -> TestResult<Pipeline> {
    Ok(Pipeline::builder().weights(model_path("emoji")).build()?)
}

/// A JSON file below `tests/goldens`.
pub fn golden_json(name: &str) -> TestResult<Value> {
    let path = golden_path(name);
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The tensors of a golden file.
pub struct Golden(HashMap<String, Tensor>);

impl Golden {
    /// Reads `tests/goldens/NAME.safetensors`.
    pub fn open(name: &str) -> TestResult<Self> {
        let path = golden_path(&format!("{name}.safetensors"));
        Ok(Self(candle_core::safetensors::load(path, &Device::Cpu)?))
    }

    /// A tensor as f32.
    pub fn tensor(&self, name: &str) -> TestResult<Tensor> {
        let tensor = self
            .0
            .get(name)
            .ok_or_else(|| format!("no golden tensor {name}"))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// A tensor as a list.
    pub fn values(&self, name: &str) -> TestResult<Vec<f64>> {
        let tensor = self
            .0
            .get(name)
            .ok_or_else(|| format!("no golden tensor {name}"))?;
        Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The tensors below a prefix, without it.
    pub fn below(&self, prefix: &str) -> HashMap<String, Tensor> {
        self.0
            .iter()
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            })
            .collect()
    }
}

/// Peak signal-to-noise ratio of 8-bit pictures, in dB.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}

/// `max|ours - reference| / max|reference|`.
pub fn relative_difference(ours: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(ours.len(), reference.len(), "lengths differ");
    let largest = reference.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let difference = ours.iter().zip(reference).fold(0.0f64, |max, (a, b)| {
        // A NaN must not pass as a small difference.
        let difference = (a - b).abs();
        if difference.is_nan() {
            f64::INFINITY
        } else {
            max.max(difference)
        }
    });
    difference / largest.max(f64::MIN_POSITIVE)
}

/// Fails if shapes differ or values are further apart than `tolerance` times the largest of `reference`.
pub fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, tolerance: f64) -> TestResult {
    assert_eq!(ours.dims(), reference.dims(), "{what}: shapes differ");
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let difference = relative_difference(&flat(ours)?, &flat(reference)?);
    assert!(
        difference <= tolerance,
        "{what}: {difference:.3e} apart, {tolerance:.0e} allowed"
    );
    Ok(())
}
