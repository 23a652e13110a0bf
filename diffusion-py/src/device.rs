//! Devices by the names that PyTorch gives them.

use diffusion_core::{Device, Error, Result};

pub(crate) fn parse_device(name: &str) -> Result<Device> {
    let unknown = || Error::InvalidArgument {
        name: "device",
        expected: "cpu, cuda, cuda:1, metal, ...".into(),
        found: format!("{name:?}"),
    };
    let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
    let ordinal = ordinal.parse().map_err(|_| unknown())?;
    let absent = |feature: &str| Error::Unsupported {
        what: format!("device {name:?} in this build"),
        hint: format!("build the package with `--features {feature}`"),
    };
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Ok(Device::new_cuda(ordinal)?),
        "cuda" => Err(absent("cuda")),
        "metal" | "mps" if cfg!(feature = "metal") => Ok(Device::new_metal(ordinal)?),
        "metal" | "mps" => Err(absent("metal")),
        _ => Err(unknown()),
    }
}
