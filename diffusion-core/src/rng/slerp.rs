//! The way from one noise to another.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// Above this cosine between two images they are as good as parallel, and the straight line is taken.
const PARALLEL: f64 = 0.9995;

/// What lies between two noises on the arc between them, which keeps their length: a straight line would pass
/// through noise of less variance. With the angle `w` between `from` and `to`, each image by itself:
///
/// `sin((1 - t) w) / sin(w) * from + sin(t w) / sin(w) * to`
///
/// Images in nearly the same direction, or in opposite ones, have no arc of their own: between them it is
/// `(1 - t) * from + t * to`.
///
/// Source: Shoemake, "Animating Rotation with Quaternion Curves", 1985, section 3.3.
///
/// # Shapes
/// `from`, `to`: `(batch, ...)`. Returns the same, f32.
///
/// # Errors
/// [`Error::InvalidArgument`] if the shapes differ or have no batch, [`Error::Tensor`] if the device fails.
pub fn slerp(from: &Tensor, to: &Tensor, t: f64) -> Result<Tensor> {
    if from.dims() != to.dims() || from.rank() < 2 {
        let expected = format!("the shape of the other, {:?}, with a batch", from.dims());
        return Err(Error::argument(
            "slerp",
            expected,
            format!("{:?}", to.dims()),
        ));
    }
    let images = (0..from.dims()[0])
        .map(|i| {
            let (from, to) = (from.narrow(0, i, 1)?, to.narrow(0, i, 1)?);
            let (from, to) = (from.to_dtype(DType::F32)?, to.to_dtype(DType::F32)?);
            let (keep, take) = weights(cosine(&from, &to)?, t);
            Ok(((from * keep)? + (to * take)?)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&images, 0)?)
}

/// The factors of both ends.
fn weights(cosine: f64, t: f64) -> (f64, f64) {
    // Noise of zeros has no direction.
    if cosine.is_nan() || cosine.abs() >= PARALLEL {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    let part = |share: f64| (share * angle).sin() / angle.sin();
    (part(1.0 - t), part(t))
}

fn cosine(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum_all()?.to_scalar::<f64>();
    Ok(dot(&a, &b)? / (dot(&a, &a)? * dot(&b, &b)?).sqrt())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::rng::ImageRngs;

    fn noise(seeds: &[u64]) -> Result<Tensor> {
        ImageRngs::new(seeds, &[4, 8, 8], &Device::Cpu).draw()
    }

    fn values(tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    #[test]
    fn the_ends_are_exact_and_the_middle_keeps_its_length() -> Result<()> {
        let (a, b) = (noise(&[1, 2])?, noise(&[3, 4])?);
        assert_eq!(values(&slerp(&a, &b, 0.0)?)?, values(&a)?);
        assert_eq!(values(&slerp(&a, &b, 1.0)?)?, values(&b)?);
        let length = |t: &Tensor| Ok::<_, Error>(t.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt());
        for t in [0.25, 0.5, 0.75] {
            let arc = slerp(&a, &b, t)?;
            let line = ((&a * (1.0 - t))? + (&b * t)?)?;
            assert!((length(&arc)? - 1.0).abs() < 0.05, "{}", length(&arc)?);
            assert!(length(&line)? < 0.85, "{}", length(&line)?);
            // Each image by itself.
            let alone = slerp(&noise(&[2])?, &noise(&[4])?, t)?;
            assert_eq!(values(&alone)?, values(&arc.narrow(0, 1, 1)?)?);
        }
        // A quarter of a right angle, by hand.
        let x = Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?;
        let y = Tensor::new(&[[0f32, 2.0]], &Device::Cpu)?;
        let found = values(&slerp(&x, &y, 0.25)?)?;
        let angle = std::f32::consts::PI / 8.0;
        assert!(
            (found[0] - angle.cos()).abs() < 1e-6 && (found[1] - 2.0 * angle.sin()).abs() < 1e-6
        );
        Ok(())
    }

    #[test]
    fn noises_without_an_arc_take_the_line() -> Result<()> {
        let a = noise(&[1])?;
        for b in [a.clone(), a.neg()?, a.zeros_like()?] {
            let found = values(&slerp(&a, &b, 0.25)?)?;
            assert_eq!(found, values(&((&a * 0.75)? + (&b * 0.25)?)?)?);
        }
        assert!(slerp(&a, &noise(&[1, 2])?, 0.5).is_err());
        Ok(())
    }
}
