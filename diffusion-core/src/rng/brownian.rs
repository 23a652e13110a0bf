//! Noise from a Brownian path over the noise levels.
//!
//! The path is torchsde's `BrownianInterval` with its `halfway_tree`, which k-diffusion and diffusers draw
//! from: a binary tree of intervals, each with its own seed, whose increments split at their middles.
//!
//! Source: Kidger et al., "Efficient and Accurate Gradients for Neural SDEs", 2021, section 4.

use candle_core::{DType, Device, Tensor};

use super::{NoiseSource, TorchRng};
use crate::error::{Error, Result};

/// One Brownian path an image, of which each step takes its part: a seed gives the same path however
/// the steps split it.
///
/// It equals diffusers' and k-diffusion's `BrownianTreeNoiseSampler` with the same seeds, up to the last
/// bits of an f32. Noise levels count in f32, and in whole millionths, as they do there.
///
/// # Example
/// ```
/// use diffusion_core::Device;
/// use diffusion_core::rng::{BrownianNoise, NoiseSource};
///
/// let mut noise = BrownianNoise::new(&[0, 1], &[4, 8, 8], &Device::Cpu, 0.03, 14.6);
/// assert_eq!(noise.noise(14.6, 9.0)?.dims(), [2, 4, 8, 8]);
/// # Ok::<(), diffusion_core::Error>(())
/// ```
pub struct BrownianNoise {
    paths: Vec<Path>,
    shape: Vec<usize>,
    device: Device,
}

impl BrownianNoise {
    /// One path for each of `seeds`, every one of `shape` (without the batch dimension), over the noise levels
    /// of a run.
    ///
    /// `sigma_min`, `sigma_max`: the lowest level above 0 and the highest of the run. They shape the path:
    /// another range is another path.
    pub fn new(
        seeds: &[u64],
        shape: &[usize],
        device: &Device,
        sigma_min: f64,
        sigma_max: f64,
    ) -> Self {
        let (mut low, mut high) = (single(sigma_min), single(sigma_max));
        if high < low {
            (low, high) = (high, low);
        }
        let path = |&seed: &u64| Path {
            seed,
            len: shape.iter().product(),
            low,
            high,
            known: None,
        };
        Self {
            paths: seeds.iter().map(path).collect(),
            shape: [&[seeds.len()], shape].concat(),
            device: device.clone(),
        }
    }
}

impl NoiseSource for BrownianNoise {
    /// The path's way from one noise level to another, by the root of their distance. The path stands still
    /// outside its range.
    ///
    /// # Shapes
    /// Returns `(seeds, shape...)`, f32, unit variance; zeros if the levels are equal.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a level or the range is not finite, [`Error::Tensor`] if the device cannot
    /// hold the noise.
    fn noise(&mut self, from: f64, to: f64) -> Result<Tensor> {
        let (from, to) = (single(from), single(to));
        if from == to {
            return Ok(Tensor::zeros(
                self.shape.as_slice(),
                DType::F32,
                &self.device,
            )?);
        }
        let scale = (to - from).abs().sqrt().recip();
        let mut values = Vec::with_capacity(self.shape.iter().product());
        for path in &mut self.paths {
            let (before, after) = path.ends(from, to)?;
            let increments = before.iter().zip(after).map(|(a, b)| b - a);
            values.extend(increments.map(|way| (way * scale) as f32));
        }
        Ok(Tensor::from_vec(
            values,
            self.shape.as_slice(),
            &self.device,
        )?)
    }
}

/// A Brownian motion of `len` numbers that is 0 at `low`.
struct Path {
    seed: u64,
    len: usize,
    low: f64,
    high: f64,
    /// The last two points that were asked for: the next step mostly begins at one of them.
    known: Option<[(f64, Vec<f64>); 2]>,
}

impl Path {
    /// The values at two noise levels.
    fn ends(&mut self, from: f64, to: f64) -> Result<(&[f64], &[f64])> {
        if ![from, to, self.low, self.high]
            .iter()
            .all(|x| x.is_finite())
        {
            let found = format!("{from} to {to} on a path of {} to {}", self.low, self.high);
            return Err(Error::argument("sigma", "finite noise levels", found));
        }
        let ends = [from, to].map(|sigma| {
            let place = millionths(sigma.clamp(self.low, self.high));
            let mut known = self.known.iter().flatten();
            let found = known.find(|(known, _)| *known == place).cloned();
            found.unwrap_or_else(|| (place, self.descend(place)))
        });
        let [(_, before), (_, after)] = self.known.insert(ends);
        Ok((before, after))
    }

