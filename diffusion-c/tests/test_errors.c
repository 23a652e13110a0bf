/* Everything that fails before a run starts, and structs of other sizes. Arguments: a model folder, a
 * folder of broken ones, and a LoRA of another family. */

#include "check.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>

static dfn_pipeline *pipeline;
/* Big enough for the default size; every call here must leave it alone. */
static uint8_t pixels[128 * 128 * 4 + 1];

static dfn_status generate(const dfn_generate_params *params)
{
    return dfn_generate(pipeline, params, pixels, sizeof pixels, 0, NULL);
}

static void test_versions_and_names(void)
{
    CHECK(dfn_abi_version() == DFN_ABI_VERSION);
    CHECK(strlen(dfn_version()) >= strlen("0.1.0"));
    CHECK(strcmp(dfn_status_name(DFN_OK), "DFN_OK") == 0);
    CHECK(strcmp(dfn_status_name(DFN_PANIC), "DFN_PANIC") == 0);
    CHECK(strcmp(dfn_status_name(DFN_PANIC + 1), "unknown status") == 0);
    CHECK(strcmp(dfn_status_name(-1), "unknown status") == 0);
    for (int status = DFN_OK; status <= DFN_PANIC; status++) {
        CHECK(strncmp(dfn_status_name(status), "DFN_", 4) == 0);
    }
    CHECK(strcmp(dfn_last_error(), "") == 0);
    CHECK(strcmp(dfn_last_warnings(), "") == 0);
}

static void check_open_fails(dfn_status expected, const char *part, const char *path,
                             const dfn_pipeline_options *options)
{
    dfn_pipeline *opened = (dfn_pipeline *)pixels;
    CHECK_FAILS(expected, part, dfn_pipeline_open(path, options, &opened));
    CHECK(opened == NULL);
}

static void test_open(const char *model, const char *broken)
{
    char path[4096];
    dfn_pipeline_options options;

    check_open_fails(DFN_INVALID_ARGUMENT, "path", NULL, NULL);
    check_open_fails(DFN_INVALID_ARGUMENT, "UTF-8", "model\xff", NULL);
    check_open_fails(DFN_NOT_FOUND, "no-such-model", "no-such-model", NULL);
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_open(model, NULL, NULL));

    const struct {
        const char *name;
        dfn_status status;
        const char *part;
    } folders[] = {
        {"empty", DFN_FORMAT, "model_index.json"},
        {"damaged", DFN_FORMAT, "model_index.json"},
        {"unreadable", DFN_IO, "config.json"},
        {"misfit", DFN_WEIGHTS, "missing"},
    };
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", broken, folders[i].name);
        check_open_fails(folders[i].status, folders[i].part, path, NULL);
    }

    CHECK_STATUS(DFN_OK, dfn_pipeline_options_default(&options, sizeof options));
    options.dtype = "float8";
    check_open_fails(DFN_INVALID_ARGUMENT, "float8", model, &options);
    options.dtype = "\xc3";
    check_open_fails(DFN_INVALID_ARGUMENT, "dtype", model, &options);
    options.dtype = NULL;
    options.device = "gpu";
    check_open_fails(DFN_INVALID_ARGUMENT, "device", model, &options);
    options.device = NULL;
    options.variant = "nonesuch";
    check_open_fails(DFN_FORMAT, "nonesuch", model, &options);
    options.variant = NULL;
    options.quantize = "int4";
    check_open_fails(DFN_INVALID_ARGUMENT, "int8", model, &options);
    options.quantize = NULL;
    options.struct_size = 0;
    check_open_fails(DFN_INVALID_ARGUMENT, "struct_size", model, &options);
    options.struct_size = SIZE_MAX;
    check_open_fails(DFN_INVALID_ARGUMENT, "struct_size", model, &options);

    CHECK_STATUS(DFN_OK, dfn_pipeline_options_default(&options, sizeof options));
    options.dtype = "float16";
    dfn_pipeline *half = NULL;
    CHECK_STATUS(DFN_OK, dfn_pipeline_open(model, &options, &half));
    dfn_pipeline_free(half);
    dfn_pipeline_free(NULL);
}

