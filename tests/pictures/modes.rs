//! Every mode that programs write, against what diffusers' `load_image` makes of it.

use std::fs;

use diffusion_core::media::{self, Provenance};
use diffusion_core::pipeline::Recalled;
use diffusion_core::{GenerateRequest, RgbImage};
use diffusion_tests::{Golden, TestResult, golden_json, golden_path};

/// The most that a lossy picture may differ, in levels: decoders round the cosines and the colours in their own
/// ways, and widen colours that were halved in their own, too.
const LOSSY: [(&str, u8, f64); 7] = [
    ("rgb.jpg", 2, 0.02),
    ("progressive.jpg", 2, 0.02),
    ("turned.jpg", 2, 0.02),
    ("grey.jpg", 1, 0.02),
    ("cmyk.jpg", 2, 0.02),
    ("subsampled.jpg", 3, 0.5),
    // Pillow cuts grey levels above 255 off; here the upper 8 of 16 bits count.
    ("grey16.png", 255, 255.0),
];

fn levels(golden: &Golden, name: &str) -> TestResult<Vec<u8>> {
    let values = golden.values(name)?;
    Ok(values.into_iter().map(|value| value as u8).collect())
}

#[test]
fn as_pillow_reads_them() -> TestResult {
    let golden = Golden::open("pictures")?;
    let mut names: Vec<&str> = golden
        .names()
        .filter_map(|name| name.strip_suffix(".rgb"))
        .collect();
    names.sort_unstable();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let path = golden_path("pictures").join(name);
        let read = media::read_with_alpha(&path).map_err(|e| format!("{name}: {e}"))?;
        let expected = levels(&golden, &format!("{name}.rgb"))?;
        assert_eq!(read.picture.len(), expected.len(), "{name}");
        let differences: Vec<u8> = read
            .picture
            .iter()
            .zip(&expected)
            .map(|(a, b)| a.abs_diff(*b))
            .collect();
        let most = differences.iter().copied().max().unwrap_or(0);
        let mean = differences.iter().map(|d| f64::from(*d)).sum::<f64>() / expected.len() as f64;
        let lossy = LOSSY.iter().find(|(lossy, ..)| *lossy == name);
        let (_, most_allowed, mean_allowed) = lossy.copied().unwrap_or((name, 0, 0.0));
        assert!(
            most <= most_allowed && mean <= mean_allowed,
            "{name}: {most}, {mean}"
        );

        let alpha = format!("{name}.alpha");
        match (read.alpha, golden.contains(&alpha)) {
            (Some(found), true) => assert_eq!(found.into_raw(), levels(&golden, &alpha)?, "{name}"),
            (found, expected) => assert_eq!(found.is_some(), expected, "{name}"),
        }
    }
    Ok(())
}

#[test]
fn of_sixteen_bits_the_upper_count() -> TestResult {
    let read = |name: &str| media::read(golden_path("pictures").join(name));
    assert!(read("grey16.png")? == read("grey.png")?);
    assert!(read("rgb16.png")? == read("rgb.png")?);
    Ok(())
}

#[test]
fn texts_as_a1111_writes_them() -> TestResult {
    let texts = golden_json("pictures.json")?;
    let mut read = 0;
    for (name, text) in texts.as_object().into_iter().flatten() {
        let path = golden_path("pictures/texts").join(name);
        let provenance = Provenance::read(&path)?;
        assert_eq!(provenance.parameters.as_deref(), text.as_str(), "{name}");
        assert!(provenance.record.is_none());
        let recalled = Recalled::read(&path)?;
        assert_eq!(recalled.warnings, [], "{name}");
        assert_eq!(recalled.model.as_deref(), Some("v1, 5"));
        let prompt = text
            .as_str()
            .and_then(|text| text.split('\n').next())
            .ok_or("no prompt")?;
        let expected = GenerateRequest::txt2img(prompt)
            .negative_prompt("dog,\nsecond line")
            .num_steps(20)
            .guidance_scale(7.0)
            .seed(5)
            .size(64, 96)
            .scheduler_name("Euler a Uniform");
        assert_eq!(
            serde_json::to_value(&recalled.request)?,
            serde_json::to_value(&expected)?
        );
        read += 1;
    }
    assert_eq!(read, 7);
    Ok(())
}

#[test]
fn pictures_of_any_size_there_and_back() -> TestResult {
    let folder = tempfile::tempdir()?;
    let mut random = super::damage::Random(3);
    for _ in 0..40 {
        let (width, height) = (1 + random.below(70) as u32, 1 + random.below(70) as u32);
        let picture = RgbImage::from_fn(width, height, |_, _| {
            image::Rgb([0; 3].map(|_: u8| random.below(256) as u8))
        });
        for name in ["a.png", "a.webp"] {
            let path = folder.path().join(name);
            media::save(&picture, &path, None)?;
            assert!(media::read(&path)? == picture);
        }
        let path = folder.path().join("a.jpg");
        media::save(&picture, &path, None)?;
        assert_eq!(media::read(&path)?.dimensions(), picture.dimensions());
        // What an ending says does not count.
        let renamed = folder.path().join("a.gif");
        fs::rename(folder.path().join("a.png"), &renamed)?;
        assert!(media::read(renamed)? == picture);
    }
    Ok(())
}
