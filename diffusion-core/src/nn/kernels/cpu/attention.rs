//! Attention without its matrix of scores: for some queries the keys are gone through once, and what was summed so
//! far is scaled whenever a larger score turns up.
//!
//! Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022, algorithm 1.

use super::buffer::Buffer;
use super::dispatch::{self, Isa, Precision, Work};
use super::math;
use super::pack::{Block, Values, pack, pair, units};
use super::product::{MAX_ROWS, tile};
use super::simd::{Kernel, Part, Simd};
use super::threads::{Shared, for_each};

/// Queries of a task.
const QUERIES: usize = 48;
/// Panels of keys whose scores are worked off at once; a panel is two vectors wide.
const PANELS: usize = 8;

/// Queries, keys and values: `(batch, tokens, heads * width)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    /// Whether a query sees the keys up to its own position alone.
    pub(crate) is_causal: bool,
    /// Keys that none sees; the first key must not be one.
    pub(crate) unseen: &'a [usize],
    pub(crate) precision: Precision,
}

/// Sizes of what is packed for a head of an image.
#[derive(Clone, Copy)]
struct Layout {
    queries: usize,
    keys: usize,
    /// Keys of a panel, and of all panels that are worked off at once.
    panel: usize,
    block: usize,
    /// Values of all packed keys, of a block of packed values, and of all of them.
    keys_len: usize,
    block_len: usize,
    values_len: usize,
}

impl Layout {
    fn new(isa: Isa, x: &Attention<'_>) -> Self {
        let channels = x.heads * x.width;
        let tokens = |values: &[f32]| values.len() / (x.batch * channels).max(1);
        let keys = tokens(x.k);
        let lanes = isa.lanes();
        let (panel, block) = (2 * lanes, 2 * lanes * PANELS);
        let block_len = x.precision.units(block) * x.width.next_multiple_of(lanes);
        Self {
            queries: tokens(x.q),
            keys,
            panel,
            block,
            keys_len: keys.next_multiple_of(panel) * x.precision.units(x.width),
            block_len,
            values_len: keys.div_ceil(block) * block_len,
        }
    }
}

/// Writes `softmax(q k^T / sqrt(width)) v`, of the shape of `q`.
///
/// # Panics
/// If lengths do not fit.
pub(crate) fn attention(x: Attention<'_>, out: &mut [f32]) {
    attention_on(dispatch::isa(), x, out);
}

fn attention_on(isa: Isa, mut x: Attention<'_>, out: &mut [f32]) {
    x.precision = match isa.available(x.precision) {
        Precision::Fixed => Precision::F32,
        precision => precision,
    };
    let layout = Layout::new(isa, &x);
    let channels = x.heads * x.width;
    assert_eq!(x.q.len(), x.batch * layout.queries * channels);
    assert_eq!(x.k.len(), x.batch * layout.keys * channels);
    assert_eq!(x.v.len(), x.k.len());
    assert_eq!(out.len(), x.q.len());
    let planes = x.batch * x.heads;
    let (mut keys, mut values) = (
        Buffer::new(planes * layout.keys_len),
        Buffer::new(planes * layout.values_len),
    );
    let (keys, values) = (Shared::new(keys.as_mut()), Shared::new(values.as_mut()));
    for_each(planes, |plane| {
        // SAFETY: planes that are there, each packed by one task.
        unsafe {
            let (keys, values) = (
                keys.at(plane * layout.keys_len),
                values.at(plane * layout.values_len),
            );
            dispatch::run(
                isa,
                x.precision,
                Pack {
                    x: &x,
                    layout,
                    plane,
                    keys,
                    values,
                },
            );
        }
    });
    let out = Shared::new(out);
    let blocks = layout.queries.div_ceil(QUERIES);
    for_each(planes * blocks, |i| {
        let (plane, first) = (i / blocks, i % blocks * QUERIES);
        let count = QUERIES.min(layout.queries - first);
        // SAFETY: planes that are packed above; each query is written by one task.
        unsafe {
            let (keys, values) = (
                keys.at(plane * layout.keys_len),
                values.at(plane * layout.values_len),
            );
            let task = Attend {
                x: &x,
                layout,
                plane,
                first,
                count,
                keys,
                values,
                out,
            };
            dispatch::run(isa, x.precision, task);
        }
    });
}

impl Attention<'_> {
    /// The first value of a token, of `tokens`, in a plane.
    fn at(&self, plane: usize, token: usize, tokens: usize) -> usize {
        let (image, head) = (plane / self.heads, plane % self.heads);
        ((image * tokens + token) * self.heads + head) * self.width
    }
}

/// Packs keys and values of a plane.
struct Pack<'a> {
    x: &'a Attention<'a>,
    layout: Layout,
    plane: usize,
    keys: *mut f32,
    values: *mut f32,
}

