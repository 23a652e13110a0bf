//! Rows and panels as whole numbers of 16 bits in pairs, whose products processors without bf16 sum up faster than
//! those of f32, and exactly.
//!
//! A row of the left matrix, and a column of a panel, has one scale for each portion that is summed in one go. It makes
//! the norm of the whole numbers as large as it may be: by the Cauchy-Schwarz inequality no sum of products, nor a part
//! of one, is larger than the product of two norms, which must stay below 2^31. So an element of a portion of 1024 is
//! off by 4e-4 of their root mean square at most, where bf16 would be off by 4e-3 of itself.

use super::dispatch::{self, Isa, Precision, Work};
use super::pack::{portion, units};
use super::simd::{Kernel, Part, Simd};
use super::threads::{Shared, for_portions};

/// The norm of the whole numbers, a little below the root of 2^31: rounding may add to it.
const NORM: f32 = 46_000.0;
/// The largest of them.
const LARGEST: f32 = 32_767.0;
/// Squares below it, which have no digits left, count as this.
const SMALLEST: f32 = 1e-36;

/// What values of a norm, given as its square, and of a largest size are multiplied by. NaN and infinities make NaN of
/// what is multiplied and divided again.
#[inline(always)]
unsafe fn factor<S: Simd>(square: S::Vector, largest: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let norm = S::sqrt(S::max(S::splat(SMALLEST), square));
        let largest = S::max(S::splat(SMALLEST.sqrt()), largest);
        S::min(
            S::div(S::splat(LARGEST), largest),
            S::div(S::splat(NORM), norm),
        )
    }
}

#[inline(always)]
unsafe fn size<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe { S::max(x, S::sub(S::splat(0.0), x)) }
}

/// Writes a row: of each portion its scale and its units.
///
/// # Safety
/// `x` must have so many elements, and `out` room for what [`Precision::row`] says.
#[inline(always)]
pub(super) unsafe fn row<K: Kernel>(x: *const f32, elements: usize, mut out: *mut f32) {
    let most = 2 * portion(units::<K>(elements), true);
    for first in (0..elements).step_by(most) {
        let elements = most.min(elements - first);
        // SAFETY: the caller's.
        unsafe {
            write_portion::<K>(x.add(first), elements, out);
            out = out.add(1 + units::<K>(elements));
        }
    }
}

/// # Safety
/// `x` must have so many elements, and `out` room for one value more than their units.
#[inline(always)]
unsafe fn write_portion<K: Kernel>(x: *const f32, elements: usize, out: *mut f32) {
    let lanes = K::S::LANES;
    // SAFETY: the caller's; what is beyond the last element is neither read nor written.
    unsafe {
        let (mut square, mut largest) = (K::S::splat(0.0), K::S::splat(0.0));
        for at in (0..elements).step_by(lanes) {
            let values = Part(lanes.min(elements - at)).load::<K::S>(x.add(at));
            square = K::S::fma(values, values, square);
            largest = K::S::max(largest, size::<K::S>(values));
        }
        let (square, largest) = (K::S::sum(square), K::S::largest(largest));
        let factor = factor::<K::S>(K::S::splat(square), K::S::splat(largest));
        let scale = K::S::div(K::S::splat(1.0), factor);
        Part(1).store::<K::S>(out, scale);
        let part = |at: usize| {
            let part = Part(lanes.min(elements.saturating_sub(at)));
            K::S::mul(part.load::<K::S>(x.wrapping_add(at)), factor)
        };
        for at in (0..elements).step_by(2 * lanes) {
            let units = Part(lanes.min((elements - at).div_ceil(2)));
            let pairs = K::narrow(part(at), part(at + lanes));
            units.store::<K::S>(out.add(1 + at / 2), pairs);
        }
    }
}

/// Turns a panel of f32, which follows room for its columns' scales, into these scales and units, in place.
///
/// # Safety
/// `panel` must have room for one row of columns more than its elements; columns are whole vectors.
#[inline(always)]
pub(super) unsafe fn panel<K: Kernel>(panel: *mut f32, elements: usize, columns: usize) {
    // SAFETY: the caller's; a unit is not before those of its elements that are still to be read.
    unsafe {
        for column in (0..columns).step_by(K::S::LANES) {
            let values = panel.add(columns + column);
            // Two sums, neither of which waits for the other.
            let zero = K::S::splat(0.0);
            let (mut squares, mut more_squares, mut largest) = (zero, zero, zero);
            for element in (0..elements).step_by(2) {
                let value = K::S::load(values.add(element * columns));
                let next = match element + 1 < elements {
                    true => K::S::load(values.add((element + 1) * columns)),
                    false => zero,
                };
                squares = K::S::fma(value, value, squares);
                more_squares = K::S::fma(next, next, more_squares);
                let larger = K::S::max(size::<K::S>(value), size::<K::S>(next));
                largest = K::S::max(largest, larger);
            }
            let factor = factor::<K::S>(K::S::add(squares, more_squares), largest);
            K::S::store(panel.add(column), K::S::div(K::S::splat(1.0), factor));
            let value = |element: usize| {
                let value = match element < elements {
                    true => K::S::load(values.add(element * columns)),
                    false => K::S::splat(0.0),
                };
                K::S::mul(value, factor)
            };
            for unit in 0..units::<K>(elements) {
                let pairs = K::couple(value(2 * unit), value(2 * unit + 1));
                K::S::store(values.add(unit * columns), pairs);
            }
        }
    }
}

