//! The structs of a run: what goes in, what is seen on the way, what comes out.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::ptr::{null, null_mut};

use diffusion_core::config::parse_json;
use diffusion_core::{GenerateRequest, PictureSizes};

pub use crate::abi::dfn_bool;
use crate::abi::{Versioned, optional_text, text, write_struct};
pub use crate::networks::dfn_deep_shrink;
use crate::networks::{DEFAULT_TILES, networks};
pub use crate::pictures::dfn_picture;
use crate::pictures::start;
use crate::status::{Failure, dfn_status, guard};

/// Where a run is. The library owns it; it is valid during the call of the progress function.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dfn_progress {
    /// Bytes of this struct in the library; fields beyond are not there.
    pub struct_size: usize,
    /// Steps of this batch of pictures that are done, from 1.
    pub step: u32,
    /// Steps of each batch.
    pub num_steps: u32,
    /// The first picture of this batch, from 0.
    pub image_index: u32,
    /// Pictures of the whole run.
    pub num_images: u32,
    /// The noise level that the pictures have now: a standard deviation, where clean ones have 1.
    pub sigma: f64,
    /// The share of the whole run's steps that is done, from 0 to 1.
    pub fraction: f64,
}

/// Called after each step, on the thread that called dfn_generate(). Return 0 to cancel the run, anything
/// else to go on. `user_data` is the parameters' own. It may call this library. It must return: no
/// longjmp and no exception may leave it.
pub type dfn_progress_fn =
    Option<unsafe extern "C" fn(progress: *const dfn_progress, user_data: *mut c_void) -> dfn_bool>;

/// What SDXL is told of the picture that it was cut from and that it becomes, in pixels. Small originals give
/// soft pictures, crops cut-off ones.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct dfn_picture_sizes {
    /// Before cropping. Width and height 0: the size of the picture.
    pub original_width: u32,
    /// Before cropping.
    pub original_height: u32,
    /// What was cropped away on the left.
    pub crop_left: u32,
    /// What was cropped away at the top.
    pub crop_top: u32,
    /// After cropping. Width and height 0: the size of the picture.
    pub target_width: u32,
    /// After cropping.
    pub target_height: u32,
}

impl dfn_picture_sizes {
    const DEFAULT: Self = Self {
        original_width: 0,
        original_height: 0,
        crop_left: 0,
        crop_top: 0,
        target_width: 0,
        target_height: 0,
    };

    fn read(self, name: &str) -> Result<PictureSizes, Failure> {
        let size = |which: &str, width: u32, height: u32| match (width, height) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => {
                let expected = "two sides, or 0 for both";
                let found = format!("{width} x {height}");
                Err(Failure::argument(
                    &format!("{name}.{which}"),
                    expected,
                    found,
                ))
            }
            (width, height) => Ok(Some((width as usize, height as usize))),
        };
        Ok(PictureSizes {
            original: size("original", self.original_width, self.original_height)?,
            crop: (self.crop_left as usize, self.crop_top as usize),
            target: size("target", self.target_width, self.target_height)?,
        })
    }
}

