// SPDX-License-Identifier: Apache-2.0
// 16 lanes of AVX-512; needs avx512f alone.
// Each file that includes it has selected the instruction set before, and has this type for itself.
#pragma once

#include <immintrin.h>

#include "dtypes.h"

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
    static void store(Float32* to, F x) { _mm512_storeu_ps(&to->value, x); }
    static void store(Bfloat16* to, F x) {
        const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
        const __m512i odd = _mm512_and_epi32(high, _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
        rounded = _mm512_srli_epi32(_mm512_add_epi32(rounded, odd), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
    }
    static void store(Float16* to, F x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, 0));
    }
    static void stream(float* to, F x) { _mm512_stream_ps(to, x); }
    static void fence() { _mm_sfence(); }
    static F set1(float x) { return _mm512_set1_ps(x); }
    static F zero() { return _mm512_setzero_ps(); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static M not_below(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
    static M eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
    static M not_below_inf(F x) {
        return _mm512_cmp_ps_mask(x, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    }
    static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
    static M none() { return 0; }
    static M either(M a, M b) { return a | b; }
    static bool any(M m) { return m != 0; }
    static uint32_t bits(M m) { return m; }

    // Lane j of v[i] becomes lane i of v[j].
    static void transpose(F (&v)[N]) {
        F w[N];
        for (int i = 0; i < N; i += 4) {  // 4 x 4 within each quarter of the lanes
            const F a = _mm512_unpacklo_ps(v[i], v[i + 1]), b = _mm512_unpackhi_ps(v[i], v[i + 1]);
            const F c = _mm512_unpacklo_ps(v[i + 2], v[i + 3]);
            const F d = _mm512_unpackhi_ps(v[i + 2], v[i + 3]);
            w[i] = _mm512_shuffle_ps(a, c, 0x44);
            w[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
            w[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
            w[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
        }
        for (int i = 0; i < 4; ++i) {  // then the quarters
            const F a = _mm512_shuffle_f32x4(w[i], w[i + 4], 0x88);
            const F b = _mm512_shuffle_f32x4(w[i], w[i + 4], 0xDD);
            const F c = _mm512_shuffle_f32x4(w[i + 8], w[i + 12], 0x88);
            const F d = _mm512_shuffle_f32x4(w[i + 8], w[i + 12], 0xDD);
            v[i] = _mm512_shuffle_f32x4(a, c, 0x88);
            v[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
            v[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
            v[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
        }
    }
};

}  // namespace
