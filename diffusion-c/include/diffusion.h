/*
 * C ABI of diffusion: Stable Diffusion in a library. C99 and C++11.
 *
 * Rules that hold for every function:
 * - One that can fail returns a dfn_status; dfn_last_error() says why, in words.
 * - Text is UTF-8 and ends in NUL. The library reads the caller's text and structs during the call
 *   only and keeps no pointer to them.
 * - A NULL where it is not said to be allowed is DFN_INVALID_ARGUMENT.
 * - Structs begin with their size in bytes. Fill those that go in with their `_default` function
 *   first: fields that later versions append are then set, and old callers keep working.
 * - Nothing is called on another thread than the one that made the call.
 */

#ifndef DIFFUSION_H
#define DIFFUSION_H

/* Made by cbindgen from diffusion-c/src; see diffusion-c/tests/header.rs. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header's ABI: it changes where old callers would break. Compare it with
 * dfn_abi_version() where the library is loaded at run time.
 */
#define DFN_ABI_VERSION 1

/**
 * How a call ended. The values stay; later versions may add some.
 */
enum dfn_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It worked.
     */
    DFN_OK = 0,
    /**
     * An argument is out of range, NULL, not UTF-8 or does not fit the model.
     */
    DFN_INVALID_ARGUMENT = 1,
    /**
     * A path, file or component does not exist.
     */
    DFN_NOT_FOUND = 2,
    /**
     * Reading or writing failed.
     */
    DFN_IO = 3,
    /**
     * A file is damaged or not what its name says.
     */
    DFN_FORMAT = 4,
    /**
     * The tensors of a checkpoint do not fit its configuration.
     */
    DFN_WEIGHTS = 5,
    /**
     * A model or option that this version does not know.
     */
    DFN_UNSUPPORTED = 6,
    /**
     * The run would not fit into memory.
     */
    DFN_OUT_OF_MEMORY = 7,
    /**
     * The progress function stopped the run.
     */
    DFN_CANCELLED = 8,
    /**
     * The tensor layer or the device failed.
     */
    DFN_DEVICE = 9,
    /**
     * Any other failure.
     */
    DFN_CUSTOM = 10,
    /**
     * A fault in the library itself. It was caught: the process and its other pipelines can go on.
     */
    DFN_PANIC = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dfn_status dfn_status;
#else
typedef int32_t dfn_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A model, loaded. Any number of threads may use one at the same time, each in calls of its own, and those
 * that change it (LoRAs, words) are no exception: a run goes on with what it began with, and the next one
 * has the change. Made by dfn_pipeline_open() and released by dfn_pipeline_free().
 */
typedef struct dfn_pipeline dfn_pipeline;

/**
 * How a model is loaded. dfn_pipeline_options_default() sets every field.
 */
typedef struct dfn_pipeline_options {
    /**
     * Bytes of this struct in the caller's header.
     */
    size_t struct_size;
    /**
     * The number format that weights are held in: "float32", "float16" or "bfloat16". On the CPU activations
     * are float32 in all three, and so are products but those with bfloat16 weights, which are of 16 bits, faster
     * and coarser. NULL: float32 on the CPU, float16 elsewhere.
     */
    const char *dtype;
    /**
     * "cpu", "cuda" or "metal", with a number as "cuda:1" where there are several. NULL: "cpu".
     */
    const char *device;
    /**
     * Prefers weight files of a variant, such as "fp16". NULL: those of none.
     */
    const char *variant;
    /**
     * How many threads the layers work on, on the CPU, up to 1024. Pictures are the same on any number. 0: those
     * of the whole process, one for each processor.
     */
    uint32_t num_threads;
    /**
     * "int8": holds the layers of the UNet and the text encoders in eight bits; `dtype` is what all else is held
     * in. NULL: off.
     */
    const char *quantize;
} dfn_pipeline_options;

/**
 * True or false: 0 is false, anything else is true. One byte, whatever `bool` is in the caller's
 * language.
 */
typedef uint8_t dfn_bool;

/**
 * Where a run is. The library owns it; it is valid during the call of the progress function.
 */