    /// The value at `place`, a noise level of the range in whole millionths.
    ///
    /// It walks down the tree, from the whole range to the interval that ends there.
    fn descend(&self, place: f64) -> Vec<f64> {
        let (mut start, mut end) = (millionths(self.low), millionths(self.high));
        let deviation = (self.high - self.low).sqrt();
        let root = TorchRng::new(seed_of(self.seed, &[]).into()).randn(self.len);
        let mut increment: Vec<f64> = root.iter().map(|x| f64::from(*x) * deviation).collect();
        let mut value = vec![0.0; self.len];
        // The interval's place among those of its depth, counted from the left.
        let (mut number, mut depth) = (0u64, 0u64);
        while start < place && place < end {
            let middle = millionths(0.5 * (start + end));
            if middle <= start || end <= middle {
                // Levels so high that an f64 holds nothing between them.
                break;
            }
            let seed = seed_of(self.seed, &[number, depth]);
            let noise = TorchRng::new(seed.into()).randn(self.len);
            let share = (middle - start) / (end - start);
            let deviation = (share * (end - middle)).sqrt();
            let goes_left = place < middle;
            for ((increment, value), noise) in increment.iter_mut().zip(&mut value).zip(noise) {
                let left = share * *increment + deviation * f64::from(noise);
                if goes_left {
                    *increment = left;
                } else {
                    *increment -= left;
                    *value += left;
                }
            }
            if goes_left {
                end = middle;
            } else {
                start = middle;
            }
            number = (number << 1) | u64::from(!goes_left);
            depth += 1;
        }
        if place == end {
            value
                .iter_mut()
                .zip(increment)
                .for_each(|(value, way)| *value += way);
        }
        value
    }
}

/// The precision in which diffusers and k-diffusion hold noise levels.
fn single(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}

/// The nearest decimal of six places, the even one of two: Python's `round(x, 6)`.
fn millionths(x: f64) -> f64 {
    format!("{x:.6}").parse().unwrap_or(x)
}

fn seed_of(entropy: u64, spawn_key: &[u64]) -> u32 {
    let [seed] = seed_state(entropy, spawn_key);
    seed
}

/// The words of a pool, torchsde's choice.
const POOL: usize = 24;

/// numpy's `SeedSequence(entropy, spawn_key=spawn_key, pool_size=24).generate_state(N)`.
///
/// Source: O'Neill, "Developing a seed_seq Alternative", 2015.
fn seed_state<const N: usize>(entropy: u64, spawn_key: &[u64]) -> [u32; N] {
    let mut hash = Hash {
        constant: 0x43b0_d7e5,
        factor: 0x931e_8875,
    };
    // Entropy shorter than the pool ends in zeros, and the spawn key comes after.
    let mut pool = [0u32; POOL];
    pool.iter_mut()
        .zip(words(entropy))
        .for_each(|(slot, word)| *slot = word);
    pool.iter_mut().for_each(|slot| *slot = hash.next(*slot));
    for source in 0..POOL {
        for target in (0..POOL).filter(|target| *target != source) {
            pool[target] = mix(pool[target], hash.next(pool[source]));
        }
    }
    for word in spawn_key.iter().copied().flat_map(words) {
        pool.iter_mut()
            .for_each(|slot| *slot = mix(*slot, hash.next(word)));
    }
    let mut hash = Hash {
        constant: 0x8b51_f9dd,
        factor: 0x58f3_8ded,
    };
    std::array::from_fn(|i| hash.next(pool[i % POOL]))
}

/// A number's 32-bit words, the low one first; a high one of 0 is left out.
fn words(number: u64) -> impl Iterator<Item = u32> {
    let high = (number >> 32) as u32;
    std::iter::once(number as u32).chain((high != 0).then_some(high))
}

/// A hash whose constant changes with each use.
struct Hash {
    constant: u32,
    factor: u32,
}

impl Hash {
    fn next(&mut self, word: u32) -> u32 {
        let mixed = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.factor);
        let product = mixed.wrapping_mul(self.constant);
        product ^ (product >> 16)
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let sum = x
        .wrapping_mul(0xca01_f9dd)
        .wrapping_sub(y.wrapping_mul(0x4973_f715));
    sum ^ (sum >> 16)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    #[test]
    fn states_equal_numpy() -> Result<(), Box<dyn std::error::Error>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/brownian.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let rows = golden["seed_sequences"].as_array().ok_or("no rows")?;
        for row in rows {
            let entropy = row["entropy"].as_u64().ok_or("no entropy")?;
            let spawn_key: Vec<u64> = serde_json::from_value(row["spawn_key"].clone())?;
            let state: [u32; 4] = serde_json::from_value(row["state"].clone())?;
            assert_eq!(seed_state(entropy, &spawn_key), state, "{row}");
        }
        assert!(rows.len() >= 9);
        // Numbers of two words each.
        let state = seed_state((1 << 63) + 5, &[(1 << 33) + 1, 34]);
        assert_eq!(
            state,
            [3_290_158_342, 2_690_772_599, 2_231_921_687, 2_090_253_831]
        );
        Ok(())
    }

    #[test]
    fn decimals_round_as_in_python() {
        let rounded = [0.0078125, 0.0234375, 1.0000005, 2.5000035].map(millionths);
        assert_eq!(rounded, [0.007812, 0.023438, 1.000001, 2.500004]);
    }
}
