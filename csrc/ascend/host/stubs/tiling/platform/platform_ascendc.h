// SPDX-License-Identifier: Apache-2.0
// What binding.h uses of CANN's header of that name, for the bindings' tests on the CPU.
#pragma once

#include <cstdint>

namespace platform_ascendc {

struct PlatformAscendC {
    uint32_t GetCoreNumAiv() const
    {
        return 40;
    }
};

struct PlatformAscendCManager {
    static PlatformAscendC* GetInstance()
    {
        static PlatformAscendC platform;
        return &platform;
    }
};

}  // namespace platform_ascendc