typedef struct dfn_progress {
    /**
     * Bytes of this struct in the library; fields beyond are not there.
     */
    size_t struct_size;
    /**
     * Steps of this batch of pictures that are done, from 1.
     */
    uint32_t step;
    /**
     * Steps of each batch.
     */
    uint32_t num_steps;
    /**
     * The first picture of this batch, from 0.
     */
    uint32_t image_index;
    /**
     * Pictures of the whole run.
     */
    uint32_t num_images;
    /**
     * The noise level that the pictures have now: a standard deviation, where clean ones have 1.
     */
    double sigma;
    /**
     * The share of the whole run's steps that is done, from 0 to 1.
     */
    double fraction;
} dfn_progress;

/**
 * Called after each step, on the thread that called dfn_generate(). Return 0 to cancel the run, anything
 * else to go on. `user_data` is the parameters' own. It may call this library. It must return: no
 * longjmp and no exception may leave it.
 */
typedef dfn_bool (*dfn_progress_fn)(const struct dfn_progress *progress, void *user_data);

/**
 * What SDXL is told of the picture that it was cut from and that it becomes, in pixels. Small originals give
 * soft pictures, crops cut-off ones.
 */
typedef struct dfn_picture_sizes {
    /**
     * Before cropping. Width and height 0: the size of the picture.
     */
    uint32_t original_width;
    /**
     * Before cropping.
     */
    uint32_t original_height;
    /**
     * What was cropped away on the left.
     */
    uint32_t crop_left;
    /**
     * What was cropped away at the top.
     */
    uint32_t crop_top;
    /**
     * After cropping. Width and height 0: the size of the picture.
     */
    uint32_t target_width;
    /**
     * After cropping.
     */
    uint32_t target_height;
} dfn_picture_sizes;

/**
 * A picture in the caller's memory, rows from top to bottom. It is read during the call.
 */
typedef struct dfn_picture {
    /**
     * The first pixel; NULL: there is no picture, and all else must be 0.
     */
    const uint8_t *pixels;
    /**
     * In pixels.
     */
    uint32_t width;
    /**
     * In pixels.
     */
    uint32_t height;
    /**
     * Bytes from one row to the next; 0 for rows without gaps.
     */
    size_t row_stride;
} dfn_picture;

/**
 * Smaller inner levels in the first part of a run, so that a picture larger than those that the model knows is laid out
 * as one: Kohya's Deep Shrink.
 */
typedef struct dfn_deep_shrink {
    /**
     * Behind which output of the model's way down, as ComfyUI counts its input blocks. Default: 3, the first
     * downsampling in Stable Diffusion.
     */
    uint32_t block;
    /**
     * 1: the skip keeps its size. Default: 1.
     */
    dfn_bool after_skip;
    /**
     * What both sides are divided by, from 1 to 16. Default: 2.
     */
    double factor;
    /**
     * From which share of the model's timesteps on, from 0 (pure noise) to 1. Default: 0.
     */
    double start;
    /**
     * To which. Default: 0.35.
     */
    double end;
} dfn_deep_shrink;

/**
 * What a run shall do. dfn_generate_params_default() sets every field; only `prompt` must be set after.
 */
