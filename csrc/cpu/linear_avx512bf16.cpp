// SPDX-License-Identifier: Apache-2.0
// Products of few rows in bfloat16 with AVX-512's dot products of it.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "linear_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "vec_avx512.h"

namespace {

struct Bfloat16Weights {
    using T = Bfloat16;
    using V = __m512bh;
    static constexpr int64_t INPUTS = 2;
    static V load(const T* w) {
        V v;
        __builtin_memcpy(&v, w, sizeof v);
        return v;
    }
    static V broadcast(const T* x) {
        int pair;
        __builtin_memcpy(&pair, x, sizeof pair);
        const __m512i v = _mm512_set1_epi32(pair);
        V pairs;
        __builtin_memcpy(&pairs, &v, sizeof pairs);
        return pairs;
    }
    static Vec::F add(V x, V w, Vec::F sum) { return _mm512_dpbf16_ps(sum, x, w); }
};

}  // namespace

#include "linear_passes.h"

const LinearKernel kAvx512LinearBfloat16 = linear_units<Bfloat16Weights>;

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
