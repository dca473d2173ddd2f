// SPDX-License-Identifier: Apache-2.0
// What a caller asks first: which interface, threads and instruction set there are.
#include "library.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "threads.h"

int32_t vllm_cold_interface() { return kInterface; }

int32_t vllm_cold_has_threads() { return have_threads() ? 1 : 0; }

// CPUID and XGETBV, not __builtin_cpu_supports: what that reads stays empty in a library that zig links.
int32_t vllm_cold_best_isa() {
#if defined(__x86_64__)
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return kPortable;
    const bool fma = (ecx & bit_FMA) != 0, f16c = (ecx & bit_F16C) != 0;
    unsigned state = 0;  // the registers that the operating system keeps for each process
    __asm__("xgetbv" : "=a"(state), "=d"(edx) : "c"(0));
    constexpr unsigned kYmm = 0x06, kZmm = 0xe6;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return kPortable;
    const unsigned features = ebx;
    if ((features & bit_AVX512F) != 0 && (state & kZmm) == kZmm) {
        // Subleaf 1, EAX bit 5; not every compiler knows the name.
        const bool bf16 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 32) != 0;
        return bf16 ? kAvx512Bf16 : kAvx512;
    }
    if ((features & bit_AVX2) != 0 && fma && f16c && (state & kYmm) == kYmm) return kAvx2;
#endif
    return kPortable;
}
