//! Functions of vectors, to the accuracy of f32.

use super::simd::{Part, Simd};

/// `c[0] + c[1] x + ...`
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn polynomial<S: Simd>(x: S::Vector, c: &[f32]) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let mut y = S::splat(c[c.len() - 1]);
        for c in c.iter().rev().skip(1) {
            y = S::fma(y, x, S::splat(*c));
        }
        y
    }
}

/// `e^x`; below -87 a number that is next to nothing, above 88 one that is next to the largest.
///
/// Source: Moshier, Cephes Mathematical Library, `expf`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        // Of two operands the second one is taken where either is no number: it stays none.
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let rest = S::fma(n, S::splat(-0.693_359_4), x);
        let rest = S::fma(n, S::splat(2.121_944_4e-4), rest);
        let y = polynomial::<S>(
            rest,
            &[
                0.5,
                1.666_666_5e-1,
                4.166_579_6e-2,
                8.333_452e-3,
                1.398_199_9e-3,
                1.987_569_1e-4,
            ],
        );
        let y = S::fma(S::mul(y, rest), rest, S::add(rest, S::splat(1.0)));
        S::mul(y, S::exp2(n))
    }
}

/// `e^x` of what is not above zero, to 1e-4 of it, for what is rounded to bf16 next; below -87 next to nothing.
///
/// The polynomial is that of least relative error for `2^x` between -1/2 and 1/2.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn rough_exp<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let x = S::mul(x, S::splat(std::f32::consts::LOG2_E));
        // Of two operands the second one is taken where either is no number: it stays none.
        let x = S::max(S::splat(-126.0), x);
        let n = S::round(x);
        let y = polynomial::<S>(
            S::sub(x, n),
            &[0.999_928, 0.693_261, 0.242_611, 0.055_171_7],
        );
        S::mul(y, S::exp2(n))
    }
}

/// `x / (1 + e^(-factor x))`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn sigmoid_times<S: Simd>(x: S::Vector, factor: f32) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let e = exp::<S>(S::mul(x, S::splat(-factor)));
        S::div(x, S::add(e, S::splat(1.0)))
    }
}

/// `x Phi(x)`, with the exact error function: of what is above zero, `x`, less `|x|` times the share of the normal
/// distribution beyond it.
///
/// Source of the approximation, whose relative error is at most 1.2e-7: Press et al., "Numerical Recipes in C", 2nd
/// edition, 1992, `erfcc`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let zero = S::splat(0.0);
        let size = S::max(S::sub(zero, x), x);
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let one = S::splat(1.0);
        let t = S::div(one, S::fma(z, S::splat(0.5), one));
        let power = polynomial::<S>(
            t,
            &[
                -1.265_512_2,
                1.000_023_7,
                0.374_091_96,
                0.096_784_18,
                -0.186_288_06,
                0.278_868_07,
                -1.135_204,
                1.488_515_9,
                -0.822_152_2,
                0.170_872_77,
            ],
        );
        let beyond = S::mul(t, exp::<S>(S::sub(power, S::mul(z, z))));
        let half = S::mul(size, S::splat(-0.5));
        S::fma(half, beyond, S::max(zero, x))
    }
}

/// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn gelu_tanh<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe {
        let cube = S::mul(S::mul(x, x), x);
        let inner = S::fma(cube, S::splat(0.044_715), x);
        // (1 + tanh z) / 2 is the logistic function of 2 z.
        let twice = S::mul(inner, S::splat(-2.0 * 0.797_884_6));
        S::div(x, S::add(exp::<S>(twice), S::splat(1.0)))
    }
}

/// The sum of what `f` makes of all values; those that fill up the last vector are zero.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn sum<S: Simd>(x: &[f32], f: impl Fn(S::Vector) -> S::Vector) -> f32 {
    // SAFETY: the caller's; the last vector may be a part of one.
    unsafe {
        let mut sum = S::splat(0.0);
        let whole = x.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            sum = S::add(sum, f(S::load(x.as_ptr().add(at))));
        }
        if whole < x.len() {
            sum = S::add(
                sum,
                f(Part(x.len() - whole).load::<S>(x.as_ptr().add(whole))),
            );
        }
        S::sum(sum)
    }
}

/// Writes what `f` makes of each position.
///
/// # Safety
/// As [`Simd`], and there must be room for `len` values.
#[inline(always)]
pub(super) unsafe fn map<S: Simd>(len: usize, out: *mut f32, f: impl Fn(usize, Part) -> S::Vector) {
    let whole = len / S::LANES * S::LANES;
    // SAFETY: the caller's.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            S::store(out.add(at), f(at, Part(S::LANES)));
        }
        if whole < len {
            let part = Part(len - whole);
            part.store::<S>(out.add(whole), f(whole, part));
        }
    }
}
