// SPDX-License-Identifier: Apache-2.0
// The passes with AVX-512: 16 lanes. Needs avx512f alone.
#if defined(__x86_64__)

#include <immintrin.h>

#include "dtypes.h"
#include "scoring_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

namespace {

struct Vec {
    static constexpr int64_t N = 16;
    using F = __m512;
    using M = __mmask16;

    static F load(const Float32* x) { return _mm512_loadu_ps(&x->value); }
    static F load(const Bfloat16* x) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    static F load(const Float16* x) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }
    static void store(float* to, F x) { _mm512_storeu_ps(to, x); }
    static void stream(float* to, F x) { _mm512_stream_ps(to, x); }
    static void fence() { _mm_sfence(); }
    static F set1(float x) { return _mm512_set1_ps(x); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
    static M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    static M eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static M not_below_inf(F x) {
        return _mm512_cmp_ps_mask(x, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    }
    static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
    static M none() { return 0; }
    static M either(M a, M b) { return a | b; }
    static bool any(M m) { return m != 0; }
    static uint32_t bits(M m) { return m; }
};

}  // namespace

#include "scoring_passes.h"

const Kernels kAvx512Kernels[3] = {kernels<Float32>(), kernels<Bfloat16>(), kernels<Float16>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
