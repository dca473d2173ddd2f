// SPDX-License-Identifier: Apache-2.0
// Products of few rows as a whole: which outputs each thread computes.
#include "linear.h"

#include "linear_kernels.h"
#include "threads.h"

void vllm_cold_linear(const Linear* linear, void* y, int64_t y_stride, const void* x, int64_t x_stride,
                      int64_t rows, int64_t inputs_summed, int32_t threads) {
#if defined(__x86_64__)
    const int64_t size = kElementSize[linear->dtype];
    const int64_t width = reinterpret_cast<const FewRows*>(linear->few_rows)->width;
    const Product product{linear, static_cast<char*>(y), static_cast<const char*>(x), y_stride * size,
                          x_stride * size, rows, width, inputs_summed < 0 ? -inputs_summed : inputs_summed};
    const LinearKernel kernel = linear->dtype == kFloat32 ? kAvx512LinearFloat32
                                : inputs_summed < 0       ? kAvx512LinearTiles
                                                          : kAvx512LinearBfloat16;
    const int64_t units = (linear->outputs - 1) / outputs_of_unit(width) + 1;
    // Below this, a thread costs more than it saves: bytes of weights.
    const int64_t useful = linear->outputs * linear->inputs * size / (1 << 15);
    const int64_t most = useful < units ? useful : units;
    auto share = [&](Team team) {
        kernel(product, units * team.thread / team.size, units * (team.thread + 1) / team.size);
    };
    parallel(most < threads ? most : threads, share);
#else
    (void)linear, (void)y, (void)y_stride, (void)x, (void)x_stride, (void)rows, (void)inputs_summed, (void)threads;
#endif
}
