//! Noise from a Brownian path against torchsde's tree.

use diffusion_core::rng::{BrownianNoise, NoiseSource};
use diffusion_core::{Device, ErrorKind, Tensor};
use diffusion_tests::{Golden, TestResult, assert_close, golden_json};

/// The reference adds up in f32.
const LAST_BITS: f64 = 1e-5;

const SHAPE: [usize; 3] = [3, 8, 8];
const SIGMA_MIN: f64 = 0.0291675;
const SIGMA_MAX: f64 = 14.614643;

fn paths(seeds: &[u64]) -> BrownianNoise {
    BrownianNoise::new(seeds, &SHAPE, &Device::Cpu, SIGMA_MIN, SIGMA_MAX)
}

/// The way of a path, without the division by the root of the distance.
fn way(noise: &mut BrownianNoise, from: f64, to: f64) -> TestResult<Tensor> {
    let distance = f64::from(to as f32) - f64::from(from as f32);
    Ok((noise.noise(from, to)? * distance.abs().sqrt())?)
}

#[test]
fn increments_equal_torchsde() -> TestResult {
    let golden = Golden::open("brownian")?;
    let json = golden_json("brownian.json")?;
    let rows = json["increments"].as_array().ok_or("no rows")?;
    for row in rows {
        let number = |key: &str| row[key].as_f64().ok_or("not a number");
        let seed = row["seed"].as_u64().ok_or("not a seed")?;
        let mut noise =
            BrownianNoise::new(&[seed], &SHAPE, &Device::Cpu, number("t0")?, number("t1")?);
        let (low, high) = (number("ta")?, number("tb")?);
        let reference = golden.tensor(row["name"].as_str().ok_or("no name")?)?;
        // A fall in the noise level walks the path backwards.
        let fall = way(&mut noise, high, low)?.neg()?;
        assert_close(&format!("{row}, falling"), &fall, &reference, LAST_BITS)?;
        let rise = way(&mut noise, low, high)?;
        assert_close(&format!("{row}, rising"), &rise, &reference, LAST_BITS)?;
    }
    assert!(rows.len() >= 39, "{} rows", rows.len());
    Ok(())
}

#[test]
fn steps_split_a_path_without_changing_it() -> TestResult {
    let whole = way(&mut paths(&[5]), SIGMA_MAX, SIGMA_MIN)?;
    for cuts in [1, 2, 7, 50] {
        let mut noise = paths(&[5]);
        let level = |i: usize| SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX).powf(i as f64 / cuts as f64);
        let mut sum = whole.zeros_like()?;
        for i in 0..cuts {
            sum = (sum + way(&mut noise, level(i), level(i + 1))?)?;
        }
        assert_close(&format!("{cuts} steps"), &sum, &whole, LAST_BITS)?;
    }
    Ok(())
}

#[test]
fn earlier_questions_change_no_answer() -> TestResult {
    let mut asked = paths(&[5]);
    for (from, to) in [
        (14.0, 3.0),
        (14.0, 2.0),
        (2.0, 1.0),
        (0.5, 7.0),
        (3.0, 14.0),
    ] {
        let fresh = paths(&[5]).noise(from, to)?;
        assert_close("noise", &asked.noise(from, to)?, &fresh, 0.0)?;
    }
    Ok(())
}

#[test]
fn an_image_is_the_same_in_any_batch() -> TestResult {
    let mut batch = paths(&[3, 1 << 40, 9]);
    let mut single = paths(&[1 << 40]);
    for (from, to) in [(SIGMA_MAX, 6.0), (6.0, 2.5), (6.0, 1.0)] {
        let row = batch.noise(from, to)?.narrow(0, 1, 1)?;
        assert_close("noise", &row, &single.noise(from, to)?, 0.0)?;
    }
    Ok(())
}

#[test]
fn noise_has_unit_variance() -> TestResult {
    let mut noise = BrownianNoise::new(&[1], &[4, 64, 64], &Device::Cpu, SIGMA_MIN, SIGMA_MAX);
    for (from, to) in [(SIGMA_MAX, 9.1), (9.1, 2.0), (0.2, 0.08), (0.05, 0.049)] {
        let square = noise.noise(from, to)?.sqr()?.mean_all()?;
        let variance = square.to_scalar::<f32>()?;
        assert!((variance - 1.0).abs() < 0.05, "{from} to {to}: {variance}");
    }
    Ok(())
}

#[test]
fn the_path_stands_still_outside_its_range() -> TestResult {
    let mut noise = paths(&[5]);
    let zeros = Tensor::zeros((1, 3, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
    for (from, to) in [(2.0, 2.0), (SIGMA_MIN, 0.0), (20.0, 15.0)] {
        assert_close("noise", &noise.noise(from, to)?, &zeros, 0.0)?;
    }
    let beyond = way(&mut noise, 20.0, 0.0)?;
    let whole = way(&mut noise, SIGMA_MAX, SIGMA_MIN)?;
    assert_close("whole", &beyond, &whole, LAST_BITS)?;
    Ok(())
}

#[test]
fn levels_that_are_no_numbers_are_an_error() {
    for (min, max, from, to) in [
        (0.1, 10.0, f64::NAN, 1.0),
        (0.1, 10.0, f64::INFINITY, 1.0),
        (0.1, f64::INFINITY, 5.0, 1.0),
        (f64::NAN, 10.0, 5.0, 1.0),
        (0.1, f64::MAX, 5.0, 1.0),
    ] {
        let mut noise = BrownianNoise::new(&[0], &SHAPE, &Device::Cpu, min, max);
        let error = noise.noise(from, to).err().map(|e| e.kind());
        assert_eq!(
            error,
            Some(ErrorKind::InvalidArgument),
            "{min} {max} {from} {to}"
        );
    }
}

#[test]
fn any_finite_range_ends() -> TestResult {
    for (min, max) in [
        (0.0, 1e-7),
        (1.0, 1.0),
        (5.0, 0.1),
        (1e9, 1e10),
        (0.0, 3e38),
    ] {
        let mut noise = BrownianNoise::new(&[0], &[2, 2], &Device::Cpu, min, max);
        for share in [0.0, 0.3, 0.999] {
            let values = noise.noise(max, min + share * (max - min))?.flatten_all()?;
            assert!(
                values.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
                "{min} {max}"
            );
        }
    }
    Ok(())
}
