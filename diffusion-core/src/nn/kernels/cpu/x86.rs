//! Registers of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::simd::{Kernel, Simd};

/// Needs AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// Needs AVX-512 F, beside what [`Avx2`] needs.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// Products of pairs of whole numbers. Needs what [`Avx2`] needs.
#[derive(Clone, Copy)]
pub(super) struct Fixed256;

/// The same. Needs AVX-512 VNNI, beside what [`Avx512`] needs.
#[derive(Clone, Copy)]
pub(super) struct Fixed512;

/// Products of pairs of bf16. Needs AVX-512 BF16, beside what [`Avx512`] needs.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// Methods that are one instruction each.
macro_rules! instructions {
    ($vector:ty: $($name:ident($($x:ident),*) = $instruction:ident;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($x: $vector),*) -> $vector {
            // SAFETY: the caller's.
            unsafe { $instruction($($x),*) }
        }
    )*};
}

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const ROWS: [usize; 3] = [8, 6, 3];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    instructions! { __m256:
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        sqrt(x) = _mm256_sqrt_ps;
        min(a, b) = _mm256_min_ps;
        max(a, b) = _mm256_max_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn exp2(x: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> [f32; 8] {
        // SAFETY: the caller's; arrays of eight have the size of the register.
        unsafe {
            std::mem::transmute::<__m256, [f32; 8]>(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
        }
    }
    #[inline(always)]
    unsafe fn transpose(square: &[[f32; 8]; 8], p: *mut f32, stride: usize) {
        // SAFETY: the caller's.
        unsafe { transpose(square, p, stride) }
    }
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const ROWS: [usize; 3] = [12, 12, 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    instructions! { __m512:
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        sqrt(x) = _mm512_sqrt_ps;
        min(a, b) = _mm512_min_ps;
        max(a, b) = _mm512_max_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn exp2(x: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), x) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: nothing is read.
        unsafe { Avx2::prefetch(p) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { Avx2::halves(p) }
    }
    #[inline(always)]
    unsafe fn transpose(square: &[[f32; 8]; 8], p: *mut f32, stride: usize) {
        // SAFETY: the caller's.
        unsafe { transpose(square, p, stride) }
    }
}

impl Kernel for Fixed256 {
    type S = Avx2;
    const PAIRS: bool = true;
    const FIXED: bool = true;

    #[inline(always)]
    unsafe fn madd(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let products = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), products))
        }
    }
    #[inline(always)]
    unsafe fn narrow(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's. Each half of the register is packed for itself.
        unsafe {
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed))
        }
    }
    #[inline(always)]
    unsafe fn couple(first: __m256, second: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let high = _mm256_slli_epi32::<16>(_mm256_cvtps_epi32(second));
            let pairs = _mm256_blend_epi16::<0b1010_1010>(_mm256_cvtps_epi32(first), high);
            _mm256_castsi256_ps(pairs)
        }
    }
    #[inline(always)]
    unsafe fn value(acc: __m256) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(acc)) }
    }
}

impl Kernel for Fixed512 {
    type S = Avx512;
    const PAIRS: bool = true;
    const FIXED: bool = true;

    #[inline(always)]
    unsafe fn madd(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let [acc, a, b] = [acc, a, b].map(|x| _mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_dpwssd_epi32(acc, a, b))
        }
    }
    #[inline(always)]
    unsafe fn narrow(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = [a, b].map(|x| _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
            let low = _mm512_castsi256_si512(a);
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(low, b))
        }
    }
    #[inline(always)]
    unsafe fn couple(first: __m512, second: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let low = _mm512_and_si512(_mm512_cvtps_epi32(first), _mm512_set1_epi32(0xffff));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(second));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
    #[inline(always)]
    unsafe fn value(acc: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(acc)) }
    }
}

impl Kernel for Bf16 {
    type S = Avx512;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn madd(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_dpbf16_ps(acc, pairs(a), pairs(b)) }
    }
    #[inline(always)]
    unsafe fn narrow(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's; both types are 64 bytes of any value. The first operand becomes the upper half.
        unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(b, a)) }
    }
}

/// The same bits.
#[inline(always)]
fn pairs(x: __m512) -> __m512bh {
    // SAFETY: both types are 64 bytes of any value.
    unsafe { std::mem::transmute::<__m512, __m512bh>(x) }
}

/// Pairs of values, then pairs of pairs, then halves of registers change places.
#[inline(always)]
unsafe fn transpose(square: &[[f32; 8]; 8], p: *mut f32, stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [_mm256_setzero_ps(); 8];
        for (row, values) in rows.iter_mut().zip(square) {
            *row = _mm256_loadu_ps(values.as_ptr());
        }
        let mut pairs = rows;
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // Of four rows each, the columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        let mut quads = rows;
        for i in [0, 4] {
            for j in 0..2 {
                let (a, b) = (pairs[i + j], pairs[i + j + 2]);
                quads[i + 2 * j] = _mm256_shuffle_ps::<0x44>(a, b);
                quads[i + 2 * j + 1] = _mm256_shuffle_ps::<0xEE>(a, b);
            }
        }
        for i in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]);
            _mm256_storeu_ps(p.add(i * stride), low);
            _mm256_storeu_ps(p.add((i + 4) * stride), high);
        }
    }
}
