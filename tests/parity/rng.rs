//! The random stream against `torch.randn`.

use diffusion_core::rng::TorchRng;
use diffusion_tests::{Golden, TestResult};

/// PyTorch's vectorised logarithm, sine and cosine are a few units in the last place off the exact ones.
const LAST_BITS: f64 = 2e-6;

fn assert_equal(what: &str, ours: &[f32], reference: &[f64]) {
    assert_eq!(ours.len(), reference.len(), "{what}");
    for (i, (&ours, &reference)) in ours.iter().zip(reference).enumerate() {
        let difference = (f64::from(ours) - reference).abs();
        assert!(
            difference <= LAST_BITS * reference.abs().max(1.0),
            "{what}[{i}]: {ours} {reference}"
        );
    }
}

#[test]
fn each_draw_equals_torch() -> TestResult {
    let golden = Golden::open("rng")?;
    let mut checked = 0;
    for name in golden.names().filter(|name| name.starts_with("seed")) {
        let (seed, len) = name
            .trim_start_matches("seed")
            .split_once(".n")
            .ok_or("a name of another form")?;
        let ours = TorchRng::new(seed.parse()?).randn(len.parse()?);
        assert_equal(name, &ours, &golden.values(name)?);
        checked += 1;
    }
    assert!(checked >= 40, "{checked} cases");
    Ok(())
}

#[test]
fn a_sequence_of_draws_equals_torch() -> TestResult {
    let golden = Golden::open("rng")?;
    let mut rng = TorchRng::new(7);
    for (i, len) in [3, 4, 20, 7, 16, 1].into_iter().enumerate() {
        let name = format!("sequence.{i}");
        assert_equal(&name, &rng.randn(len), &golden.values(&name)?);
    }
    Ok(())
}
