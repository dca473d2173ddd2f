// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "lora_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"

#include "lora_passes.h"

const LoraKernels kAvx2Lora = lora_kernels();

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