/// What a run shall do. dfn_generate_params_default() sets every field; only `prompt` must be set after.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dfn_generate_params {
    /// Bytes of this struct in the caller's header.
    pub struct_size: usize,
    /// What the pictures shall show. Empty text is allowed, NULL is not.
    pub prompt: *const c_char,
    /// What the pictures shall not show; it counts where guidance is on. NULL: nothing, which SDXL is told by
    /// zeros and the other models by the empty text.
    pub negative_prompt: *const c_char,
    /// Pixels, a multiple of the model's factor (8 in Stable Diffusion). 0: the model's default.
    pub width: u32,
    /// Pixels, as `width`.
    pub height: u32,
    /// Steps, from 1 to the model's timesteps (1000). Default: 50.
    pub num_steps: u32,
    /// Pictures, at least 1; each has the seed after the one before. Default: 1.
    pub num_images: u32,
    /// Pictures that are worked on at once, at least 1. More takes more memory; 1 gives each picture the
    /// same bytes whatever stands beside it. Default: 1.
    pub batch_size: u32,
    /// 1: a random seed, which dfn_result tells. 0: `seed`. Default: 1.
    pub random_seed: dfn_bool,
    /// 1: `eta`. 0: the scheduler's own. Default: 0.
    pub has_eta: dfn_bool,
    /// The seed of the first picture, where `random_seed` is 0; otherwise it must be 0. The lower 32 bits
    /// count, as in PyTorch.
    pub seed: u64,
    /// How far the pictures follow the prompt, finite and at least 0. At most 1 means without guidance,
    /// in half the time. Default: 7.5.
    pub guidance_scale: f64,
    /// The share of fresh noise in each step, from 0 to 1, where `has_eta` is 1 and the scheduler has one
    /// (DDIM, TCD, the ancestral ones, those of stochastic equations); where `has_eta` is 0 it must be 0.
    pub eta: f64,
    /// A name of docs/SCHEDULERS.md ("ddim", "DPM++ 2M Karras", "euler_sgm_uniform"), or the JSON text of a
    /// diffusers scheduler_config.json, known by its `{`. NULL: the model's own.
    pub scheduler: *const c_char,
    /// Called after each step; it may cancel the run. NULL: nobody.
    pub progress: dfn_progress_fn,
    /// Handed to `progress` as it is.
    pub user_data: *mut c_void,
    /// What SDXL's second text encoder reads. NULL: `prompt`.
    pub prompt_2: *const c_char,
    /// The same for `negative_prompt`. NULL: `negative_prompt`.
    pub negative_prompt_2: *const c_char,
    /// What SDXL is told beside the prompt. Default: whole pictures of their own size.
    pub sizes: dfn_picture_sizes,
    /// What SDXL is told beside the negative prompt, where `has_negative_sizes` is 1; otherwise it must be
    /// all 0.
    pub negative_sizes: dfn_picture_sizes,
    /// 1: `negative_sizes`. 0: `sizes` for both. Default: 0.
    pub has_negative_sizes: dfn_bool,
    /// How much viewers shall like the picture, from 0 to 10: what SDXL's refiner is told beside the prompt.
    /// Default: 6.
    pub aesthetic_score: f64,
    /// The same beside the negative prompt. Default: 2.5.
    pub negative_aesthetic_score: f64,
    /// What the run starts from: RGBA8, of which the alpha does not count. It is brought to `width` and `height`,
    /// which default to its own, rounded down to multiples of the model's factor. Default: none.
    pub image: dfn_picture,
    /// A byte for each pixel of `image`: what is bright (128 and more) changes, the rest keeps its pixels. Default:
    /// none, and all changes.
    pub mask: dfn_picture,
    /// How much of `image` changes, from 0 to 1, where `has_strength` is 1; otherwise it must be 0.
    pub strength: f64,
    /// How soft the edge of the mask is: the deviation of a Gaussian in pixels, from 0 to 1024. 0: hard, and 4
    /// with `margins`.
    pub mask_blur: f64,
    /// Pixels around the mask, where `has_only_masked` is 1; otherwise it must be 0.
    pub only_masked: u32,
    /// Left, top, right, bottom: by how many pixels `image` grows, to sides that are multiples of the model's factor.
    /// Default: 0.
    pub margins: [u32; 4],
    /// 1: `strength`. 0: 0.8, and 1 with a mask, with margins and for models that change pictures as told. Default: 0.
    pub has_strength: dfn_bool,
    /// 1: works on the mask and `only_masked` pixels around it alone, at `width` and `height`, which default to the
    /// model's own then. Default: 0.
    pub has_only_masked: dfn_bool,
    /// A second pass in a larger size, which keeps what the first one found; pixels. 0: none.
    pub hires_width: u32,
    /// Pixels, as `hires_width`.
    pub hires_height: u32,
    /// How much the second pass changes, from 0 to 1. 0: 0.7.
    pub hires_strength: f64,
    /// Gives guided pictures back the contrast that guidance takes, from 0 to 1. Default: 0.
    pub guidance_rescale: f64,
    /// How far the picture follows `image`, for models that change pictures as told. Default: 1.5.
    pub image_guidance_scale: f64,
    /// How the prompts are read (docs/PROMPTS.md): "a1111", "compel", or "plain", which cuts what the model cannot take
    /// and warns of it. NULL: "a1111".
    pub prompt_syntax: *const c_char,
    /// Which layer of the text encoders the UNet reads, counted from the last, which is 1. 0: what the model was
    /// trained with.
    pub clip_skip: u32,
    /// Whether the autoencoder works in blended tiles, which take less memory: "off"; "auto", above 1024 x 1536 pixels;
    /// "tiles", of the overlap and the side that follow. NULL: "auto".
    pub vae_tiling: *const c_char,
    /// The share of a tile's side that the next one covers too, from 0 to 0.5. Default: 0.25.
    pub vae_tile_overlap: f64,
    /// Side of a tile in pixels, a multiple of the model's factor. Default: 512.
    pub vae_tile_size: u32,
    /// 1: copies of the picture fit side by side from left to right. Default: 0.
    pub seamless_x: dfn_bool,
    /// 1: and one above the other. Default: 0.
    pub seamless_y: dfn_bool,
    /// 1: the autoencoder works off one picture of a batch at a time, which takes less memory. Default: 0.
    pub vae_slicing: dfn_bool,
    /// 1: `deep_shrink`. Default: 0.
    pub has_deep_shrink: dfn_bool,
    /// Perturbed-attention guidance: how far to go away from what the model draws with blind self-attention, finite
    /// and at least 0; usual is 3. It gives clearer structure for half as much time again. Default: 0, off.
    pub pag_scale: f64,
    /// What `pag_scale` loses with each timestep below 1000, finite and at least 0. Default: 0.
    pub pag_adaptive_scale: f64,
    /// The self-attention layers that are blind, by parts of their names with commas between: "mid,up.block_0".
    /// NULL: "mid".
    pub pag_layers: *const c_char,
    /// How inner levels shrink, where `has_deep_shrink` is 1.
    pub deep_shrink: dfn_deep_shrink,
    /// Which share of the tokens is merged with similar ones for self-attention in the outermost level of the UNet that
    /// has it (ToMe), from 0, none, to 0.9; usual is 0.5. Faster the larger the picture is, and a little different.
    /// Default: 0.
    pub token_merging: f64,
    /// In each so-many-th evaluation alone the UNet's inner levels are asked, and what they found serves the others
    /// (DeepCache), from 1, all, to 1000; usual is 2 or 3. Faster, and a little different. Default: 1.
    pub deep_cache: u32,
    /// After how many steps the text is read no more (T-GATE): guidance ends there, and cross-attention answers what it
    /// found last; usual is 10 of 25. Faster, and different in details. 0: never. Default: 0.
    pub tgate: u32,
}

