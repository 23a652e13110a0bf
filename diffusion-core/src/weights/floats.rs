//! Weights in bulk: from a file into fresh memory in one pass, on several threads.

use std::path::Path;
use std::sync::LazyLock;
use std::{io, thread};

use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use super::element::{Element, e4m3, e5m2};
use super::storage::Storage;
use crate::error::{Error, Result};

/// Elements that a thread reads and converts at once: they stay in its cache.
const PIECE: usize = 1 << 15;
/// Elements that are worth a thread of their own.
const SHARE: usize = 1 << 19;
/// Memory takes no more threads than this to be busy.
const MAX_THREADS: usize = 8;

/// Floats side by side in a file.
pub(super) struct Floats<'a> {
    pub(super) path: &'a Path,
    pub(super) storage: &'a Storage,
    pub(super) start: usize,
    pub(super) element: Element,
    pub(super) shape: &'a [usize],
}

impl Floats<'_> {
    /// The numbers as a tensor on the CPU; `None` if they are not of a type that f32 holds exactly. With
    /// `channels_last` a convolution's `(output, input, height, width)` has its input last in memory.
    pub(super) fn read(&self, dtype: DType, channels_last: bool) -> Option<Result<Tensor>> {
        let widen = widening(self.element)?;
        let tensor = match dtype {
            DType::F16 => self.read_as::<f16>(widen, channels_last),
            DType::BF16 => self.read_as::<bf16>(widen, channels_last),
            _ => self.read_as::<f32>(widen, channels_last),
        };
        Some(tensor.and_then(|tensor| Ok(tensor.to_dtype(dtype)?)))
    }

    fn read_as<T: Weight>(&self, widen: Widen, channels_last: bool) -> Result<Tensor> {
        let mut numbers = T::zeros(self.shape.iter().product());
        let kernels = match *self.shape {
            [_, input, height, width] if channels_last => Some((input, height * width)),
            _ => None,
        };
        let (input, pixels) = kernels.unwrap_or((1, 1));
        self.fill(&mut numbers, widen, input, pixels)
            .map_err(|e| Error::io(self.path, e))?;
        let cpu = &Device::Cpu;
        Ok(match (kernels, self.shape) {
            (Some(_), &[output, input, height, width]) => {
                let tensor = Tensor::from_vec(numbers, (output, height, width, input), cpu)?;
                tensor.permute((0, 3, 1, 2))?
            }
            _ => Tensor::from_vec(numbers, self.shape, cpu)?,
        })
    }

    /// Fills `numbers` with kernels of `input * pixels`, each transposed.
    fn fill<T: Weight>(
        &self,
        numbers: &mut [T],
        widen: Widen,
        input: usize,
        pixels: usize,
    ) -> io::Result<()> {
        let available = thread::available_parallelism().map_or(1, usize::from);
        let threads = (numbers.len() / SHARE).clamp(1, available.min(MAX_THREADS));
        let kernel = (input * pixels).max(1);
        let share = numbers.len().div_ceil(threads).next_multiple_of(kernel);
        let fill = |index: usize, part: &mut [T]| {
            self.fill_part(part, index * share, widen, input, pixels)
        };
        thread::scope(|scope| {
            let mut parts = numbers.chunks_mut(share.max(1)).enumerate();
            let own = parts.next();
            let others: Vec<_> = parts
                .map(|(index, part)| scope.spawn(move || fill(index, part)))
                .collect();
            own.map_or(Ok(()), |(index, part)| fill(index, part))?;
            others.into_iter().try_for_each(|thread| {
                let stopped = |_| Err(io::Error::other("a thread that read it stopped"));
                thread.join().unwrap_or_else(stopped)
            })
        })
    }

    fn fill_part<T: Weight>(
        &self,
        part: &mut [T],
        first: usize,
        widen: Widen,
        input: usize,
        pixels: usize,
    ) -> io::Result<()> {
        let size = self.element.size().unwrap_or(1);
        let kernel = (input * pixels).max(1);
        let piece = (PIECE / kernel).max(1) * kernel;
        let (mut bytes, mut floats) = (Vec::new(), Vec::new());
        let mut rows = vec![T::zero(); if pixels > 1 { piece } else { 0 }];
        for (index, piece_of_part) in part.chunks_mut(piece).enumerate() {
            let count = piece_of_part.len();
            bytes.resize(count * size, 0);
            let at = self.start + (first + index * piece) * size;
            self.storage.read_into(at, &mut bytes)?;
            let target = match pixels > 1 {
                true => &mut rows[..count],
                false => &mut *piece_of_part,
            };
            match T::table(self.element) {
                _ if self.element == T::ELEMENT => T::read(&bytes, target),
                Some(table) => each(&bytes, target, |b| {
                    table[usize::from(u16::from_le_bytes(b))]
                }),
                None => {
                    floats.resize(count, 0.0);
                    widen(&bytes, &mut floats);
                    T::narrow(&floats, target);
                }
            }
            if pixels > 1 {
                let kernels = piece_of_part.chunks_mut(kernel);
                for (turned, straight) in kernels.zip(rows.chunks(kernel)) {
                    transpose(straight, turned, pixels);
                }
            }
        }
        Ok(())
    }
}

