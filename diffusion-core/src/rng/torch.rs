//! PyTorch's stream of normal numbers on the CPU.

use std::f64::consts::PI;

use candle_core::{Device, Tensor};

use crate::error::Result;

const STATE_LEN: usize = 624;
const SHIFT: usize = 397;

/// The 32-bit Mersenne Twister MT19937.
///
/// Source: Matsumoto and Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed uniform
/// pseudo-random number generator", 1998.
#[derive(Clone)]
struct Mt19937 {
    state: [u32; STATE_LEN],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [0u32; STATE_LEN];
        state[0] = seed;
        for i in 1..STATE_LEN {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: STATE_LEN,
        }
    }

    fn refill(&mut self) {
        for i in 0..STATE_LEN {
            let bits =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE_LEN] & 0x7fff_ffff);
            let twist = if bits & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + SHIFT) % STATE_LEN] ^ (bits >> 1) ^ twist;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == STATE_LEN {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        (high << 32) | u64::from(self.next_u32())
    }
}

/// A stream of standard normal numbers: `torch.randn` with
/// `torch.Generator("cpu").manual_seed(seed)`, call for call.
///
/// PyTorch fills tensors of 16 and more elements by another rule than smaller ones; both are
/// followed, and so are its 32-bit seeds (the seed's upper half is ignored). Values agree to the last
/// bits of an f32: PyTorch's own differ that much between processors.
///
/// # Example
/// ```
/// let mut rng = diffusion_core::rng::TorchRng::new(0);
/// assert!((rng.randn(1)[0] - 1.540_996).abs() < 1e-6);
/// ```
#[derive(Clone)]
pub struct TorchRng {
    engine: Mt19937,
    /// The sine half of the last Box-Muller pair on the path for small tensors.
    spare: Option<f64>,
}

impl TorchRng {
    /// Starts the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            engine: Mt19937::new(seed as u32),
            spare: None,
        }
    }

    /// Draws `len` numbers as one `torch.randn` call of that many elements does.
    pub fn randn(&mut self, len: usize) -> Vec<f32> {
        if len < 16 {
            return (0..len).map(|_| self.serial_normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..len).map(|_| self.uniform_f32()).collect();
        let (blocks, tail) = values.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(box_muller_16);
        if !tail.is_empty() {
            // The last 16 values are drawn anew, over some that are finished already.
            let last = &mut values[len - 16..];
            last.fill_with(|| self.uniform_f32());
            if let Ok(block) = last.try_into() {
                box_muller_16(block);
            }
        }
        values
    }

    /// Draws a tensor of `shape` as one `torch.randn(shape)` does.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device cannot hold it.
    pub fn randn_tensor(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let values = self.randn(shape.iter().product());
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next_u32() & ((1 << 24) - 1)) as f32 / (1 << 24) as f32
    }

    fn uniform_f64(&mut self) -> f64 {
        (self.engine.next_u64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn serial_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = 2.0 * PI * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: the first eight
/// uniforms give radii, the last eight angles.
fn box_muller_16(block: &mut [f32; 16]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * f64::from(1.0 - *a).ln()).sqrt();
        let angle = 2.0 * PI * f64::from(*b);
        *a = (radius * angle.cos()) as f32;
        *b = (radius * angle.sin()) as f32;
    }
}
