//! Products of rows and weights.

use super::dispatch::{Isa, Precision, isa};
use super::pack::{Operand, Values};
use super::product::{Epilogue, Product, Rows};

/// Rows that follow each other.
#[derive(Clone, Copy)]
struct Dense<'a> {
    values: &'a [f32],
    stride: usize,
}

impl Rows for Dense<'_> {
    type Position = usize;

    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        row * self.stride
    }

    #[inline(always)]
    unsafe fn point(&self, position: usize, _tap: usize) -> *const f32 {
        // SAFETY: the position of a row that is there.
        unsafe { self.values.as_ptr().add(position) }
    }
}

/// Precision of products with weights that are held so.
pub(super) fn precision_of(weight: Values<'_>, isa: Isa) -> Precision {
    match weight {
        Values::Bf16(_) | Values::Int8 { .. } => isa.available(Precision::Bf16),
        Values::F32(_) | Values::F16(_) => Precision::F32,
    }
}

/// `x W^T`, and the rest.
///
/// # Shapes
/// `x`: `(rows, inputs)`, `weight`: `(outputs, inputs)`, twice as many outputs if gated; writes `(rows, outputs)`.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn linear(
    x: &[f32],
    weight: Values<'_>,
    inputs: usize,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    linear_on(isa(), x, weight, inputs, epilogue, out);
}

/// As [`linear`], by a processor's kernels.
pub(super) fn linear_on(
    isa: Isa,
    x: &[f32],
    weight: Values<'_>,
    inputs: usize,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let num_rows = x.len() / inputs.max(1);
    let outputs = out.len() / num_rows.max(1);
    assert_eq!(x.len(), num_rows * inputs);
    let precision = precision_of(weight, isa);
    let operand = Operand::new(x, inputs, precision, isa);
    let product = Product {
        rows: Dense {
            values: operand.units(),
            stride: precision.row(inputs),
        },
        num_rows,
        taps: 1,
        channels: inputs,
        weight,
        outputs,
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

    #[test]
    fn any_shape_in_any_format_on_any_processor() {
        for (rows, inputs, outputs) in [
            (1, 1, 1),
            (13, 7, 33),
            (24, 320, 31),
            (1021, 17, 65),
            (5, 1025, 40),
            (3, 2050, 3),
            (100, 64, 16),
        ] {
            for is_gated in [false, true] {
                check(rows, inputs, outputs, is_gated);
            }
        }
    }

    fn check(rows: usize, inputs: usize, outputs: usize, is_gated: bool) {
        let halves = if is_gated { 2 } else { 1 };
        let mut rng = TorchRng::new(inputs as u64);
        let x = rng.randn(rows * inputs);
        let w = rng.randn(halves * outputs * inputs);
        let (bias, add) = (rng.randn(halves * outputs), rng.randn(rows * outputs));
        let f16: Vec<_> = w.iter().map(|w| half::f16::from_f32(*w)).collect();
        let bf16: Vec<_> = w.iter().map(|w| half::bf16::from_f32(*w)).collect();
        let bytes: Vec<_> = (0..w.len()).map(|i| (i * 37 % 255) as u8).collect();
        let scales: Vec<_> = (0..halves * outputs)
            .map(|i| 0.01 + i as f32 * 1e-4)
            .collect();
        let epilogue = Epilogue {
            bias: Some(&bias),
            add: Some(&add),
            accumulates: false,
            gated: is_gated,
        };
        // The size of a sum, and of a product of two.
        let size = (inputs as f64).sqrt().max(1.0) * 4.0;
        let size = if is_gated { size * size } else { size };
        let int8 = Values::Int8 {
            values: &bytes,
            scales: &scales,
        };
        for values in [
            Values::F32(&w),
            Values::F16(&f16),
            Values::Bf16(&bf16),
            int8,
        ] {
            let wide = |i: usize| match values {
                Values::F32(w) => f64::from(w[i]),
                Values::F16(w) => w[i].to_f64(),
                Values::Bf16(w) => w[i].to_f64(),
                Values::Int8 { values, scales } => {
                    f64::from(values[i].cast_signed()) * f64::from(scales[i / inputs])
                }
            };
            let sum = |row: usize, output: usize| {
                let products =
                    (0..inputs).map(|k| f64::from(x[row * inputs + k]) * wide(output * inputs + k));
                products.sum::<f64>() + f64::from(bias[output])
            };
            let expected: Vec<f64> = (0..rows * outputs)
                .map(|at| {
                    let (row, output) = (at / outputs, at % outputs);
                    let factor = match is_gated {
                        true => {
                            let gate = sum(row, outputs + output);
                            let erf = candle_core::cpu::erf::erf_f64(gate / 2f64.sqrt());
                            gate * 0.5 * (1.0 + erf)
                        }
                        false => 1.0,
                    };
                    sum(row, output) * factor + f64::from(add[at])
                })
                .collect();
            for isa in Isa::all() {
                // Whole numbers come nearer than bf16.
                let tolerance = match precision_of(values, isa) {
                    Precision::F32 => 1e-6,
                    Precision::Fixed => 4e-4,
                    Precision::Bf16 => 5e-3,
                };
                let mut out = vec![f32::NAN; rows * outputs];
                linear_on(isa, &x, values, inputs, epilogue, &mut out);
                let mut within = add.clone();
                let added_within = Epilogue {
                    add: None,
                    accumulates: true,
                    ..epilogue
                };
                linear_on(isa, &x, values, inputs, added_within, &mut within);
                assert_eq!(within, out);
                for (out, expected) in out.iter().zip(&expected) {
                    let apart = (f64::from(*out) - expected).abs();
                    assert!(
                        apart <= tolerance * size,
                        "{isa:?}, {rows} x {inputs} x {outputs}: {out}, {expected}"
                    );
                }
            }
        }
    }
}