/// Rows of `width` as columns.
fn transpose<T: Copy>(rows: &[T], columns: &mut [T], width: usize) {
    let height = rows.len() / width;
    for (x, column) in columns.chunks_mut(height).enumerate() {
        for (value, row) in column.iter_mut().zip(rows.chunks(width)) {
            *value = row[x];
        }
    }
}

/// Bytes of a type to the numbers that they are.
type Widen = fn(&[u8], &mut [f32]);

/// The way to f32, which holds every value of these types exactly.
fn widening(element: Element) -> Option<Widen> {
    Some(match element {
        Element::F32 => |bytes, floats| each(bytes, floats, f32::from_le_bytes),
        Element::F16 => |bytes, floats| {
            const SOME: usize = 1024;
            let mut halves = [f16::ZERO; SOME];
            for (bytes, floats) in bytes.chunks(2 * SOME).zip(floats.chunks_mut(SOME)) {
                let halves = &mut halves[..floats.len()];
                each(bytes, halves, f16::from_le_bytes);
                halves.convert_to_f32_slice(floats);
            }
        },
        Element::Bf16 => |bytes, floats| each(bytes, floats, |b| bf16::from_le_bytes(b).to_f32()),
        Element::F8E4m3 => |bytes, floats| each(bytes, floats, |[code]| e4m3(code)),
        Element::F8E5m2 => |bytes, floats| each(bytes, floats, |[code]| e5m2(code)),
        _ => return None,
    })
}

fn each<const N: usize, T>(bytes: &[u8], numbers: &mut [T], read: impl Fn([u8; N]) -> T) {
    let (parts, _) = bytes.as_chunks::<N>();
    for (number, &part) in numbers.iter_mut().zip(parts) {
        *number = read(part);
    }
}

/// A number format that weights are held in.
trait Weight: WithDType {
    /// What a file calls it.
    const ELEMENT: Element;

    /// Memory that the system has not handed out yet, so that the threads that fill it share that work.
    fn zeros(count: usize) -> Vec<Self>;

    fn read(bytes: &[u8], numbers: &mut [Self]);

    fn narrow(floats: &[f32], numbers: &mut [Self]);

    /// What each of the 65536 codes of another type becomes, where looking it up is quicker than rounding it.
    fn table(_element: Element) -> Option<&'static Table<Self>> {
        None
    }
}

type Table<T> = [T; 1 << 16];

/// The narrow numbers of all codes of a half-precision type.
fn table_of<T: Weight>(widen: impl Fn(u16) -> f32) -> Box<Table<T>> {
    Box::new(std::array::from_fn(|code| {
        let mut number = [T::zero()];
        T::narrow(&[widen(code as u16)], &mut number);
        number[0]
    }))
}

