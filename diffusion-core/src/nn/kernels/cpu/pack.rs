//! Matrices in the order in which products read them: for each unit of the sum the values of a panel's columns side
//! by side. Packing is a small share of a product, so weights stay in memory once, in the format they are held in.

use half::{bf16, f16};

use super::buffer::Buffer;
use super::dispatch::{Isa, Precision};
use super::fixed;
use super::simd::{F32, Kernel, Simd};
use super::threads::{Shared, for_portions};

/// Weights or activations, as they are held.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// Signed whole numbers, which the scale of their row is to be multiplied with.
    Int8 {
        values: &'a [u8],
        scales: &'a [f32],
    },
}

impl Values<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Int8 { values, .. } => values.len(),
        }
    }

    /// Where a value lies, and how many of them fill a line of the cache.
    fn place(&self, at: usize) -> (*const u8, usize) {
        match self {
            Self::F32(values) => (values.as_ptr().wrapping_add(at).cast(), LINE / 4),
            Self::F16(values) => (values.as_ptr().wrapping_add(at).cast(), LINE / 2),
            Self::Bf16(values) => (values.as_ptr().wrapping_add(at).cast(), LINE / 2),
            Self::Int8 { values, .. } => (values.as_ptr().wrapping_add(at), LINE),
        }
    }
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Elements that are packed at once.
pub(super) const BLOCK: usize = 1024;

/// So many of a row's units are summed in one go, if its last portion is not shorter.
pub(super) const fn portion(units: usize, is_fixed: bool) -> usize {
    let most = if is_fixed {
        BLOCK * 3 / 8
    } else {
        BLOCK * 3 / 4
    };
    let portions = units.div_ceil(most);
    if portions == 0 {
        1
    } else {
        units.div_ceil(portions)
    }
}

/// Units of so many elements.
pub(super) const fn units<K: Kernel>(elements: usize) -> usize {
    match K::PAIRS {
        true => elements.div_ceil(2),
        false => elements,
    }
}

/// A pair of bf16, the first one low.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(u32::from(rounded(low)) | u32::from(rounded(high)) << 16)
}

/// The nearest bf16, of two the even one. Without branches, so that loops become vectors.
#[inline(always)]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

/// Some of a matrix's rows, and of their elements, which become the columns of a panel.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// The first row's first element.
    pub(super) start: usize,
    /// Rows lie so far apart.
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) elements: usize,
}

