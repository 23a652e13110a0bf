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

/// Reads a device's name: `cpu`, `cuda` or `metal` (PyTorch's `mps`), with a number as `cuda:1` where
/// there are several.
///
/// # Errors
/// [`Error::InvalidArgument`] for an unknown name, [`Error::Unsupported`] if this build or machine has
/// no such device.
pub fn parse_device(name: &str) -> Result<Device> {
    let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || {
        Error::argument(
            "device",
            "cpu, cuda, metal or one with a number as cuda:1",
            name,
        )
    };
    let ordinal = ordinal.parse().map_err(|_| unknown())?;
    let device = match kind {
        "cpu" if ordinal == 0 => Ok(Device::Cpu),
        "cuda" => Device::new_cuda(ordinal),
        "metal" | "mps" => Device::new_metal(ordinal),
        _ => return Err(unknown()),
    };
    device.map_err(|e| {
        let hint = format!("{e}; build for it with the feature cuda or metal, or use the cpu");
        Error::unsupported(format!("device {name}"), hint)
    })
}

/// Bytes of host memory that the system can still give, where that can be told: free memory, within the
/// limit of the process's control group.
pub(crate) fn available_memory() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let host = system.available_memory();
    let available = match system.cgroup_limits() {
        Some(limits) if limits.total_memory < system.total_memory() => limits.free_memory.min(host),
        _ => host,
    };
    (available > 0).then_some(available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names() -> Result<()> {
        assert!(parse_device("cpu")?.is_cpu());
        for name in ["", "gpu", "cpu:1", "cuda:x", "cuda:-1", ":"] {
            let kind = parse_device(name).map(|_| ()).map_err(|e| e.kind());
            assert_eq!(kind, Err(ErrorKind::InvalidArgument), "{name}");
        }
        assert_eq!(parse_dtype("torch.bfloat16")?, DType::BF16);
        assert_eq!(parse_dtype("fp16")?, DType::F16);
        assert!(parse_dtype("int8").is_err());
        Ok(())
    }

    #[test]
    fn absent_devices_are_unsupported() {
        if !candle_core::utils::cuda_is_available() {
            let kind = parse_device("cuda").map(|_| ()).map_err(|e| e.kind());
            assert_eq!(kind, Err(ErrorKind::Unsupported));
        }
    }
}
