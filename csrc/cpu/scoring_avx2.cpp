// SPDX-License-Identifier: Apache-2.0
// The passes with AVX2, FMA and F16C, which came together (Haswell, Zen): 8 lanes.
#if defined(__x86_64__)

#include <immintrin.h>  // outside of the target's region

#include "scoring_kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"

#include "scoring_passes.h"

const Kernels kAvx2Kernels[3] = {kernels<Float32>(), kernels<Bfloat16>(), kernels<Float16>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