typedef struct dfn_generate_params {
    /**
     * Bytes of this struct in the caller's header.
     */
    size_t struct_size;
    /**
     * What the pictures shall show. Empty text is allowed, NULL is not.
     */
    const char *prompt;
    /**
     * What the pictures shall not show; it counts where guidance is on. NULL: nothing, which SDXL is told by
     * zeros and the other models by the empty text.
     */
    const char *negative_prompt;
    /**
     * Pixels, a multiple of the model's factor (8 in Stable Diffusion). 0: the model's default.
     */
    uint32_t width;
    /**
     * Pixels, as `width`.
     */
    uint32_t height;
    /**
     * Steps, from 1 to the model's timesteps (1000). Default: 50.
     */
    uint32_t num_steps;
    /**
     * Pictures, at least 1; each has the seed after the one before. Default: 1.
     */
    uint32_t num_images;
    /**
     * Pictures that are worked on at once, at least 1. More takes more memory; 1 gives each picture the
     * same bytes whatever stands beside it. Default: 1.
     */
    uint32_t batch_size;
    /**
     * 1: a random seed, which dfn_result tells. 0: `seed`. Default: 1.
     */
    dfn_bool random_seed;
    /**
     * 1: `eta`. 0: the scheduler's own. Default: 0.
     */
    dfn_bool has_eta;
    /**
     * The seed of the first picture, where `random_seed` is 0; otherwise it must be 0. The lower 32 bits
     * count, as in PyTorch.
     */
    uint64_t seed;
    /**
     * How far the pictures follow the prompt, finite and at least 0. At most 1 means without guidance,
     * in half the time. Default: 7.5.
     */
    double guidance_scale;
    /**
     * The share of fresh noise in each step, from 0 to 1, where `has_eta` is 1 and the scheduler has one
     * (DDIM, TCD, the ancestral ones, those of stochastic equations); where `has_eta` is 0 it must be 0.
     */
    double eta;
    /**
     * A name of docs/SCHEDULERS.md ("ddim", "DPM++ 2M Karras", "euler_sgm_uniform"), or the JSON text of a
     * diffusers scheduler_config.json, known by its `{`. NULL: the model's own.
     */
    const char *scheduler;
    /**
     * Called after each step; it may cancel the run. NULL: nobody.
     */
    dfn_progress_fn progress;
    /**
     * Handed to `progress` as it is.
     */
    void *user_data;
    /**
     * What SDXL's second text encoder reads. NULL: `prompt`.
     */
    const char *prompt_2;
    /**
     * The same for `negative_prompt`. NULL: `negative_prompt`.
     */
    const char *negative_prompt_2;
    /**
     * What SDXL is told beside the prompt. Default: whole pictures of their own size.
     */
    struct dfn_picture_sizes sizes;
    /**
     * What SDXL is told beside the negative prompt, where `has_negative_sizes` is 1; otherwise it must be
     * all 0.
     */
    struct dfn_picture_sizes negative_sizes;
    /**
     * 1: `negative_sizes`. 0: `sizes` for both. Default: 0.
     */
    dfn_bool has_negative_sizes;
    /**
     * How much viewers shall like the picture, from 0 to 10: what SDXL's refiner is told beside the prompt.
     * Default: 6.
     */
    double aesthetic_score;
    /**
     * The same beside the negative prompt. Default: 2.5.
     */
    double negative_aesthetic_score;
    /**
     * What the run starts from: RGBA8, of which the alpha does not count. It is brought to `width` and `height`,
     * which default to its own, rounded down to multiples of the model's factor. Default: none.
     */
    struct dfn_picture image;
    /**
     * A byte for each pixel of `image`: what is bright (128 and more) changes, the rest keeps its pixels. Default:
     * none, and all changes.
     */
    struct dfn_picture mask;
    /**
     * How much of `image` changes, from 0 to 1, where `has_strength` is 1; otherwise it must be 0.
     */
    double strength;
    /**
     * How soft the edge of the mask is: the deviation of a Gaussian in pixels, from 0 to 1024. 0: hard, and 4
     * with `margins`.
     */
    double mask_blur;
    /**
     * Pixels around the mask, where `has_only_masked` is 1; otherwise it must be 0.
     */
    uint32_t only_masked;
    /**
     * Left, top, right, bottom: by how many pixels `image` grows, to sides that are multiples of the model's factor.
     * Default: 0.
     */
    uint32_t margins[4];
    /**
     * 1: `strength`. 0: 0.8, and 1 with a mask, with margins and for models that change pictures as told. Default: 0.
     */
    dfn_bool has_strength;
    /**
     * 1: works on the mask and `only_masked` pixels around it alone, at `width` and `height`, which default to the
     * model's own then. Default: 0.
     */
    dfn_bool has_only_masked;
    /**
     * A second pass in a larger size, which keeps what the first one found; pixels. 0: none.
     */
    uint32_t hires_width;
    /**
     * Pixels, as `hires_width`.
     */
    uint32_t hires_height;
    /**
     * How much the second pass changes, from 0 to 1. 0: 0.7.
     */
    double hires_strength;
    /**
     * Gives guided pictures back the contrast that guidance takes, from 0 to 1. Default: 0.
     */
    double guidance_rescale;
    /**
     * How far the picture follows `image`, for models that change pictures as told. Default: 1.5.
     */
    double image_guidance_scale;
    /**
     * How the prompts are read (docs/PROMPTS.md): "a1111", "compel", or "plain", which cuts what the model cannot take
     * and warns of it. NULL: "a1111".
     */
    const char *prompt_syntax;
    /**
     * Which layer of the text encoders the UNet reads, counted from the last, which is 1. 0: what the model was
     * trained with.
     */
    uint32_t clip_skip;
    /**
     * Whether the autoencoder works in blended tiles, which take less memory: "off"; "auto", above 1024 x 1536 pixels;
     * "tiles", of the overlap and the side that follow. NULL: "auto".
     */
    const char *vae_tiling;
    /**
     * The share of a tile's side that the next one covers too, from 0 to 0.5. Default: 0.25.
     */
    double vae_tile_overlap;
    /**
     * Side of a tile in pixels, a multiple of the model's factor. Default: 512.
     */
    uint32_t vae_tile_size;
    /**
     * 1: copies of the picture fit side by side from left to right. Default: 0.
     */
    dfn_bool seamless_x;
    /**
     * 1: and one above the other. Default: 0.
     */
    dfn_bool seamless_y;
    /**
     * 1: the autoencoder works off one picture of a batch at a time, which takes less memory. Default: 0.
     */
    dfn_bool vae_slicing;
    /**
     * 1: `deep_shrink`. Default: 0.
     */
    dfn_bool has_deep_shrink;
    /**
     * Perturbed-attention guidance: how far to go away from what the model draws with blind self-attention, finite
     * and at least 0; usual is 3. It gives clearer structure for half as much time again. Default: 0, off.
     */
    double pag_scale;
    /**
     * What `pag_scale` loses with each timestep below 1000, finite and at least 0. Default: 0.
     */
    double pag_adaptive_scale;
    /**
     * The self-attention layers that are blind, by parts of their names with commas between: "mid,up.block_0".
     * NULL: "mid".
     */
    const char *pag_layers;
    /**
     * How inner levels shrink, where `has_deep_shrink` is 1.
     */
    struct dfn_deep_shrink deep_shrink;
    /**
     * Which share of the tokens is merged with similar ones for self-attention in the outermost level of the UNet that
     * has it (ToMe), from 0, none, to 0.9; usual is 0.5. Faster the larger the picture is, and a little different.
     * Default: 0.
     */
    double token_merging;
    /**
     * In each so-many-th evaluation alone the UNet's inner levels are asked, and what they found serves the others
     * (DeepCache), from 1, all, to 1000; usual is 2 or 3. Faster, and a little different. Default: 1.
     */
    uint32_t deep_cache;
    /**
     * After how many steps the text is read no more (T-GATE): guidance ends there, and cross-attention answers what it
     * found last; usual is 10 of 25. Faster, and different in details. 0: never. Default: 0.
     */
    uint32_t tgate;
} dfn_generate_params;

