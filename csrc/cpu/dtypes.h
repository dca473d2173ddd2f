// SPDX-License-Identifier: Apache-2.0
// The dtypes of logits, weights and activations, as they lie in memory. Each instruction set's file has these types for itself.
#pragma once

#include <cstdint>

namespace {

struct Float32 {
    float value;
    static constexpr Float32 minus_infinity() { return {-__builtin_inff()}; }
};

struct Bfloat16 {
    uint16_t bits;
    static constexpr Bfloat16 minus_infinity() { return {0xFF80}; }
};

struct Float16 {
    uint16_t bits;
    static constexpr Float16 minus_infinity() { return {0xFC00}; }
};

// Rounded to the nearest, ties to even; what overflows becomes infinity, NaN stays NaN.
inline uint16_t to_bfloat16(uint32_t bits) {
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_float16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((bits >> 13) & 0x3FFu));
    if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves the mantissa in units of 2^-24
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        __builtin_memcpy(&bits, &magnitude, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
    }
    bits += 0xC8000FFFu + ((bits >> 13) & 1u);  // the exponent's bias: 15, not 127
    return static_cast<uint16_t>(sign | (bits >> 13));
}

}  // namespace
