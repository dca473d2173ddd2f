// SPDX-License-Identifier: Apache-2.0
// What one instruction set offers to multi-LoRA: both products for a block of rows, on one thread.
#pragma once

#include "lora.h"

// Row i of a block is row index[i] of the matrix, and row i of `hidden`, or also index[i].
struct Rows {
    const int64_t* index;
    int64_t count;
    bool hidden_by_index;
};

// hidden[i, r] = scale * sum over k of x[index[i], k] * a[r, k]. a: [ranks, inputs], contiguous.
using Shrink = void (*)(const void* x, int64_t x_stride, Rows rows, const void* a, int64_t ranks,
                        int64_t inputs, float scale, float* hidden, int64_t hidden_stride);

// y[index[i], j] (+)= sum over r of hidden[i, r] * b[r, j], for r < ranks and j < outputs. b's rows are
// b_stride elements apart.
using Expand = void (*)(const float* hidden, int64_t hidden_stride, Rows rows, const void* b,
                        int64_t b_stride, int64_t ranks, int64_t outputs, void* y, int64_t y_stride,
                        bool add);

struct LoraKernels {
    Shrink shrink[3][3];  // by x's and the weights' dtype
    Expand expand[3][3];  // by the weights' and y's dtype
};

// Columns of y that Expand computes at a time for many rows: a good unit of work.
constexpr int64_t kColumns = 32;

extern const LoraKernels kPortableLora;
#if defined(__x86_64__)
extern const LoraKernels kAvx2Lora;
extern const LoraKernels kAvx512Lora;
extern const LoraKernels kAvx512Bf16Lora;
#endif

namespace {  // nothing that is compiled for one instruction set is shared between files

// How a row of X and one of W are multiplied; an instruction set may have a better way for some.
template <class X, class W>
struct FloatDot;  // lora_passes.h
template <class X, class W>
struct Dot : FloatDot<X, W> {};

}  // namespace
