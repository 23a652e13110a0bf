//! Devices and number formats.

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// The dtype that activations have where weights are held as `weights`.
///
/// On CUDA and Metal the two are the same. On the CPU candle has no `bf16` matrix product and its
/// `f16` one rounds every activation, so half-precision weights stay half in memory and the
/// arithmetic is f32.
pub fn compute_dtype(device: &Device, weights: DType) -> DType {
    match device {
        Device::Cpu => DType::F32,
        _ => weights,
    }
}

/// Accepts the dtypes that weights may be held in: `f32`, `f16`, `bf16`.
///
/// # Errors
/// [`Error::InvalidArgument`] for any other.
pub fn check_weights_dtype(dtype: DType) -> Result<DType> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(dtype),
        other => Err(Error::argument("dtype", "f32, f16 or bf16", other.as_str())),
    }
}

/// Reads a dtype's name as diffusers, PyTorch and command lines spell it (`float16`, `f16`, `fp16`,
/// `torch.float16`, ...).
///
/// # Errors
/// [`Error::InvalidArgument`] for an unknown name.
pub fn parse_dtype(name: &str) -> Result<DType> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "f32" | "fp32" | "float32" | "float" => Ok(DType::F32),
        "f16" | "fp16" | "float16" | "half" => Ok(DType::F16),
        "bf16" | "bfloat16" => Ok(DType::BF16),
        _ => Err(Error::argument(
            "dtype",
            "float32, float16 or bfloat16",
            name,
        )),
    }
}

/// Bytes of memory that the system can still give, where that can be told: free memory on the host,
/// within the limit of its control group. `None` on a device other than the CPU.
pub(crate) fn available_memory(device: &Device) -> Option<u64> {
    if !device.is_cpu() {
        return None;
    }
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let host = system.available_memory();
    let available = match system.cgroup_limits() {
        Some(limits) if limits.total_memory < system.total_memory() => limits.free_memory.min(host),
        _ => host,
    };
    (available > 0).then_some(available)
}
