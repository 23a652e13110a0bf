/* Runs. Arguments: the emoji model's folder, and what diffusers made of it (emoji_ddim.safetensors). */

#include "check.h"

#include <pthread.h>
#include <stdint.h>

enum { SIDE = 128, ROW = SIDE * 4, PICTURE = SIDE * ROW };

static dfn_pipeline *pipeline;

static uint8_t *run(const dfn_generate_params *params)
{
    size_t bytes = 0;
    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, params, 0, &bytes, NULL, NULL));
    uint8_t *pixels = malloc(bytes);
    CHECK(pixels != NULL);
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, params, pixels, bytes, 0, NULL));
    return pixels;
}

/* The tensor `image`, (1, 3, 128, 128) in [-1, 1]; the caller frees it. */
static float *golden_image(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    unsigned char length_bytes[8];
    CHECK(fread(length_bytes, 1, 8, file) == 8);
    size_t length = 0;
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | length_bytes[i];
    }
    char *header = malloc(length + 1);
    CHECK(header != NULL && fread(header, 1, length, file) == length);
    header[length] = '\0';
    const char *entry = strstr(header, "\"image\":");
    CHECK(entry != NULL);
    const char *offsets = strstr(entry, "\"data_offsets\":[");
    CHECK(offsets != NULL);
    long start = strtol(offsets + strlen("\"data_offsets\":["), NULL, 10);
    CHECK(fseek(file, 8 + (long)length + start, SEEK_SET) == 0);
    size_t count = 3 * SIDE * SIDE;
    float *image = malloc(count * sizeof *image);
    CHECK(image != NULL && fread(image, sizeof *image, count, file) == count);
    free(header);
    fclose(file);
    return image;
}

static void test_equals_diffusers(const char *golden_path)
{
    dfn_generate_params params = short_run();
    params.num_steps = 25;
    uint8_t *pixels = run(&params);
    float *golden = golden_image(golden_path);
    int worst = 0;
    for (int y = 0; y < SIDE; y++) {
        for (int x = 0; x < SIDE; x++) {
            const uint8_t *pixel = pixels + y * ROW + x * 4;
            for (int channel = 0; channel < 3; channel++) {
                float value = golden[(channel * SIDE + y) * SIDE + x] * 127.5f + 127.5f;
                value = value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : value;
                int difference = abs((int)(value + 0.5f) - pixel[channel]);
                worst = difference > worst ? difference : worst;
            }
            CHECK(pixel[3] == 255);
        }
    }
    printf("generate: at most %d/255 from diffusers\n", worst);
    CHECK(worst <= 2);
    free(golden);
    free(pixels);
}

/* Two pictures with gaps between rows, inside a bigger memory: only the pictures' pixels change. */
static void test_pictures_and_strides(const uint8_t *first)
{
    enum { STRIDE = ROW + 20, ROWS = 2 * SIDE, LENGTH = STRIDE * (ROWS - 1) + ROW };
    dfn_generate_params params = short_run();
    params.num_images = 2;
    uint8_t *pixels = malloc(LENGTH + 64);
    CHECK(pixels != NULL);
    memset(pixels, 0x5a, LENGTH + 64);
    dfn_result result;
    result.struct_size = sizeof result;
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, &params, pixels, LENGTH, STRIDE, &result));
    CHECK(result.struct_size == sizeof result);
    CHECK(result.seed == 1 && result.num_images == 2);
    CHECK(result.width == SIDE && result.height == SIDE);
    CHECK(result.num_warnings == 0 && strcmp(dfn_last_warnings(), "") == 0);
    CHECK(result.sample_seconds > 0.0 && result.decode_seconds > 0.0);

    params.num_images = 1;
    params.seed = 2;
    uint8_t *second = run(&params);
    for (int row = 0; row < ROWS; row++) {
        const uint8_t *expected = row < SIDE ? first + row * ROW : second + (row - SIDE) * ROW;
        CHECK(memcmp(pixels + row * STRIDE, expected, ROW) == 0);
        for (int gap = ROW; gap < STRIDE && row < ROWS - 1; gap++) {
            CHECK(pixels[row * STRIDE + gap] == 0x5a);
        }
    }
    for (int i = 0; i < 64; i++) {
        CHECK(pixels[LENGTH + i] == 0x5a);
    }
    free(second);
    free(pixels);
}

struct seen {
    pthread_t thread;
    uint32_t calls;
    uint32_t cancel_at;
    double fraction;
    double sigma;
};

static dfn_bool on_progress(const dfn_progress *progress, void *user_data)
{
    struct seen *seen = user_data;
    seen->calls++;
    CHECK(pthread_equal(pthread_self(), seen->thread));
    CHECK(progress->struct_size >= sizeof *progress);
    CHECK(progress->step == seen->calls && progress->num_steps == 3);
    CHECK(progress->image_index == 0 && progress->num_images == 1);
    CHECK(seen->calls == 1 || progress->sigma < seen->sigma);
    seen->sigma = progress->sigma;
    seen->fraction = progress->fraction;
    return progress->step != seen->cancel_at;
}

