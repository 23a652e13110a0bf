//! The safety checker, against diffusers'.

use std::fs;

use candle_core::safetensors;
use diffusion_core::model::SafetyChecker;
use diffusion_core::{DType, Device, ErrorKind, GenerateRequest, RgbImage, media};
use diffusion_tests::{
    Golden, TOLERANCE, TestResult, copy_folder, emoji_pipeline, golden_json, golden_path,
    relative_difference,
};

fn pictures(golden: &Golden, count: usize) -> TestResult<Vec<RgbImage>> {
    (0..count)
        .map(|i| {
            let pixels = golden.tensor(&format!("{i}.picture"))?;
            let (height, width, _) = pixels.dims3()?;
            let levels = pixels.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
            let picture = RgbImage::from_raw(width as u32, height as u32, levels);
            Ok(picture.ok_or("not a picture")?)
        })
        .collect()
}

fn open(folder: &std::path::Path) -> diffusion_core::Result<SafetyChecker> {
    SafetyChecker::open(folder, DType::F32, &Device::Cpu)
}

#[test]
fn scores_and_flags_under_either_name_of_the_vision_model() -> TestResult {
    let golden = Golden::open("safety_checker")?;
    let expected = golden_json("safety_checker.json")?;
    let expected = expected.as_array().ok_or("not a list")?;
    let pictures = pictures(&golden, expected.len())?;
    let flat = golden_path("safety_checker");
    // Published files have the vision model in a place of its own within its place.
    let nested = tempfile::tempdir()?;
    copy_folder(&flat, nested.path())?;
    let file = nested.path().join("model.safetensors");
    let renamed = safetensors::load(&file, &Device::Cpu)?.into_iter();
    let renamed = renamed.map(|(name, tensor)| match name.starts_with("vision_model.") {
        true => (format!("vision_model.{name}"), tensor),
        false => (name, tensor),
    });
    safetensors::save(&renamed.collect(), &file)?;

    for folder in [flat.as_path(), nested.path()] {
        let checker = open(folder)?;
        let side = checker.encoder().config().image_size;
        let reports = checker.check(&pictures)?;
        assert_eq!(reports.len(), expected.len());
        let (mut flagged, mut with_care) = (0, 0);
        for (i, report) in reports.iter().enumerate() {
            let pixels = media::to_clip(&pictures[i], side, &Device::Cpu)?;
            let embeds = checker.encoder().forward(&pixels)?.image_embeds;
            let embeds = embeds
                .flatten_all()?
                .to_dtype(DType::F64)?
                .to_vec1::<f64>()?;
            let reference = golden
                .tensor("embeds")?
                .get(i)?
                .to_dtype(DType::F64)?
                .to_vec1::<f64>()?;
            let difference = relative_difference(&embeds, &reference);
            assert!(difference <= TOLERANCE, "{i}: {difference}");

            assert_eq!(report.is_flagged(), expected[i]["flagged"] == true, "{i}");
            let special = golden.values(&format!("{i}.special"))?;
            let care = special.iter().any(|excess| *excess > 0.0005);
            let raised = if care { 0.01 } else { 0.0 };
            let excess = golden.values(&format!("{i}.excess"))?;
            for (score, excess) in report.scores.iter().zip(&excess) {
                // Thousandths, and what f32 rounds otherwise.
                assert!(
                    (f64::from(*score) - excess - raised).abs() < 0.000_51,
                    "{score} {excess}"
                );
            }
            let beyond = (0..report.scores.len()).filter(|&i| report.scores[i] > 0.0);
            assert_eq!(report.concepts, beyond.collect::<Vec<_>>());
            assert_eq!((report.scores.len(), report.special_scores.len()), (17, 3));
            flagged += usize::from(report.is_flagged());
            with_care += usize::from(care);
        }
        assert!((1..reports.len()).contains(&flagged) && (1..reports.len()).contains(&with_care));
        // In company as alone.
        assert_eq!(checker.check(&pictures[3..4])?, reports[3..4]);
    }
    Ok(())
}

#[test]
fn runs_are_judged_and_their_pictures_stay() -> TestResult {
    let mut pipe = emoji_pipeline()?;
    let request = GenerateRequest::txt2img("a red heart")
        .size(64, 64)
        .num_steps(2)
        .num_images(2)
        .seed(1);
    let plain = pipe.generate(&request)?;
    assert!(plain.safety.is_empty());
    let checker = open(&golden_path("safety_checker"))?;
    pipe.set_safety_checker(checker.clone());
    let mut judged = pipe.generate(&request)?;
    assert!(judged.images == plain.images);
    assert_eq!(judged.safety, checker.check(&plain.images)?);
    assert_eq!(judged.safety.len(), 2);
    let before = judged.safety.clone();
    assert_eq!(judged.judge(&checker)?, before);
    pipe.set_safety_checker(None);
    assert!(pipe.generate(&request)?.safety.is_empty());
    Ok(())
}

#[test]
fn what_is_no_checker_is_refused() -> TestResult {
    let kind = |folder: &std::path::Path| open(folder).map_err(|e| e.kind()).err();
    assert_eq!(
        kind(&golden_path("no_such_folder")),
        Some(ErrorKind::NotFound)
    );
    assert_eq!(
        kind(&golden_path("ip_adapters/image_encoder")),
        Some(ErrorKind::Weights)
    );
    let folder = tempfile::tempdir()?;
    copy_folder(&golden_path("safety_checker"), folder.path())?;
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file)?;
    fs::write(&file, &bytes[..bytes.len() / 2])?;
    assert_eq!(kind(folder.path()), Some(ErrorKind::Format));
    let mut tensors = safetensors::load(
        golden_path("safety_checker/model.safetensors"),
        &Device::Cpu,
    )?;
    tensors.remove("concept_embeds_weights");
    safetensors::save(&tensors, &file)?;
    let error = open(folder.path()).err().ok_or("it opened")?.to_string();
    assert!(error.contains("concept_embeds_weights"), "{error}");
    Ok(())
}
