// SPDX-License-Identifier: Apache-2.0
// The passes in the compiler's own vectors of 4 lanes: NEON on aarch64, SSE2 on an x86-64 without AVX2.
#include "scoring_kernels.h"

#include "vec_portable.h"

#include "scoring_passes.h"

const Kernels kPortableKernels[3] = {kernels<Float32>(), kernels<Bfloat16>(), kernels<Float16>()};
