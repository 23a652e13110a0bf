//! Convolutions of 3 x 3 by a quarter of the products: squares of 6 x 6 pixels and the kernels are brought to
//! where a convolution is a product of numbers, of which the inverse makes 4 x 4 pixels.
//!
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, F(4x4, 3x3).

use super::buffer::Buffer;
use super::conv::{Patches, Picture, Shape};
use super::dispatch::{self, Isa, Precision, Work};
use super::fixed;
use super::linear::precision_of;
use super::pack::{Block, Values, pack, portion, units};
use super::product::{Epilogue, MAX_ROWS, tile};
use super::simd::{F32, Kernel, Part, Simd};
use super::threads::{self, Shared, for_each};

/// Numbers of a square.
const POINTS: usize = 36;
/// Squares of a product.
const GROUP: usize = 24;
/// Units of the squares that are worked off at once, so that they stay in the cache.
const BAND: usize = 1 << 21;
/// Channels whose kernels are brought over at once.
const CHANNELS: usize = 64;

/// Squares of an image which repay that kernels are brought over in each call.
const FEWEST: usize = 8;

/// Whether this is the way to go. The number of images does not matter, so that each is the same among others.
pub(super) fn is_faster(shape: Shape, channels: usize, outputs: usize) -> bool {
    let squares = shape.out.0.div_ceil(4) * shape.out.1.div_ceil(4);
    let is_wide = channels >= 32 && outputs >= 16;
    shape.kernel == (3, 3) && shape.stride == 1 && is_wide && squares >= FEWEST
}

/// The squares of a picture, and where they go.
#[derive(Clone, Copy)]
struct Squares<'a> {
    isa: Isa,
    patches: Patches<'a>,
    /// In a row, and in an image.
    across: usize,
    of_image: usize,
    channels: usize,
    /// The length of a square's row of channels once it is brought over.
    row: usize,
    weight: Values<'a>,
    outputs: usize,
    epilogue: Epilogue<'a>,
    precision: Precision,
    out: Shared,
}

/// As [`super::conv::convolve`], for a stride of 1 and 3 x 3.
pub(super) fn convolve(
    isa: Isa,
    picture: Picture<'_>,
    weight: Values<'_>,
    shape: Shape,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    picture.check();
    let (batch, channels) = (picture.batch, picture.channels);
    let zeros = vec![0.0; channels];
    let patches = Patches::new(picture.values, &picture, shape, &zeros);
    let (out_h, out_w) = shape.out;
    let outputs = out.len() / (batch * out_h * out_w).max(1);
    assert_eq!(out.len(), batch * out_h * out_w * outputs);
    assert_eq!(weight.len(), outputs * 9 * channels);
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == outputs) && !epilogue.gated);
    assert!(epilogue.add.is_none_or(|add| add.len() == out.len()));
    // Pairs of bf16 are too coarse for what is multiplied here.
    let precision = match precision_of(weight, isa) {
        Precision::F32 => Precision::F32,
        Precision::Bf16 | Precision::Fixed => isa.available(Precision::Fixed),
    };
    let across = out_w.div_ceil(4);
    let squares = Squares {
        isa,
        patches,
        across,
        of_image: across * out_h.div_ceil(4),
        channels,
        row: precision.row(channels),
        weight,
        outputs,
        epilogue,
        precision,
        out: Shared::new(out),
    };
    let total = batch * squares.of_image;
    let band = (BAND / (POINTS * squares.row))
        .max(1)
        .next_multiple_of(GROUP);
    for first in (0..total).step_by(band) {
        squares.run(first, band.min(total - first));
    }
}

impl Squares<'_> {
    /// Works off `count` squares.
    fn run(&self, first: usize, count: usize) {
        let size = POINTS * GROUP * self.row;
        let groups = count.div_ceil(GROUP);
        let mut brought = Buffer::new(groups * size);
        let brought = Shared::new(brought.as_mut());
        for_each(count, |i| {
            // SAFETY: the group of the square.
            let into = unsafe { brought.at(i / GROUP * size) };
            let task = Bring {
                squares: self,
                square: first + i,
                into,
                row: i % GROUP,
            };
            // SAFETY: a square of the picture; each row of a group is written by one task.
            unsafe { dispatch::run(self.isa, self.precision, task) };
        });
        let panel = 2 * self.isa.lanes();
        let panels = self.outputs.div_ceil(panel);
        // Few panels are shared by threads, each of which brings the kernels over for itself.
        let portions = (3 * threads::count()).div_ceil(panels).clamp(1, groups);
        for_each(panels * portions, |i| {
            let of = |portion: usize| portion * groups / portions * GROUP;
            let (start, end) = (of(i % portions), of(i % portions + 1).min(count));
            let task = Multiply {
                squares: self,
                first_output: i / portions * panel,
                first: first + start,
                // SAFETY: groups that are there.
                brought: unsafe { brought.at(start / GROUP * size) },
                count: end - start,
            };
            // SAFETY: each task writes to outputs and squares of its own.
            unsafe { dispatch::run(self.isa, self.precision, task) };
        });
    }

    /// The image, and the row and column of a square's first pixel.
    #[inline(always)]
    fn corner(&self, square: usize) -> (usize, usize, usize) {
        let at = square % self.of_image;
        (
            square / self.of_image,
            at / self.across * 4,
            at % self.across * 4,
        )
    }
}

