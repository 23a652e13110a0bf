/* What the C tests share. */

#ifndef CHECK_H
#define CHECK_H

#include "diffusion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: not true: %s; last error: %s\n", __FILE__, __LINE__,         \
                    #condition, dfn_last_error());                                               \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

#define CHECK_STATUS(expected, call)                                                             \
    do {                                                                                         \
        dfn_status status_ = (call);                                                             \
        if (status_ != (expected)) {                                                             \
            fprintf(stderr, "%s:%d: expected %s, found %s: %s; last error: %s\n", __FILE__,      \
                    __LINE__, #expected, dfn_status_name(status_), #call, dfn_last_error());     \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

/* A failure whose text names what it is about. */
#define CHECK_FAILS(expected, part, call)                                                        \
    do {                                                                                         \
        CHECK_STATUS(expected, call);                                                            \
        CHECK(strstr(dfn_last_error(), part) != NULL);                                           \
    } while (0)

static inline dfn_pipeline *open_model(const char *path)
{
    dfn_pipeline *pipeline = NULL;
    CHECK_STATUS(DFN_OK, dfn_pipeline_open(path, NULL, &pipeline));
    CHECK(pipeline != NULL);
    return pipeline;
}

/* A short run that always gives the same. */
static inline dfn_generate_params short_run(void)
{
    dfn_generate_params params;
    CHECK_STATUS(DFN_OK, dfn_generate_params_default(&params, sizeof params));
    params.prompt = "a red heart, flat style";
    params.num_steps = 2;
    params.guidance_scale = 5.0;
    params.random_seed = 0;
    params.seed = 1;
    return params;
}

#endif
