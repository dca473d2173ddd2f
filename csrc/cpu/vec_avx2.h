// SPDX-License-Identifier: Apache-2.0
// 8 lanes of AVX2, FMA and F16C, which came together (Haswell, Zen).
// Each file that includes it has selected the instruction set before, and has this type for itself.
#pragma once

#include <immintrin.h>

#include "dtypes.h"

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
    static void store(Float32* to, F x) { _mm256_storeu_ps(&to->value, x); }
    static void store(Bfloat16* to, F x) {
        const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF));
        rounded = _mm256_srli_epi32(_mm256_add_epi32(rounded, odd), 16);
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        rounded = _mm256_blendv_epi8(rounded, quiet, nan);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
    }
    static void store(Float16* to, F x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, 0));
    }
    static void stream(float* to, F x) { _mm256_stream_ps(to, x); }
    static void fence() { _mm_sfence(); }
    static F set1(float x) { return _mm256_set1_ps(x); }
    static F zero() { return _mm256_setzero_ps(); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static M not_below(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
    static M eq(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
    static M not_below_inf(F x) {
        return _mm256_cmp_ps(x, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    }
    static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }
    static M none() { return _mm256_setzero_ps(); }
    static M either(M a, M b) { return _mm256_or_ps(a, b); }
    static bool any(M m) { return _mm256_movemask_ps(m) != 0; }
    static uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }

    // Lane j of v[i] becomes lane i of v[j].
    static void transpose(F (&v)[N]) {
        F w[N];
        for (int i = 0; i < N; i += 4) {  // 4 x 4 within each half of the lanes
            const F a = _mm256_unpacklo_ps(v[i], v[i + 1]), b = _mm256_unpackhi_ps(v[i], v[i + 1]);
            const F c = _mm256_unpacklo_ps(v[i + 2], v[i + 3]);
            const F d = _mm256_unpackhi_ps(v[i + 2], v[i + 3]);
            w[i] = _mm256_shuffle_ps(a, c, 0x44);
            w[i + 1] = _mm256_shuffle_ps(a, c, 0xEE);
            w[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
            w[i + 3] = _mm256_shuffle_ps(b, d, 0xEE);
        }
        for (int i = 0; i < 4; ++i) {  // then the halves
            v[i] = _mm256_permute2f128_ps(w[i], w[i + 4], 0x20);
            v[i + 4] = _mm256_permute2f128_ps(w[i], w[i + 4], 0x31);
        }
    }
};

}  // namespace
