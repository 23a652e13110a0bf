/* Runs that start from pictures. Argument: the folder of the tiny models. */

#include "check.h"

#include <stdint.h>

enum { WIDTH = 72, HEIGHT = 64, STRIDE = WIDTH * 4 + 12 };

static dfn_pipeline *pipeline;
static uint8_t image[HEIGHT * STRIDE];
static uint8_t mask[HEIGHT * WIDTH];

static dfn_generate_params params(void)
{
    dfn_generate_params params = short_run();
    params.num_steps = 2;
    params.image.pixels = image;
    params.image.width = WIDTH;
    params.image.height = HEIGHT;
    params.image.row_stride = STRIDE;
    return params;
}

static uint8_t *run(const dfn_generate_params *params, uint32_t width, uint32_t height)
{
    size_t bytes = 0;
    uint32_t found_width = 0, found_height = 0;
    CHECK_STATUS(DFN_OK,
                 dfn_generate_size(pipeline, params, 0, &bytes, &found_width, &found_height));
    CHECK(found_width == width && found_height == height && bytes == (size_t)width * height * 4);
    uint8_t *pixels = malloc(bytes);
    CHECK(pixels != NULL);
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, params, pixels, bytes, 0, NULL));
    return pixels;
}

static void test_strength(void)
{
    dfn_generate_params weak = params(), strong = params(), none = params();
    weak.has_strength = strong.has_strength = none.has_strength = 1;
    weak.strength = 0.5;
    strong.strength = 1.0;
    uint8_t *weakly = run(&weak, WIDTH, HEIGHT), *strongly = run(&strong, WIDTH, HEIGHT);
    CHECK(memcmp(weakly, strongly, WIDTH * HEIGHT * 4) != 0);
    /* Without any the prompt does not count. */
    uint8_t *first = run(&none, WIDTH, HEIGHT);
    none.prompt = "something else";
    uint8_t *second = run(&none, WIDTH, HEIGHT);
    CHECK(memcmp(first, second, WIDTH * HEIGHT * 4) == 0);
    free(weakly);
    free(strongly);
    free(first);
    free(second);
}

static void check_kept(const uint8_t *pixels)
{
    int changed = 0;
    for (int y = 0; y < HEIGHT; y++) {
        for (int x = 0; x < WIDTH; x++) {
            int same = memcmp(pixels + (y * WIDTH + x) * 4, image + y * STRIDE + x * 4, 3) == 0;
            CHECK(same || mask[y * WIDTH + x] != 0);
            changed += !same;
        }
    }
    CHECK(changed > 0);
}

static void test_mask(void)
{
    dfn_generate_params masked = params();
    masked.mask.pixels = mask;
    masked.mask.width = WIDTH;
    masked.mask.height = HEIGHT;
    uint8_t *pixels = run(&masked, WIDTH, HEIGHT);
    check_kept(pixels);
    free(pixels);
    masked.has_only_masked = 1;
    masked.only_masked = 4;
    masked.width = masked.height = 64;
    pixels = run(&masked, WIDTH, HEIGHT);
    check_kept(pixels);
    free(pixels);
}

static void test_sizes(void)
{
    dfn_generate_params grown = params();
    grown.margins[2] = 6;
    grown.margins[1] = 16;
    free(run(&grown, WIDTH + 8, HEIGHT + 16));
    dfn_generate_params large = short_run();
    large.num_steps = 2;
    large.width = large.height = 64;
    large.hires_width = 96;
    large.hires_height = 80;
    large.hires_strength = 0.5;
    large.guidance_rescale = 0.5;
    free(run(&large, 96, 80));
}

/* Sets one field to something wrong. */
#define CHECK_REFUSED(part, field, value)                                                        \
    do {                                                                                         \
        dfn_generate_params params_ = params();                                                  \
        params_.field = (value);                                                                 \
        uint8_t pixel_ = 0;                                                                      \
        CHECK_FAILS(DFN_INVALID_ARGUMENT, part,                                                  \
                    dfn_generate(pipeline, &params_, &pixel_, 1, 0, NULL));                      \
    } while (0)

static void test_errors(void)
{
    CHECK_REFUSED("image", image.width, 0);
    CHECK_REFUSED("image", image.pixels, NULL);
    CHECK_REFUSED("image", image.row_stride, 4);
    CHECK_REFUSED("image", image.row_stride, SIZE_MAX);
    CHECK_REFUSED("mask", mask.width, 3);
    CHECK_REFUSED("has_strength", strength, 0.5);
    CHECK_REFUSED("has_only_masked", only_masked, 5);
    dfn_generate_params wrong = params();
    wrong.mask.pixels = mask;
    wrong.mask.width = wrong.mask.height = 8;
    uint8_t pixels[WIDTH * HEIGHT * 4];
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "72 x 64",
                dfn_generate(pipeline, &wrong, pixels, sizeof pixels, 0, NULL));
    wrong = params();
    wrong.has_strength = 1;
    wrong.strength = 1.5;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "strength",
                dfn_generate(pipeline, &wrong, pixels, sizeof pixels, 0, NULL));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    char path[4096];
    CHECK(snprintf(path, sizeof path, "%s/models/sd15", argv[1]) < (int)sizeof path);
    pipeline = open_model(path);
    for (int y = 0; y < HEIGHT; y++) {
        for (int x = 0; x < WIDTH; x++) {
            uint8_t *pixel = image + y * STRIDE + x * 4;
            pixel[0] = (uint8_t)(x * 3);
            pixel[1] = (uint8_t)(y * 4);
            pixel[2] = (uint8_t)(x ^ y);
            mask[y * WIDTH + x] = x > 20 && x < 50 && y > 10 && y < 40 ? 255 : 0;
        }
    }
    test_strength();
    test_mask();
    test_sizes();
    test_errors();
    dfn_pipeline_free(pipeline);
    puts("pictures: ok");
    return 0;
}
