// SPDX-License-Identifier: Apache-2.0
// What a caller asks first: which interface, threads and instruction set there are.
#include "library.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "threads.h"

int32_t vllm_cold_interface() { return kInterface; }

int32_t vllm_cold_has_threads() { return have_threads() ? 1 : 0; }

int32_t vllm_cold_best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__builtin_cpu_supports("avx512f")) {
        // CPUID leaf 7, subleaf 1, EAX bit 5; not every compiler knows the name.
        const bool bf16 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 32) != 0;
        return bf16 ? kAvx512Bf16 : kAvx512;
    }
    // GCC before 11 does not know the name "f16c".
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) return kAvx2;
#endif
    return kPortable;
}
