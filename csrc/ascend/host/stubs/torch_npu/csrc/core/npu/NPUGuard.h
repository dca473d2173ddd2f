// SPDX-License-Identifier: Apache-2.0
// What the bindings use of torch_npu's header of that name, for their tests on the CPU.
#pragma once

#include <optional>

#include <c10/core/Device.h>

namespace c10_npu {

struct OptionalNPUGuard {
    explicit OptionalNPUGuard(std::optional<c10::Device> device)
    {
        (void)device;
    }
};

}  // namespace c10_npu
