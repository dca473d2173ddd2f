// SPDX-License-Identifier: Apache-2.0
// Products of few rows with the weights of linear layers, at the memory's speed: their C interface.
//
// Weights lie as oneDNN packs them (its BA16a64b, and BA16a64b2a for bfloat16): blocks of as many outputs
// as the packing's width, of each input, or pair of inputs, their values side by side: [N/64][K][64] or
// [N/64][K/2][64][2]. The width is 16, 32, 48 or 64; the last block is padded to it. So weights are in
// memory once: products of many rows are oneDNN's.
#pragma once

#include "library.h"

// Rows up to this: beyond it arithmetic is the limit, and oneDNN's blocking is better.
constexpr int64_t kFewRows = 8;

// Both are views of arrays of int64 that vllm_cold/cpu/linear_ops.py owns.
struct FewRows {
    int64_t width;  // outputs of a block
    // How many inputs oneDNN sums before it adds the sum to those before, by the number of rows: the same
    // here gives the same bits. Negative: as many, in the order of AMX's tiles. 0: the product of so many
    // rows is oneDNN's.
    int64_t inputs_summed[kFewRows];
};

struct Linear {
    int64_t process;  // a number of the process that the addresses are of
    int64_t dtype;    // of x, weights, bias and y
    int64_t outputs, inputs;  // where few_rows counts: multiples of 16, of bfloat16 the inputs of 32
    int64_t weights;  // address, 64 bytes aligned
    int64_t bias;     // address; 0 for none
    // torch's handles of both, for many rows
    int64_t weights_tensor, bias_tensor;
    int64_t few_rows;  // address of a FewRows
};

// y = x @ weights^T + bias. x: [rows, inputs], y: [rows, outputs]; the strides are of rows, in elements.
// Sums are float32, inputs ascending; y is rounded once. inputs_summed: as in FewRows.
VLLM_COLD_EXPORT void vllm_cold_linear(const Linear* linear, void* y, int64_t y_stride, const void* x,
                                       int64_t x_stride, int64_t rows, int64_t inputs_summed,
                                       int32_t threads);
