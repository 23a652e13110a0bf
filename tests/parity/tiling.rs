//! Autoencoders in tiles, against diffusers.

use diffusion_core::model::{Posterior, VaeTiling};
use diffusion_core::rng::TorchRng;
use diffusion_core::{Device, ErrorKind, Tensor, Vae};
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close};

use crate::networks::open_vae;

const CASES: [(&str, usize); 3] = [("wide", 32), ("wide", 64), ("tall", 32)];

fn tiles(vae: &Vae, size: usize) -> TestResult<Vae> {
    let overlap = if size == 32 { 0.5 } else { 0.25 };
    Ok(vae.with_tiling(VaeTiling::Tiles { size, overlap })?)
}

fn assert_tiles(name: &str, vae: &Vae) -> TestResult {
    let golden = Golden::open("vae_tiling")?;
    for (case, size) in CASES {
        let tiled = tiles(vae, size)?;
        let what = format!("{name}.{case}.{size}");
        let (image, latents) = (
            golden.tensor(&format!("{case}.image"))?,
            golden.tensor(&format!("{case}.latents"))?,
        );
        let encoded = match tiled.encode(&image)? {
            Posterior {
                mean,
                logvar: Some(logvar),
            } => Tensor::cat(&[mean, logvar], 1)?,
            Posterior { mean, logvar: None } => mean,
        };
        let expected = golden.tensor(&format!("{what}.encoded"))?;
        assert_close(&format!("{what} encoded"), &encoded, &expected, TOLERANCE)?;
        let decoded = tiled.decode(&latents)?;
        let expected = golden.tensor(&format!("{what}.decoded"))?;
        assert_close(&format!("{what} decoded"), &decoded, &expected, TOLERANCE)?;
        assert!(bits(&vae.decode(&latents)?)? != bits(&decoded)?, "{what}");
    }
    Ok(())
}

#[test]
fn tiles_of_stable_diffusion() -> TestResult {
    assert_tiles("sd15", &open_vae("sd15", None)?)
}

#[test]
fn tiles_of_sdxl() -> TestResult {
    assert_tiles("sdxl", &open_vae("sdxl", None)?)
}

#[test]
fn tiles_of_a_tiny_autoencoder() -> TestResult {
    assert_tiles("emoji", &open_vae("emoji", None)?)
}

fn bits(tensor: &Tensor) -> TestResult<Vec<u32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn a_picture_of_one_tile_is_worked_off_whole() -> TestResult {
    let golden = Golden::open("vae_tiling")?;
    for model in ["sd15", "emoji"] {
        let vae = open_vae(model, None)?;
        let latents = golden.tensor("wide.latents")?.narrow(3, 0, 8)?;
        let whole = bits(&vae.with_tiling(VaeTiling::Off)?.decode(&latents)?)?;
        assert!(
            bits(&tiles(&vae, 64)?.decode(&latents)?)? == whole,
            "{model}"
        );
        assert!(
            bits(&vae.decode(&latents)?)? == whole,
            "{model}: the default"
        );
    }
    Ok(())
}

/// Products of very few rows are summed in another order, so the smallest tile here has 72 latent pixels.
#[test]
fn slices_have_the_bits_of_the_batch() -> TestResult {
    let mut rng = TorchRng::new(4);
    let mut random = |dims: [usize; 4]| {
        let values = rng.randn(dims.iter().product());
        Tensor::from_vec(values, &dims, &Device::Cpu)
    };
    let (latents, images) = (random([2, 4, 24, 18])?, random([2, 3, 192, 144])?);
    for model in ["sd15", "sdxl", "emoji"] {
        let vae = open_vae(model, None)?;
        for (size, vae) in [(0, vae.clone()), (128, tiles(&vae, 128)?)] {
            let sliced = vae.with_slicing(true);
            let (batch, slices) = (vae.decode(&latents)?, sliced.decode(&latents)?);
            assert!(bits(&batch)? == bits(&slices)?, "{model} {size}: decoded");
            let (batch, slices) = (vae.encode(&images)?, sliced.encode(&images)?);
            let same = bits(&batch.mean)? == bits(&slices.mean)?;
            assert!(same, "{model} {size}: encoded");
        }
    }
    Ok(())
}

#[test]
fn tiles_that_make_no_sense_are_errors() -> TestResult {
    let vae = open_vae("sd15", None)?;
    for (size, overlap) in [
        (0, 0.25),
        (8, 0.25),
        (36, 0.25),
        (64, -0.1),
        (64, 0.6),
        (64, f64::NAN),
    ] {
        let error = vae.with_tiling(VaeTiling::Tiles { size, overlap });
        let kind = error.err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::InvalidArgument), "{size} {overlap}");
    }
    Ok(())
}

#[test]
fn any_overlap_keeps_the_size() -> TestResult {
    let latents = Golden::open("vae_tiling")?.tensor("wide.latents")?;
    for model in ["sd15", "emoji"] {
        let vae = open_vae(model, None)?;
        let expected = vae.decode(&latents)?;
        for (size, overlap) in [(16, 0.0), (24, 0.25), (40, 0.3), (40, 0.5)] {
            let tiled = vae.with_tiling(VaeTiling::Tiles { size, overlap })?;
            let decoded = tiled.decode(&latents)?;
            assert_eq!(decoded.dims(), expected.dims(), "{model} {size} {overlap}");
            let largest = decoded.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(largest.is_finite(), "{model} {size} {overlap}");
        }
    }
    Ok(())
}
