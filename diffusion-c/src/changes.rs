//! LoRAs and learned words, put in and taken out between runs.

use std::ffi::c_char;

use diffusion_core::weights::{Embedding, Lora};

use crate::abi::{check_not_null, optional_text, text};
use crate::pipeline::{dfn_pipeline, shared};
use crate::status::{Failure, dfn_status, guard};

/// No use comes near; a bigger count is memory that nobody set.
const MAX_LORAS: usize = 1024;

/// Puts LoRAs, or their relatives, in place of those that were there before, added to the weights. Words of
/// textual inversion that a file brings with it come and go with it.
///
/// `paths`: `count` files, folders as diffusers or PEFT save them, or, in a build with the feature `hub`,
/// ids of the Hugging Face Hub.
/// `scales`: the strength of each, finite. NULL: 1 for all.
/// `count`: how many; 0 takes all out.
///
/// Runs that are under way go on without them; see dfn_pipeline.
///
/// DFN_NOT_FOUND if there is no such file, DFN_FORMAT if one is damaged or no LoRA, DFN_INVALID_ARGUMENT if
/// one is made for another family of models. Those of before then stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_set_loras(
    pipeline: *mut dfn_pipeline,
    paths: *const *const c_char,
    scales: *const f64,
    count: usize,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile, for `count` texts that end
        // in NUL and as many numbers.
        let (pipeline, loras) = unsafe { (shared(pipeline)?, read_loras(paths, scales, count)?) };
        let open = |(path, scale)| Ok((Lora::open(path)?, scale));
        let loras = loras
            .into_iter()
            .map(open)
            .collect::<Result<Vec<_>, Failure>>()?;
        let loras: Vec<_> = loras.iter().map(|(lora, scale)| (lora, *scale)).collect();
        pipeline.change(|pipeline| match loras.is_empty() {
            true => {
                pipeline.clear_loras();
                Ok(())
            }
            false => pipeline.set_loras(&loras),
        })?;
        Ok(())
    })
}

/// Takes all LoRAs out. The weights are then the model's own, bit for bit. Runs that are under way keep
/// theirs; see dfn_pipeline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_clear_loras(pipeline: *mut dfn_pipeline) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile.
        let pipeline = unsafe { shared(pipeline) }?;
        pipeline.change(|pipeline| {
            pipeline.clear_loras();
            Ok(())
        })?;
        Ok(())
    })
}

/// Gives the memory of the text encoders back. Prompts that a run had before are known on, the last eight of them,
/// until LoRAs or words change; others are then DFN_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_drop_text_encoders(
    pipeline: *mut dfn_pipeline,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile.
        let pipeline = unsafe { shared(pipeline) }?;
        pipeline.change(|pipeline| {
            pipeline.drop_text_encoders();
            Ok(())
        })?;
        Ok(())
    })
}

/// Adds a learned word of textual inversion, which prompts and negative prompts then use by its name.
///
/// `path`: its file.
/// `token`: the word. NULL: the one that the file states, or else the file's name without its ending.
/// Files of the user interfaces may state a name that is not the file's; prompts may then use either.
///
/// Runs that are under way do not know it; see dfn_pipeline.
///
/// DFN_NOT_FOUND if there is no such file, DFN_FORMAT if it is damaged or has no vectors of a word,
/// DFN_INVALID_ARGUMENT if the word is made for another family of models or the model has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_pipeline_add_embedding(
    pipeline: *mut dfn_pipeline,
    path: *const c_char,
    token: *const c_char,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for an open pipeline that nobody frees meanwhile, and for text that ends
        // in NUL.
        let (pipeline, path, token) = unsafe {
            (
                shared(pipeline)?,
                text(path, "path")?,
                optional_text(token, "token")?,
            )
        };
        let embedding = Embedding::open(path, token)?;
        pipeline.change(|pipeline| pipeline.add_embedding(&embedding))?;
        Ok(())
    })
}

/// The paths and strengths of a call.
///
/// # Safety
/// `paths` is null or points to `count` pointers, each of which is null or points to bytes that end in NUL
/// and stay unchanged for `'a`; `scales` is null or points to `count` numbers.
unsafe fn read_loras<'a>(
    paths: *const *const c_char,
    scales: *const f64,
    count: usize,
) -> Result<Vec<(&'a str, f64)>, Failure> {
    if count > MAX_LORAS {
        let expected = format!("at most {MAX_LORAS}");
        return Err(Failure::argument("count", expected, count));
    }
    if count > 0 {
        check_not_null(paths, "paths")?;
    }
    let read = |i: usize| {
        // SAFETY: `i` is below `count`, so the caller promises what is there; callers of other languages may
        // not align it.
        unsafe {
            let path = text(paths.add(i).read_unaligned(), "paths")?;
            let scale = match scales.is_null() {
                true => 1.0,
                false => scales.add(i).read_unaligned(),
            };
            Ok((path, scale))
        }
    };
    (0..count).map(read).collect()
}
