//! Pictures in other proportions, masks, pasting back, tensors in other sizes and varied noise.

use std::ops::ControlFlow;

use diffusion_core::media::{self, Region, Resampling, ResizeMode};
use diffusion_core::nn::{Interpolation, interpolate};
use diffusion_core::{DType, GenerateRequest, GrayImage, Pipeline, RgbImage, Tensor};
use diffusion_tests::{Golden, TOLERANCE, TestResult, assert_close, golden_json, model_path};
use serde_json::Value;

fn rgb(golden: &Golden, name: &str) -> TestResult<RgbImage> {
    let levels = golden.tensor(name)?.to_dtype(DType::U8)?;
    let (height, width, _) = levels.dims3()?;
    let levels = levels.flatten_all()?.to_vec1()?;
    Ok(RgbImage::from_raw(width as u32, height as u32, levels).ok_or("no picture")?)
}

fn grey(golden: &Golden, name: &str) -> TestResult<GrayImage> {
    let levels = golden.tensor(name)?.to_dtype(DType::U8)?;
    let (height, width) = levels.dims2()?;
    let levels = levels.flatten_all()?.to_vec1()?;
    Ok(GrayImage::from_raw(width as u32, height as u32, levels).ok_or("no mask")?)
}

/// How far two pictures are apart at most, in levels.
fn apart(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

const SIZES: [(u32, u32); 5] = [(40, 64), (64, 40), (33, 64), (96, 24), (50, 50)];

#[test]
fn pictures_are_fitted_as_by_diffusers() -> TestResult {
    let golden = Golden::open("canvas")?;
    let source = rgb(&golden, "source")?;
    for (width, height) in SIZES {
        for (name, mode) in [("default", ResizeMode::Stretch), ("crop", ResizeMode::Crop)] {
            let reference = rgb(&golden, &format!("{name}.{width}x{height}"))?;
            let ours = media::fit(&source, (width, height), mode);
            assert_eq!(apart(&ours, &reference), 0, "{name} {width} x {height}");
        }
        // In the bands beside, the reference mixes rows of the edge, and leaves black ones where their number is odd.
        let reference = rgb(&golden, &format!("fill.{width}x{height}"))?;
        let ours = media::fit(&source, (width, height), ResizeMode::Fill);
        let (from_width, from_height) = source.dimensions();
        let inner_width = width.min(from_width * height / from_height);
        let inner_height = height.min(from_height * width / from_width);
        let (left, top) = (width / 2 - inner_width / 2, height / 2 - inner_height / 2);
        for (x, y, pixel) in ours.enumerate_pixels() {
            let x = x.clamp(left, left + inner_width - 1);
            let y = y.clamp(top, top + inner_height - 1);
            assert_eq!(
                pixel,
                reference.get_pixel(x, y),
                "fill {width} x {height}: {x} {y}"
            );
        }
    }
    Ok(())
}

#[test]
fn pillows_other_filters() -> TestResult {
    let golden = Golden::open("canvas")?;
    let source = rgb(&golden, "source")?;
    for (name, resampling) in [
        ("nearest", Resampling::Nearest),
        ("bilinear", Resampling::Bilinear),
        ("bicubic", Resampling::Bicubic),
    ] {
        for (width, height) in SIZES {
            let reference = rgb(&golden, &format!("{name}.{width}x{height}"))?;
            let ours = media::resize(&source, width, height, resampling);
            assert_eq!(apart(&ours, &reference), 0, "{name} {width} x {height}");
        }
    }
    Ok(())
}

#[test]
fn masks_are_surrounded_as_by_diffusers() -> TestResult {
    let regions = golden_json("canvas.json")?;
    let regions = regions["regions"].as_array().ok_or("no regions")?;
    assert_eq!(regions.len(), 25);
    for row in regions {
        let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX) as u32;
        let mut mask = GrayImage::new(number(&row["mask"][0]), number(&row["mask"][1]));
        for area in row["boxes"].as_array().into_iter().flatten() {
            for x in number(&area[0])..number(&area[2]) {
                for y in number(&area[1])..number(&area[3]) {
                    mask.get_pixel_mut(x, y).0 = [255];
                }
            }
        }
        let frame = (number(&row["frame"][0]), number(&row["frame"][1]));
        let Region {
            x,
            y,
            width,
            height,
        } = media::crop_region(&mask, frame, number(&row["padding"]));
        let reference: Vec<u32> = row["region"]
            .as_array()
            .into_iter()
            .flatten()
            .map(number)
            .collect();
        assert_eq!([x, y, x + width, y + height], *reference, "{row}");
    }
    Ok(())
}

#[test]
fn results_are_pasted_back() -> TestResult {
    let golden = Golden::open("canvas")?;
    let original = rgb(&golden, "overlay.original")?;
    let changed = rgb(&golden, "overlay.changed")?;
    let mask = grey(&golden, "overlay.mask")?;
    let ours = media::composite(&original, &changed, &mask);
    // Pillow multiplies by the alpha and divides again, in 8 bits each.
    let reference = rgb(&golden, "overlay.result")?;
    assert!(
        apart(&ours, &reference) <= 2,
        "{}",
        apart(&ours, &reference)
    );
    for (x, y, level) in mask.enumerate_pixels() {
        match level.0[0] {
            0 => assert_eq!(ours.get_pixel(x, y), original.get_pixel(x, y)),
            255 => assert_eq!(ours.get_pixel(x, y), changed.get_pixel(x, y)),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn tensors_are_resized_as_by_torch() -> TestResult {
    let golden = Golden::open("canvas")?;
    let images = golden.tensor("interpolate.images")?;
    for (name, how) in [
        ("nearest", Interpolation::Nearest),
        ("bilinear", Interpolation::Bilinear),
        ("bilinear_antialiased", Interpolation::BilinearAntialiased),
        ("bicubic", Interpolation::Bicubic),
        ("bicubic_antialiased", Interpolation::BicubicAntialiased),
    ] {
        for size in [(14, 20), (11, 13), (3, 4), (7, 10), (1, 1)] {
            let name = format!("interpolate.{name}.{}x{}", size.0, size.1);
            let ours = interpolate(&images, size, how)?;
            assert_close(&name, &ours, &golden.tensor(&name)?, TOLERANCE)?;
        }
    }
    Ok(())
}

#[test]
fn noise_varies_as_in_a1111() -> TestResult {
    let golden = Golden::open("canvas")?;
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let run = |request: GenerateRequest| -> TestResult<Tensor> {
        let request = request.size(96, 64).num_steps(1);
        Ok(pipe
            .generate_latents(&request, &mut |_| ControlFlow::Continue(()))?
            .latents)
    };
    for share in ["0.0", "0.1", "0.5", "1.0"] {
        let noise = golden.tensor(&format!("variation.{share}"))?.unsqueeze(0)?;
        let by_hand = run(GenerateRequest::txt2img("a cat").seed(42).noise(noise))?;
        let request = GenerateRequest::txt2img("a cat").seed(42);
        let ours = run(request.variation(7, share.parse()?))?;
        assert_close(share, &ours, &by_hand, TOLERANCE)?;
    }
    // The next picture has the next other seed, and the same one first.
    let two = GenerateRequest::txt2img("a cat")
        .seed(42)
        .variation(7, 0.3)
        .num_images(2);
    let second = run(GenerateRequest::txt2img("a cat").seed(42).variation(8, 0.3))?;
    assert_close("second", &run(two)?.narrow(0, 1, 1)?, &second, 0.0)
}
