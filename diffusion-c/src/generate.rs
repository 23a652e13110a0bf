//! A run: from parameters to pixels in the caller's memory.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::mem::size_of;
use std::ops::ControlFlow;

use diffusion_core::Progress;

use crate::abi::{Versioned, check_not_null, read_struct, struct_size, write_struct};
use crate::files::set_provenance;
use crate::layout::Layout;
use crate::params::{dfn_generate_params, dfn_progress, dfn_result, request};
use crate::pictures::start;
use crate::pipeline::{current, dfn_pipeline};
use crate::status::{Failure, c_text, dfn_status, guard};

thread_local! {
    static LAST_WARNINGS: RefCell<CString> = RefCell::default();
}

/// How many bytes dfn_generate() will ask for, and the size of its pictures in pixels.
///
/// `row_stride`: bytes from one row to the next; 0 for rows without gaps.
/// `bytes`: receives the bytes from the first row's start to the last row's end.
/// `width`, `height`: receive the size; NULL is allowed.
///
/// Of the parameters it reads the size, the pictures and their number.
///
/// DFN_INVALID_ARGUMENT for sides that are not multiples of the model's factor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_generate_size(
    pipeline: *const dfn_pipeline,
    params: *const dfn_generate_params,
    row_stride: usize,
    bytes: *mut usize,
    width: *mut u32,
    height: *mut u32,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile, and for a struct of
        // `struct_size` bytes.
        let (pipeline, params) = unsafe { (current(pipeline)?, read_struct(params)?) };
        check_not_null(bytes, "bytes")?;
        // SAFETY: the header asks for pictures of as many bytes as they say.
        let request = unsafe { start(&params) }?;
        let layout = Layout::new(&pipeline, &request, params.num_images, row_stride)?;
        // SAFETY: `bytes` is not null, and the header asks for pointers to write to.
        unsafe {
            bytes.write(layout.bytes);
            if !width.is_null() {
                width.write(layout.width);
            }
            if !height.is_null() {
                height.write(layout.height);
            }
        }
        Ok(())
    })
}

/// Makes pictures and writes them as RGBA8 (red, green, blue, and 255), rows from top to bottom, one
/// picture below the other without a gap between them. It returns when all are done.
///
/// `pixels`: the caller's memory. It is written at the end of a run that succeeds, and nowhere but in the
/// rows' pixels, so it may be part of a bigger picture.
/// `pixels_len`: bytes there; dfn_generate_size() tells how many are needed. It is checked before the run.
/// `row_stride`: bytes from one row to the next, at least width * 4; 0 for rows without gaps.
/// `result`: receives what was done; its struct_size must be set. NULL is allowed.
///
/// The same parameters and seed give the same bytes, on one machine. Several threads may call it with
/// one pipeline; each then needs memory for its own run.
///
/// DFN_INVALID_ARGUMENT for values out of range, DFN_OUT_OF_MEMORY for sizes that cannot fit,
/// DFN_UNSUPPORTED for schedulers that this version does not know, DFN_CANCELLED if `progress` said so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_generate(
    pipeline: *const dfn_pipeline,
    params: *const dfn_generate_params,
    pixels: *mut u8,
    pixels_len: usize,
    row_stride: usize,
    result: *mut dfn_result,
) -> dfn_status {
    guard(|| {
        set_warnings(c"".into());
        set_provenance(Vec::new());
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile, for structs of
        // `struct_size` bytes, for text that ends in NUL and for pictures of as many bytes as they say.
        let (pipeline, params, request, result_size) = unsafe {
            let pipeline = current(pipeline)?;
            let params = read_struct(params)?;
            let result_size = match result.is_null() {
                true => None,
                false => Some(struct_size(result)?),
            };
            (pipeline, params, request(&params)?, result_size)
        };
        check_not_null(pixels, "pixels")?;
        let layout = Layout::new(&pipeline, &request, params.num_images, row_stride)?;
        if pixels_len < layout.bytes {
            let expected = format!("at least {} bytes", layout.bytes);
            return Err(Failure::argument("pixels_len", expected, pixels_len));
        }

        let generated = pipeline.generate_with(&request, &mut |progress| {
            // SAFETY: the header asks for NULL or a function of this type.
            unsafe { report(&params, progress) }
        })?;

        assert_eq!(generated.images.len(), params.num_images as usize);
        let told = (0..generated.images.len()).map(|index| generated.provenance(index));
        let told = told.collect::<diffusion_core::Result<Vec<_>>>()?;
        // SAFETY: the header asks for `pixels_len` writable bytes, of which there are enough as checked
        // above, and there are as many pictures as the layout was made for.
        unsafe { layout.write(&generated.images, pixels) };
        if let Some(size) = result_size {
            let value = dfn_result {
                seed: generated.seeds.first().copied().unwrap_or_default(),
                width: layout.width,
                height: layout.height,
                num_images: params.num_images,
                num_warnings: count(generated.warnings.len()),
                encode_seconds: generated.timings.encode.as_secs_f64(),
                sample_seconds: generated.timings.sample.as_secs_f64(),
                decode_seconds: generated.timings.decode.as_secs_f64(),
                ..dfn_result::DEFAULT
            };
            // SAFETY: the header asks for a struct of `struct_size` bytes, which `size` is.
            unsafe { write_struct(result, size, &value) }?;
        }
        let lines = generated
            .warnings
            .iter()
            .map(|warning| warning.to_string().replace('\n', " "));
        set_provenance(told);
        set_warnings(c_text(&lines.collect::<Vec<_>>().join("\n")));
        Ok(())
    })
}

/// What the last dfn_generate() on this thread has to say though it succeeded, such as words of the prompt
/// that the model cannot take: a line each. Never NULL; empty if there is nothing. The text is valid until
/// this thread calls dfn_generate() again or ends.
#[unsafe(no_mangle)]
pub extern "C" fn dfn_last_warnings() -> *const c_char {
    LAST_WARNINGS
        .try_with(|text| text.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

fn set_warnings(text: CString) {
    // If the thread is ending there is nobody left to ask for the text.
    let _ = LAST_WARNINGS.try_with(|last| *last.borrow_mut() = text);
}

/// Tells the caller's function where the run is.
///
/// # Safety
/// The parameters' function, if any, is of the type that it claims.
unsafe fn report(params: &dfn_generate_params, progress: &Progress<'_>) -> ControlFlow<()> {
    let Some(function) = params.progress else {
        return ControlFlow::Continue(());
    };
    let report = dfn_progress {
        struct_size: size_of::<dfn_progress>(),
        step: count(progress.step),
        num_steps: count(progress.num_steps),
        image_index: count(progress.images.start),
        num_images: count(progress.num_images),
        sigma: progress.sigma,
        fraction: progress.fraction(),
    };
    // SAFETY: the caller's promise; `report` outlives the call.
    match unsafe { function(&raw const report, params.user_data) } {
        0 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// A number for C. Those that come from the caller's own `u32`s always fit.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
