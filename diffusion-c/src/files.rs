//! Pictures into files, with how they came about.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use diffusion_core::media::{self, Provenance};

use crate::abi::{check_not_null, optional_text, text};
use crate::pictures::dfn_picture;
use crate::status::{Failure, c_text, dfn_status, guard};

/// A1111's text and this library's record.
type Texts = (CString, CString);

thread_local! {
    static LAST_PROVENANCE: RefCell<Vec<Texts>> = RefCell::default();
}

/// How a picture of the last dfn_generate() on this thread came about, in A1111's form, which most programs read: the
/// prompt, the negative prompt, and a line of settings, among them the picture's own seed.
///
/// `index`: which of the pictures, from 0.
///
/// Never NULL; empty if there is no such picture. The text is valid until this thread calls dfn_generate() again
/// or ends.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_last_parameters(index: u32) -> *const c_char {
    last(index, |(parameters, _)| parameters)
}

/// The same as JSON with all that is data, which this library makes the same picture of again (docs/PROVENANCE.md).
#[unsafe(no_mangle)]
pub extern "C" fn dfn_last_record(index: u32) -> *const c_char {
    last(index, |(_, record)| record)
}

/// Writes a picture as PNG, JPEG or lossless WebP, by the path's ending, with how it came about.
///
/// `picture`: RGBA8, of which the alpha does not count, such as one of those that dfn_generate() has written.
/// `path`: where it goes. UTF-8 on every system.
/// `parameters`: A1111's text for it: dfn_last_parameters(). NULL or empty: none.
/// `record`: this library's: dfn_last_record(). NULL or empty: none.
///
/// DFN_UNSUPPORTED for another ending, or texts of more than the 64 KiB that JPEG has for them, DFN_IO if the file
/// cannot be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_save_picture(
    picture: *const dfn_picture,
    path: *const c_char,
    parameters: *const c_char,
    record: *const c_char,
) -> dfn_status {
    guard(|| {
        check_not_null(picture, "picture")?;
        // SAFETY: the picture is not null, and the header asks for one of as many bytes as it says, and for text that
        // ends in NUL. Callers of other languages may not align it.
        let (picture, path, parameters, record) = unsafe {
            (
                picture.read_unaligned().rgba("picture")?,
                text(path, "path")?,
                optional_text(parameters, "parameters")?,
                optional_text(record, "record")?,
            )
        };
        let picture =
            picture.ok_or_else(|| Failure::argument("picture", "one with pixels", "none"))?;
        let told = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let provenance = Provenance::new(told(parameters), told(record));
        Ok(media::save(&picture, path, Some(&provenance))?)
    })
}

/// Keeps how this thread's last pictures came about.
pub(crate) fn set_provenance(pictures: Vec<Provenance>) {
    let text = |text: Option<String>| c_text(&text.unwrap_or_default());
    let texts = pictures
        .into_iter()
        .map(|told| (text(told.parameters), text(told.record)));
    let texts = texts.collect();
    // If the thread is ending there is nobody left to ask for them.
    let _ = LAST_PROVENANCE.try_with(|last| *last.borrow_mut() = texts);
}

fn last(index: u32, which: impl FnOnce(&Texts) -> &CString) -> *const c_char {
    LAST_PROVENANCE
        .try_with(|last| {
            let last = last.borrow();
            last.get(index as usize)
                .map_or(c"".as_ptr(), |texts| which(texts).as_ptr())
        })
        .unwrap_or(c"".as_ptr())
}
