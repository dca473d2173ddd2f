// SPDX-License-Identifier: Apache-2.0
// What one instruction set offers to small-M GEMM.
#pragma once

#include "linear.h"

struct Product {
    const Linear* linear;
    char* y;
    const char* x;
    int64_t y_stride, x_stride, rows;  // strides in bytes
    int64_t width, inputs_summed;
};

// Outputs that one thread computes at least: a unit of work. Of a wide block, half.
inline int64_t outputs_of_unit(int64_t width) { return width == 64 ? 32 : width; }

// Units [from, to), on one thread.
using LinearKernel = void (*)(const Product& product, int64_t from, int64_t to);

#if defined(__x86_64__)
extern const LinearKernel kAvx512LinearFloat32;
extern const LinearKernel kAvx512LinearBfloat16;  // needs dot products of bfloat16
extern const LinearKernel kAvx512LinearTiles;     // of bfloat16, summed as AMX's tiles do
#endif