impl Work for Pack<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Self {
            x, layout, plane, ..
        } = self;
        let stride = x.heads * x.width;
        for first in (0..layout.keys).step_by(layout.panel) {
            let block = Block {
                start: x.at(plane, first, layout.keys),
                stride,
                rows: layout.panel.min(layout.keys - first),
                elements: x.width,
            };
            // SAFETY: keys of the plane; there is room for all panels.
            unsafe {
                let panel = self.keys.add(first * units::<K>(x.width));
                pack::<K>(Values::F32(x.k), block, layout.panel, panel);
            }
        }
        let columns = x.width.next_multiple_of(K::S::LANES);
        let per_unit = if K::PAIRS { 2 } else { 1 };
        for first in (0..layout.keys).step_by(layout.block) {
            // SAFETY: values of the plane; there is room for whole blocks.
            unsafe {
                let mut panel = self.values.add(first / layout.block * layout.block_len);
                for (column, vectors) in panels(columns / K::S::LANES, K::S::LANES) {
                    let wide = vectors * K::S::LANES;
                    for unit in 0..units::<K>(layout.block) {
                        let value = |i: usize, j: usize| {
                            let (key, column) = (first + unit * per_unit + i, column + j);
                            match key < layout.keys && column < x.width {
                                true => *x.v.get_unchecked(x.at(plane, key, layout.keys) + column),
                                false => 0.0,
                            }
                        };
                        for j in 0..wide {
                            let unit = match K::PAIRS {
                                true => pair(value(0, j), value(1, j)),
                                false => value(0, j),
                            };
                            panel.add(j).write(unit);
                        }
                        panel = panel.add(wide);
                    }
                }
            }
        }
    }
}

/// Panels of one to three vectors, by their first column: of two, and one of three where one would be left.
fn panels(vectors: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    let last = match vectors {
        1 => 1,
        odd if odd % 2 == 1 => 3,
        _ => 2,
    };
    let twos = (vectors - last) / 2;
    (0..=twos).map(move |i| (2 * i * lanes, if i == twos { last } else { 2 }))
}

/// Some queries of a plane.
struct Attend<'a> {
    x: &'a Attention<'a>,
    layout: Layout,
    plane: usize,
    first: usize,
    count: usize,
    keys: *const f32,
    values: *const f32,
    out: Shared,
}

impl Work for Attend<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Self {
            x, layout, count, ..
        } = self;
        let lanes = K::S::LANES;
        let width_units = units::<K>(x.width);
        let columns = x.width.next_multiple_of(lanes);
        // Rows beyond the last query are worked on, too, and not written.
        let all_rows = QUERIES + MAX_ROWS;
        let mut queries = Buffer::new(QUERIES * width_units);
        self.scale_queries::<K>(queries.as_mut());
        let mut scores = Buffer::new(PANELS * all_rows * layout.panel);
        let mut sums = Buffer::new(all_rows * columns);
        sums.as_mut().fill(0.0);
        let (queries, scores, sums) = (
            queries.as_ref().as_ptr(),
            scores.as_mut().as_mut_ptr(),
            sums.as_mut().as_mut_ptr(),
        );
        let mut state = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
        let last_seen = if x.is_causal {
            self.first + count
        } else {
            layout.keys
        };
        for first in (0..layout.keys.min(last_seen)).step_by(layout.block) {
            let keys = layout.block.min(layout.keys - first);
            let num_panels = keys.div_ceil(layout.panel);
            // SAFETY: buffers of the sizes above; panels that are packed.
            unsafe {
                for panel in 0..num_panels {
                    let packed = self.keys.add((first + panel * layout.panel) * width_units);
                    let scores = scores.add(panel * all_rows * layout.panel);
                    let rows = K::S::ROWS[1];
                    for row in (0..count).step_by(rows) {
                        let pointers =
                            pointers(row, rows, count, |row| queries.add(row * width_units));
                        let scores = scores.add(row * layout.panel);
                        tile::<K>(2, &[pointers], width_units, packed, scores, true);
                    }
                }
                for (row, state) in state.iter_mut().enumerate().take(count) {
                    let row_of = |panel: usize| scores.add((panel * all_rows + row) * layout.panel);
                    self.hide(first, keys, self.first + row, &row_of, num_panels);
                    let factor = weigh::<K>(num_panels, &row_of, state);
                    if factor != 1.0 {
                        for (column, vectors) in panels(columns / lanes, lanes) {
                            let row = sums.add(all_rows * column + row * vectors * lanes);
                            for at in (0..vectors * lanes).step_by(lanes) {
                                let scaled =
                                    K::S::mul(K::S::load(row.add(at)), K::S::splat(factor));
                                K::S::store(row.add(at), scaled);
                            }
                        }
                    }
                }
                let mut packed = self.values.add(first / layout.block * layout.block_len);
                let panel_units = units::<K>(layout.panel);
                for (column, vectors) in panels(columns / lanes, lanes) {
                    let rows = K::S::ROWS[vectors - 1];
                    for row in (0..count).step_by(rows) {
                        let mut taps = [[std::ptr::null(); MAX_ROWS]; PANELS];
                        for (panel, tap) in taps.iter_mut().enumerate().take(num_panels) {
                            *tap = pointers(row, rows, count, |row| {
                                scores
                                    .add((panel * all_rows + row) * layout.panel)
                                    .cast_const()
                            });
                        }
                        let sums = sums.add(all_rows * column + row * vectors * lanes);
                        tile::<K>(
                            vectors,
                            &taps[..num_panels],
                            panel_units,
                            packed,
                            sums,
                            false,
                        );
                    }
                    packed = packed.add(units::<K>(layout.block) * vectors * lanes);
                }
            }
        }
        for (row, (_, total)) in state.iter().enumerate().take(count) {
            let at = x.at(self.plane, self.first + row, layout.queries);
            for (column, vectors) in panels(columns / lanes, lanes) {
                // SAFETY: sums of the row; columns that are there.
                unsafe {
                    let sums = sums.add(all_rows * column + row * vectors * lanes);
                    for i in (0..vectors * lanes).step_by(lanes) {
                        if column + i < x.width {
                            let y = K::S::div(K::S::load(sums.add(i)), K::S::splat(*total));
                            let part = Part(lanes.min(x.width - column - i));
                            part.store::<K::S>(self.out.at(at + column + i), y);
                        }
                    }
                }
            }
        }
    }
}

