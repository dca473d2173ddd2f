// SPDX-License-Identifier: Apache-2.0
// What binding.h uses of torch_npu's header of that name, for the bindings' tests on the CPU: the
// task runs at once instead of being queued.
#pragma once

#include <functional>
#include <string>

using PROC_FUNC = std::function<int()>;

namespace at_npu {
namespace native {

struct OpCommand {
    static void RunOpApi(const std::string& op_name, PROC_FUNC func, bool sync = false)
    {
        (void)op_name;
        (void)sync;
        func();
    }
};

}  // namespace native
}  // namespace at_npu
