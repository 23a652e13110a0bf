//! Matrix products: the sum over units of rows, which may be the patches of a picture, times packed columns.
//!
//! The order of a sum depends on its length alone: not on threads, nor on the other rows and columns.

use super::buffer::Buffer;
use super::dispatch::{self, Isa, Precision, Work};
use super::math;
use super::pack::{BLOCK, Block, Values, pack_panel, portion, units};
use super::simd::{Kernel, Part, Simd};
use super::threads::{Shared, for_each};

/// The most rows of a tile.
pub(super) const MAX_ROWS: usize = 12;
/// The most taps that are summed in one go.
const MAX_TAPS: usize = 9;
/// Rows of a task. Packing is done once for them.
const CHUNK: usize = 1020;

/// Rows of the left matrix; each is some stretches of memory ("taps").
pub(super) trait Rows: Copy + Sync + Send {
    /// What is worked out once for a row.
    type Position: Copy;

    fn position(&self, row: usize) -> Self::Position;

    /// Where a tap begins.
    ///
    /// # Safety
    /// The position must be one of a row that is there.
    unsafe fn point(&self, position: Self::Position, tap: usize) -> *const f32;
}

/// What is done with a product's sums.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// Added to each row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to each element.
    pub(crate) add: Option<&'a [f32]>,
    /// Whether it is added to what is there already.
    pub(crate) accumulates: bool,
    /// Whether the weights are twice as many, and what the second half makes, through GELU, multiplies what the
    /// first one makes.
    pub(crate) gated: bool,
}

/// A product and where it goes.
pub(super) struct Product<'a, R> {
    pub(super) rows: R,
    pub(super) num_rows: usize,
    pub(super) taps: usize,
    /// Elements of a tap.
    pub(super) channels: usize,
    /// `(outputs, taps * channels)`.
    pub(super) weight: Values<'a>,
    pub(super) outputs: usize,
    pub(super) epilogue: Epilogue<'a>,
    pub(super) precision: Precision,
    pub(super) isa: Isa,
}

impl<R: Rows> Product<'_, R> {
    /// Writes `(rows, outputs)`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let Self {
            num_rows, outputs, ..
        } = *self;
        let halves = if self.epilogue.gated { 2 } else { 1 };
        assert_eq!(out.len(), num_rows * outputs);
        assert_eq!(
            self.weight.len(),
            halves * outputs * self.taps * self.channels
        );
        assert!(
            self.epilogue
                .bias
                .is_none_or(|bias| bias.len() == halves * outputs)
        );
        assert!(self.epilogue.add.is_none_or(|add| add.len() == out.len()));
        let panel = 2 * self.isa.lanes();
        let panels = outputs.div_ceil(panel);
        let chunk = CHUNK.min(num_rows.next_multiple_of(MAX_ROWS));
        let out = Shared::new(out);
        for_each(num_rows.div_ceil(chunk.max(1)) * panels, |i| {
            let task = Task {
                product: self,
                first_row: i / panels * chunk,
                rows: chunk.min(num_rows - i / panels * chunk),
                first_output: i % panels * panel,
                out,
            };
            // SAFETY: tasks are parts of the product that do not overlap; lengths are checked above.
            unsafe { dispatch::run(self.isa, self.precision, task) };
        });
    }
}

struct Task<'a, R> {
    product: &'a Product<'a, R>,
    first_row: usize,
    rows: usize,
    first_output: usize,
    out: Shared,
}

impl<R: Rows> Work for Task<'_, R> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Self {
            product,
            first_row,
            rows,
            first_output,
            ..
        } = self;
        let lanes = K::S::LANES;
        let outputs = (2 * lanes).min(product.outputs - first_output);
        let vectors = outputs.div_ceil(lanes);
        let columns = vectors * lanes;
        let positions: Vec<R::Position> = (first_row..first_row + rows)
            .map(|row| product.rows.position(row))
            .collect();
        let len = (rows + MAX_ROWS) * columns;
        let mut sums = Buffer::new(len);
        let sums = sums.as_mut().as_mut_ptr();
        // SAFETY: the buffers are as large as the sums.
        unsafe {
            self.sum::<K>(&positions, first_output, outputs, vectors, sums);
            let mut gates = Buffer::new(if product.epilogue.gated { len } else { 0 });
            let gates = gates.as_mut().as_mut_ptr();
            if product.epilogue.gated {
                let first = product.outputs + first_output;
                self.sum::<K>(&positions, first, outputs, vectors, gates);
            }
            for row in 0..rows {
                for column in (0..columns).step_by(lanes) {
                    let at = row * columns + column;
                    let part = Part(lanes.min(outputs - column));
                    self.finish::<K>(row, column, part, sums.add(at), gates.wrapping_add(at));
                }
            }
        }
    }
}

