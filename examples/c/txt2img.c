/* A prompt becomes a picture.
 *
 *     txt2img MODEL PROMPT OUTPUT.ppm [SEED [LORA]]
 *
 * MODEL is a folder in the diffusers layout, such as examples/models/emoji, or one file; LORA is a file.
 */

#include "diffusion.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dfn_bool show_progress(const dfn_progress *progress, void *user_data)
{
    (void)user_data;
    fprintf(stderr, "\rstep %u of %u, %3.0f %%", (unsigned)progress->step,
            (unsigned)progress->num_steps, progress->fraction * 100.0);
    return 1;
}

static int report(const char *what, dfn_status status)
{
    fprintf(stderr, "%s: %s: %s\n", what, dfn_status_name(status), dfn_last_error());
    return EXIT_FAILURE;
}

/* PPM has no alpha. */
static int write_ppm(const char *path, const uint8_t *rgba, uint32_t width, uint32_t height)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return EXIT_FAILURE;
    }
    fprintf(file, "P6\n%u %u\n255\n", (unsigned)width, (unsigned)height);
    for (size_t i = 0; i < (size_t)width * height; i++) {
        fwrite(rgba + i * 4, 1, 3, file);
    }
    int failed = ferror(file);
    if (fclose(file) != 0 || failed) {
        fprintf(stderr, "%s: cannot be written\n", path);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

static int generate(const dfn_pipeline *pipeline, const char *prompt, const char *output,
                    const char *seed)
{
    dfn_generate_params params;
    dfn_generate_params_default(&params, sizeof params);
    params.prompt = prompt;
    params.num_steps = 25;
    params.guidance_scale = 5.0;
    params.progress = show_progress;
    if (seed != NULL) {
        params.random_seed = 0;
        params.seed = strtoull(seed, NULL, 10);
    }

    size_t bytes;
    uint32_t width, height;
    dfn_status status = dfn_generate_size(pipeline, &params, 0, &bytes, &width, &height);
    if (status != DFN_OK) {
        return report("size", status);
    }
    uint8_t *pixels = malloc(bytes);
    if (pixels == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        return EXIT_FAILURE;
    }

    dfn_result result;
    result.struct_size = sizeof result;
    status = dfn_generate(pipeline, &params, pixels, bytes, 0, &result);
    fputc('\n', stderr);
    int code;
    if (status != DFN_OK) {
        code = report("generate", status);
    } else {
        if (result.num_warnings > 0) {
            fprintf(stderr, "%s\n", dfn_last_warnings());
        }
        fprintf(stderr, "seed %llu, %.1f s\n", (unsigned long long)result.seed,
                result.encode_seconds + result.sample_seconds + result.decode_seconds);
        code = write_ppm(output, pixels, width, height);
    }
    free(pixels);
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc > 6) {
        fprintf(stderr, "usage: %s MODEL PROMPT OUTPUT.ppm [SEED [LORA]]\n", argv[0]);
        return EXIT_FAILURE;
    }
    dfn_pipeline *pipeline;
    dfn_status status = dfn_pipeline_open(argv[1], NULL, &pipeline);
    if (status != DFN_OK) {
        return report("open", status);
    }
    const char *lora = argc > 5 ? argv[5] : NULL;
    if (lora != NULL) {
        status = dfn_pipeline_set_loras(pipeline, &lora, NULL, 1);
    }
    int code = status == DFN_OK
                   ? generate(pipeline, argv[2], argv[3], argc > 4 ? argv[4] : NULL)
                   : report("LoRA", status);
    dfn_pipeline_free(pipeline);
    return code;
}
