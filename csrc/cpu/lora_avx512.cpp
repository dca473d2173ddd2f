// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "lora_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

#include "vec_avx512.h"

#include "lora_passes.h"

const LoraKernels kAvx512Lora = lora_kernels();

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