/// Pointers to some rows, of which those beyond `count` repeat the last.
#[inline(always)]
fn pointers(
    first: usize,
    rows: usize,
    count: usize,
    at: impl Fn(usize) -> *const f32,
) -> [*const f32; MAX_ROWS] {
    let mut pointers = [std::ptr::null(); MAX_ROWS];
    for (i, pointer) in pointers.iter_mut().enumerate().take(rows) {
        *pointer = at((first + i).min(count - 1));
    }
    pointers
}

impl Attend<'_> {
    /// Queries over the root of their width, as units.
    #[inline(always)]
    fn scale_queries<K: Kernel>(&self, queries: &mut [f32]) {
        let (x, lanes, units) = (self.x, K::S::LANES, units::<K>(self.x.width));
        let per_unit = if K::PAIRS { 2 } else { 1 };
        for row in 0..self.count {
            let at = x.at(self.plane, self.first + row, self.layout.queries);
            let query = &x.q[at..at + x.width];
            let out = &mut queries[row * units..(row + 1) * units];
            for unit in (0..units).step_by(lanes) {
                // SAFETY: the processor's vectors; parts of the query and of its units.
                unsafe {
                    let scale = K::S::splat((x.width as f32).sqrt().recip());
                    let mut scaled = [scale; 2];
                    for (i, scaled) in scaled.iter_mut().enumerate().take(per_unit) {
                        let at = unit * per_unit + i * lanes;
                        let part = Part(lanes.min(x.width.saturating_sub(at)));
                        let values = part.load::<K::S>(query.as_ptr().wrapping_add(at));
                        *scaled = K::S::mul(values, scale);
                    }
                    let scaled = match K::PAIRS {
                        true => K::narrow(scaled[0], scaled[1]),
                        false => scaled[0],
                    };
                    Part(lanes.min(units - unit)).store::<K::S>(out.as_mut_ptr().add(unit), scaled);
                }
            }
        }
    }

    /// Takes away scores of keys that are not there or not seen.
    #[inline(always)]
    unsafe fn hide(
        &self,
        first: usize,
        keys: usize,
        query: usize,
        row_of: &impl Fn(usize) -> *mut f32,
        num_panels: usize,
    ) {
        let panel = self.layout.panel;
        let seen = match self.x.is_causal {
            true => keys.min((query + 1).saturating_sub(first)),
            false => keys,
        };
        let unseen = self
            .x
            .unseen
            .iter()
            .filter_map(|key| key.checked_sub(first));
        for key in (seen..num_panels * panel).chain(unseen.filter(|key| *key < keys)) {
            // SAFETY: a score of this row.
            unsafe {
                row_of(key / panel)
                    .add(key % panel)
                    .write(f32::NEG_INFINITY)
            };
        }
    }
}

