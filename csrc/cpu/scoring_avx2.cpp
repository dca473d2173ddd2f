// SPDX-License-Identifier: Apache-2.0
// The passes with AVX2, FMA and F16C, which came together (Haswell, Zen): 8 lanes.
#if defined(__x86_64__)

#include <immintrin.h>

#include "dtypes.h"
#include "scoring_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace {

struct Vec {
    static constexpr int64_t N = 8;
    using F = __m256;
    using M = __m256;

    static F load(const Float32* x) { return _mm256_loadu_ps(&x->value); }
    static F load(const Bfloat16* x) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static F load(const Float16* x) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static void store(float* to, F x) { _mm256_storeu_ps(to, x); }
    static void stream(float* to, F x) { _mm256_stream_ps(to, x); }
    static void fence() { _mm_sfence(); }
    static F set1(float x) { return _mm256_set1_ps(x); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static M ge(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
    static M gt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    static M eq(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    static M not_below_inf(F x) {
        return _mm256_cmp_ps(x, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    }
    static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }
    static M none() { return _mm256_setzero_ps(); }
    static M either(M a, M b) { return _mm256_or_ps(a, b); }
    static bool any(M m) { return _mm256_movemask_ps(m) != 0; }
    static uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
};

}  // namespace

#include "scoring_passes.h"

const Kernels kAvx2Kernels[3] = {kernels<Float32>(), kernels<Bfloat16>(), kernels<Float16>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