/// Brings a square of all channels over.
struct Bring<'a> {
    squares: &'a Squares<'a>,
    square: usize,
    into: *mut f32,
    row: usize,
}

impl Work for Bring<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Squares {
            patches, channels, ..
        } = *self.squares;
        let (image, y, x) = self.squares.corner(self.square);
        let (top, left) = patches.shape.padding;
        let place = patches.place(image, y as isize - top as isize, x as isize - left as isize);
        let row = self.squares.row;
        // What becomes whole numbers is f32 first, point by point.
        let mut values = Buffer::new(if K::FIXED { POINTS * channels } else { 0 });
        let values = values.as_mut().as_mut_ptr();
        // SAFETY: pixels of the image or beyond it; rows of the group.
        unsafe {
            let group = |point: usize| self.into.add((point * GROUP + self.row) * row);
            let mut pixels = [std::ptr::null(); POINTS];
            for (i, pixel) in pixels.iter_mut().enumerate() {
                *pixel = patches.pixel(place, i / 6, i % 6);
            }
            for channel in (0..channels).step_by(K::S::LANES) {
                let part = Part(K::S::LANES.min(channels - channel));
                let mut square = [[K::S::splat(0.0); 6]; 6];
                for (i, pixel) in pixels.iter().enumerate() {
                    square[i / 6][i % 6] = part.load::<K::S>(pixel.add(channel));
                }
                for row in &mut square {
                    *row = to_points::<K::S>(*row);
                }
                for column in 0..6 {
                    let points = to_points::<K::S>(column_of(&square, column));
                    for (i, value) in points.into_iter().enumerate() {
                        let point = i * 6 + column;
                        let row = match K::FIXED {
                            true => values.add(point * channels),
                            false => group(point),
                        };
                        part.store::<K::S>(row.add(channel), value);
                    }
                }
            }
            if K::FIXED {
                for point in 0..POINTS {
                    let values = values.add(point * channels);
                    fixed::row::<K>(values, channels, group(point));
                }
            }
        }
    }
}

/// Products of some squares with a panel of kernels.
struct Multiply<'a> {
    squares: &'a Squares<'a>,
    first_output: usize,
    first: usize,
    count: usize,
    brought: *const f32,
}

impl Work for Multiply<'_> {
    #[inline(always)]
    unsafe fn run<K: Kernel>(self) {
        let Squares {
            channels,
            outputs,
            row: row_len,
            ..
        } = *self.squares;
        let lanes = K::S::LANES;
        let outputs = (2 * lanes).min(outputs - self.first_output);
        let vectors = outputs.div_ceil(lanes);
        let columns = vectors * lanes;
        let portions = Portions::new::<K>(channels, columns);
        let mut kernels = Buffer::new(POINTS * portions.point_len());
        let kernels = kernels.as_mut().as_mut_ptr();
        let rows = K::S::ROWS[vectors - 1];
        let mut sums = Buffer::new(POINTS * (GROUP + MAX_ROWS) * columns);
        let sums = sums.as_mut().as_mut_ptr();
        // SAFETY: buffers of these sizes; groups that are there.
        unsafe {
            self.bring_kernels::<K>(outputs, &portions, kernels);
            for start in (0..self.count).step_by(GROUP) {
                let len = GROUP.min(self.count - start);
                let group = self.brought.add(start * POINTS * row_len);
                for point in 0..POINTS {
                    for row in (0..len).step_by(rows) {
                        let mut pointers = [std::ptr::null(); MAX_ROWS];
                        for (j, pointer) in pointers.iter_mut().enumerate().take(rows) {
                            let row = (row + j).min(len - 1);
                            *pointer = group.add((point * GROUP + row) * row_len);
                        }
                        let sums = sums.add((point * (GROUP + MAX_ROWS) + row) * columns);
                        let kernels = kernels.add(point * portions.point_len());
                        for portion in 0..portions.count {
                            let units = units::<K>(portions.elements(portion));
                            let kernels = kernels.add(portion * portions.len());
                            let is_first = portion == 0;
                            tile::<K>(vectors, &[pointers], units, kernels, sums, is_first);
                            for pointer in pointers.iter_mut().take(rows) {
                                *pointer = pointer.wrapping_add(units + 1);
                            }
                        }
                    }
                }
                for i in 0..len {
                    for column in (0..columns).step_by(lanes) {
                        let at = sums.add(i * columns + column);
                        let square = self.first + start + i;
                        let part = Part(lanes.min(outputs - column));
                        self.finish::<K::S>(square, column, part, at, columns);
                    }
                }
            }
        }
    }
}

