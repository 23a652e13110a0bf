/* What happens within the networks, and pictures' files. Arguments: the folder of the tiny models, and one for files. */

#include "check.h"

#include <stdint.h>

enum { SIDE = 64, BYTES = SIDE * SIDE * 4 };

static dfn_pipeline *pipeline;

static dfn_generate_params params(void)
{
    dfn_generate_params params = short_run();
    params.width = params.height = SIDE;
    return params;
}

static void run(const dfn_generate_params *params, uint8_t *pixels)
{
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, params, pixels, BYTES * params->num_images, 0, NULL));
}

static int differs(const dfn_generate_params *params)
{
    static uint8_t plain[BYTES], pixels[BYTES];
    dfn_generate_params base = short_run();
    base.width = base.height = SIDE;
    run(&base, plain);
    run(params, pixels);
    return memcmp(plain, pixels, BYTES) != 0;
}

static void test_each(void)
{
    dfn_generate_params changed = params();
    CHECK(!differs(&changed));
    changed.vae_tiling = "off";
    changed.vae_slicing = 1;
    CHECK(!differs(&changed));
    changed.vae_tiling = "auto";
    CHECK(!differs(&changed));
    changed.vae_tiling = "tiles";
    CHECK(!differs(&changed));
    changed.vae_tile_size = 32;
    CHECK(differs(&changed));
    changed = params();
    changed.seamless_x = 1;
    CHECK(differs(&changed));
    changed = params();
    changed.seamless_y = 1;
    CHECK(differs(&changed));
    changed = params();
    changed.pag_scale = 3.0;
    CHECK(differs(&changed));
    changed = params();
    changed.has_deep_shrink = 1;
    /* A run of two steps has none before the default end. */
    changed.deep_shrink.end = 1.0;
    CHECK(differs(&changed));
    changed = params();
    changed.deep_cache = 2;
    CHECK(differs(&changed));
    changed = params();
    changed.tgate = 1;
    CHECK(differs(&changed));
    changed = params();
    changed.token_merging = 0.5;
    CHECK(differs(&changed));
}

static void test_layers(void)
{
    static uint8_t mid[BYTES], named[BYTES], both[BYTES];
    dfn_generate_params perturbed = params();
    perturbed.pag_scale = 3.0;
    run(&perturbed, mid);
    perturbed.pag_layers = "mid";
    run(&perturbed, named);
    CHECK(memcmp(mid, named, BYTES) == 0);
    perturbed.pag_layers = "mid, up";
    run(&perturbed, both);
    CHECK(memcmp(mid, both, BYTES) != 0);
}

/* Sets one field to something wrong. */
#define CHECK_REFUSED(part, field, value)                                                        \
    do {                                                                                         \
        dfn_generate_params params_ = params();                                                  \
        params_.field = (value);                                                                 \
        static uint8_t pixels_[BYTES];                                                           \
        CHECK_FAILS(DFN_INVALID_ARGUMENT, part,                                                  \
                    dfn_generate(pipeline, &params_, pixels_, BYTES, 0, NULL));                  \
        CHECK(*dfn_last_parameters(0) == '\0');                                                  \
    } while (0)

static void test_errors(void)
{
    CHECK_REFUSED("vae_tiling", vae_tiling, "on");
    CHECK_REFUSED("vae_tiling", vae_tile_size, 32);
    CHECK_REFUSED("pag_scale", pag_scale, -1.0);
    CHECK_REFUSED("has_deep_shrink", deep_shrink.block, 2);
    CHECK_REFUSED("deep_cache", deep_cache, 0);
    CHECK_REFUSED("token_merging", token_merging, 1.0);
    dfn_generate_params wrong = params();
    static uint8_t pixels[BYTES];
    wrong.has_deep_shrink = 1;
    wrong.deep_shrink.factor = 99.0;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "deep_shrink factor",
                dfn_generate(pipeline, &wrong, pixels, BYTES, 0, NULL));
    wrong = params();
    wrong.pag_scale = 3.0;
    wrong.pag_layers = "mid,roof";
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "roof",
                dfn_generate(pipeline, &wrong, pixels, BYTES, 0, NULL));
}

/* A caller of the header of before, whose struct ends where the new fields begin. */
static void test_older_callers(void)
{
    static uint8_t plain[BYTES], pixels[BYTES];
    dfn_generate_params now = params();
    run(&now, plain);
    now.struct_size = offsetof(dfn_generate_params, vae_tiling);
    memset((char *)&now + now.struct_size, 0xff, sizeof now - now.struct_size);
    run(&now, pixels);
    CHECK(memcmp(plain, pixels, BYTES) == 0);
}

static int file_has(const char *path, const char *text)
{
    static char bytes[1 << 16];
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    size_t length = strlen(text);
    for (size_t i = 0; i + length <= count; i++) {
        if (memcmp(bytes + i, text, length) == 0) {
            return 1;
        }
    }
    return 0;
}

static void test_files(const char *folder)
{
    static uint8_t pixels[2 * BYTES];
    char path[4096];
    dfn_generate_params two = params();
    two.num_images = 2;
    two.seamless_x = 1;
    run(&two, pixels);
    CHECK(strstr(dfn_last_parameters(0), "Seed: 1,") != NULL);
    CHECK(strstr(dfn_last_parameters(1), "Seed: 2,") != NULL);
    CHECK(strstr(dfn_last_record(1), "\"seed\":2") != NULL);
    CHECK(*dfn_last_parameters(2) == '\0' && *dfn_last_record(2) == '\0');
    dfn_picture picture = {pixels + BYTES, SIDE, SIDE, 0};
    CHECK(snprintf(path, sizeof path, "%s/second.png", folder) < (int)sizeof path);
    CHECK_STATUS(DFN_OK,
                 dfn_save_picture(&picture, path, dfn_last_parameters(1), dfn_last_record(1)));
    CHECK(file_has(path, dfn_last_parameters(1)) && file_has(path, dfn_last_record(1)));
    CHECK(snprintf(path, sizeof path, "%s/plain.png", folder) < (int)sizeof path);
    CHECK_STATUS(DFN_OK, dfn_save_picture(&picture, path, NULL, ""));
    CHECK(!file_has(path, "parameters") && file_has(path, "IDAT"));
    CHECK(snprintf(path, sizeof path, "%s/a.txt", folder) < (int)sizeof path);
    CHECK_FAILS(DFN_UNSUPPORTED, "txt", dfn_save_picture(&picture, path, NULL, NULL));
    CHECK(snprintf(path, sizeof path, "%s/nowhere/a.png", folder) < (int)sizeof path);
    CHECK(dfn_save_picture(&picture, path, NULL, NULL) != DFN_OK);
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "path", dfn_save_picture(&picture, NULL, NULL, NULL));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "picture", dfn_save_picture(NULL, path, NULL, NULL));
    dfn_picture none = {NULL, 0, 0, 0};
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "picture", dfn_save_picture(&none, path, NULL, NULL));
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    char path[4096];
    CHECK(snprintf(path, sizeof path, "%s/models/sd15", argv[1]) < (int)sizeof path);
    pipeline = open_model(path);
    test_each();
    test_layers();
    test_errors();
    test_older_callers();
    test_files(argv[2]);
    dfn_pipeline_free(pipeline);
    puts("networks: ok");
    return 0;
}
