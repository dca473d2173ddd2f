// SPDX-License-Identifier: Apache-2.0
// Products of few rows, for one instruction set; included after vec_*.h, with a type Weights that says
// how the dtype's products are summed.
#pragma once

#include "linear_kernels.h"

namespace {

constexpr int64_t kBlock = 64;       // outputs of a block
constexpr int kRowsAtOnce = 4;       // times the vectors of a block: 16 sums, in registers
constexpr int kVectors = kBlock / Vec::N;

// Inputs [from, to) of V vectors of outputs and R rows; sums go to totals [R][kBlock] from `vector` on.
template <class W, int R, int V>
inline __attribute__((always_inline)) void sum_inputs(const typename W::T* const* x, const typename W::T* w,
                                                      int64_t from, int64_t to, Float32* totals, int vector) {
    Vec::F sums[R * V];
    for (int i = 0; i < R * V; ++i) sums[i] = Vec::zero();
    w += from * kBlock + vector * Vec::N * W::INPUTS;
    for (int64_t k = from; k < to; k += W::INPUTS, w += kBlock * W::INPUTS) {
        typename W::V of_w[V];
        for (int v = 0; v < V; ++v) of_w[v] = W::load(w + v * Vec::N * W::INPUTS);
        for (int r = 0; r < R; ++r) {
            const typename W::V of_x = W::broadcast(x[r] + k);
            for (int v = 0; v < V; ++v) sums[r * V + v] = W::add(of_x, of_w[v], sums[r * V + v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        Float32* total = totals + r * kBlock + vector * Vec::N;
        for (int v = 0; v < V; ++v, total += Vec::N) {
            const Vec::F sum = sums[r * V + v];
            Vec::store(total, from == 0 ? sum : Vec::add(Vec::load(total), sum));
        }
    }
}

template <class W, int V>
inline __attribute__((always_inline)) void sum_rows(const typename W::T* const* x, int64_t rows,
                                                    const typename W::T* w, int64_t from, int64_t to,
                                                    Float32* totals, int vector) {
    switch (rows) {
        case 1: return sum_inputs<W, 1, V>(x, w, from, to, totals, vector);
        case 2: return sum_inputs<W, 2, V>(x, w, from, to, totals, vector);
        case 3: return sum_inputs<W, 3, V>(x, w, from, to, totals, vector);
        default: return sum_inputs<W, 4, V>(x, w, from, to, totals, vector);
    }
}

// V vectors of a block, from `vector` on.
template <class W, int V>
void block(const Product& product, int64_t index, int vector) {
    using T = typename W::T;
    const Linear& linear = *product.linear;
    const T* w = reinterpret_cast<const T*>(linear.weights) + index * kBlock * linear.inputs;
    const T* x[kFewRows];
    for (int64_t r = 0; r < product.rows; ++r)
        x[r] = reinterpret_cast<const T*>(product.x + r * product.x_stride);
    alignas(64) Float32 totals[kFewRows * kBlock];
    for (int64_t from = 0; from < linear.inputs; from += product.inputs_summed) {
        const int64_t end = from + product.inputs_summed;
        const int64_t to = end < linear.inputs ? end : linear.inputs;
        // The second time, the weights come from the cache.
        for (int64_t r = 0; r < product.rows; r += kRowsAtOnce)
            sum_rows<W, V>(x + r, product.rows - r, w, from, to, totals + r * kBlock, vector);
    }
    const int64_t output = index * kBlock + vector * Vec::N;
    for (int64_t r = 0; r < product.rows; ++r) {
        T* y = reinterpret_cast<T*>(product.y + r * product.y_stride) + output;
        for (int v = 0; v < V; ++v) {
            Vec::F total = Vec::load(totals + r * kBlock + (vector + v) * Vec::N);
            if (linear.bias != 0)
                total = Vec::add(total, Vec::load(reinterpret_cast<const T*>(linear.bias) + output + v * Vec::N));
            Vec::store(y + v * Vec::N, total);
        }
    }
}

template <class W>
void linear_units(const Product& product, int64_t from, int64_t to) {
    constexpr int64_t kUnits = kBlock / kOutputs;
    constexpr int kHalf = kVectors / kUnits;
    int64_t i = from;
    while (i < to) {
        const int part = static_cast<int>(i % kUnits);
        if (part == 0 && i + kUnits <= to) {
            block<W, kVectors>(product, i / kUnits, 0);
            i += kUnits;
        } else {
            block<W, kHalf>(product, i / kUnits, part * kHalf);
            ++i;
        }
    }
}

}  // namespace