/**
 * What a run did. The caller sets `struct_size`; the rest is written if the run succeeds.
 */
typedef struct dfn_result {
    /**
     * Bytes of this struct in the caller's header.
     */
    size_t struct_size;
    /**
     * The seed of the first picture; the next ones have the seeds that follow.
     */
    uint64_t seed;
    /**
     * Pixels.
     */
    uint32_t width;
    /**
     * Pixels.
     */
    uint32_t height;
    /**
     * Pictures that were written.
     */
    uint32_t num_images;
    /**
     * Lines in dfn_last_warnings().
     */
    uint32_t num_warnings;
    /**
     * Seconds for the prompt.
     */
    double encode_seconds;
    /**
     * Seconds for all steps.
     */
    double sample_seconds;
    /**
     * Seconds for turning the results of the steps into pixels.
     */
    double decode_seconds;
} dfn_result;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the library in use.
 */
uint32_t dfn_abi_version(void);

/**
 * The version of the library in use, such as "0.1.0". Static text.
 */
const char *dfn_version(void);

/**
 * The name of a status, such as "DFN_NOT_FOUND"; "unknown status" for a number that is none. Static
 * text.
 */
const char *dfn_status_name(int32_t status);

/**
 * What went wrong in this thread's last failed call: what was expected, what was found, what to do.
 * Never NULL; empty before the first failure. The text is valid until the next failing call on this
 * thread or the thread's end; calls that succeed leave it alone.
 */
