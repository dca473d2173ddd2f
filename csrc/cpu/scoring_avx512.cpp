// SPDX-License-Identifier: Apache-2.0
// The passes with AVX-512: 16 lanes. Needs avx512f alone.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "scoring_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

#include "vec_avx512.h"

#include "scoring_passes.h"

const Kernels kAvx512Kernels[3] = {kernels<Float32>(), kernels<Bfloat16>(), kernels<Float16>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