static OF_F16: LazyLock<Box<Table<bf16>>> =
    LazyLock::new(|| table_of(|code| f16::from_bits(code).to_f32()));
static OF_BF16: LazyLock<Box<Table<f16>>> =
    LazyLock::new(|| table_of(|code| bf16::from_bits(code).to_f32()));

impl Weight for f32 {
    const ELEMENT: Element = Element::F32;

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }

    fn read(bytes: &[u8], numbers: &mut [Self]) {
        each(bytes, numbers, Self::from_le_bytes);
    }

    fn narrow(floats: &[f32], numbers: &mut [Self]) {
        numbers.copy_from_slice(floats);
    }
}

impl Weight for f16 {
    const ELEMENT: Element = Element::F16;

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    fn read(bytes: &[u8], numbers: &mut [Self]) {
        each(bytes, numbers, Self::from_le_bytes);
    }

    fn narrow(floats: &[f32], numbers: &mut [Self]) {
        numbers.convert_from_f32_slice(floats);
    }

    fn table(element: Element) -> Option<&'static Table<Self>> {
        (element == Element::Bf16).then(|| &**OF_BF16)
    }
}

impl Weight for bf16 {
    const ELEMENT: Element = Element::Bf16;

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    fn read(bytes: &[u8], numbers: &mut [Self]) {
        each(bytes, numbers, Self::from_le_bytes);
    }

    fn table(element: Element) -> Option<&'static Table<Self>> {
        (element == Element::F16).then(|| &**OF_F16)
    }

    /// To the nearest, ties to even; in a form that compilers turn into vector instructions.
    fn narrow(floats: &[f32], numbers: &mut [Self]) {
        for (number, float) in numbers.iter_mut().zip(floats) {
            let bits = float.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            let bits = if float.is_nan() { quiet } else { rounded };
            *number = Self::from_bits(bits as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        let floats: Vec<f32> = (0..1u32 << 20)
            .map(|i| f32::from_bits(i.wrapping_mul(4099)))
            .chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0])
            .collect();
        let mut ours = vec![bf16::ZERO; floats.len()];
        bf16::narrow(&floats, &mut ours);
        for (float, ours) in floats.iter().zip(ours) {
            let bits = bf16::from_f32(*float).to_bits();
            assert_eq!(ours.to_bits(), bits, "{:08x}", float.to_bits());
        }
    }

    #[test]
    fn every_code_of_half_precision_is_rounded_as_by_half() {
        for code in 0..=u16::MAX {
            let place = usize::from(code);
            let rounded = bf16::from_f32(f16::from_bits(code).to_f32());
            assert_eq!(OF_F16[place].to_bits(), rounded.to_bits(), "{code:04x}");
            let rounded = f16::from_f32(bf16::from_bits(code).to_f32());
            assert_eq!(OF_BF16[place].to_bits(), rounded.to_bits(), "{code:04x}");
        }
    }

    #[test]
    fn kernels_are_turned_whatever_the_pieces() -> Result<()> {
        let shape = [37, 1000, 3, 3];
        let count: usize = shape.iter().product();
        let numbers = (0..count).map(|i| i as f32);
        let storage = Storage::Bytes(numbers.flat_map(f32::to_le_bytes).collect());
        let floats = Floats {
            path: Path::new("memory"),
            storage: &storage,
            start: 0,
            element: Element::F32,
            shape: &shape,
        };
        let read = |channels_last| match floats.read(DType::F32, channels_last) {
            Some(tensor) => tensor,
            None => Err(Error::custom("not read in bulk")),
        };
        let (straight, turned) = (read(false)?, read(true)?);
        assert!(turned.permute((0, 2, 3, 1))?.is_contiguous());
        let difference = (straight - turned)?.abs()?.sum_all()?;
        assert_eq!(difference.to_scalar::<f32>()?, 0.0);
        Ok(())
    }
}
