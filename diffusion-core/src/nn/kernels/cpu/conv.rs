//! Convolutions of channels-last pictures: products whose rows are the pixels under the kernel.

use super::dispatch::{Isa, isa};
use super::linear::precision_of;
use super::pack::{Operand, Values};
use super::product::{Epilogue, Product, Rows};
use super::winograd;

/// A picture, `(batch, height, width, channels)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Picture<'_> {
    /// # Panics
    /// If there are not as many values as pixels and channels say.
    pub(super) fn check(&self) {
        let pixels = self.batch * self.height * self.width;
        assert_eq!(self.values.len(), pixels * self.channels);
    }
}

/// The shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Height and width of the kernel.
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    /// Rows above and columns on the left that are beyond the picture.
    pub(crate) padding: (usize, usize),
    /// Height and width of what comes out.
    pub(crate) out: (usize, usize),
    /// Whether the opposite side is beyond the picture, in place of zeros: in y and in x.
    pub(crate) wraps: (bool, bool),
    /// Whether each pixel counts twice in both directions first.
    pub(crate) doubled: bool,
}

/// Where the kernel reads for a pixel of the result.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The image's first pixel.
    image: usize,
    y: isize,
    x: isize,
}

/// The pixels under a kernel.
#[derive(Clone, Copy)]
pub(super) struct Patches<'a> {
    /// Rows of units, one for each pixel.
    pub(super) values: &'a [f32],
    pub(super) units: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) shape: Shape,
    /// A pixel of zeros.
    pub(super) zeros: &'a [f32],
}

impl<'a> Patches<'a> {
    /// Of a picture's values as `units`, of which `zeros` is a pixel.
    pub(super) fn new(
        units: &'a [f32],
        picture: &Picture<'_>,
        shape: Shape,
        zeros: &'a [f32],
    ) -> Self {
        Self {
            values: units,
            units: zeros.len(),
            height: picture.height,
            width: picture.width,
            shape,
            zeros,
        }
    }

    pub(super) fn place(&self, image: usize, y: isize, x: isize) -> Place {
        Place {
            image: image * self.height * self.width,
            y,
            x,
        }
    }

    /// A pixel by its distance from a place.
    ///
    /// # Safety
    /// The place must be one of an image that is there.
    #[inline(always)]
    pub(super) unsafe fn pixel(&self, place: Place, down: usize, right: usize) -> *const f32 {
        let shift = usize::from(self.shape.doubled);
        let (y, y_is_in) = inside(
            place.y + down as isize,
            self.height << shift,
            self.shape.wraps.0,
        );
        let (x, x_is_in) = inside(
            place.x + right as isize,
            self.width << shift,
            self.shape.wraps.1,
        );
        if !(y_is_in && x_is_in) {
            return self.zeros.as_ptr();
        }
        let pixel = place.image + (y >> shift) * self.width + (x >> shift);
        // SAFETY: a pixel of the picture.
        unsafe { self.values.as_ptr().add(pixel * self.units) }
    }
}

#[inline(always)]
fn inside(at: isize, len: usize, wraps: bool) -> (usize, bool) {
    match wraps {
        true => (at.rem_euclid(len as isize) as usize, true),
        false => (at as usize, (at as usize) < len),
    }
}

impl Rows for Patches<'_> {
    type Position = Place;

    #[inline(always)]
    fn position(&self, row: usize) -> Place {
        let (out_h, out_w) = self.shape.out;
        let (y, x) = (row / out_w % out_h, row % out_w);
        let to = |at: usize, padding: usize| (at * self.shape.stride) as isize - padding as isize;
        self.place(
            row / (out_h * out_w),
            to(y, self.shape.padding.0),
            to(x, self.shape.padding.1),
        )
    }

    #[inline(always)]
    unsafe fn point(&self, place: Place, tap: usize) -> *const f32 {
        let width = self.shape.kernel.1;
        // SAFETY: the caller's.
        unsafe { self.pixel(place, tap / width, tap % width) }
    }
}

