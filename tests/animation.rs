//! Frames between key frames.

use std::ops::ControlFlow;

use diffusion_core::pipeline::Interpolation;
use diffusion_core::{Error, GenerateRequest, RgbImage};
use diffusion_tests::{TestResult, emoji_pipeline};

const KEYS: [(&str, u64); 2] = [("a red heart, flat style", 1), ("cat face, flat style", 9)];

fn request() -> GenerateRequest {
    GenerateRequest::default()
        .size(64, 96)
        .num_steps(5)
        .guidance_scale(4.0)
        .scheduler_name("dpmpp_2m")
}

fn way(frames_per_segment: usize) -> Interpolation {
    let way = Interpolation::new(request(), frames_per_segment);
    KEYS.iter()
        .fold(way, |way, (prompt, seed)| way.key(*prompt, *seed))
}

/// The mean difference of colours.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    let levels = a.iter().zip(b.iter());
    let sum: f64 = levels.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.len() as f64
}

#[test]
fn key_frames_are_pictures_of_their_own_and_the_others_lie_between() -> TestResult {
    let pipe = emoji_pipeline()?;
    let keys = KEYS.map(|(prompt, seed)| pipe.generate(&request().prompt(prompt).seed(seed)));
    let [first, last] = keys.map(|key| key.map(|key| key.images[0].clone()));
    let (first, last) = (first?, last?);

    let frames = pipe.interpolate(&way(4))?.images;
    assert_eq!(frames.len(), 5);
    assert_eq!((&frames[0], &frames[4]), (&first, &last));
    let whole = distance(&first, &last);
    assert!(whole > 10.0, "{whole}");
    for pair in frames.windows(2) {
        let step = distance(&pair[0], &pair[1]);
        assert!(step > 0.0 && step < whole, "{step} of {whole}");
    }

    let closed = pipe.interpolate(&way(2).closed(true))?.images;
    assert_eq!(closed.len(), 4);
    assert_eq!((&closed[0], &closed[2]), (&first, &last));
    // The way back is the way there.
    assert_eq!((&closed[1], &closed[1]), (&frames[2], &closed[3]));
    Ok(())
}

#[test]
fn frames_of_one_key_are_one_picture_also_with_fresh_noise() -> TestResult {
    let pipe = emoji_pipeline()?;
    let request = request().scheduler_name("euler_ancestral");
    let way = Interpolation::new(request, 2)
        .key(KEYS[0].0, 5)
        .key(KEYS[0].0, 5);
    let frames = pipe.interpolate(&way)?.images;
    assert!(frames.iter().all(|frame| *frame == frames[0]));
    Ok(())
}

#[test]
fn progress_tells_the_frame_and_may_cancel() -> TestResult {
    let pipe = emoji_pipeline()?;
    let mut seen = Vec::new();
    let cancelled = pipe.interpolate_with(&way(1), &mut |progress| {
        seen.push((
            progress.images.clone(),
            progress.num_images,
            progress.fraction(),
        ));
        match seen.len() {
            7 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert!(matches!(cancelled, Err(Error::Cancelled { step: 2, .. })));
    assert_eq!(seen[0], (0..1, 2, 0.1));
    assert_eq!(seen[6], (1..2, 2, 0.7));
    Ok(())
}