impl Multiply<'_> {
    /// A panel of kernels: for each point the channels, packed, in portions.
    #[inline(always)]
    unsafe fn bring_kernels<K: Kernel>(
        &self,
        outputs: usize,
        portions: &Portions,
        kernels: *mut f32,
    ) {
        let Squares {
            channels, weight, ..
        } = *self.squares;
        let columns = portions.columns;
        let mut taps = Buffer::new(9 * CHANNELS * columns);
        let taps = taps.as_mut().as_mut_ptr();
        for portion in 0..portions.count {
            let elements = portions.elements(portion);
            for first in (0..elements).step_by(CHANNELS) {
                let channel = portion * portions.most + first;
                let count = CHANNELS.min(elements - first);
                for tap in 0..9 {
                    let block = Block {
                        start: (self.first_output * 9 + tap) * channels + channel,
                        stride: 9 * channels,
                        rows: outputs,
                        elements: count,
                    };
                    // SAFETY: a part of the weights; the taps have room for so many channels.
                    unsafe {
                        let taps = taps.add(tap * CHANNELS * columns);
                        pack::<F32<K::S>>(weight, block, columns, taps);
                    }
                }
                // SAFETY: what is packed above; the portion has room for its channels, after their scales.
                unsafe {
                    let into = kernels.add(portion * portions.len());
                    let into = into.add((portions.scales + first) * columns);
                    bring_taps::<K::S>(taps, count * columns, CHANNELS * columns, into, portions);
                }
            }
            for point in 0..POINTS {
                if K::FIXED {
                    let at = point * portions.point_len() + portion * portions.len();
                    // SAFETY: a portion of a point's kernels, after room for their scales.
                    unsafe { fixed::panel::<K>(kernels.add(at), elements, columns) };
                }
            }
        }
    }

    /// A square's pixels of some outputs.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        square: usize,
        column: usize,
        part: Part,
        sums: *const f32,
        columns: usize,
    ) {
        let Squares {
            patches,
            outputs,
            epilogue,
            out,
            ..
        } = *self.squares;
        let (out_h, out_w) = patches.shape.out;
        let (image, top, left) = self.squares.corner(square);
        let column = self.first_output + column;
        // SAFETY: sums of all points; pixels that are in the picture.
        unsafe {
            let mut rows = [[S::splat(0.0); 4]; 6];
            for (y, row) in rows.iter_mut().enumerate() {
                let mut points = [S::splat(0.0); 6];
                for (x, point) in points.iter_mut().enumerate() {
                    *point = S::load(sums.add((y * 6 + x) * (GROUP + MAX_ROWS) * columns));
                }
                *row = to_pixels::<S>(points);
            }
            let bias = match epilogue.bias {
                Some(bias) => part.load::<S>(bias.as_ptr().add(column)),
                None => S::splat(0.0),
            };
            for x in 0..4.min(out_w - left) {
                let pixels = to_pixels::<S>(column_of(&rows, x));
                for (y, pixel) in pixels.into_iter().enumerate().take(out_h - top) {
                    let at = ((image * out_h + top + y) * out_w + left + x) * outputs + column;
                    let mut pixel = S::add(pixel, bias);
                    if let Some(add) = epilogue.add {
                        pixel = S::add(pixel, part.load::<S>(add.as_ptr().add(at)));
                    }
                    let out = out.at(at);
                    if epilogue.accumulates {
                        pixel = S::add(pixel, part.load::<S>(out));
                    }
                    part.store::<S>(out, pixel);
                }
            }
        }
    }
}

/// How a panel's channels are cut: whole numbers have a scale for each portion.
struct Portions {
    channels: usize,
    columns: usize,
    /// Rows of scales before each.
    scales: usize,
    /// Channels of each but the last.
    most: usize,
    count: usize,
}

