// SPDX-License-Identifier: Apache-2.0
// 4 lanes of the compiler's own vectors: NEON on aarch64, SSE2 on an x86-64 without AVX2.
// Each file that includes it has selected the instruction set before, and has this type for itself.
#pragma once

#include <cstring>

#include "dtypes.h"

namespace {

struct Vec {
    static constexpr int64_t N = 4;
    using F = float __attribute__((vector_size(4 * N)));
    using M = int32_t __attribute__((vector_size(4 * N)));
    using U = uint32_t __attribute__((vector_size(4 * N)));

    static F as_floats(U bits) {
        F floats;
        std::memcpy(&floats, &bits, sizeof floats);
        return floats;
    }
    template <class T>
    static U widened(const T* x) {
        U bits;
        for (int64_t i = 0; i < N; ++i) bits[i] = x[i].bits;
        return bits;
    }
    static F load(const Float32* x) {
        F floats;
        std::memcpy(&floats, x, sizeof floats);
        return floats;
    }
    static F load(const Bfloat16* x) { return as_floats(widened(x) << 16); }
    static F load(const Float16* x) {
        const U half = widened(x);
        const U sign = (half & 0x8000u) << 16, magnitude = (half & 0x7FFFu) << 13;
        // The exponent's bias is 15, not 127: a product rescales it, subnormals included, exactly.
        const F scaled = as_floats(magnitude) * 0x1p112f;
        // An exponent of all ones is infinity or NaN, whatever the bias.
        const M special = magnitude >= U{} + (0x1Fu << 23);
        const F whole = select(special, as_floats(magnitude | (0xFFu << 23)), scaled);
        U bits;
        std::memcpy(&bits, &whole, sizeof bits);
        return as_floats(bits | sign);
    }
    static void store(float* to, F x) { std::memcpy(to, &x, sizeof x); }
    static void store(Float32* to, F x) { std::memcpy(to, &x, sizeof x); }
    static void store(Bfloat16* to, F x) {
        U bits;
        std::memcpy(&bits, &x, sizeof bits);
        for (int64_t i = 0; i < N; ++i) to[i].bits = to_bfloat16(bits[i]);
    }
    static void store(Float16* to, F x) {
        for (int64_t i = 0; i < N; ++i) to[i].bits = to_float16(x[i]);
    }
    static void stream(float* to, F x) { store(to, x); }
    static void fence() {}
    static F set1(float x) { return F{} + x; }
    static F zero() { return F{}; }
    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F max(F a, F b) { return select(a > b, a, b); }
    static F min(F a, F b) { return select(a < b, a, b); }
    static F fma(F a, F b, F c) { return a * b + c; }
    static M not_below(F a, F b) { return ~(a < b); }
    static M eq(F a, F b) { return a == b; }
    static M not_below_inf(F x) { return ~(x < set1(__builtin_inff())); }
    static F select(M m, F a, F b) { return m ? a : b; }
    static M none() { return M{}; }
    static M either(M a, M b) { return a | b; }
    static bool any(M m) { return bits(m) != 0; }
    static uint32_t bits(M m) {
        uint32_t set = 0;
        for (int64_t i = 0; i < N; ++i) set |= (m[i] != 0 ? 1u : 0u) << i;
        return set;
    }

    // Lane j of v[i] becomes lane i of v[j].
    static void transpose(F (&v)[N]) {
        for (int i = 0; i < N; ++i) {
            for (int j = i + 1; j < N; ++j) {
                const float above = v[i][j];
                v[i][j] = v[j][i];
                v[j][i] = above;
            }
        }
    }
};

}  // namespace
