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
    using Sum = Vec::F;
    static constexpr int64_t INPUTS = 2, CLOSED = 2;
    static constexpr int ROWS = 4;
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
    static Sum zero() { return Vec::zero(); }
    static Sum add(V x, V w, Sum sum) { return _mm512_dpbf16_ps(sum, x, w); }
    static Sum close(Sum sum) { return sum; }
    static Vec::F total(Sum sum) { return sum; }
};

// As TDPBF16PS sums 32 inputs (Intel's manual): the even ones, and the odd ones, each from zero; then the
// two sums' sum is added.
struct TileWeights {
    using T = Bfloat16;
    struct V {
        Vec::F even, odd;
    };
    struct Sum {
        Vec::F even, odd, total;
    };
    static constexpr int64_t INPUTS = 2, CLOSED = 32;
    static constexpr int ROWS = 2;  // a sum takes three registers
    static V split(__m512i pairs) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
    }
    static V load(const T* w) { return split(_mm512_loadu_si512(w)); }
    static V broadcast(const T* x) {
        int pair;
        __builtin_memcpy(&pair, x, sizeof pair);
        return split(_mm512_set1_epi32(pair));
    }
    static Sum zero() { return {Vec::zero(), Vec::zero(), Vec::zero()}; }
    static Sum add(V x, V w, Sum sum) {
        return {Vec::fma(x.even, w.even, sum.even), Vec::fma(x.odd, w.odd, sum.odd), sum.total};
    }
    static Sum close(Sum sum) {
        return {Vec::zero(), Vec::zero(), Vec::add(sum.total, Vec::add(sum.even, sum.odd))};
    }
    static Vec::F total(Sum sum) { return sum.total; }
};

}  // namespace

#include "linear_passes.h"

namespace {

// Tiles take subnormal numbers for 0, and give 0 in their place.
void linear_tiles(const Product& product, int64_t from, int64_t to) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | kFlushToZero | kDenormalsAreZero);
    linear_units<TileWeights>(product, from, to);
    _mm_setcsr(before);
}

}  // namespace

const LinearKernel kAvx512LinearBfloat16 = linear_units<Bfloat16Weights>;
const LinearKernel kAvx512LinearTiles = linear_tiles;

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