impl<R: Rows> Task<'_, R> {
    /// Sums of all rows and of some columns, row by row.
    #[inline(always)]
    unsafe fn sum<K: Kernel>(
        &self,
        positions: &[R::Position],
        first: usize,
        outputs: usize,
        vectors: usize,
        sums: *mut f32,
    ) {
        let Product {
            taps,
            channels,
            weight,
            ..
        } = *self.product;
        let rows = &self.product.rows;
        let (units, columns) = (units::<K>(channels), vectors * K::S::LANES);
        let per_unit = if K::PAIRS { 2 } else { 1 };
        let portion = portion(units, K::FIXED);
        // Whole numbers have their scales before them, and are f32 first.
        let scales = usize::from(K::FIXED);
        let taps_at_once = (BLOCK / (portion << scales)).clamp(1, MAX_TAPS);
        let len = (taps_at_once + scales) * (portion + scales) * columns;
        let mut block = Buffer::new(len);
        let block = block.as_mut().as_mut_ptr();
        let tile_rows = K::S::ROWS[vectors - 1];
        let mut is_first = true;
        for tap in (0..taps).step_by(taps_at_once) {
            let taps = taps_at_once.min(taps - tap);
            for unit in (0..units).step_by(portion) {
                let len = portion.min(units - unit);
                let panel = (len + scales) * columns;
                let stride = self.product.taps * channels;
                for i in 0..taps {
                    let part = Block {
                        start: first * stride + (tap + i) * channels + unit * per_unit,
                        stride,
                        rows: outputs,
                        elements: (len * per_unit).min(channels - unit * per_unit),
                    };
                    // SAFETY: a part of the weights, as long as checked.
                    unsafe { pack_panel::<K>(weight, part, columns, block.add(i * panel)) };
                }
                let offset = unit + scales * (unit / portion);
                for row in (0..positions.len()).step_by(tile_rows) {
                    let mut pointers = [[std::ptr::null(); MAX_ROWS]; MAX_TAPS];
                    for (i, pointers) in pointers.iter_mut().enumerate().take(taps) {
                        for (j, pointer) in pointers.iter_mut().enumerate().take(tile_rows) {
                            // Rows beyond the last repeat it.
                            let position = positions[(row + j).min(positions.len() - 1)];
                            // SAFETY: a row's position, and units within its tap.
                            *pointer = unsafe { rows.point(position, tap + i).add(offset) };
                        }
                    }
                    // SAFETY: sums have room for whole tiles, the block is packed above.
                    unsafe {
                        let sums = sums.add(row * columns);
                        tile::<K>(vectors, &pointers[..taps], len, block, sums, is_first);
                    }
                }
                is_first = false;
            }
        }
    }

    /// One vector of sums, or the first part of one, to where it goes.
    #[inline(always)]
    unsafe fn finish<K: Kernel>(
        &self,
        row: usize,
        column: usize,
        part: Part,
        sums: *const f32,
        gates: *const f32,
    ) {
        let Product {
            outputs, epilogue, ..
        } = *self.product;
        let column = self.first_output + column;
        let at = (self.first_row + row) * outputs + column;
        // SAFETY: indices are those of sums that are there; what is beyond the last column is not touched.
        unsafe {
            let mut y = K::S::load(sums);
            if let Some(bias) = epilogue.bias {
                y = K::S::add(y, part.load::<K::S>(bias.as_ptr().add(column)));
            }
            if epilogue.gated {
                let mut gate = K::S::load(gates);
                if let Some(bias) = epilogue.bias {
                    gate = K::S::add(gate, part.load::<K::S>(bias.as_ptr().add(outputs + column)));
                }
                y = K::S::mul(y, math::gelu::<K::S>(gate));
            }
            if let Some(add) = epilogue.add {
                y = K::S::add(y, part.load::<K::S>(add.as_ptr().add(at)));
            }
            let out = self.out.at(at);
            if epilogue.accumulates {
                y = K::S::add(y, part.load::<K::S>(out));
            }
            part.store::<K::S>(out, y);
        }
    }
}

