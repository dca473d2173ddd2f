// SPDX-License-Identifier: Apache-2.0
// Products of few rows with the weights of linear layers, at the memory's speed: their C interface.
//
// Weights lie as oneDNN packs them for vLLM (its BA16a64b, and BA16a64b2a for bfloat16): blocks of 64
// outputs, of each input, or pair of inputs, the 64 values side by side: [N/64][K][64] or [N/64][K/2][64][2].
// So they are in memory once: products of many rows are oneDNN's.
#pragma once

#include "library.h"

// Rows up to this: beyond it arithmetic is the limit, and oneDNN's blocking is better.
constexpr int64_t kFewRows = 8;

// A view of an array of int64 that vllm_cold/cpu/linear_ops.py owns.
struct Linear {
    int64_t process;  // a number of the process that the addresses are of
    int64_t dtype;    // of x, weights, bias and y
    int64_t outputs, inputs;
    int64_t weights;  // address, 64 bytes aligned
    int64_t bias;     // address; 0 for none
    // torch's handles of both, for many rows
    int64_t weights_tensor, bias_tensor;
    // How many inputs oneDNN sums before it adds the sum to those before, by the number of rows: the same
    // here gives the same bits. 0: the product of so many rows is oneDNN's.
    int64_t inputs_summed[kFewRows];
};

// y = x @ weights^T + bias. x: [rows, inputs], y: [rows, outputs]; the strides are of rows, in elements.
// Sums are float32, inputs ascending; y is rounded once.
VLLM_COLD_EXPORT void vllm_cold_linear(const Linear* linear, void* y, int64_t y_stride, const void* x,
                                       int64_t x_stride, int64_t rows, int64_t inputs_summed,
                                       int32_t threads);
