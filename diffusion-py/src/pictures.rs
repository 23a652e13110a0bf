//! Pictures that a run follows, and the networks that read them.

use std::path::PathBuf;

use diffusion_core::device::{parse_device, parse_dtype};
use diffusion_core::pipeline::{ControlModel, IpAdapterImage};
use diffusion_core::{Control, ControlNet, DType, Device, Error, Result, RgbImage, T2iAdapter};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays::Raw;
use crate::error;

/// RGB bytes, width, height.
pub(crate) type RawPicture = (PyBackedBytes, u32, u32);

/// Network, picture, scale, start, end, guess mode.
pub(crate) type RawControl = (Py<NativeControlModel>, RawPicture, f64, f64, f64, bool);

/// The pictures for an IP-Adapter, and their strength.
pub(crate) type RawIpAdapterImage = (Vec<RawPicture>, f64);

/// A ControlNet or a T2I-Adapter, loaded.
#[pyclass(frozen, module = "diffusion_py._native")]
pub(crate) struct NativeControlModel(pub(crate) ControlModel);

#[pymethods]
impl NativeControlModel {
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        is_adapter: bool,
        dtype: Option<String>,
        device: String,
    ) -> PyResult<Self> {
        let open = || {
            let device = parse_device(&device)?;
            let dtype = match dtype {
                Some(name) => parse_dtype(&name)?,
                None => default_dtype(&device),
            };
            Ok(match is_adapter {
                true => T2iAdapter::open(path, dtype, &device)?.into(),
                false => ControlNet::open(path, dtype, &device)?.into(),
            })
        };
        py.detach(open)
            .map(Self)
            .map_err(|e| error::to_python(py, e))
    }
}

/// The number format of weights that nobody named one for.
pub(crate) fn default_dtype(device: &Device) -> DType {
    match device.is_cpu() {
        true => DType::F32,
        false => DType::F16,
    }
}

pub(crate) fn picture((bytes, width, height): &RawPicture) -> Result<RgbImage> {
    RgbImage::from_raw(*width, *height, bytes.to_vec()).ok_or_else(|| Error::InvalidArgument {
        name: "picture",
        expected: format!("3 bytes for each of {width} x {height} pixels"),
        found: format!("{} bytes", bytes.len()),
    })
}

/// Pictures of one size as bytes of shape `(n, height, width, 3)`.
pub(crate) fn to_bytes(pictures: Vec<RgbImage>) -> Raw {
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let shape = vec![pictures.len(), height as usize, width as usize, 3];
    let bytes = pictures.into_iter().flat_map(RgbImage::into_raw).collect();
    (bytes, shape)
}

pub(crate) fn control(
    (model, image, scale, start, end, guess_mode): &RawControl,
) -> Result<Control> {
    let control = Control::new(model.get().0.clone(), picture(image)?);
    Ok(control
        .scale(*scale)
        .start(*start)
        .end(*end)
        .guess_mode(*guess_mode))
}

pub(crate) fn ip_adapter_image((images, scale): &RawIpAdapterImage) -> Result<IpAdapterImage> {
    let pictures = images.iter().map(picture).collect::<Result<Vec<_>>>()?;
    Ok(IpAdapterImage::pictures(pictures).scale(*scale))
}
