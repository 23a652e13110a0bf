/* LoRAs and words that come and go between runs, and what SDXL is told. Arguments: the folder of golden
 * files, and under valgrind, where runs are slow, any second one, which leaves SDXL out. */

#include "check.h"

#include <pthread.h>
#include <stdint.h>

enum { SIDE = 32, PICTURE = SIDE * SIDE * 4 };

static dfn_pipeline *pipeline;

struct picture {
    uint8_t pixels[PICTURE];
};

static dfn_generate_params tiny_run(const char *prompt)
{
    dfn_generate_params params = short_run();
    params.prompt = prompt;
    params.width = params.height = SIDE;
    return params;
}

static struct picture run(const dfn_generate_params *params)
{
    static const struct picture empty;
    struct picture picture = empty;
    CHECK_STATUS(DFN_OK, dfn_generate(pipeline, params, picture.pixels, PICTURE, 0, NULL));
    CHECK(memcmp(&picture, &empty, sizeof picture) != 0);
    return picture;
}

static struct picture draw(const char *prompt)
{
    dfn_generate_params params = tiny_run(prompt);
    return run(&params);
}

static int same(struct picture a, struct picture b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static const char *path_of(char *buffer, size_t size, const char *goldens, const char *name)
{
    int length = snprintf(buffer, size, "%s/%s", goldens, name);
    CHECK(length > 0 && (size_t)length < size);
    return buffer;
}

static void test_loras(const char *lora)
{
    const struct picture base = draw("a heart");
    const char *paths[2] = {lora, lora};
    double scales[2] = {0.5, 0.5};
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, &lora, NULL, 1));
    const struct picture whole = draw("a heart");
    CHECK(!same(whole, base));
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, paths, scales, 1));
    const struct picture half = draw("a heart");
    CHECK(!same(half, whole) && !same(half, base));
    scales[1] = 0.0;
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, paths, scales, 2));
    CHECK(same(draw("a heart"), half));

    /* One that fails leaves those of before. */
    paths[1] = "nowhere.safetensors";
    CHECK_STATUS(DFN_NOT_FOUND, dfn_pipeline_set_loras(pipeline, paths, NULL, 2));
    CHECK(same(draw("a heart"), half));
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, NULL, NULL, 0));
    CHECK(same(draw("a heart"), base));
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, &lora, NULL, 1));
    CHECK_STATUS(DFN_OK, dfn_pipeline_clear_loras(pipeline));
    CHECK(same(draw("a heart"), base));
}

static void test_words(const char *word)
{
    const struct picture before = draw("a <cat-toy>");
    CHECK_STATUS(DFN_OK, dfn_pipeline_add_embedding(pipeline, word, NULL));
    const struct picture after = draw("a <cat-toy>");
    CHECK(!same(after, before));
    CHECK_STATUS(DFN_OK, dfn_pipeline_add_embedding(pipeline, word, "<mine>"));
    CHECK(same(draw("a <mine>"), after));
    CHECK_FAILS(DFN_INVALID_ARGUMENT, "<mine>", dfn_pipeline_add_embedding(pipeline, word, "<mine>"));
}

struct change {
    const char *lora;
    const struct picture *base;
    const struct picture *changed;
};

static dfn_bool change_within(const dfn_progress *progress, void *user_data)
{
    const struct change *change = user_data;
    if (progress->step == 1) {
        CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, &change->lora, NULL, 1));
        CHECK(same(draw("a heart"), *change->changed));
    }
    return 1;
}

static void *run_in_thread(void *user_data)
{
    const struct change *change = user_data;
    for (int i = 0; i < 3; i++) {
        const struct picture picture = draw("a heart");
        CHECK(same(picture, *change->base) || same(picture, *change->changed));
    }
    return NULL;
}