/// # Shapes
/// `weight`: `(outputs, kernel height, kernel width, channels)`; writes `(batch, out height, out width, outputs)`.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn convolve(
    picture: Picture<'_>,
    weight: Values<'_>,
    shape: Shape,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let Picture {
        batch, channels, ..
    } = picture;
    let outputs = out.len() / (batch * shape.out.0 * shape.out.1).max(1);
    match winograd::is_faster(shape, channels, outputs) {
        true => winograd::convolve(isa(), picture, weight, shape, epilogue, out),
        false => convolve_directly(isa(), picture, weight, shape, epilogue, out),
    }
}

/// The same as a product.
pub(super) fn convolve_directly(
    isa: Isa,
    picture: Picture<'_>,
    weight: Values<'_>,
    shape: Shape,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    picture.check();
    let channels = picture.channels;
    let num_rows = picture.batch * shape.out.0 * shape.out.1;
    let precision = precision_of(weight, isa);
    let operand = Operand::new(picture.values, channels, precision, isa);
    let zeros = vec![0.0; precision.row(channels)];
    let product = Product {
        rows: Patches::new(operand.units(), &picture, shape, &zeros),
        num_rows,
        taps: shape.kernel.0 * shape.kernel.1,
        channels,
        weight,
        outputs: out.len() / num_rows.max(1),
        epilogue,
        precision,
        isa,
    };
    product.run(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::TorchRng;

    struct Case {
        picture: [usize; 4],
        outputs: usize,
        shape: Shape,
    }

    fn case(picture: [usize; 4], outputs: usize, kernel: (usize, usize), stride: usize) -> Case {
        let padding = (kernel.0 / 2, kernel.1 / 2);
        let out = (
            (picture[1] + 2 * padding.0 - kernel.0) / stride + 1,
            (picture[2] + 2 * padding.1 - kernel.1) / stride + 1,
        );
        let (wraps, doubled) = ((false, false), false);
        let shape = Shape {
            kernel,
            stride,
            padding,
            out,
            wraps,
            doubled,
        };
        Case {
            picture,
            outputs,
            shape,
        }
    }

    fn by_definition(x: &[f32], w: &[f64], case: &Case) -> Vec<f64> {
        let ([batch, height, width, channels], shape) = (case.picture, case.shape);
        let scale = if shape.doubled { 2 } else { 1 };
        let place = |at: usize, tap: usize, padding: usize, len: usize, wraps: bool| {
            let at = (at * shape.stride + tap) as isize - padding as isize;
            let len = (len * scale) as isize;
            let at = if wraps { at.rem_euclid(len) } else { at };
            (0..len).contains(&at).then_some(at as usize / scale)
        };
        let mut y = Vec::new();
        for i in 0..batch * shape.out.0 * shape.out.1 * case.outputs {
            let (pixel, output) = (i / case.outputs, i % case.outputs);
            let image = pixel / (shape.out.0 * shape.out.1);
            let (top, left) = (pixel / shape.out.1 % shape.out.0, pixel % shape.out.1);
            let mut sum = 0.0;
            for tap in 0..shape.kernel.0 * shape.kernel.1 {
                let (down, right) = (tap / shape.kernel.1, tap % shape.kernel.1);
                let row = place(top, down, shape.padding.0, height, shape.wraps.0);
                let column = place(left, right, shape.padding.1, width, shape.wraps.1);
                if let (Some(row), Some(column)) = (row, column) {
                    for channel in 0..channels {
                        let at = ((image * height + row) * width + column) * channels + channel;
                        let taps = shape.kernel.0 * shape.kernel.1;
                        sum += f64::from(x[at]) * w[(output * taps + tap) * channels + channel];
                    }
                }
            }
            y.push(sum);
        }
        y
    }

    type Way = fn(Isa, Picture<'_>, Values<'_>, Shape, Epilogue<'_>, &mut [f32]);

    /// Directly, and after Winograd, and how far from the definition each may be in f32.
    const WAYS: [(Way, f64); 2] = [(convolve_directly, 2e-6), (winograd::convolve, 1e-5)];

    #[test]
    fn any_shape_on_any_processor_both_ways() {
        let mut cases = vec![
            case([1, 1, 1, 1], 1, (3, 3), 1),
            case([2, 7, 9, 5], 17, (3, 3), 1),
            case([1, 4, 4, 33], 40, (3, 3), 1),
            case([2, 9, 6, 32], 16, (3, 3), 1),
            case([1, 13, 22, 36], 35, (3, 3), 1),
            case([1, 8, 7, 16], 20, (3, 3), 2),
            case([1, 9, 8, 3], 8, (5, 4), 3),
            case([2, 5, 5, 7], 9, (1, 1), 2),
        ];
        for i in 1..5 {
            let mut other = case([1, 5, 6, 34], 18, (3, 3), 1);
            other.shape.wraps = (i % 2 == 1, i > 1);
            if i > 2 {
                other.shape.doubled = true;
                other.shape.out = (10, 12);
            }
            cases.push(other);
        }
        for (seed, case) in cases.iter().enumerate() {
            let ([batch, height, width, channels], shape) = (case.picture, case.shape);
            let mut rng = TorchRng::new(seed as u64);
            let x = rng.randn(batch * height * width * channels);
            let f32s = rng.randn(case.outputs * shape.kernel.0 * shape.kernel.1 * channels);
            let bf16s: Vec<_> = f32s.iter().map(|x| half::bf16::from_f32(*x)).collect();
            let bias = rng.randn(case.outputs);
            let len = batch * shape.out.0 * shape.out.1 * case.outputs;
            let add = rng.randn(len);
            let epilogue = Epilogue {
                bias: Some(&bias),
                add: Some(&add),
                accumulates: false,
                gated: false,
            };
            let added_within = Epilogue {
                add: None,
                accumulates: true,
                ..epilogue
            };
            let picture = Picture {
                values: &x,
                batch,
                height,
                width,
                channels,
            };
            for is_half in [false, true] {
                let (weight, wide): (_, Vec<f64>) = match is_half {
                    true => (
                        Values::Bf16(&bf16s),
                        bf16s.iter().map(|x| x.to_f64()).collect(),
                    ),
                    false => (
                        Values::F32(&f32s),
                        f32s.iter().map(|x| f64::from(*x)).collect(),
                    ),
                };
                let sums = by_definition(&x, &wide, case);
                let largest = sums.iter().fold(1.0, |most: f64, sum| most.max(sum.abs()));
                let check = |out: &[f32], tolerance: f64, what: &str| {
                    for (i, out) in out.iter().enumerate() {
                        let expected =
                            sums[i] + f64::from(bias[i % case.outputs]) + f64::from(add[i]);
                        let apart = (f64::from(*out) - expected).abs();
                        assert!(
                            apart <= tolerance * largest,
                            "{what}, case {seed}: {out}, {expected}"
                        );
                    }
                };
                let is_winograds = shape.kernel == (3, 3) && shape.stride == 1;
                for (isa, (convolve, exact)) in Isa::all()
                    .into_iter()
                    .flat_map(|isa| WAYS.map(|way| (isa, way)))
                    .filter(|(_, (_, exact))| is_winograds || *exact == WAYS[0].1)
                {
                    let mut out = vec![f32::NAN; len];
                    convolve(isa, picture, weight, shape, epilogue, &mut out);
                    let tolerance = if is_half { 1e-2 } else { exact };
                    check(&out, tolerance, &format!("{isa:?}, {exact}, {is_half}"));
                    let mut within = add.clone();
                    convolve(isa, picture, weight, shape, added_within, &mut within);
                    assert_eq!(within, out);
                }
            }
        }
    }
}