impl Portions {
    fn new<K: Kernel>(channels: usize, columns: usize) -> Self {
        let most = match K::FIXED {
            true => 2 * portion(units::<K>(channels), true),
            false => channels,
        };
        Self {
            channels,
            columns,
            scales: usize::from(K::FIXED),
            most,
            count: channels.div_ceil(most),
        }
    }

    fn elements(&self, portion: usize) -> usize {
        self.most.min(self.channels - portion * self.most)
    }

    /// Values of a portion.
    fn len(&self) -> usize {
        (self.scales + self.most) * self.columns
    }

    /// Values of a point.
    fn point_len(&self) -> usize {
        self.count * self.len()
    }
}

/// Kernels of some channels and outputs, whose taps lie `stride` apart, at all points.
#[inline(always)]
unsafe fn bring_taps<S: Simd>(
    taps: *const f32,
    count: usize,
    stride: usize,
    into: *mut f32,
    portions: &Portions,
) {
    for at in (0..count).step_by(S::LANES) {
        // SAFETY: the caller's.
        unsafe {
            let mut rows = [[S::splat(0.0); 6]; 3];
            for (y, row) in rows.iter_mut().enumerate() {
                let mut taps_of_row = [S::splat(0.0); 3];
                for (x, tap) in taps_of_row.iter_mut().enumerate() {
                    *tap = S::load(taps.add((3 * y + x) * stride + at));
                }
                *row = kernel_points::<S>(taps_of_row);
            }
            for x in 0..6 {
                let points = kernel_points::<S>(column_of(&rows, x));
                for (y, value) in points.into_iter().enumerate() {
                    S::store(into.add((y * 6 + x) * portions.point_len() + at), value);
                }
            }
        }
    }
}

/// `factor * a + b`.
#[inline(always)]
unsafe fn times<S: Simd>(factor: f32, a: S::Vector, b: S::Vector) -> S::Vector {
    // SAFETY: the caller's.
    unsafe { S::fma(S::splat(factor), a, b) }
}

#[inline(always)]
fn column_of<V: Copy, const WIDTH: usize, const HEIGHT: usize>(
    rows: &[[V; WIDTH]; HEIGHT],
    column: usize,
) -> [V; HEIGHT] {
    let mut values = [rows[0][column]; HEIGHT];
    for (value, row) in values.iter_mut().zip(rows) {
        *value = row[column];
    }
    values
}

/// A line of pixels, times the paper's `B^T`.
#[inline(always)]
unsafe fn to_points<S: Simd>(d: [S::Vector; 6]) -> [S::Vector; 6] {
    // SAFETY: the caller's.
    unsafe {
        let even = times::<S>(-4.0, d[2], d[4]);
        let odd = times::<S>(-4.0, d[1], d[3]);
        let near = S::sub(d[4], d[2]);
        let far = S::mul(S::splat(2.0), S::sub(d[3], d[1]));
        [
            times::<S>(4.0, d[0], times::<S>(-5.0, d[2], d[4])),
            S::add(even, odd),
            S::sub(even, odd),
            S::add(near, far),
            S::sub(near, far),
            times::<S>(4.0, d[1], times::<S>(-5.0, d[3], d[5])),
        ]
    }
}

/// A line of a kernel, times the paper's `G`.
#[inline(always)]
unsafe fn kernel_points<S: Simd>(g: [S::Vector; 3]) -> [S::Vector; 6] {
    // SAFETY: the caller's.
    unsafe {
        let sixth = S::splat(-1.0 / 6.0);
        let ends = S::add(g[0], g[2]);
        let wide = S::fma(
            S::splat(1.0 / 24.0),
            g[0],
            S::mul(S::splat(1.0 / 6.0), g[2]),
        );
        let middle = S::mul(S::splat(1.0 / 12.0), g[1]);
        [
            S::mul(S::splat(0.25), g[0]),
            S::mul(sixth, S::add(ends, g[1])),
            S::mul(sixth, S::sub(ends, g[1])),
            S::add(wide, middle),
            S::sub(wide, middle),
            g[2],
        ]
    }
}

/// A line of points, times the paper's `A^T`.
#[inline(always)]
unsafe fn to_pixels<S: Simd>(m: [S::Vector; 6]) -> [S::Vector; 4] {
    // SAFETY: the caller's.
    unsafe {
        let (near, near_apart) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (far, far_apart) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(S::add(m[0], near), far),
            S::fma(S::splat(2.0), far_apart, near_apart),
            S::fma(S::splat(4.0), far, near),
            S::add(S::fma(S::splat(8.0), far_apart, near_apart), m[5]),
        ]
    }
}
