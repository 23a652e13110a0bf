//! What the fuzz targets share.

use diffusion_core::nn::TensorSource;
use diffusion_core::weights::{PickleValue, TensorFile};
use diffusion_core::{DType, Device};

/// Opens bytes as a file of tensors, walks what a pickle holds, and loads what is there. Whatever the
/// bytes are, this ends soon and without a panic.
pub fn open(bytes: &[u8]) {
    let Ok(file) = TensorFile::from_bytes("fuzz", bytes.to_vec()) else {
        return;
    };
    if let Some(root) = file.pickle() {
        walk(root, 4);
    }
    for name in file.tensor_names().iter().take(32) {
        for dtype in [DType::F32, DType::BF16] {
            // A conversion that candle lacks is an error like any other.
            let _ = file.load(name, dtype, &Device::Cpu);
        }
    }
}

fn walk(value: PickleValue<'_>, depth: usize) {
    value.class_name();
    if depth == 0 {
        return;
    }
    for (key, value) in value.entries().into_iter().flatten().take(8) {
        walk(key, depth - 1);
        walk(value, depth - 1);
    }
    for item in value.items().into_iter().flatten().take(8) {
        walk(item, depth - 1);
    }
}
