// The header in C++11, and the static library. Argument: a model folder.

#include "check.h"

#include <vector>

static dfn_bool stop(const dfn_progress *progress, void *user_data)
{
    *static_cast<double *>(user_data) = progress->fraction;
    return false;
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    CHECK(dfn_abi_version() == DFN_ABI_VERSION);
    dfn_pipeline *pipeline = open_model(argv[1]);
    dfn_generate_params params = short_run();
    double fraction = 0.0;
    params.progress = stop;
    params.user_data = &fraction;
    size_t bytes = 0;
    CHECK_STATUS(DFN_OK, dfn_generate_size(pipeline, &params, 0, &bytes, nullptr, nullptr));
    std::vector<uint8_t> pixels(bytes);
    CHECK_STATUS(DFN_CANCELLED,
                 dfn_generate(pipeline, &params, pixels.data(), pixels.size(), 0, nullptr));
    CHECK(fraction == 0.5);
    dfn_pipeline_free(pipeline);
    puts("c++: ok");
    return 0;
}
