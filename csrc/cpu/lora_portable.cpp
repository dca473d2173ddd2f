// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA in the compiler's own vectors of 4 lanes: NEON on aarch64, SSE2 on an x86-64 without AVX2.
#include "lora_kernels.h"
#include "vec_portable.h"

#include "lora_passes.h"

const LoraKernels kPortableLora = lora_kernels();