/// Rows of `channels` values each: for each portion of a row its scale and its units.
pub(super) fn rows(isa: Isa, x: &[f32], channels: usize, out: &mut [f32]) {
    let (count, len) = (x.len() / channels.max(1), Precision::Fixed.row(channels));
    assert_eq!(out.len(), count * len);
    let out = Shared::new(out);
    for_portions(count, (1 << 15) / channels.max(1), |rows| {
        let task = Rows {
            channels,
            x: &x[rows.start * channels..rows.end * channels],
            // SAFETY: rows that are there, each written by one task.
            out: unsafe { out.at(rows.start * len) },
        };
        // SAFETY: as above.
        unsafe { dispatch::run(isa, Precision::Fixed, task) };
    });
}

struct Rows<'a> {
    x: &'a [f32],
    channels: usize,
    out: *mut f32,
}

impl Work for Rows<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let len = Precision::Fixed.row(self.channels);
        for (i, x) in self.x.chunks_exact(self.channels).enumerate() {
            // SAFETY: the caller's.
            unsafe { row::<K>(x.as_ptr(), self.channels, self.out.add(i * len)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::isa;
    use super::super::linear::linear_on;
    use super::super::{Epilogue, Values};
    use super::*;

    /// The product of a row and the values of a column, by every processor's kernels.
    fn products(x: &[f32], weight: &[half::bf16]) -> Vec<f32> {
        let product = |isa| {
            let mut out = [1.0];
            let weight = Values::Bf16(weight);
            linear_on(isa, x, weight, x.len(), Epilogue::default(), &mut out);
            out[0]
        };
        Isa::all().into_iter().map(product).collect()
    }

    /// Rows that round up to the largest sums that there may be, and what overflows them were they larger.
    #[test]
    fn no_sum_overflows() {
        for inputs in [1, 2, 767, 768, 769, 5000] {
            for outlier in [1.0, 1e6] {
                let mut x = vec![0.7f32; inputs];
                x[inputs / 2] *= outlier;
                let weight: Vec<_> = x.iter().map(|x| half::bf16::from_f32(*x)).collect();
                let sum: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                for out in products(&x, &weight) {
                    let apart = (f64::from(out) / sum - 1.0).abs();
                    assert!(apart < 5e-3, "{inputs}: {out}, {sum}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_nothing_stays_nothing() {
        let ones = vec![half::bf16::ONE; 40];
        let all = |x: &[f32], holds: fn(f32) -> bool| products(x, &ones).into_iter().all(holds);
        let mut x = vec![1.0; 40];
        assert!(all(&x, |out| (out - 40.0).abs() < 0.1));
        for bad in [f32::NAN, f32::INFINITY] {
            x[17] = bad;
            assert!(all(&x, |out| !out.is_finite()));
        }
        assert!(all(&[0.0; 40], |out| out == 0.0));
        assert!(all(&[1e-12; 40], |out| (out / 4e-11 - 1.0).abs() < 1e-2));
    }

    #[test]
    fn each_portion_has_its_scale() {
        if isa().available(Precision::Fixed) != Precision::Fixed {
            return;
        }
        let x: Vec<f32> = (0..2000)
            .map(|i| if i < 700 { 1.0 } else { 1e-3 })
            .collect();
        let mut out = vec![f32::NAN; Precision::Fixed.row(2000)];
        rows(isa(), &x, 2000, &mut out);
        let most = portion(1000, true);
        assert_eq!(out.len(), 1000 + 1000usize.div_ceil(most));
        let mut start = 0;
        for first in (0..1000).step_by(most) {
            let len = most.min(1000 - first);
            for unit in 0..len {
                let bits = out[start + 1 + unit].to_bits();
                for (i, half) in [bits as u16, (bits >> 16) as u16].into_iter().enumerate() {
                    let value = f32::from(half.cast_signed()) * out[start];
                    let expected = x[2 * (first + unit) + i];
                    assert!((value - expected).abs() < 1e-3 * expected.max(x[2 * first]));
                }
            }
            start += 1 + len;
        }
    }
}