/// Writes a block as a panel of `columns` columns, those beyond its rows zero.
///
/// # Safety
/// `block` must be within `values`, and `panel` have room for its units times `columns`, a multiple of 4.
#[inline(always)]
pub(super) unsafe fn pack<K: Kernel>(
    values: Values<'_>,
    block: Block,
    columns: usize,
    panel: *mut f32,
) {
    let (step, units) = (if K::PAIRS { 16 } else { 8 }, units::<K>(block.elements));
    // Rows are far apart: nothing but this asks for the first lines of many at once.
    for row in 0..block.rows {
        let (first, line) = values.place(block.start + row * block.stride);
        for i in 0..block.elements.div_ceil(line).min(2) {
            // SAFETY: the processor's instruction.
            unsafe { K::S::prefetch(first.wrapping_add(i * LINE)) };
        }
    }
    for column in (0..columns).step_by(8) {
        for unit in (0..units).step_by(8) {
            let mut square = [[0.0; 8]; 8];
            let element = unit / 8 * step;
            let count = step.min(block.elements - element);
            for (i, row) in square.iter_mut().enumerate() {
                if column + i < block.rows {
                    let at = block.start + (column + i) * block.stride + element;
                    let scale = match values {
                        Values::Int8 { scales, .. } => {
                            scales[block.start / block.stride + column + i]
                        }
                        _ => 1.0,
                    };
                    // SAFETY: the caller's.
                    *row = unsafe { fetch::<K>(values, at, count, scale) };
                }
            }
            // SAFETY: the caller's; whole squares alone are written in one piece.
            unsafe {
                let at = panel.add(unit * columns + column);
                match columns - column >= 8 && units - unit >= 8 {
                    true => K::S::transpose(&square, at, columns),
                    false => {
                        for i in 0..(units - unit).min(8) {
                            for (j, row) in square.iter().enumerate().take(columns - column) {
                                at.add(i * columns + j).write(row[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// As [`pack`]; where units are whole numbers, their columns' scales come first.
///
/// # Safety
/// As [`pack`], with room for one row of columns more than elements where units are whole numbers.
#[inline(always)]
pub(super) unsafe fn pack_panel<K: Kernel>(
    values: Values<'_>,
    block: Block,
    columns: usize,
    panel: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        match K::FIXED {
            true => {
                pack::<F32<K::S>>(values, block, columns, panel.add(columns));
                fixed::panel::<K>(panel, block.elements, columns);
            }
            false => pack::<K>(values, block, columns, panel),
        }
    }
}

/// Eight units from `at` on, of which `count` elements are there.
///
/// # Safety
/// They must be within `values`.
#[inline(always)]
unsafe fn fetch<K: Kernel>(values: Values<'_>, at: usize, count: usize, scale: f32) -> [f32; 8] {
    let is_whole = count == if K::PAIRS { 16 } else { 8 };
    // SAFETY: the caller's.
    unsafe {
        match (values, is_whole) {
            (Values::F32(values), true) if !K::PAIRS => {
                values.as_ptr().add(at).cast::<[f32; 8]>().read_unaligned()
            }
            (Values::F16(values), true) if !K::PAIRS => {
                K::S::halves(values.as_ptr().add(at).cast())
            }
            (Values::Bf16(values), true) if !K::PAIRS => {
                let bits = values.as_ptr().add(at).cast::<[u16; 8]>().read_unaligned();
                bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
            }
            (Values::Bf16(values), true) => {
                values.as_ptr().add(at).cast::<[f32; 8]>().read_unaligned()
            }
            (Values::Int8 { values, .. }, true) if !K::PAIRS => {
                let bits = values.as_ptr().add(at).cast::<[i8; 8]>().read_unaligned();
                bits.map(|x| f32::from(x) * scale)
            }
            (Values::Int8 { values, .. }, true) => {
                let bits = values.as_ptr().add(at).cast::<[i8; 16]>().read_unaligned();
                eight_pairs(&bits.map(|x| f32::from(x) * scale))
            }
            (Values::F32(values), true) => {
                eight_pairs(&values.as_ptr().add(at).cast::<[f32; 16]>().read_unaligned())
            }
            _ => {
                let mut elements = [0.0; 16];
                for (i, element) in elements.iter_mut().enumerate().take(count) {
                    *element = match values {
                        Values::F32(values) => *values.get_unchecked(at + i),
                        Values::F16(values) => values.get_unchecked(at + i).to_f32(),
                        Values::Bf16(values) => values.get_unchecked(at + i).to_f32(),
                        Values::Int8 { values, .. } => {
                            f32::from(values.get_unchecked(at + i).cast_signed()) * scale
                        }
                    };
                }
                match K::PAIRS {
                    true => eight_pairs(&elements),
                    false => elements.as_ptr().cast::<[f32; 8]>().read(),
                }
            }
        }
    }
}

#[inline(always)]
fn eight_pairs(elements: &[f32; 16]) -> [f32; 8] {
    let mut units = [0.0; 8];
    for (i, unit) in units.iter_mut().enumerate() {
        *unit = pair(elements[2 * i], elements[2 * i + 1]);
    }
    units
}

/// Rows of a product's left matrix, as units.
pub(super) enum Operand<'a> {
    Values(&'a [f32]),
    Pairs(Buffer),
}

impl<'a> Operand<'a> {
    /// Of rows of `channels` values.
    pub(super) fn new(x: &'a [f32], channels: usize, precision: Precision, isa: Isa) -> Self {
        let row = precision.row(channels);
        let buffer = || Buffer::new(x.len() / channels.max(1) * row);
        match precision {
            Precision::F32 => Self::Values(x),
            Precision::Bf16 => {
                let mut buffer = buffer();
                pairs(x, channels, buffer.as_mut());
                Self::Pairs(buffer)
            }
            Precision::Fixed => {
                let mut buffer = buffer();
                fixed::rows(isa, x, channels, buffer.as_mut());
                Self::Pairs(buffer)
            }
        }
    }

    pub(super) fn units(&self) -> &[f32] {
        match self {
            Self::Values(values) => values,
            Self::Pairs(buffer) => buffer.as_ref(),
        }
    }
}

/// Rows of f32 as rows of pairs of bf16; an odd last element has zero beside it.
fn pairs(x: &[f32], channels: usize, out: &mut [f32]) {
    let units = channels.div_ceil(2);
    let shared = Shared::new(out);
    for_portions(
        x.len() / channels.max(1),
        (1 << 15) / units.max(1),
        |rows| {
            for row in rows {
                let values = &x[row * channels..(row + 1) * channels];
                // SAFETY: each row is written by one task.
                let out = unsafe { std::slice::from_raw_parts_mut(shared.at(row * units), units) };
                let (whole, odd) = values.as_chunks::<2>();
                for (out, [low, high]) in out.iter_mut().zip(whole) {
                    *out = pair(*low, *high);
                }
                if let ([last], Some(out)) = (odd, out.last_mut()) {
                    *out = pair(*last, 0.0);
                }
            }
        },
    );
}