/// Adds the products of some stretches of rows and a packed block to the sums, of one to three vectors' width, or
/// writes them.
///
/// # Safety
/// There must be `S::ROWS` of that width of pointers in each stretch, to `units` units each; so many rows of sums; and
/// a block of `taps.len() * units` rows of that width.
#[inline(always)]
pub(super) unsafe fn tile<K: Kernel>(
    vectors: usize,
    taps: &[[*const f32; MAX_ROWS]],
    units: usize,
    block: *const f32,
    sums: *mut f32,
    is_first: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        match (vectors, K::S::ROWS[vectors - 1]) {
            (1, 12) => tile_of::<K, 12, 1>(taps, units, block, sums, is_first),
            (1, _) => tile_of::<K, 8, 1>(taps, units, block, sums, is_first),
            (2, 12) => tile_of::<K, 12, 2>(taps, units, block, sums, is_first),
            (2, 6) => tile_of::<K, 6, 2>(taps, units, block, sums, is_first),
            (2, _) => tile_of::<K, 4, 2>(taps, units, block, sums, is_first),
            (_, 8) => tile_of::<K, 8, 3>(taps, units, block, sums, is_first),
            _ => tile_of::<K, 3, 3>(taps, units, block, sums, is_first),
        }
    }
}

#[inline(always)]
unsafe fn tile_of<K: Kernel, const ROWS: usize, const VECTORS: usize>(
    taps: &[[*const f32; MAX_ROWS]],
    units: usize,
    mut block: *const f32,
    sums: *mut f32,
    is_first: bool,
) {
    let lanes = K::S::LANES;
    if K::FIXED {
        // SAFETY: the caller's.
        return unsafe { fixed_tile_of::<K, ROWS, VECTORS>(taps, units, block, sums, is_first) };
    }
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[K::S::splat(0.0); VECTORS]; ROWS];
        if !is_first {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = K::S::load(sums.add((i * VECTORS + j) * lanes));
                }
            }
        }
        for rows in taps {
            for unit in 0..units {
                let mut b = [K::S::splat(0.0); VECTORS];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = K::S::load(block.add(j * lanes));
                }
                block = block.add(VECTORS * lanes);
                for i in 0..ROWS {
                    let a = K::S::splat(*rows[i].add(unit));
                    for j in 0..VECTORS {
                        acc[i][j] = K::madd(acc[i][j], a, b[j]);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                K::S::store(sums.add((i * VECTORS + j) * lanes), *acc);
            }
        }
    }
}

/// The same where units are whole numbers, whose scales come first in rows and block.
#[inline(always)]
unsafe fn fixed_tile_of<K: Kernel, const ROWS: usize, const VECTORS: usize>(
    taps: &[[*const f32; MAX_ROWS]],
    units: usize,
    mut block: *const f32,
    sums: *mut f32,
    mut is_first: bool,
) {
    let lanes = K::S::LANES;
    // SAFETY: the caller's.
    unsafe {
        for rows in taps {
            let scales = block;
            block = block.add(VECTORS * lanes);
            let mut acc = [[K::S::splat(0.0); VECTORS]; ROWS];
            for unit in 0..units {
                let mut b = [K::S::splat(0.0); VECTORS];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = K::S::load(block.add(j * lanes));
                }
                block = block.add(VECTORS * lanes);
                for i in 0..ROWS {
                    let a = K::S::splat(*rows[i].add(1 + unit));
                    for j in 0..VECTORS {
                        acc[i][j] = K::madd(acc[i][j], a, b[j]);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (j, acc) in acc.iter().enumerate() {
                    let sum = sums.add((i * VECTORS + j) * lanes);
                    let scale = K::S::mul(K::S::splat(*rows[i]), K::S::load(scales.add(j * lanes)));
                    let value = K::value(*acc);
                    let value = match is_first {
                        true => K::S::mul(value, scale),
                        false => K::S::fma(value, scale, K::S::load(sum)),
                    };
                    K::S::store(sum, value);
                }
            }
            is_first = false;
        }
    }
}