static void test_progress_and_cancel(void)
{
    struct seen seen = {pthread_self(), 0, 0, 0.0, 0.0};
    dfn_generate_params params = short_run();
    params.num_steps = 3;
    params.progress = on_progress;
    params.user_data = &seen;
    free(run(&params));
    CHECK(seen.calls == 3 && seen.fraction == 1.0);

    uint8_t *pixels = malloc(PICTURE);
    CHECK(pixels != NULL);
    memset(pixels, 0x5a, PICTURE);
    seen.calls = 0;
    seen.cancel_at = 2;
    CHECK_FAILS(DFN_CANCELLED, "2 of 3",
                dfn_generate(pipeline, &params, pixels, PICTURE, 0, NULL));
    CHECK(seen.calls == 2);
    for (int i = 0; i < PICTURE; i++) {
        CHECK(pixels[i] == 0x5a);
    }
    free(pixels);
}

static void test_options(const uint8_t *first)
{
    dfn_generate_params params = short_run();
    params.scheduler = "euler";
    uint8_t *by_name = run(&params);
    /* Python writes such numbers, though JSON has none. */
    params.scheduler =
        " {\"_class_name\": \"EulerDiscreteScheduler\", \"lambda_min_clipped\": -Infinity}";
    uint8_t *by_config = run(&params);
    CHECK(memcmp(by_name, by_config, PICTURE) == 0);
    CHECK(memcmp(by_name, first, PICTURE) != 0);

    params = short_run();
    params.has_eta = 1;
    params.eta = 1.0;
    uint8_t *noisy = run(&params);
    CHECK(memcmp(noisy, first, PICTURE) != 0);

    params = short_run();
    params.negative_prompt = "red";
    uint8_t *negative = run(&params);
    CHECK(memcmp(negative, first, PICTURE) != 0);

    free(by_name);
    free(by_config);
    free(noisy);
    free(negative);
}

static void test_random_seed_and_warnings(void)
{
    dfn_generate_params params = short_run();
    params.num_steps = 1;
    params.prompt_syntax = "plain";
    params.random_seed = 1;
    params.seed = 0;
    params.prompt = "one two three four five six seven eight nine ten one two three four five six "
                    "seven eight nine ten one two three four five six seven eight nine ten eleven "
                    "twelve thirteen fourteen fifteen";
    uint8_t *pixels = malloc(PICTURE);
    CHECK(pixels != NULL);
    dfn_result result;
    result.struct_size = sizeof result;
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, &params, pixels, PICTURE, 0, &result));
    CHECK(result.num_warnings == 1);
    CHECK(strstr(dfn_last_warnings(), "prompt") != NULL);

    params.random_seed = 0;
    params.seed = result.seed;
    uint8_t *again = run(&params);
    CHECK(memcmp(pixels, again, PICTURE) == 0);

    params.prompt = NULL;
    CHECK_STATUS(DFN_INVALID_ARGUMENT, dfn_generate(pipeline, &params, pixels, PICTURE, 0, NULL));
    CHECK(strcmp(dfn_last_warnings(), "") == 0);
    free(again);
    free(pixels);
}

static void *run_in_thread(void *expected)
{
    CHECK(strcmp(dfn_last_error(), "") == 0);
    dfn_generate_params params = short_run();
    for (int i = 0; i < 2; i++) {
        uint8_t *pixels = run(&params);
        CHECK(memcmp(pixels, expected, PICTURE) == 0);
        free(pixels);
    }
    uint8_t pixel = 0;
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "pixels_len",
                dfn_generate(pipeline, &params, &pixel, 1, 0, NULL));
    return NULL;
}

static void test_threads(uint8_t *first)
{
    CHECK_FAILS(DFN_NOT_FOUND, "nowhere", dfn_pipeline_open("nowhere", NULL, &(dfn_pipeline *){NULL}));
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, run_in_thread, first) == 0);
    }
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    /* Each thread has a last error of its own. */
    CHECK(strstr(dfn_last_error(), "nowhere") != NULL);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    pipeline = open_model(argv[1]);
    dfn_generate_params params = short_run();
    uint8_t *first = run(&params);
    uint8_t *again = run(&params);
    CHECK(memcmp(first, again, PICTURE) == 0);
    free(again);

    test_equals_diffusers(argv[2]);
    test_pictures_and_strides(first);
    test_progress_and_cancel();
    test_options(first);
    test_random_seed_and_warnings();
    test_threads(first);
    free(first);
    dfn_pipeline_free(pipeline);
    puts("generate: ok");
    return 0;
}