static void test_sizes(void)
{
    uint32_t width = 0;
    uint32_t height = 0;
    size_t bytes = 0;
    dfn_generate_params params = short_run();

    CHECK_STATUS(DFN_OK, dfn_pipeline_default_size(pipeline, &width, &height));
    CHECK(width == 128 && height == 128);
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_default_size(NULL, &width, &height));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "width", dfn_pipeline_default_size(pipeline, NULL, &height));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "height", dfn_pipeline_default_size(pipeline, &width, NULL));

    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, &params, 0, &bytes, NULL, NULL));
    CHECK(bytes == 128 * 128 * 4);
    params.width = 64;
    params.height = 192;
    params.num_images = 3;
    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, &params, 300, &bytes, &width, &height));
    CHECK(width == 64 && height == 192 && bytes == 300 * (192 * 3 - 1) + 64 * 4);
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "row_stride",
                dfn_generate_size(pipeline, &params, 255, &bytes, NULL, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "bytes",
                dfn_generate_size(pipeline, &params, 0, NULL, NULL, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "memory can hold",
                dfn_generate_size(pipeline, &params, SIZE_MAX, &bytes, NULL, NULL));
    params.width = params.height = 65536;
    params.num_images = UINT32_MAX;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "memory can hold",
                dfn_generate_size(pipeline, &params, 0, &bytes, NULL, NULL));
    params.num_images = 0;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "num_images",
                dfn_generate_size(pipeline, &params, 0, &bytes, NULL, NULL));
    params.width = 100;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "width",
                dfn_generate_size(pipeline, &params, 0, &bytes, NULL, NULL));
}

/* Sets one field to something wrong. */
#define CHECK_REFUSED(status, part, field, value)                                                \
    do {                                                                                         \
        dfn_generate_params params_ = short_run();                                               \
        params_.field = (value);                                                                 \
        CHECK_FAILS(status, part, generate(&params_));                                           \
    } while (0)

static void test_values(void)
{
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "prompt", prompt, NULL);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "prompt", prompt, "heart \xf0\x9f");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "negative_prompt", negative_prompt, "\xff");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "width", width, 100);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "height", height, 1);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "num_steps", num_steps, 0);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "num_steps", num_steps, 1001);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "num_images", num_images, 0);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "batch_size", batch_size, 0);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "guidance_scale", guidance_scale, (double)NAN);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "guidance_scale", guidance_scale, -1.0);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "seed", random_seed, 1);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "has_eta", eta, 0.5);
    CHECK_REFUSED(DFN_UNSUPPORTED, "nonesuch", scheduler, "nonesuch");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "scheduler", scheduler, "{\"_class_name\":");
    CHECK_REFUSED(DFN_UNSUPPORTED, "Nonesuch", scheduler, "{\"_class_name\": \"Nonesuch\"}");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "scheduler", scheduler, "\xff");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "prompt_2", prompt_2, "\xff");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "plain, a1111 or compel", prompt_syntax, "b1111");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "clip_skip", clip_skip, 99);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "negative_prompt_2", negative_prompt_2, "\xff");
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "sizes.original", sizes.original_width, 64);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "sizes.target", sizes.target_height, 64);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "has_negative_sizes", negative_sizes.crop_top, 1);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "aesthetic_score", aesthetic_score, 10.5);
    CHECK_REFUSED(DFN_INVALID_ARGUMENT, "negative_aesthetic_score", negative_aesthetic_score,
                  (double)NAN);

    dfn_generate_params params = short_run();
    params.has_eta = 1;
    params.eta = (double)NAN;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "eta", generate(&params));

    /* A failing call writes nothing, so the length may be a lie. */
    params = short_run();
    params.width = params.height = 65536;
    CHECK_FAILS(DFN_OUT_OF_MEMORY, "MiB",
                dfn_generate(pipeline, &params, pixels, (size_t)PTRDIFF_MAX, 0, NULL));
}

