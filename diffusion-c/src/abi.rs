//! What crosses the border: text, and structs that know their size.

use std::ffi::{CStr, c_char};
use std::mem::size_of;

use crate::status::Failure;

/// True or false: 0 is false, anything else is true. One byte, whatever `bool` is in the caller's
/// language.
pub type dfn_bool = u8;

/// No struct of this ABI comes near; a bigger size is memory that nobody set.
const MAX_STRUCT_SIZE: usize = 4096;

/// A struct that callers of older and newer headers pass too.
///
/// # Safety
/// The type is `repr(C)`, its first field is a `usize` (its size in the caller's header), and it is made
/// of numbers, raw pointers and nullable function pointers, so that any bytes are a value. Fields are
/// only ever appended.
pub(crate) unsafe trait Versioned: Copy {
    /// C's name.
    const NAME: &'static str;
    /// The size in the first version of the ABI.
    const MIN_SIZE: usize;
    /// What fields have that a caller does not know of.
    const DEFAULT: Self;
}

/// Reads the caller's struct; fields that its version lacks get their defaults.
///
/// # Safety
/// `pointer` is null, or points to as many readable bytes as its first field says.
pub(crate) unsafe fn read_struct<T: Versioned>(pointer: *const T) -> Result<T, Failure> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(pointer) }?;
    let bytes = pointer.cast::<u8>();
    for offset in size_of::<T>()..size {
        // SAFETY: `offset` is below `size`, up to which the caller promises readable bytes.
        if unsafe { bytes.add(offset).read() } != 0 {
            return Err(Failure::argument(
                T::NAME,
                "zeros beyond the fields that this version of the library knows",
                format!("a value at byte {offset}; leave newer fields alone or update the library"),
            ));
        }
    }
    let mut value = T::DEFAULT;
    // SAFETY: both sides have as many bytes, they cannot overlap as `value` is our own, and `Versioned`
    // promises that any bytes are a `T`.
    unsafe {
        let known = size.min(size_of::<T>());
        bytes.copy_to_nonoverlapping((&raw mut value).cast(), known);
    }
    Ok(value)
}

/// The size that the caller has put into a struct, checked.
///
/// # Safety
/// `pointer` is null or points to a readable `usize`.
pub(crate) unsafe fn struct_size<T: Versioned>(pointer: *const T) -> Result<usize, Failure> {
    check_not_null(pointer, T::NAME)?;
    // SAFETY: the first field is a `usize`. Callers of other languages may not align it.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    Ok(size)
}

fn check_size<T: Versioned>(size: usize) -> Result<(), Failure> {
    if (T::MIN_SIZE..=MAX_STRUCT_SIZE).contains(&size) {
        return Ok(());
    }
    let expected = format!(
        "sizeof({}), which is {} in this version",
        T::NAME,
        size_of::<T>()
    );
    Err(Failure::argument("struct_size", expected, size))
}

/// Writes a struct of `size` bytes to a caller who may know fewer fields of it, or more (which become 0).
///
/// # Safety
/// `pointer` is null, or points to `size` writable bytes.
pub(crate) unsafe fn write_struct<T: Versioned>(
    pointer: *mut T,
    size: usize,
    value: &T,
) -> Result<(), Failure> {
    check_not_null(pointer, T::NAME)?;
    check_size::<T>(size)?;
    let bytes = pointer.cast::<u8>();
    let known = size.min(size_of::<T>());
    // SAFETY: the caller promises `size` writable bytes, `known` is not above that nor above the size of
    // `value`, and `size` was checked to have room for the `usize` that every `Versioned` begins with.
    unsafe {
        bytes.write_bytes(0, size);
        bytes.copy_from_nonoverlapping((&raw const *value).cast(), known);
        pointer.cast::<usize>().write_unaligned(size);
    }
    Ok(())
}

/// Reads text that must be there.
///
/// # Safety
/// `pointer` is null or points to bytes that end in NUL and stay unchanged for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { optional_text(pointer, name) }?
        .ok_or_else(|| Failure::argument(name, "UTF-8 text", "NULL"))
}

/// Reads text that may be null.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    name: &str,
) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: it is not null, and the caller promises the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    let text = text.to_str().map_err(|e| {
        let found = format!("bytes that are not, from byte {}", e.valid_up_to());
        Failure::argument(name, "UTF-8 text", found)
    })?;
    Ok(Some(text))
}

pub(crate) fn check_not_null<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(name, "a pointer", "NULL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second version of a struct: `b` was appended.
    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Second {
        struct_size: usize,
        a: u64,
        b: u64,
    }

    /// What callers of the first version have.
    #[repr(C)]
    struct First {
        struct_size: usize,
        a: u64,
    }

    // SAFETY: `repr(C)`, a `usize` first, numbers.
    unsafe impl Versioned for Second {
        const NAME: &'static str = "second";
        const MIN_SIZE: usize = std::mem::offset_of!(Self, b);
        const DEFAULT: Self = Self {
            struct_size: size_of::<Self>(),
            a: 5,
            b: 7,
        };
    }

    #[test]
    fn older_callers_get_defaults_and_keep_their_memory() {
        let size = size_of::<First>();
        let mut memory = [
            First {
                struct_size: size,
                a: 1,
            },
            First {
                struct_size: 99,
                a: 99,
            },
        ];
        // SAFETY: the first element's `struct_size` is its size.
        let read = unsafe { read_struct(memory.as_ptr().cast::<Second>()) }.expect("old size");
        assert_eq!((read.a, read.b), (1, 7));
        // SAFETY: the first element has `size` bytes.
        unsafe { write_struct(memory.as_mut_ptr().cast(), size, &Second::DEFAULT) }.expect("fits");
        assert_eq!((memory[0].struct_size, memory[0].a), (size, 5));
        assert_eq!((memory[1].struct_size, memory[1].a), (99, 99));
    }
}
