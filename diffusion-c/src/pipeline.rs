//! The pipeline handle.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use diffusion_core::Pipeline;
use diffusion_core::device::{parse_device, parse_dtype};
use diffusion_core::pipeline::SharedPipeline;

use crate::abi::{Versioned, check_not_null, optional_text, read_struct, text, write_struct};
use crate::status::{Failure, dfn_status, guard};

/// A model, loaded. Any number of threads may use one at the same time, each in calls of its own, and those
/// that change it (LoRAs, words) are no exception: a run goes on with what it began with, and the next one
/// has the change. Made by dfn_pipeline_open() and released by dfn_pipeline_free().
#[derive(Debug)]
pub struct dfn_pipeline {
    inner: SharedPipeline,
}

// Threads of C share one.
const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<dfn_pipeline>();
};

/// How a model is loaded. dfn_pipeline_options_default() sets every field.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dfn_pipeline_options {
    /// Bytes of this struct in the caller's header.
    pub struct_size: usize,
    /// The number format that weights are held in: "float32", "float16" or "bfloat16". On the CPU activations
    /// are float32 in all three, and so are products but those with bfloat16 weights, which are of 16 bits, faster
    /// and coarser. NULL: float32 on the CPU, float16 elsewhere.
    pub dtype: *const c_char,
    /// "cpu", "cuda" or "metal", with a number as "cuda:1" where there are several. NULL: "cpu".
    pub device: *const c_char,
    /// Prefers weight files of a variant, such as "fp16". NULL: those of none.
    pub variant: *const c_char,
    /// How many threads the layers work on, on the CPU, up to 1024. Pictures are the same on any number. 0: those
    /// of the whole process, one for each processor.
    pub num_threads: u32,
    /// "int8": holds the layers of the UNet and the text encoders in eight bits; `dtype` is what all else is held
    /// in. NULL: off.
    pub quantize: *const c_char,
}

// SAFETY: `repr(C)`, a `usize` first, raw pointers.
unsafe impl Versioned for dfn_pipeline_options {
    const NAME: &'static str = "dfn_pipeline_options";
    const MIN_SIZE: usize = offset_of!(Self, num_threads);
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        dtype: null(),
        device: null(),
        variant: null(),
        num_threads: 0,
        quantize: null(),
    };
}

/// Sets every field to its default. `struct_size` is sizeof(dfn_pipeline_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_options_default(
    options: *mut dfn_pipeline_options,
    struct_size: usize,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for a struct of `struct_size` bytes.
        unsafe { write_struct(options, struct_size, &Versioned::DEFAULT) }
    })
}

/// Loads a model.
///
/// `path`: a folder in the diffusers layout (with model_index.json), one file that holds the whole model
/// (.safetensors, .ckpt, .gguf), or, in a build with the feature `hub` and where no such path is, an id of the
/// Hugging Face Hub such as "owner/name". UTF-8 on every system.
/// `options`: NULL for the defaults.
/// `pipeline`: receives the model, which is the caller's and must go to dfn_pipeline_free(). It becomes
/// NULL if the call fails.
///
/// DFN_NOT_FOUND if there is no such path or a part is missing, DFN_FORMAT if it is not a model or a
/// file is damaged, DFN_WEIGHTS if tensors do not fit their configuration, DFN_UNSUPPORTED for models
/// that this version does not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_open(
    path: *const c_char,
    options: *const dfn_pipeline_options,
    pipeline: *mut *mut dfn_pipeline,
) -> dfn_status {
    guard(|| {
        check_not_null(pipeline, "pipeline")?;
        // SAFETY: not null, and the header asks for a pointer to write to.
        unsafe { pipeline.write(null_mut()) };
        // SAFETY: the header asks for text that ends in NUL, and for a struct of `struct_size` bytes.
        let (path, options) = unsafe {
            let options = match options.is_null() {
                true => dfn_pipeline_options::DEFAULT,
                false => read_struct(options)?,
            };
            (text(path, "path")?, options)
        };
        let mut builder = Pipeline::builder().weights(path);
        // SAFETY: the header asks for NULL or text that ends in NUL.
        let (dtype, device, variant, quantize) = unsafe {
            (
                optional_text(options.dtype, "dtype")?,
                optional_text(options.device, "device")?,
                optional_text(options.variant, "variant")?,
                optional_text(options.quantize, "quantize")?,
            )
        };
        if let Some(dtype) = dtype {
            builder = builder.dtype(parse_dtype(dtype)?);
        }
        if let Some(device) = device {
            builder = builder.device(parse_device(device)?);
        }
        if let Some(variant) = variant {
            builder = builder.variant(variant);
        }
        if let Some(quantize) = quantize {
            builder = builder.quantize(quantize.parse()?);
        }
        if options.num_threads > 0 {
            builder = builder.num_threads(options.num_threads as usize);
        }
        let inner = SharedPipeline::new(builder.build()?);
        let handle = Box::into_raw(Box::new(dfn_pipeline { inner }));
        // SAFETY: as above.
        unsafe { pipeline.write(handle) };
        Ok(())
    })
}

/// Releases a model. NULL is allowed and does nothing. No other call may be using it, on any thread, and
/// none may follow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_free(pipeline: *mut dfn_pipeline) {
    guard(|| {
        if !pipeline.is_null() {
            // SAFETY: not null, so it is from `Box::into_raw` in `dfn_pipeline_open`, and the header
            // forbids any use beside or after this.
            drop(unsafe { Box::from_raw(pipeline) });
        }
        Ok(())
    });
}

/// The size, in pixels, of pictures whose parameters name none: the size that the model was trained on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_default_size(
    pipeline: *const dfn_pipeline,
    width: *mut u32,
    height: *mut u32,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile.
        let pipeline = unsafe { current(pipeline) }?;
        check_not_null(width, "width")?;
        check_not_null(height, "height")?;
        let (default_width, default_height) = pipeline.default_size();
        let size = narrow(default_width, default_height)?;
        // SAFETY: not null, and the header asks for pointers to write to.
        unsafe {
            width.write(size.0);
            height.write(size.1);
        }
        Ok(())
    })
}

/// A size in the numbers that C has for it.
pub(crate) fn narrow(width: usize, height: usize) -> Result<(u32, u32), Failure> {
    match (u32::try_from(width), u32::try_from(height)) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => {
            let found = format!("{width} x {height}");
            Err(Failure::argument("size", "sides below 2^32", found))
        }
    }
}

/// The model behind a handle, to be changed.
///
/// # Safety
/// `pipeline` is null, or from `dfn_pipeline_open` and not freed within `'a`.
pub(crate) unsafe fn shared<'a>(
    pipeline: *const dfn_pipeline,
) -> Result<&'a SharedPipeline, Failure> {
    check_not_null(pipeline, "pipeline")?;
    // SAFETY: not null, and the caller promises the rest.
    Ok(unsafe { &(*pipeline).inner })
}

/// The model behind a handle, as it is now.
///
/// # Safety
/// `pipeline` is null, or from `dfn_pipeline_open` and not freed during the call.
pub(crate) unsafe fn current(pipeline: *const dfn_pipeline) -> Result<Arc<Pipeline>, Failure> {
    // SAFETY: the caller's promise.
    Ok(unsafe { shared(pipeline) }?.current())
}