// SAFETY: `repr(C)`, a `usize` first, numbers, raw pointers and a nullable function pointer.
unsafe impl Versioned for dfn_generate_params {
    const NAME: &'static str = "dfn_generate_params";
    const MIN_SIZE: usize = offset_of!(Self, prompt_2);
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        prompt: null(),
        negative_prompt: null(),
        width: 0,
        height: 0,
        num_steps: 50,
        num_images: 1,
        batch_size: 1,
        random_seed: 1,
        has_eta: 0,
        seed: 0,
        guidance_scale: 7.5,
        eta: 0.0,
        scheduler: null(),
        progress: None,
        user_data: null_mut(),
        prompt_2: null(),
        negative_prompt_2: null(),
        sizes: dfn_picture_sizes::DEFAULT,
        negative_sizes: dfn_picture_sizes::DEFAULT,
        has_negative_sizes: 0,
        aesthetic_score: 6.0,
        negative_aesthetic_score: 2.5,
        image: dfn_picture::NONE,
        mask: dfn_picture::NONE,
        strength: 0.0,
        mask_blur: 0.0,
        only_masked: 0,
        margins: [0; 4],
        has_strength: 0,
        has_only_masked: 0,
        hires_width: 0,
        hires_height: 0,
        hires_strength: 0.0,
        guidance_rescale: 0.0,
        image_guidance_scale: 1.5,
        prompt_syntax: null(),
        clip_skip: 0,
        vae_tiling: null(),
        vae_tile_overlap: DEFAULT_TILES.1,
        vae_tile_size: DEFAULT_TILES.0,
        seamless_x: 0,
        seamless_y: 0,
        vae_slicing: 0,
        has_deep_shrink: 0,
        pag_scale: 0.0,
        pag_adaptive_scale: 0.0,
        pag_layers: null(),
        deep_shrink: dfn_deep_shrink::DEFAULT,
        token_merging: 0.0,
        deep_cache: 1,
        tgate: 0,
    };
}

/// What a run did. The caller sets `struct_size`; the rest is written if the run succeeds.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dfn_result {
    /// Bytes of this struct in the caller's header.
    pub struct_size: usize,
    /// The seed of the first picture; the next ones have the seeds that follow.
    pub seed: u64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pictures that were written.
    pub num_images: u32,
    /// Lines in dfn_last_warnings().
    pub num_warnings: u32,
    /// Seconds for the prompt.
    pub encode_seconds: f64,
    /// Seconds for all steps.
    pub sample_seconds: f64,
    /// Seconds for turning the results of the steps into pixels.
    pub decode_seconds: f64,
}

