// SPDX-License-Identifier: Apache-2.0
// The logits' dtypes, as they lie in memory. Each instruction set's file has these types for itself.
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

}  // namespace
