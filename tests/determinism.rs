//! Same seed, same picture: at any thread count, in any company, from any thread.

use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use std::{env, fs, thread};

use diffusion_core::pipeline::SharedPipeline;
use diffusion_core::weights::Lora;
use diffusion_core::{Error, ErrorKind, GenerateRequest, Pipeline, RgbImage, media};
use diffusion_tests::{TestResult, emoji_pipeline, golden_path, model_path};

/// Set in the child processes of `any_thread_count`: where the picture goes.
const OUTPUT: &str = "DIFFUSION_TEST_OUTPUT";

fn request() -> GenerateRequest {
    GenerateRequest::txt2img("cat face, flat style")
        .num_steps(4)
        .guidance_scale(5.0)
        .seed(3)
}

fn picture(pipe: &Pipeline, request: &GenerateRequest) -> TestResult<Vec<u8>> {
    Ok(pipe.generate(request)?.images.remove(0).into_raw())
}

#[test]
fn any_thread_count() -> TestResult {
    if let Some(output) = env::var_os(OUTPUT) {
        return Ok(fs::write(output, picture(&emoji_pipeline()?, &request())?)?);
    }
    let folder = tempfile::tempdir()?;
    let mut pictures = Vec::new();
    for threads in ["1", "2", "5"] {
        let output = folder.path().join(threads);
        let child = Command::new(env::current_exe()?)
            .args(["any_thread_count", "--exact"])
            .env("RAYON_NUM_THREADS", threads)
            .env(OUTPUT, &output)
            .output()?;
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        pictures.push(fs::read(output)?);
    }
    assert!(
        pictures[0].iter().any(|&byte| byte != pictures[0][0]),
        "an empty picture"
    );
    assert!(pictures.iter().all(|picture| *picture == pictures[0]));
    Ok(())
}

#[test]
fn threads_of_its_own() -> TestResult {
    let build = |count: usize| {
        Pipeline::builder()
            .weights(model_path("sd15"))
            .num_threads(count)
            .build()
    };
    let request = request().size(64, 96).num_steps(2);
    let shared = Pipeline::builder().weights(model_path("sd15")).build()?;
    let expected = picture(&shared, &request)?;
    for count in [1, 3] {
        assert_eq!(picture(&build(count)?, &request)?, expected);
    }
    for count in [0, 1_000_000] {
        let refused = build(count).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::InvalidArgument));
    }
    Ok(())
}

#[test]
fn a_picture_depends_on_its_own_seed_alone() -> TestResult {
    let pipe = emoji_pipeline()?;
    let many = pipe.generate(&request().num_images(3))?;
    assert_eq!(many.seeds, [3, 4, 5]);
    for (image, seed) in many.images.iter().zip(many.seeds) {
        assert_eq!(picture(&pipe, &request().seed(seed))?, *image.as_raw());
    }
    Ok(())
}

#[test]
fn pictures_at_once_are_those_one_by_one() -> TestResult {
    let pipe = emoji_pipeline()?;
    let single = pipe.generate(&request().num_images(3))?;
    let batch = pipe.generate(&request().num_images(3).batch_size(2))?;
    assert_eq!(single.images, batch.images);
    Ok(())
}

#[test]
fn threads_share_one_pipeline() -> TestResult {
    let pipe = Arc::new(emoji_pipeline()?);
    let expected = picture(&pipe, &request())?;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let pipe = pipe.clone();
            thread::spawn(move || picture(&pipe, &request()).map_err(|e| e.to_string()))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().map_err(|_| "a thread panicked")??, expected);
    }
    Ok(())
}

/// A film's frames have one noise, so what stands still in it stays as it is.
#[test]
fn equal_frames_stay_equal() -> TestResult {
    let pipe = emoji_pipeline()?;
    let frame = |level: u8| RgbImage::from_pixel(64, 64, [level, 80, 40].into());
    let drawn = |level: u8| -> TestResult<Vec<u8>> {
        let request = GenerateRequest::img2img("a red heart", frame(level))
            .strength(0.5)
            .num_steps(4)
            .seed(3);
        picture(&pipe, &request)
    };
    let (first, other, last) = (drawn(200)?, drawn(10)?, drawn(200)?);
    assert_eq!(first, last);
    assert_ne!(first, other);
    Ok(())
}

#[test]
fn strength_0_is_the_way_through_the_autoencoder() -> TestResult {
    let pipe = emoji_pipeline()?;
    let image = RgbImage::from_fn(96, 64, |x, y| [(x * 2) as u8, (y * 3) as u8, 90].into());
    let request = GenerateRequest::img2img("a red heart", image.clone()).strength(0.0);
    let tensor = media::from_rgb8(&image, pipe.device())?;
    let latents = pipe.vae().encode(&tensor)?;
    let there_and_back = pipe.vae().decode(latents.mode())?;
    let expected = media::to_rgb8(&there_and_back)?[0].as_raw().clone();
    let ours = picture(&pipe, &request)?;
    // Scaling for the UNet and back rounds the last bit.
    let apart = ours
        .iter()
        .zip(&expected)
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(
        ours.len() == expected.len() && apart <= Some(1),
        "{apart:?}"
    );
    Ok(())
}