// SAFETY: `repr(C)`, a `usize` first, numbers.
unsafe impl Versioned for dfn_result {
    const NAME: &'static str = "dfn_result";
    // With the first field that is appended this becomes that field's offset.
    const MIN_SIZE: usize = size_of::<Self>();
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        seed: 0,
        width: 0,
        height: 0,
        num_images: 0,
        num_warnings: 0,
        encode_seconds: 0.0,
        sample_seconds: 0.0,
        decode_seconds: 0.0,
    };
}

/// Sets every field to its default. `struct_size` is sizeof(dfn_generate_params).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dfn_generate_params_default(
    params: *mut dfn_generate_params,
    struct_size: usize,
) -> dfn_status {
    guard(|| {
        // SAFETY: the header asks for a struct of `struct_size` bytes.
        unsafe { write_struct(params, struct_size, &Versioned::DEFAULT) }
    })
}

/// The request that the parameters describe.
///
/// # Safety
/// Each text is null or ends in NUL, and the pictures' pixels are null or as many as they say.
pub(crate) unsafe fn request(params: &dfn_generate_params) -> Result<GenerateRequest, Failure> {
    // SAFETY: the caller's promise.
    let (prompt, prompt_2, negative_prompt, negative_prompt_2, scheduler, syntax) = unsafe {
        (
            text(params.prompt, "prompt")?,
            optional_text(params.prompt_2, "prompt_2")?,
            optional_text(params.negative_prompt, "negative_prompt")?,
            optional_text(params.negative_prompt_2, "negative_prompt_2")?,
            optional_text(params.scheduler, "scheduler")?,
            optional_text(params.prompt_syntax, "prompt_syntax")?,
        )
    };
    // SAFETY: the caller's promise.
    let mut request = unsafe { networks(start(params)?, params) }?
        .prompt(prompt)
        .num_steps(params.num_steps as usize)
        .num_images(params.num_images as usize)
        .batch_size(params.batch_size as usize)
        .guidance_scale(params.guidance_scale)
        .guidance_rescale(params.guidance_rescale)
        .image_guidance_scale(params.image_guidance_scale)
        .sizes(params.sizes.read("sizes")?)
        .aesthetic_score(params.aesthetic_score)
        .negative_aesthetic_score(params.negative_aesthetic_score);
    if let Some(name) = syntax {
        request = request.prompt_syntax(name.parse()?);
    }
    if params.clip_skip != 0 {
        request = request.clip_skip(params.clip_skip as usize);
    }
    if let Some(text) = prompt_2 {
        request = request.prompt_2(text);
    }
    if let Some(text) = negative_prompt {
        request = request.negative_prompt(text);
    }
    if let Some(text) = negative_prompt_2 {
        request = request.negative_prompt_2(text);
    }
    // A value whose switch is off was meant to count.
    match (params.random_seed != 0, params.seed) {
        (false, seed) => request = request.seed(seed),
        (true, 0) => {}
        (true, seed) => {
            let expected = "0 beside random_seed (set random_seed to 0 for a seed of your own)";
            return Err(Failure::argument("seed", expected, seed));
        }
    }
    match (params.has_eta != 0, params.eta) {
        (true, eta) => request = request.eta(eta),
        (false, 0.0) => {}
        (false, eta) => {
            let expected = "0 without has_eta (set has_eta to 1 for an eta of your own)";
            return Err(Failure::argument("eta", expected, eta));
        }
    }
    match (params.has_negative_sizes != 0, params.negative_sizes) {
        (true, sizes) => request = request.negative_sizes(sizes.read("negative_sizes")?),
        (false, dfn_picture_sizes::DEFAULT) => {}
        (false, sizes) => {
            let expected = "zeros without has_negative_sizes (set has_negative_sizes to 1)";
            return Err(Failure::argument(
                "negative_sizes",
                expected,
                format!("{sizes:?}"),
            ));
        }
    }
    match scheduler {
        None => {}
        Some(json) if json.trim_start().starts_with('{') => {
            let config = parse_json(json)
                .map_err(|e| Failure::argument("scheduler", "a name or a JSON object", e))?;
            request = request.scheduler_config(config);
        }
        Some(name) => request = request.scheduler_name(name),
    }
    Ok(request)
}