static void test_runs_keep_what_they_began_with(const char *lora)
{
    const struct picture base = draw("a heart");
    CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, &lora, NULL, 1));
    const struct picture changed = draw("a heart");
    CHECK_STATUS(DFN_OK, dfn_pipeline_clear_loras(pipeline));
    struct change change = {lora, &base, &changed};

    dfn_generate_params params = tiny_run("a heart");
    params.progress = change_within;
    params.user_data = &change;
    CHECK(same(run(&params), base));
    CHECK(same(draw("a heart"), changed));

    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, run_in_thread, &change) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK_STATUS(DFN_OK, dfn_pipeline_clear_loras(pipeline));
        CHECK_STATUS(DFN_OK, dfn_pipeline_set_loras(pipeline, &lora, NULL, 1));
    }
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK_STATUS(DFN_OK, dfn_pipeline_clear_loras(pipeline));
    CHECK(same(draw("a heart"), base));
}

/* Each of what SDXL alone is told changes its picture, and what is the default anyway does not. */
static void test_sdxl(void)
{
    const struct picture base = draw("two cats");
    dfn_generate_params params = tiny_run("two cats");
    params.negative_prompt = "a photo";
    const struct picture negative = run(&params);
    params.prompt_2 = "two cats";
    params.negative_prompt_2 = "a photo";
    params.has_negative_sizes = 1;
    params.sizes.original_width = params.sizes.original_height = SIDE;
    params.negative_sizes.target_width = params.negative_sizes.target_height = SIDE;
    CHECK(same(run(&params), negative));

#define CHECK_CHANGES(before, change)                                                            \
    do {                                                                                         \
        params = tiny_run("two cats");                                                           \
        change;                                                                                  \
        CHECK(!same(run(&params), before));                                                      \
    } while (0)
    CHECK_CHANGES(base, params.prompt_2 = "a red roof");
    CHECK_CHANGES(negative, (params.negative_prompt = "a photo", params.negative_prompt_2 = "dark"));
    CHECK_CHANGES(base, (params.sizes.original_width = 640, params.sizes.original_height = 480));
    CHECK_CHANGES(base, params.sizes.crop_left = 16);
    CHECK_CHANGES(base, (params.sizes.target_width = 192, params.sizes.target_height = 128));
    CHECK_CHANGES(base, (params.has_negative_sizes = 1, params.negative_sizes.crop_top = 8));

    /* Left and top, width and height are not mixed up. */
    params = tiny_run("two cats");
    params.sizes.crop_left = 16;
    const struct picture left = run(&params);
    params.sizes.crop_left = 0;
    params.sizes.crop_top = 16;
    CHECK(!same(run(&params), left));
}

static void test_refiner(void)
{
    const struct picture base = draw("two cats");
    dfn_generate_params params = tiny_run("two cats");
    params.aesthetic_score = 9.0;
    CHECK(!same(run(&params), base));
    params.aesthetic_score = 6.0;
    params.negative_aesthetic_score = 2.5;
    CHECK(same(run(&params), base));
    params.negative_aesthetic_score = 9.0;
    CHECK(!same(run(&params), base));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2 || argc == 3);
    char model[4096];
    char lora[4096];
    char word[4096];
    pipeline = open_model(path_of(model, sizeof model, argv[1], "models/sd15"));
    path_of(lora, sizeof lora, argv[1], "loras/kohya_a.safetensors");
    test_loras(lora);
    test_words(path_of(word, sizeof word, argv[1], "embeddings/cat-toy.safetensors"));
    test_runs_keep_what_they_began_with(lora);
    dfn_pipeline_free(pipeline);

    if (argc == 2) {
        pipeline = open_model(path_of(model, sizeof model, argv[1], "models/sdxl"));
        test_sdxl();
        dfn_pipeline_free(pipeline);

        pipeline = open_model(path_of(model, sizeof model, argv[1], "models/refiner"));
        test_refiner();
        dfn_pipeline_free(pipeline);
    }
    puts("changes: ok");
    return 0;
}