const char *dfn_last_error(void);

/**
 * Sets every field to its default. `struct_size` is sizeof(dfn_pipeline_options).
 */
dfn_status dfn_pipeline_options_default(struct dfn_pipeline_options *options, size_t struct_size);

/**
 * Loads a model.
 *
 * `path`: a folder in the diffusers layout (with model_index.json), one file that holds the whole model
 * (.safetensors, .ckpt, .gguf), or, in a build with the feature `hub` and where no such path is, an id of the
 * Hugging Face Hub such as "owner/name". UTF-8 on every system.
 * `options`: NULL for the defaults.
 * `pipeline`: receives the model, which is the caller's and must go to dfn_pipeline_free(). It becomes
 * NULL if the call fails.
 *
 * DFN_NOT_FOUND if there is no such path or a part is missing, DFN_FORMAT if it is not a model or a
 * file is damaged, DFN_WEIGHTS if tensors do not fit their configuration, DFN_UNSUPPORTED for models
 * that this version does not know.
 */
dfn_status dfn_pipeline_open(const char *path,
                             const struct dfn_pipeline_options *options,
                             struct dfn_pipeline **pipeline);

/**
 * Releases a model. NULL is allowed and does nothing. No other call may be using it, on any thread, and
 * none may follow.
 */
void dfn_pipeline_free(struct dfn_pipeline *pipeline);

/**
 * The size, in pixels, of pictures whose parameters name none: the size that the model was trained on.
 */
dfn_status dfn_pipeline_default_size(const struct dfn_pipeline *pipeline,
                                     uint32_t *width,
                                     uint32_t *height);

/**
 * Puts LoRAs, or their relatives, in place of those that were there before, added to the weights. Words of
 * textual inversion that a file brings with it come and go with it.
 *
 * `paths`: `count` files, folders as diffusers or PEFT save them, or, in a build with the feature `hub`,
 * ids of the Hugging Face Hub.
 * `scales`: the strength of each, finite. NULL: 1 for all.
 * `count`: how many; 0 takes all out.
 *
 * Runs that are under way go on without them; see dfn_pipeline.
 *
 * DFN_NOT_FOUND if there is no such file, DFN_FORMAT if one is damaged or no LoRA, DFN_INVALID_ARGUMENT if
 * one is made for another family of models. Those of before then stay.
 */
dfn_status dfn_pipeline_set_loras(struct dfn_pipeline *pipeline,
                                  const char *const *paths,
                                  const double *scales,
                                  size_t count);

/**
 * Takes all LoRAs out. The weights are then the model's own, bit for bit. Runs that are under way keep
 * theirs; see dfn_pipeline.
 */
dfn_status dfn_pipeline_clear_loras(struct dfn_pipeline *pipeline);

/**
 * Gives the memory of the text encoders back. Prompts that a run had before are known on, the last eight of them,
 * until LoRAs or words change; others are then DFN_UNSUPPORTED.
 */
dfn_status dfn_pipeline_drop_text_encoders(struct dfn_pipeline *pipeline);

/**
 * Adds a learned word of textual inversion, which prompts and negative prompts then use by its name.
 *
 * `path`: its file.
 * `token`: the word. NULL: the one that the file states, or else the file's name without its ending.
 * Files of the user interfaces may state a name that is not the file's; prompts may then use either.
 *
 * Runs that are under way do not know it; see dfn_pipeline.
 *
 * DFN_NOT_FOUND if there is no such file, DFN_FORMAT if it is damaged or has no vectors of a word,
 * DFN_INVALID_ARGUMENT if the word is made for another family of models or the model has it.
 */
