//! The processor's own peak at f32, measured: multiply-adds between registers, which wait for no memory. The
//! yardstick of kernels, and of how fast a shared machine is at the moment.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Multiply-adds of each chain in one burst, some microseconds.
const ROUNDS: usize = 4096;
/// Each chain is multiplied by this and has the rest to 1 added, so that it stays near 1 forever.
const FACTOR: f32 = 0.75;

/// Floating-point operations a second of `threads` threads together, two for a multiply-add, over about `time`.
pub fn peak_flops(threads: usize, time: Duration) -> f64 {
    let barrier = Barrier::new(threads);
    let work = || {
        barrier.wait();
        let start = Instant::now();
        let mut operations = 0;
        while start.elapsed() < time {
            operations += burst();
        }
        operations as f64 / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // No worker panics: each only counts.
        workers.into_iter().filter_map(|w| w.join().ok()).sum()
    })
}

/// Runs the widest multiply-adds of this processor and says how many operations they were.
fn burst() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            return unsafe { avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { avx2() };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the processor has NEON.
        return unsafe { neon() };
    }
    plain()
}

/// A burst in vectors of one instruction set. Chains: enough to cover the latency of the processor's multiply-add
/// units, few enough to stay in registers.
macro_rules! burst {
    ($name:ident, $feature:literal, $lanes:literal, $chains:literal, $arch:ident::{$set:ident, $fma:ident}) => {
        #[target_feature(enable = $feature)]
        fn $name() -> usize {
            use std::arch::$arch::{$fma, $set};
            let (factor, term) = ($set(black_box(FACTOR)), $set(black_box(1.0 - FACTOR)));
            let mut chains = [$set(black_box(0.5)); $chains];
            for _ in 0..ROUNDS {
                for chain in &mut chains {
                    *chain = $fma(*chain, factor, term);
                }
            }
            black_box(chains);
            2 * ROUNDS * $chains * $lanes
        }
    };
}

#[cfg(target_arch = "x86_64")]
burst!(avx512, "avx512f", 16, 12, x86_64::{_mm512_set1_ps, _mm512_fmadd_ps});
#[cfg(target_arch = "x86_64")]
burst!(avx2, "avx2,fma", 8, 12, x86_64::{_mm256_set1_ps, _mm256_fmadd_ps});
// Its addend comes first, which changes where the chains converge and nothing else.
#[cfg(target_arch = "aarch64")]
burst!(neon, "neon", 4, 16, aarch64::{vdupq_n_f32, vfmaq_f32});

/// A burst in what every processor of the target has.
fn plain() -> usize {
    let (factor, term) = (black_box(FACTOR), black_box(1.0 - FACTOR));
    let mut chains = [black_box(0.5f32); 32];
    for _ in 0..ROUNDS {
        for chain in &mut chains {
            *chain = *chain * factor + term;
        }
    }
    black_box(chains);
    2 * ROUNDS * chains.len()
}
