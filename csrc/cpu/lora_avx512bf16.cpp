// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA with AVX-512 and its dot products of bfloat16: two products a lane, exact, summed in float32.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "lora_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "vec_avx512.h"

namespace {

template <>
struct Dot<Bfloat16, Bfloat16> {
    static constexpr int64_t STEP = 2 * Vec::N;
    using V = __m512bh;
    static V load(const Bfloat16* x) {
        V v;
        __builtin_memcpy(&v, x, sizeof v);
        return v;
    }
    static Vec::F add(V x, V w, Vec::F sum) { return _mm512_dpbf16_ps(sum, x, w); }
};

}  // namespace

#include "lora_passes.h"

const LoraKernels kAvx512Bf16Lora = lora_kernels();

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
