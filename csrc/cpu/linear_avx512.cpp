// SPDX-License-Identifier: Apache-2.0
// Products of few rows in float32 with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "linear_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

#include "vec_avx512.h"

namespace {

struct Float32Weights {
    using T = Float32;
    using V = Vec::F;
    using Sum = Vec::F;
    static constexpr int64_t INPUTS = 1;  // side by side
    static constexpr int64_t CLOSED = 1;  // inputs after which a sum is closed
    static constexpr int ROWS = 4;        // at once; times the vectors of a block: 16 sums, in registers
    static V load(const T* w) { return Vec::load(w); }
    static V broadcast(const T* x) { return Vec::set1(x->value); }
    static Sum zero() { return Vec::zero(); }
    static Sum add(V x, V w, Sum sum) { return Vec::fma(x, w, sum); }
    static Sum close(Sum sum) { return sum; }
    static Vec::F total(Sum sum) { return sum; }
};

}  // namespace

#include "linear_passes.h"

const LinearKernel kAvx512LinearFloat32 = linear_units<Float32Weights>;

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
