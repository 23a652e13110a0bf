//! What a run shows while it goes on, and runs that want other networks than the pipeline's.

use std::ops::ControlFlow;
use std::thread;

use diffusion_core::model::VaeTiling;
use diffusion_core::nn::Seamless;
use diffusion_core::{ErrorKind, GenerateRequest, Pipeline, RgbImage};
use diffusion_tests::{TestResult, emoji_pipeline, model_path};

use crate::networks::open_vae;

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("a red heart, flat style")
        .size(128, 128)
        .num_steps(6)
        .guidance_scale(5.0)
        .seed(1)
}

/// The mean difference between the colours of a picture's 8 x 8 blocks and what is guessed for each.
fn apart(picture: &RgbImage, guess: impl Fn(u32, u32) -> [f64; 3]) -> f64 {
    let (width, height) = (picture.width() / 8, picture.height() / 8);
    let mut sum = 0.0;
    for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
        let guess = guess(x, y);
        for (colour, guess) in guess.iter().enumerate() {
            let block = (0..64).map(|i| picture.get_pixel(8 * x + i % 8, 8 * y + i / 8)[colour]);
            sum += (block.map(f64::from).sum::<f64>() / 64.0 - guess).abs();
        }
    }
    sum / f64::from(3 * width * height)
}

#[test]
fn previews_have_the_colours_of_the_picture() -> TestResult {
    let pipe = emoji_pipeline()?;
    let tiny = open_vae("emoji", None)?;
    let mut shown = None;
    let generated = pipe.generate_with(&request(), &mut |progress| {
        let guess = pipe.preview(progress);
        let decoded = pipe.preview_with(progress, &tiny);
        shown = Some(guess.and_then(|guess| Ok((guess, decoded?))));
        ControlFlow::Continue(())
    })?;
    let (guess, decoded) = shown.ok_or("no step")??;
    let picture = &generated.images[0];
    // The last estimate is the result, but for the noise that the schedule leaves.
    let pairs = decoded[0].as_raw().iter().zip(picture.as_raw());
    let sum: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    assert!(sum / (picture.as_raw().len() as f64) < 2.0, "{sum}");
    assert_eq!(guess[0].dimensions(), (16, 16));
    let found = apart(picture, |x, y| guess[0].get_pixel(x, y).0.map(f64::from));
    let mean = [0, 1, 2].map(|colour| {
        let sum: f64 = picture.pixels().map(|pixel| f64::from(pixel[colour])).sum();
        sum / f64::from(picture.width() * picture.height())
    });
    let flat = apart(picture, |_, _| mean);
    assert!(
        found < 0.6 * flat,
        "{found} levels apart, {flat} from one colour"
    );
    Ok(())
}

#[test]
fn a_seamless_request_leaves_others_alone() -> TestResult {
    let pipe = emoji_pipeline()?;
    let seamless = request().num_steps(3).seamless(Seamless::BOTH);
    let picture = |request: &GenerateRequest| pipe.generate(request).map(|found| found.images);
    let (plain_alone, seamless_alone) = (picture(&request().num_steps(3))?, picture(&seamless)?);
    assert_ne!(plain_alone, seamless_alone);
    thread::scope(|scope| {
        let runs = [false, true, false, true].map(|wraps| {
            let request = match wraps {
                true => seamless.clone(),
                false => request().num_steps(3),
            };
            (wraps, scope.spawn(move || picture(&request)))
        });
        for (wraps, run) in runs {
            let found = run.join().map_err(|_| "panicked")??;
            let alone = if wraps { &seamless_alone } else { &plain_alone };
            assert!(found == *alone, "seamless: {wraps}");
        }
        Ok(())
    })
}

#[test]
fn tiles_of_a_request_are_the_autoencoders() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let request = GenerateRequest::txt2img("a cat").num_steps(2).seed(3);
    let request = request.size(96, 64).num_images(2).batch_size(2);
    let (size, overlap) = (32, 0.25);
    let tiling = VaeTiling::Tiles { size, overlap };
    let images = pipe.generate(&request.clone().vae_tiling(tiling))?.images;
    let vae = pipe.vae().with_tiling(tiling)?;
    let tiled = Pipeline::builder().weights(model_path("sd15")).vae(vae);
    let tiled = tiled.build()?;
    assert_eq!(tiled.generate(&request)?.images, images);
    let whole = pipe.generate(&request)?.images;
    assert_ne!(whole, images);
    let off = request.clone().vae_tiling(VaeTiling::Off);
    assert_eq!(tiled.generate(&off)?.images, whole);
    let slices = pipe.generate(&request.clone().vae_slicing(true))?.images;
    let furthest = slices.iter().zip(&whole).flat_map(|(a, b)| {
        let pairs = a.as_raw().iter().zip(b.as_raw());
        pairs.map(|(a, b)| a.abs_diff(*b))
    });
    assert!(furthest.max() <= Some(1));
    let (size, overlap) = (33, 0.25);
    let wrong = request.vae_tiling(VaeTiling::Tiles { size, overlap });
    let error = pipe.generate(&wrong).err().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::InvalidArgument));
    Ok(())
}

#[test]
fn tiles_lower_the_estimate_of_memory() -> TestResult {
    let estimate = |tiling: VaeTiling, side: usize| -> TestResult<u64> {
        let vae = open_vae("emoji", None)?.with_tiling(tiling)?;
        let pipe = Pipeline::builder().weights(model_path("emoji")).vae(vae);
        Ok(pipe.build()?.memory_estimate(side, side, 1))
    };
    let whole = estimate(VaeTiling::Off, 4096)?;
    assert!(estimate(VaeTiling::Auto, 4096)? < whole);
    assert_eq!(
        estimate(VaeTiling::Auto, 1024)?,
        estimate(VaeTiling::Off, 1024)?
    );
    Ok(())
}
