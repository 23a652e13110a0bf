//! Vectors of 32-bit units: the few operations that kernels are written in, for each kind of processor.

/// A vector of f32 in a register.
///
/// All methods are unsafe for one reason: the processor must have the features that the implementation names,
/// which [`dispatch`](super::dispatch) sees to. Pointers must be valid for what is read or written there, at any
/// alignment.
pub(super) trait Simd: Copy {
    /// The register.
    type Vector: Copy;
    /// Values in it.
    const LANES: usize;
    /// Rows of the tile of a matrix product that is one, two and three vectors wide: so many that the tile,
    /// its columns and one value fit into the registers.
    const ROWS: [usize; 3];

    unsafe fn splat(x: f32) -> Self::Vector;
    unsafe fn load(p: *const f32) -> Self::Vector;
    unsafe fn store(p: *mut f32, x: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn div(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sqrt(x: Self::Vector) -> Self::Vector;
    /// Of a number and NaN the second operand.
    unsafe fn min(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// As [`min`](Self::min).
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`.
    unsafe fn fma(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The nearest whole numbers.
    unsafe fn round(x: Self::Vector) -> Self::Vector;
    /// The sum of all values.
    #[inline(always)]
    unsafe fn sum(x: Self::Vector) -> f32 {
        let mut values = [0.0; 16];
        // SAFETY: the caller's; no vector is longer than 16.
        unsafe { Self::store(values.as_mut_ptr(), x) };
        values[..Self::LANES].iter().sum()
    }
    /// The largest value.
    #[inline(always)]
    unsafe fn largest(x: Self::Vector) -> f32 {
        let mut values = [0.0; 16];
        // SAFETY: as above.
        unsafe { Self::store(values.as_mut_ptr(), x) };
        values[..Self::LANES]
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max)
    }
    /// Powers of two of whole numbers from -126 to 127.
    unsafe fn exp2(x: Self::Vector) -> Self::Vector;

    /// Asks the cache for what will be read soon, if there is anything.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// Eight f16 values.
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { std::array::from_fn(|i| half::f16::from_bits(p.add(i).read_unaligned()).to_f32()) }
    }

    /// Writes the columns of a square as rows that lie `stride` apart.
    #[inline(always)]
    unsafe fn transpose(square: &[[f32; 8]; 8], p: *mut f32, stride: usize) {
        for i in 0..8 {
            for (j, row) in square.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { p.add(i * stride + j).write(row[i]) };
            }
        }
    }
}

/// The first values of a vector.
#[derive(Clone, Copy)]
pub(super) struct Part(pub(super) usize);

impl Part {
    /// Loads them; the others are zero.
    ///
    /// # Safety
    /// As [`Simd`], for so many values.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(self, p: *const f32) -> S::Vector {
        // SAFETY: the caller's; no vector is longer than 16.
        unsafe {
            if self.0 == S::LANES {
                return S::load(p);
            }
            let mut values = [0.0; 16];
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), self.0);
            S::load(values.as_ptr())
        }
    }

    /// Stores them.
    ///
    /// # Safety
    /// As [`Simd`], for so many values.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(self, p: *mut f32, x: S::Vector) {
        // SAFETY: as above.
        unsafe {
            if self.0 == S::LANES {
                return S::store(p, x);
            }
            let mut values = [0.0; 16];
            S::store(values.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(values.as_ptr(), p, self.0);
        }
    }
}

/// How a matrix product multiplies: units of one f32, of two bf16, or of two whole numbers of 16 bits.
pub(super) trait Kernel: Copy {
    /// The registers.
    type S: Simd;
    /// Whether a unit is a pair.
    const PAIRS: bool;
    /// Whether pairs are whole numbers, and [`fixed`](super::fixed) says how large.
    const FIXED: bool = false;
    /// `acc + a * b`, for pairs the sum of both products.
    unsafe fn madd(
        acc: <Self::S as Simd>::Vector,
        a: <Self::S as Simd>::Vector,
        b: <Self::S as Simd>::Vector,
    ) -> <Self::S as Simd>::Vector;
    /// The units of two vectors of values that follow each other, where a unit is a pair: one vector.
    unsafe fn narrow(
        a: <Self::S as Simd>::Vector,
        b: <Self::S as Simd>::Vector,
    ) -> <Self::S as Simd>::Vector;
    /// Where units are pairs of whole numbers, those whose first halves are a vector's values and whose second ones
    /// another's.
    #[inline(always)]
    unsafe fn couple(
        first: <Self::S as Simd>::Vector,
        _second: <Self::S as Simd>::Vector,
    ) -> <Self::S as Simd>::Vector {
        first
    }
    /// Sums as f32.
    #[inline(always)]
    unsafe fn value(acc: <Self::S as Simd>::Vector) -> <Self::S as Simd>::Vector {
        acc
    }
}

/// Products of f32.
#[derive(Clone, Copy)]
pub(super) struct F32<S>(S);

impl<S: Simd> Kernel for F32<S> {
    type S = S;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn madd(acc: S::Vector, a: S::Vector, b: S::Vector) -> S::Vector {
        // SAFETY: the caller's.
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn narrow(a: S::Vector, _: S::Vector) -> S::Vector {
        a
    }
}

/// Plain arrays, which compilers turn into what every processor of a kind has (SSE2, NEON).
#[derive(Clone, Copy)]
pub(super) struct Portable<const LANES: usize>;

/// Elsewhere a fused product is a call of a function.
const HAS_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Methods of arrays, lane by lane.
macro_rules! lanewise {
    ($($name:ident($($x:ident),*) = $value:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($x: [f32; N]),*) -> [f32; N] {
            let mut y = [0.0; N];
            for i in 0..N {
                $(let $x = $x[i];)*
                y[i] = $value;
            }
            y
        }
    )*};
}

impl<const N: usize> Simd for Portable<N> {
    type Vector = [f32; N];
    const LANES: usize = N;
    const ROWS: [usize; 3] = match cfg!(target_arch = "aarch64") || N == 16 {
        true => [12, 12, 8],
        false => [8, 4, 3],
    };

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; N] {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; N]) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; N]>().write_unaligned(x) }
    }
    lanewise! {
        add(a, b) = a + b;
        sub(a, b) = a - b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        sqrt(x) = x.sqrt();
        min(a, b) = if a < b { a } else { b };
        max(a, b) = if a > b { a } else { b };
        fma(a, b, c) = if HAS_FMA { a.mul_add(b, c) } else { a * b + c };
        // Adding and taking away 1.5 * 2^23 leaves no place for a fraction.
        round(x) = (x + 12_582_912.0) - 12_582_912.0;
        exp2(x) = f32::from_bits((((x as i32) + 127) << 23) as u32);
    }
}

/// Products of pairs in arrays, for tests of what takes pairs.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct PortablePairs;

#[cfg(test)]
impl Kernel for PortablePairs {
    type S = Portable<16>;
    const PAIRS: bool = true;

    unsafe fn madd(acc: [f32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        let halves = |x: f32| {
            (
                f32::from_bits(x.to_bits() << 16),
                f32::from_bits(x.to_bits() >> 16 << 16),
            )
        };
        std::array::from_fn(|i| {
            let ((a_low, a_high), (b_low, b_high)) = (halves(a[i]), halves(b[i]));
            acc[i] + a_low * b_low + a_high * b_high
        })
    }

    unsafe fn narrow(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        let all: Vec<f32> = a.into_iter().chain(b).collect();
        std::array::from_fn(|i| super::pack::pair(all[2 * i], all[2 * i + 1]))
    }
}
