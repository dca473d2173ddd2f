// SPDX-License-Identifier: Apache-2.0
#include "torch_ops.h"

Connection connection;

// dtypes: torch's numbers for float32, bfloat16, float16; device: for the CPU. process: what the tables
// of this process have.
VLLM_COLD_EXPORT void vllm_cold_connect(const Torch* torch, const int32_t* dtypes, int32_t device,
                                        int32_t isa, int64_t process) {
    connection = {*torch, {dtypes[0], dtypes[1], dtypes[2]}, device, isa, process};
}