dfn_status dfn_pipeline_add_embedding(struct dfn_pipeline *pipeline,
                                      const char *path,
                                      const char *token);

/**
 * Sets every field to its default. `struct_size` is sizeof(dfn_generate_params).
 */
dfn_status dfn_generate_params_default(struct dfn_generate_params *params, size_t struct_size);

/**
 * How many bytes dfn_generate() will ask for, and the size of its pictures in pixels.
 *
 * `row_stride`: bytes from one row to the next; 0 for rows without gaps.
 * `bytes`: receives the bytes from the first row's start to the last row's end.
 * `width`, `height`: receive the size; NULL is allowed.
 *
 * Of the parameters it reads the size, the pictures and their number.
 *
 * DFN_INVALID_ARGUMENT for sides that are not multiples of the model's factor.
 */
dfn_status dfn_generate_size(const struct dfn_pipeline *pipeline,
                             const struct dfn_generate_params *params,
                             size_t row_stride,
                             size_t *bytes,
                             uint32_t *width,
                             uint32_t *height);

/**
 * Makes pictures and writes them as RGBA8 (red, green, blue, and 255), rows from top to bottom, one
 * picture below the other without a gap between them. It returns when all are done.
 *
 * `pixels`: the caller's memory. It is written at the end of a run that succeeds, and nowhere but in the
 * rows' pixels, so it may be part of a bigger picture.
 * `pixels_len`: bytes there; dfn_generate_size() tells how many are needed. It is checked before the run.
 * `row_stride`: bytes from one row to the next, at least width * 4; 0 for rows without gaps.
 * `result`: receives what was done; its struct_size must be set. NULL is allowed.
 *
 * The same parameters and seed give the same bytes, on one machine. Several threads may call it with
 * one pipeline; each then needs memory for its own run.
 *
 * DFN_INVALID_ARGUMENT for values out of range, DFN_OUT_OF_MEMORY for sizes that cannot fit,
 * DFN_UNSUPPORTED for schedulers that this version does not know, DFN_CANCELLED if `progress` said so.
 */
dfn_status dfn_generate(const struct dfn_pipeline *pipeline,
                        const struct dfn_generate_params *params,
                        uint8_t *pixels,
                        size_t pixels_len,
                        size_t row_stride,
                        struct dfn_result *result);

/**
 * What the last dfn_generate() on this thread has to say though it succeeded, such as words of the prompt
 * that the model cannot take: a line each. Never NULL; empty if there is nothing. The text is valid until
 * this thread calls dfn_generate() again or ends.
 */
const char *dfn_last_warnings(void);

/**
 * How a picture of the last dfn_generate() on this thread came about, in A1111's form, which most programs read: the
 * prompt, the negative prompt, and a line of settings, among them the picture's own seed.
 *
 * `index`: which of the pictures, from 0.
 *
 * Never NULL; empty if there is no such picture. The text is valid until this thread calls dfn_generate() again
 * or ends.
 */
const char *dfn_last_parameters(uint32_t index);

/**
 * The same as JSON with all that is data, which this library makes the same picture of again (docs/PROVENANCE.md).
 */
const char *dfn_last_record(uint32_t index);

/**
 * Writes a picture as PNG, JPEG or lossless WebP, by the path's ending, with how it came about.
 *
 * `picture`: RGBA8, of which the alpha does not count, such as one of those that dfn_generate() has written.
 * `path`: where it goes. UTF-8 on every system.
 * `parameters`: A1111's text for it: dfn_last_parameters(). NULL or empty: none.
 * `record`: this library's: dfn_last_record(). NULL or empty: none.
 *
 * DFN_UNSUPPORTED for another ending, or texts of more than the 64 KiB that JPEG has for them, DFN_IO if the file
 * cannot be written.
 */
dfn_status dfn_save_picture(const struct dfn_picture *picture,
                            const char *path,
                            const char *parameters,
                            const char *record);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DIFFUSION_H */