#[test]
fn a_random_seed_is_told_and_gives_the_picture_again() -> TestResult {
    let pipe = emoji_pipeline()?;
    let unseeded = GenerateRequest::txt2img("cat face, flat style").num_steps(1);
    let first = pipe.generate(&unseeded)?;
    let again = pipe.generate(&unseeded.clone().seed(first.seeds[0]))?;
    assert_eq!(first.images, again.images);
    assert_ne!(first.seeds, pipe.generate(&unseeded)?.seeds);
    Ok(())
}

#[test]
fn cancelled_within_one_step_and_usable_after() -> TestResult {
    let pipe = emoji_pipeline()?;
    let expected = picture(&pipe, &request())?;
    for stop_at in 1..=4 {
        let mut steps = 0;
        let result = pipe.generate_with(&request(), &mut |progress| {
            steps += 1;
            assert_eq!(progress.step, steps);
            assert_eq!(progress.denoised.dims(), [1, 4, 16, 16]);
            assert!((progress.fraction() - steps as f64 / 4.0).abs() < 1e-12);
            if steps == stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(
            result.map_err(|e| e.kind()).err(),
            Some(ErrorKind::Cancelled)
        );
        assert_eq!(steps, stop_at);
    }
    assert_eq!(picture(&pipe, &request())?, expected);
    Ok(())
}

#[test]
fn what_a_cancelled_run_came_to() -> TestResult {
    let pipe = Pipeline::builder().weights(model_path("sd15")).build()?;
    let mut seen = Vec::new();
    let request = request()
        .size(64, 64)
        .seed(1)
        .num_images(3)
        .keep_cancelled(true);
    let sampled = pipe.generate_latents(&request, &mut |progress| {
        if progress.images.start == 1 && progress.step == 2 {
            seen.push(progress.latents.clone());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    assert_eq!(sampled.seeds, [1, 2]);
    assert_eq!(sampled.latents.dims(), [2, 4, 8, 8]);
    let last = sampled.latents.narrow(0, 1, 1)?;
    assert_eq!(
        (last - &seen[0])?.abs()?.sum_all()?.to_scalar::<f32>()?,
        0.0
    );
    assert_eq!(sampled.warnings.len(), 1);
    let whole = pipe.generate(&request)?.images;
    let mut steps = 0;
    let some = pipe.generate_with(&request, &mut |_| {
        steps += 1;
        match steps < 6 {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    // The first picture was done, the second was not.
    assert_eq!(some.images.len(), 2);
    assert!(some.images[0] == whole[0] && some.images[1] != whole[1]);
    Ok(())
}

#[test]
fn a_run_keeps_the_pipeline_that_it_began_with() -> TestResult {
    let shared = SharedPipeline::new(Pipeline::builder().weights(model_path("sd15")).build()?);
    let lora = Lora::open(golden_path("loras/kohya_a.safetensors"))?;
    let request = GenerateRequest::txt2img("a heart")
        .num_steps(3)
        .size(64, 64)
        .seed(3);
    let base = picture(&shared.current(), &request)?;
    let mut with_lora = Pipeline::clone(&shared.current());
    with_lora.set_loras(&[(&lora, 1.0)])?;
    let with_lora = picture(&with_lora, &request)?;
    assert_ne!(with_lora, base);

    // A change and a run in the midst of a run.
    let mut inside = Vec::new();
    let outer = shared.current().generate_with(&request, &mut |progress| {
        if progress.step == 1 {
            let changed = shared.change(|pipe| pipe.set_loras(&[(&lora, 1.0)]));
            inside.push(changed.and_then(|()| shared.current().generate(&request)));
        }
        ControlFlow::Continue(())
    })?;
    assert_eq!(*outer.images[0].as_raw(), base);
    assert_eq!(*inside.remove(0)?.images[0].as_raw(), with_lora);
    assert_eq!(picture(&shared.current(), &request)?, with_lora);

    let failed = shared.change(|pipe| {
        pipe.clear_loras();
        Err::<(), _>(Error::custom("half way"))
    });
    assert!(failed.is_err());
    assert_eq!(shared.current().loras().len(), 1);
    Ok(())
}

#[test]
fn threads_change_a_pipeline_that_others_run() -> TestResult {
    let shared = SharedPipeline::new(Pipeline::builder().weights(model_path("sd15")).build()?);
    let lora = Lora::open(golden_path("loras/kohya_a.safetensors"))?;
    let request = GenerateRequest::txt2img("a heart")
        .num_steps(2)
        .size(64, 64)
        .seed(3);
    let mut known = vec![picture(&shared.current(), &request)?];
    shared.change(|pipe| pipe.set_loras(&[(&lora, 1.0)]))?;
    known.push(picture(&shared.current(), &request)?);
    assert_ne!(known[0], known[1]);
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            (0..20).try_for_each(|_| {
                shared.change(|pipe| {
                    pipe.clear_loras();
                    Ok(())
                })?;
                shared.change(|pipe| pipe.set_loras(&[(&lora, 1.0)]))
            })
        });
        let run = || {
            (0..10)
                .map(|_| shared.current().generate(&request))
                .collect::<Result<Vec<_>, _>>()
        };
        let runs = [scope.spawn(run), scope.spawn(run)];
        for runs in runs {
            for generated in runs.join().map_err(|_| "a panic")?? {
                assert!(known.contains(generated.images[0].as_raw()));
            }
        }
        changes.join().map_err(|_| "a panic")??;
        Ok(())
    })
}
