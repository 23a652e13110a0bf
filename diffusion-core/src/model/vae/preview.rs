//! Pictures from latents without a network.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// Channels of the latents that factors are known for.
const CHANNELS: usize = 4;

/// Factors of a linear guess at colours from latents, which costs next to nothing.
///
/// Source: the fits that ComfyUI publishes (`comfy/latent_formats.py`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentRgb {
    /// Red, green and blue of each channel.
    pub factors: [[f64; 3]; CHANNELS],
    /// What is added.
    pub bias: [f64; 3],
}

impl LatentRgb {
    /// For latents of Stable Diffusion 1 and 2.
    pub const STABLE_DIFFUSION: Self = Self {
        factors: [
            [0.3512, 0.2297, 0.3227],
            [0.3250, 0.4974, 0.2350],
            [-0.2829, 0.1762, 0.2721],
            [-0.2120, -0.2616, -0.7177],
        ],
        bias: [0.0; 3],
    };

    /// For latents of SDXL.
    pub const SDXL: Self = Self {
        factors: [
            [0.3651, 0.4232, 0.4341],
            [-0.2533, -0.0042, 0.1068],
            [0.1076, 0.1111, -0.0362],
            [-0.3165, -0.2492, -0.2188],
        ],
        bias: [0.1084, -0.0175, -0.0011],
    };
}

/// What latents look like, one pixel for each of theirs.
///
/// # Shapes
/// `latents`: `(batch, 4, height, width)`, scaled for the UNet; returns `(batch, 3, height, width)`, f32, about
/// `[-1, 1]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for latents of other channels, [`Error::Tensor`] if the device fails.
pub fn latents_to_rgb(latents: &Tensor, rgb: &LatentRgb) -> Result<Tensor> {
    let &[batch, CHANNELS, height, width] = latents.dims() else {
        let expected = format!("shape (batch, {CHANNELS}, height, width)");
        let found = format!("{:?}", latents.dims());
        return Err(Error::argument("latents", expected, found));
    };
    let on_device = |values: Vec<f64>, shape: &[usize]| {
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
        values.to_dtype(DType::F32)?.to_device(latents.device())
    };
    let factors = on_device(rgb.factors.concat(), &[CHANNELS, 3])?;
    let bias = on_device(rgb.bias.to_vec(), &[3])?;
    let pixels = latents.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
    let pixels = pixels.reshape((batch * height * width, CHANNELS))?;
    let colours = pixels.matmul(&factors)?.broadcast_add(&bias)?;
    let picture = colours.reshape((batch, height, width, 3))?;
    Ok(picture.permute((0, 3, 1, 2))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_sums_over_channels() -> Result<()> {
        let latents = Tensor::from_vec(
            vec![1f32, 0.5, -1.0, 2.0, 0.25, 0.0, 1.5, -0.5],
            (1, 4, 1, 2),
            &Device::Cpu,
        )?;
        for rgb in [LatentRgb::STABLE_DIFFUSION, LatentRgb::SDXL] {
            let picture = latents_to_rgb(&latents, &rgb)?;
            assert_eq!(picture.dims(), [1, 3, 1, 2]);
            let ours = picture.flatten_all()?.to_vec1::<f32>()?;
            let values = latents.flatten_all()?.to_vec1::<f32>()?;
            for colour in 0..3 {
                for pixel in 0..2 {
                    let parts =
                        (0..4).map(|c| f64::from(values[2 * c + pixel]) * rgb.factors[c][colour]);
                    let expected = parts.sum::<f64>() + rgb.bias[colour];
                    assert!((f64::from(ours[2 * colour + pixel]) - expected).abs() < 1e-6);
                }
            }
        }
        let other = Tensor::zeros((1, 16, 2, 2), DType::F32, &Device::Cpu)?;
        assert!(latents_to_rgb(&other, &LatentRgb::SDXL).is_err());
        Ok(())
    }
}
