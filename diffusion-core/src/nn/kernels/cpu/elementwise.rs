//! What is done value by value. All of it is bound by memory, but for the functions.

use rayon::prelude::*;

use super::dispatch::{self, Precision, Work};
use super::math;
use super::simd::Kernel;
use super::threads::{Shared, for_portions, on_pool};

/// Values of a task.
const PORTION: usize = 1 << 14;

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Silu,
    QuickGelu,
    Gelu,
    GeluTanh,
    Relu,
}

/// Writes the function of each value.
///
/// # Panics
/// If lengths differ.
pub(crate) fn apply(function: Function, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let out = Shared::new(out);
    for_portions(x.len(), PORTION, |range| {
        // SAFETY: each value is written by one task.
        unsafe {
            let out = out.at(range.start);
            dispatch::run(
                dispatch::isa(),
                Precision::F32,
                Apply {
                    function,
                    x: &x[range],
                    out,
                },
            );
        }
    });
}

struct Apply<'a> {
    function: Function,
    x: &'a [f32],
    out: *mut f32,
}

impl Work for Apply<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        use super::simd::Simd;
        // SAFETY: the caller's.
        unsafe {
            math::map::<K::S>(
                self.x.len(),
                self.out,
                #[inline(always)]
                |at, part| {
                    let x = part.load::<K::S>(self.x.as_ptr().add(at));
                    match self.function {
                        Function::Silu => math::sigmoid_times::<K::S>(x, 1.0),
                        Function::QuickGelu => math::sigmoid_times::<K::S>(x, 1.702),
                        Function::Gelu => math::gelu::<K::S>(x),
                        Function::GeluTanh => math::gelu_tanh::<K::S>(x),
                        Function::Relu => K::S::max(K::S::splat(0.0), x),
                    }
                },
            );
        }
    }
}

/// Calls `f` with the number of each row of `out`, and the row, on all threads.
///
/// # Panics
/// If rows have no length.
pub(crate) fn rows(out: &mut [f32], len: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let rows_at_once = (PORTION / len).max(1);
    on_pool(|| {
        let portions = out.par_chunks_mut(rows_at_once * len).enumerate();
        portions.for_each(|(i, rows)| {
            for (j, row) in rows.chunks_mut(len).enumerate() {
                f(i * rows_at_once + j, row);
            }
        });
    });
}

/// Writes `f` of the values at the same place.
///
/// # Panics
/// If lengths differ.
pub(crate) fn zip(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    assert!(a.len() == b.len() && a.len() == out.len());
    on_pool(|| {
        let portions = out.par_chunks_mut(PORTION).zip(a.par_chunks(PORTION));
        portions
            .zip(b.par_chunks(PORTION))
            .for_each(|((out, a), b)| {
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = f(*a, *b);
                }
            });
    });
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::Isa;
    use super::*;

    #[test]
    fn functions_are_right_to_the_last_bits() {
        let x: Vec<f32> = (-4000..=4001)
            .map(|i| i as f32 * 0.005)
            .chain([-1e9, 1e9, -90.0, 95.0])
            .collect();
        for (function, exact) in [
            (
                Function::Silu,
                (|x| x / (1.0 + (-x).exp())) as fn(f64) -> f64,
            ),
            (Function::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
            (Function::Gelu, |x| {
                x * 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt()))
            }),
            (Function::GeluTanh, |x| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                x * 0.5 * (1.0 + inner.tanh())
            }),
            (Function::Relu, |x| x.max(0.0)),
        ] {
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; x.len()];
                let task = Apply {
                    function,
                    x: &x,
                    out: out.as_mut_ptr(),
                };
                // SAFETY: as long as it must be.
                unsafe { dispatch::run(isa, Precision::F32, task) };
                for (x, y) in x.iter().zip(&out) {
                    let exact = exact(f64::from(*x));
                    let apart = (f64::from(*y) - exact).abs();
                    assert!(
                        apart <= 1e-6 * exact.abs().max(1e-1),
                        "{isa:?} {function:?} {x}: {y}, {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for function in [
            Function::Silu,
            Function::QuickGelu,
            Function::Gelu,
            Function::GeluTanh,
        ] {
            let mut out = [0.0; 19];
            apply(function, &[f32::NAN; 19], &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{function:?}");
        }
    }
}