static void test_pointers_and_memory(void)
{
    dfn_generate_params params = short_run();
    dfn_result result;
    result.struct_size = 1;

    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline",
                dfn_generate(NULL, &params, pixels, sizeof pixels, 0, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "dfn_generate_params", generate(NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pixels",
                dfn_generate(pipeline, &params, NULL, sizeof pixels, 0, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "65536",
                dfn_generate(pipeline, &params, pixels, 65535, 0, NULL));
    /* Rows with gaps: 127 strides and the last row. */
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "66044",
                dfn_generate(pipeline, &params, pixels, 66043, 516, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "row_stride",
                dfn_generate(pipeline, &params, pixels, sizeof pixels, 511, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "dfn_result",
                dfn_generate(pipeline, &params, pixels, sizeof pixels, 0, &result));
}

static void test_struct_sizes(void)
{
    struct {
        dfn_generate_params known;
        unsigned char newer[24];
    } params;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "dfn_generate_params",
                dfn_generate_params_default(NULL, sizeof params));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "struct_size", dfn_generate_params_default(&params.known, 8));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "dfn_pipeline_options",
                dfn_pipeline_options_default(NULL, sizeof(dfn_pipeline_options)));

    /* A caller with a newer header: fields that the library lacks are fine while nobody sets them. */
    size_t bytes = 0;
    memset(&params, 0xaa, sizeof params);
    CHECK_STATUS(DFN_OK, dfn_generate_params_default(&params.known, sizeof params));
    CHECK(params.known.struct_size == sizeof params);
    CHECK(params.known.num_steps == 50 && params.known.guidance_scale == 7.5);
    CHECK(params.newer[0] == 0 && params.newer[23] == 0);
    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, &params.known, 0, &bytes, NULL, NULL));
    params.newer[23] = 1;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "update the library",
                dfn_generate_size(pipeline, &params.known, 0, &bytes, NULL, NULL));

    /* A caller with the first header. */
    dfn_generate_params old = short_run();
    old.struct_size = offsetof(dfn_generate_params, prompt_2);
    old.prompt_2 = "\xff";
    old.aesthetic_score = -1.0;
    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, &old, 0, &bytes, NULL, NULL));
    old.num_steps = 0;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "num_steps", generate(&old));
    old.struct_size -= 8;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "struct_size", generate(&old));
}

static void test_changes(const char *other_family, const char *broken)
{
    char path[4096];
    double scales[2] = {1.0, 1.0};
    const char *paths[2] = {other_family, "no-such-lora.safetensors"};

    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_set_loras(NULL, paths, scales, 1));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "paths", dfn_pipeline_set_loras(pipeline, NULL, scales, 1));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "count",
                dfn_pipeline_set_loras(pipeline, paths, scales, SIZE_MAX));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "kohya", dfn_pipeline_set_loras(pipeline, paths, NULL, 1));
    CHECK_FAILS(DFN_NOT_FOUND, "no-such-lora", dfn_pipeline_set_loras(pipeline, paths, scales, 2));
    paths[0] = NULL;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "paths", dfn_pipeline_set_loras(pipeline, paths, scales, 1));
    paths[0] = "\xff";
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "UTF-8", dfn_pipeline_set_loras(pipeline, paths, scales, 1));
    snprintf(path, sizeof path, "%s/damaged/model_index.json", broken);
    paths[0] = path;
    CHECK_FAILS(DFN_FORMAT, "model_index", dfn_pipeline_set_loras(pipeline, paths, scales, 1));
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, NULL, NULL, 0));

    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_clear_loras(NULL));
    CHECK_STATUS(DFN_OK, dfn_pipeline_clear_loras(pipeline));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_drop_text_encoders(NULL));

    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pipeline", dfn_pipeline_add_embedding(NULL, path, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "path", dfn_pipeline_add_embedding(pipeline, NULL, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "token", dfn_pipeline_add_embedding(pipeline, path, "\xff"));
    CHECK_FAILS(DFN_FORMAT, "model_index", dfn_pipeline_add_embedding(pipeline, path, NULL));
    CHECK_FAILS(DFN_NOT_FOUND, "nowhere", dfn_pipeline_add_embedding(pipeline, "nowhere.pt", "a"));
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    memset(pixels, 0x5a, sizeof pixels);
    test_versions_and_names();
    test_open(argv[1], argv[2]);
    pipeline = open_model(argv[1]);
    test_sizes();
    test_values();
    test_pointers_and_memory();
    test_struct_sizes();
    test_changes(argv[3], argv[2]);
    dfn_pipeline_free(pipeline);
    for (size_t i = 0; i < sizeof pixels; i++) {
        CHECK(pixels[i] == 0x5a);
    }
    puts("errors: ok");
    return 0;
}
