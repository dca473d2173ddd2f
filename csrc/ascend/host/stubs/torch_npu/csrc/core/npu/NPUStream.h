// SPDX-License-Identifier: Apache-2.0
// What binding.h uses of torch_npu's header of that name, for the bindings' tests on the CPU.
#pragma once

#include <c10/core/Device.h>

using aclrtStream = void*;

namespace c10_npu {

struct NPUStream {
    aclrtStream stream(const bool need_empty) const
    {
        (void)need_empty;
        return nullptr;
    }
};

inline NPUStream getCurrentNPUStream(c10::DeviceIndex device_index = -1)
{
    (void)device_index;
    return {};
}

}  // namespace c10_npu
