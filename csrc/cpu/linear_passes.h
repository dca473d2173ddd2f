// SPDX-License-Identifier: Apache-2.0
// Products of few rows, for one instruction set; included after vec_*.h, with a type Weights that says
// how the dtype's products are summed.
#pragma once

#include "linear_kernels.h"

namespace {

constexpr int64_t kWidest = 64;  // outputs of a block at most

// Inputs [from, to) of V vectors of outputs and R rows. The weights are at w for input 0, and `width`
// outputs lie side by side. Sums go to totals [R][kWidest].
template <class W, int R, int V>
inline __attribute__((always_inline)) void sum_inputs(const typename W::T* const* x, const typename W::T* w,
                                                      int64_t width, int64_t from, int64_t to,
                                                      Float32* totals) {
    typename W::Sum sums[R * V];
    for (int i = 0; i < R * V; ++i) sums[i] = W::zero();
    w += from * width;
    for (int64_t k = from; k < to;) {
        for (int64_t end = k + W::CLOSED; k < end; k += W::INPUTS, w += width * W::INPUTS) {
            typename W::V of_w[V];
            for (int v = 0; v < V; ++v) of_w[v] = W::load(w + v * Vec::N * W::INPUTS);
            for (int r = 0; r < R; ++r) {
                const typename W::V of_x = W::broadcast(x[r] + k);
                for (int v = 0; v < V; ++v) sums[r * V + v] = W::add(of_x, of_w[v], sums[r * V + v]);
            }
        }
        for (int i = 0; i < R * V; ++i) sums[i] = W::close(sums[i]);
    }
    for (int r = 0; r < R; ++r) {
        Float32* total = totals + r * kWidest;
        for (int v = 0; v < V; ++v, total += Vec::N) {
            const Vec::F sum = W::total(sums[r * V + v]);
            Vec::store(total, from == 0 ? sum : Vec::add(Vec::load(total), sum));
        }
    }
}

// Up to R of the rows.
template <class W, int R, int V>
inline __attribute__((always_inline)) void sum_rows(const typename W::T* const* x, int64_t rows,
                                                    const typename W::T* w, int64_t width, int64_t from,
                                                    int64_t to, Float32* totals) {
    if constexpr (R > 1)
        if (rows < R) return sum_rows<W, R - 1, V>(x, rows, w, width, from, to, totals);
    sum_inputs<W, R, V>(x, w, width, from, to, totals);
}

// V vectors of outputs of one block, from `output` on.
template <class W, int V>
void outputs(const Product& product, int64_t output) {
    using T = typename W::T;
    const Linear& linear = *product.linear;
    const int64_t width = product.width, in_block = output % width;
    const T* w = reinterpret_cast<const T*>(linear.weights) + (output - in_block) * linear.inputs +
                 in_block * W::INPUTS;
    const T* x[kFewRows];
    for (int64_t r = 0; r < product.rows; ++r)
        x[r] = reinterpret_cast<const T*>(product.x + r * product.x_stride);
    alignas(64) Float32 totals[kFewRows * kWidest];
    for (int64_t from = 0; from < linear.inputs; from += product.inputs_summed) {
        const int64_t end = from + product.inputs_summed;
        const int64_t to = end < linear.inputs ? end : linear.inputs;
        // The second time, the weights come from the cache.
        for (int64_t r = 0; r < product.rows; r += W::ROWS)
            sum_rows<W, W::ROWS, V>(x + r, product.rows - r, w, width, from, to, totals + r * kWidest);
    }
    for (int64_t r = 0; r < product.rows; ++r) {
        T* y = reinterpret_cast<T*>(product.y + r * product.y_stride) + output;
        for (int v = 0; v < V; ++v) {
            Vec::F total = Vec::load(totals + r * kWidest + v * Vec::N);
            if (linear.bias != 0)
                total = Vec::add(total, Vec::load(reinterpret_cast<const T*>(linear.bias) + output + v * Vec::N));
            Vec::store(y + v * Vec::N, total);
        }
    }
}

template <class W>
void linear_units(const Product& product, int64_t from, int64_t to) {
    const int64_t unit = outputs_of_unit(product.width), all = product.linear->outputs;
    const int64_t end = to * unit < all ? to * unit : all;
    for (int64_t output = from * unit; output < end;) {
        const int64_t of_block = product.width - output % product.width, left = end - output;
        const int64_t vectors = (of_block < left ? of_block : left) / Vec::N;
        switch (vectors) {
            case 1: outputs<W, 1>(product, output); break;
            case 2: outputs<W, 2>(product, output); break;
            case 3: outputs<W, 3>(product, output); break;
            default: outputs<W, 4>(product, output);
        }
        output += vectors * Vec::N;
    }
}

}  // namespace
