// SPDX-License-Identifier: Apache-2.0
// What the CPU library's C interfaces (scoring.h, lora.h) have in common.
//
// The library needs neither Python nor torch to be built or loaded: vllm_cold/ops/cpu_library.py loads it
// through ctypes, and tensors come as addresses, so one build serves every release of both. Its one
// requirement is an OpenMP runtime with GNU's interface (GOMP_parallel), which torch brings.
#pragma once

#include <cstdint>

#define VLLM_COLD_EXPORT extern "C" __attribute__((visibility("default")))

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
constexpr int64_t kElementSize[3] = {4, 2, 2};
// kAvx512Bf16 adds dot products of bfloat16 to kAvx512.
enum Isa : int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// Changes with the functions of the library: a caller compares it with what it was written for.
constexpr int32_t kInterface = 12;
VLLM_COLD_EXPORT int32_t vllm_cold_interface();

// 0 if there is no OpenMP runtime in the process: everything then runs on one thread.
VLLM_COLD_EXPORT int32_t vllm_cold_has_threads();

// The best instruction set that this CPU and its operating system support.
VLLM_COLD_EXPORT int32_t vllm_cold_best_isa();
