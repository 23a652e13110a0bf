//! Finds out what the processor has, and runs kernels with it.

use std::sync::OnceLock;

use super::pack::portion;
#[cfg(test)]
use super::simd::PortablePairs;
use super::simd::{F32, Kernel, Portable};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Bf16, Fixed256, Fixed512};

/// The numbers that matrix products multiply. Sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16 where the processor multiplies them, else what comes nearest: [`available`](Isa::available).
    Bf16,
    /// Whole numbers of 16 bits with a scale for each row.
    Fixed,
}

impl Precision {
    /// Units of so many elements: of one f32, or of two of 16 bits.
    pub(super) const fn units(self, elements: usize) -> usize {
        match self {
            Self::F32 => elements,
            Self::Bf16 | Self::Fixed => elements.div_ceil(2),
        }
    }

    /// The length of a row of so many elements: its units, and before each portion of them its scale.
    pub(super) const fn row(self, elements: usize) -> usize {
        let units = self.units(elements);
        match self {
            Self::F32 | Self::Bf16 => units,
            Self::Fixed => units + units.div_ceil(portion(units, true)),
        }
    }
}

/// The kinds of processors that kernels differ for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// And VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Arrays of the shape of AVX-512's registers.
    #[cfg(test)]
    Wide,
}

impl Isa {
    /// Values in a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 => 16,
            #[cfg(test)]
            Self::Wide => 16,
        }
    }

    /// What matrix products multiply there, where numbers of such precision are asked for.
    pub(super) fn available(self, precision: Precision) -> Precision {
        match (self, precision) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Bf16, Precision::Bf16) => Precision::Bf16,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Bf16, Precision::Fixed) => Precision::Fixed,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2 | Self::Avx512Vnni, Precision::Bf16 | Precision::Fixed) => Precision::Fixed,
            #[cfg(test)]
            (Self::Wide, Precision::Bf16) => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// All that run on this machine.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let all = [
            Self::Portable,
            Self::Wide,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16,
        ];
        let runs = |isa: &Self| *isa <= self::isa() || *isa == Self::Wide;
        all.into_iter().filter(runs).collect()
    }
}

/// This machine's.
pub(super) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let has_avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let has_vnni = has!("avx512f") && has!("avx512vnni");
            return match has_avx2 {
                true if has_vnni && has!("avx512bf16") => Isa::Avx512Bf16,
                true if has_vnni => Isa::Avx512Vnni,
                true if has!("avx512f") => Isa::Avx512,
                true => Isa::Avx2,
                false => Isa::Portable,
            };
        }
        #[allow(unreachable_code, reason = "on x86-64")]
        Isa::Portable
    })
}

/// Something to run with the processor's vectors.
pub(super) trait Work {
    /// Must be inlined: only the functions below have the processor's features.
    unsafe fn run<K: Kernel>(self);
}

/// Runs it.
///
/// # Safety
/// Of `work`, and the processor must have what `isa` names.
pub(super) unsafe fn run(isa: Isa, precision: Precision, work: impl Work) {
    // SAFETY: the caller's.
    unsafe {
        match (isa, precision) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Precision::Bf16) => on_bf16(work),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Vnni | Isa::Avx512Bf16, Precision::Fixed) => on_fixed_512(work),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, _) => on_avx512(work),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Precision::Fixed) => on_fixed_256(work),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => on_avx2(work),
            #[cfg(test)]
            (Isa::Wide, Precision::Bf16) => work.run::<PortablePairs>(),
            #[cfg(test)]
            (Isa::Wide, _) => work.run::<F32<Portable<16>>>(),
            (Isa::Portable, _) => work.run::<F32<Portable<4>>>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_avx2(work: impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<F32<Avx2>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_fixed_256(work: impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<Fixed256>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vnni")]
unsafe fn on_fixed_512(work: impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<Fixed512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f")]
unsafe fn on_avx512(work: impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<F32<Avx512>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bf16")]
unsafe fn on_bf16(work: impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<Bf16>() }
}