/// Turns scores of a query into weights, of units. Returns what sums so far must be multiplied by.
///
/// # Safety
/// There must be `num_panels` panels of scores.
#[inline(always)]
unsafe fn weigh<K: Kernel>(
    num_panels: usize,
    row_of: &impl Fn(usize) -> *mut f32,
    state: &mut (f32, f32),
) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let lanes = K::S::LANES;
        let mut largest = K::S::splat(f32::NEG_INFINITY);
        for panel in 0..num_panels {
            let row = row_of(panel);
            let both = K::S::max(K::S::load(row), K::S::load(row.add(lanes)));
            largest = K::S::max(largest, both);
        }
        let (before, total) = *state;
        let largest = before.max(K::S::largest(largest));
        let minus = K::S::splat(-largest);
        let mut sum = K::S::splat(0.0);
        for panel in 0..num_panels {
            let row = row_of(panel);
            let below = K::S::add(K::S::load(row), minus);
            let below_too = K::S::add(K::S::load(row.add(lanes)), minus);
            let (low, high) = match K::PAIRS {
                true => (
                    math::rough_exp::<K::S>(below),
                    math::rough_exp::<K::S>(below_too),
                ),
                false => (math::exp::<K::S>(below), math::exp::<K::S>(below_too)),
            };
            sum = K::S::add(sum, K::S::add(low, high));
            match K::PAIRS {
                true => K::S::store(row, K::narrow(low, high)),
                false => {
                    K::S::store(row, low);
                    K::S::store(row.add(lanes), high);
                }
            }
        }
        let factor = if before == largest {
            1.0
        } else {
            (before - largest).exp()
        };
        *state = (largest, total * factor + K::S::sum(sum));
        factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::TorchRng;

    fn by_definition(x: &Attention<'_>, queries: usize, keys: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for (image, query, head) in (0..x.batch).flat_map(|image| {
            (0..queries).flat_map(move |query| (0..x.heads).map(move |head| (image, query, head)))
        }) {
            let of = |values: &[f32], token: usize, tokens: usize, i: usize| {
                f64::from(values[((image * tokens + token) * x.heads + head) * x.width + i])
            };
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let product =
                        (0..x.width).map(|i| of(x.q, query, queries, i) * of(x.k, key, keys, i));
                    let is_later = x.is_causal && key > query;
                    let is_seen = !is_later && !x.unseen.contains(&key);
                    let score = product.sum::<f64>() / (x.width as f64).sqrt();
                    if is_seen { score } else { f64::NEG_INFINITY }
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..x.width).map(|i| {
                let found = weights
                    .iter()
                    .enumerate()
                    .map(|(key, w)| w * of(x.v, key, keys, i));
                found.sum::<f64>() / total
            }));
        }
        out
    }

    #[test]
    fn any_shape_on_any_processor() {
        for (batch, heads, queries, keys, width, is_causal, unseen) in [
            (1, 1, 1, 1, 1, false, &[][..]),
            (2, 3, 50, 77, 40, false, &[]),
            (1, 2, 77, 77, 64, true, &[3, 76]),
            (1, 1, 300, 290, 24, true, &[]),
            (1, 2, 97, 601, 80, false, &[]),
            (1, 1, 13, 33, 161, false, &[]),
        ] {
            let mut rng = TorchRng::new(keys as u64);
            let mut random = |tokens: usize, scale: f32| -> Vec<f32> {
                let values = rng.randn(batch * tokens * heads * width);
                values.into_iter().map(|x| x * scale).collect()
            };
            // Scores far apart, so that sums are scaled on the way.
            let (q, k, v) = (random(queries, 3.0), random(keys, 1.0), random(keys, 1.0));
            for isa in Isa::all() {
                for (precision, tolerance) in [(Precision::F32, 2e-6), (Precision::Bf16, 3e-2)] {
                    let x = Attention {
                        q: &q,
                        k: &k,
                        v: &v,
                        batch,
                        heads,
                        width,
                        is_causal,
                        unseen,
                        precision,
                    };
                    let mut out = vec![f32::NAN; q.len()];
                    attention_on(isa, x, &mut out);
                    for (out, expected) in out.iter().zip(by_definition(&x, queries, keys)) {
                        let apart = (f64::from(*out) - expected).abs();
                        assert!(
                            apart <= tolerance * 4.0,
                            "{isa:?} {precision:?} {keys}: {out}, {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let mut values = vec![1.0; 4 * 8];
        values[9] = f32::NAN;
        let ones = vec![1.0; 4 * 8];
        let x = Attention {
            q: &values,
            k: &ones,
            v: &ones,
            batch: 1,
            heads: 1,
            width: 8,
            is_causal: false,
            unseen: &[],
            precision: Precision::F32,
        };
        let mut out = vec![0.0; 4 * 8];
        attention(x, &mut out);
        assert!(out[..8].iter().all(|x| *x == 1.0) && out[8..16].iter().all(|x| x.is_nan()));
    }
}
