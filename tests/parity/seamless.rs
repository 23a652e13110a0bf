//! Circular padding, against torch, and pictures that go on at their opposite side.

use diffusion_core::Tensor;
use diffusion_core::model::{UNetInput, VaeTiling};
use diffusion_core::nn::Seamless;
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close};

use crate::networks::{open_unet, open_vae};

const WAYS: [(&str, Seamless); 3] = [
    ("x", Seamless { x: true, y: false }),
    ("y", Seamless { x: false, y: true }),
    ("both", Seamless::BOTH),
];

#[test]
fn circular_padding_of_every_network() -> TestResult {
    let golden = Golden::open("seamless")?;
    let unet = open_unet("sd15")?;
    let text = golden.tensor("encoder_hidden_states")?;
    let timesteps = golden.values("timesteps")?;
    for (way, seamless) in WAYS {
        let unet = unet.with_seamless(seamless)?;
        for case in ["wide", "odd"] {
            let close = |what: &str, ours: &Tensor| {
                let what = format!("{way}.{case}.{what}");
                assert_close(&what, ours, &golden.tensor(&what)?, TOLERANCE)
            };
            let latents = golden.tensor(&format!("{case}.latents"))?;
            let image = golden.tensor(&format!("{case}.image"))?;
            let output = unet.forward(&UNetInput::new(&latents, &timesteps, &text))?;
            close("unet", &output)?;
            for (name, model) in [("kl", "sd15"), ("tiny", "emoji")] {
                let vae = open_vae(model, None)?.with_seamless(seamless)?;
                close(&format!("{name}.encoded"), vae.encode(&image)?.mode())?;
                let decoded = vae.decode(&latents.narrow(0, 0, 1)?)?;
                close(&format!("{name}.decoded"), &decoded)?;
            }
        }
    }
    Ok(())
}

/// The picture with its first `by` lines along `dim` moved to the end.
fn roll(x: &Tensor, dim: usize, by: usize) -> TestResult<Tensor> {
    let len = x.dim(dim)?;
    let parts = [x.narrow(dim, by, len - by)?, x.narrow(dim, 0, by)?];
    Ok(Tensor::cat(&parts, dim)?)
}

#[test]
fn rolled_latents_give_the_rolled_picture() -> TestResult {
    let golden = Golden::open("seamless")?;
    let latents = golden.tensor("wide.latents")?;
    for (way, seamless) in WAYS {
        for model in ["sd15", "sdxl", "emoji"] {
            let vae = open_vae(model, None)?.with_seamless(seamless)?;
            let decoded = vae.decode(&latents)?;
            for (dim, wraps) in [(2, seamless.y), (3, seamless.x)] {
                let rolled = vae.decode(&roll(&latents, dim, 1)?)?;
                let expected = roll(&decoded, dim, 8)?;
                let what = format!("{model} {way} {dim}");
                match wraps {
                    true => {
                        assert_close(&what, &rolled, &expected, TOLERANCE)?;
                        let back = vae.encode(&rolled)?.mean;
                        let expected = roll(&vae.encode(&decoded)?.mean, dim, 1)?;
                        assert_close(&what, &back, &expected, TOLERANCE)?;
                    }
                    false => {
                        let apart = (rolled - expected)?.abs()?.max_all()?;
                        assert!(apart.to_scalar::<f32>()? > 1e-2, "{what}: no seam");
                    }
                }
            }
        }
    }
    Ok(())
}

/// The left and the right part of a picture of tiles meet as its inner columns do.
#[test]
fn tiles_of_a_seamless_picture_wrap() -> TestResult {
    let golden = Golden::open("seamless")?;
    let latents = golden.tensor("wide.latents")?;
    for model in ["sd15", "emoji"] {
        let vae = open_vae(model, None)?.with_seamless(Seamless { x: true, y: false })?;
        let whole = vae.decode(&latents)?;
        let (size, overlap) = (32, 0.5);
        let tiled = vae.with_tiling(VaeTiling::Tiles { size, overlap })?;
        let image = tiled.decode(&latents)?;
        assert_eq!(image.dims(), whole.dims());
        assert_eq!(tiled.encode(&image)?.mean.dims(), latents.dims());
        // What tiles see at the left side is what they would see were the picture repeated there.
        let twice = Tensor::cat(&[&latents, &latents, &latents], 3)?;
        let repeated = vae
            .with_seamless(Seamless::NONE)?
            .with_tiling(VaeTiling::Tiles { size, overlap })?
            .decode(&twice)?;
        let middle = repeated.narrow(3, 8 * latents.dim(3)?, 8)?;
        let first = image.narrow(3, 0, 8)?;
        let apart = (&first - middle)?.abs()?.mean_all()?.to_scalar::<f32>()?;
        let plain = vae.with_seamless(Seamless::NONE)?;
        let plain = plain.with_tiling(VaeTiling::Tiles { size, overlap })?;
        let cut = plain.decode(&latents)?.narrow(3, 0, 8)?;
        let seam = (&first - cut)?.abs()?.mean_all()?.to_scalar::<f32>()?;
        assert!(apart < 0.3 * seam, "{model}: {apart} apart, {seam} without");
    }
    Ok(())
}

#[test]
fn a_seamless_clone_leaves_the_model_as_it_was() -> TestResult {
    let golden = Golden::open("seamless")?;
    let latents = golden.tensor("wide.latents")?;
    let text = golden.tensor("encoder_hidden_states")?;
    let timesteps = golden.values("timesteps")?;
    let unet = open_unet("sd15")?;
    let run = |unet: &diffusion_core::UNet| -> TestResult<Vec<f32>> {
        let output = unet.forward(&UNetInput::new(&latents, &timesteps, &text))?;
        Ok(output.flatten_all()?.to_vec1()?)
    };
    let before = run(&unet)?;
    let seamless = unet.with_seamless(Seamless::BOTH)?;
    assert!(run(&seamless)? != before);
    assert!(run(&unet)? == before);
    assert!(run(&seamless.with_seamless(Seamless::NONE)?)? == before);
    Ok(())
}
