// SPDX-License-Identifier: Apache-2.0
// What the torch op needs of torch_npu: tensors, cores and the task queue.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/ATen.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include "tiling/platform/platform_ascendc.h"

namespace vllm_cold {

inline uint8_t* Address(const at::Tensor& tensor)
{
    return static_cast<uint8_t*>(tensor.data_ptr());
}

inline uint64_t VectorCores()
{
    static const uint64_t cores = [] {
        auto* platform = platform_ascendc::PlatformAscendCManager::GetInstance();
        TORCH_CHECK(platform != nullptr, "vllm-cold: CANN does not know this NPU");
        return static_cast<uint64_t>(platform->GetCoreNumAiv());
    }();
    TORCH_CHECK(cores > 0, "vllm-cold: CANN reports an NPU without vector cores");
    return cores;
}

// Freed when the op returns; torch_npu's allocator gives it only to what runs later on the stream.
inline at::Tensor Workspace(const at::Tensor& like, uint64_t bytes)
{
    return at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
}

// Through torch_npu's task queue, as its own ops: a launch that did not go there could overtake
// those which are still queued.
template <typename Call>
void Enqueue(const std::string& name, const Call& call, void (*launch)(const Call&, void*))
{
    const auto stream = c10_npu::getCurrentNPUStream().stream(false);
    at_npu::native::OpCommand::RunOpApi(name, [call, stream, launch]() -> int {
        launch(call, stream);
        return 0;
    });
}

}  // namespace vllm_cold
