// SPDX-License-Identifier: Apache-2.0
// What the AscendC kernels have in common.
#pragma once

#include <cstdint>

#include "kernel_operator.h"

#ifndef VLLM_COLD_LAUNCH
#define VLLM_COLD_LAUNCH(kernel, blocks, stream, ...) \
    kernel<<<blocks, nullptr, stream>>>(__VA_ARGS__)
#endif

namespace vllm_cold {

using AscendC::DataCopyExtParams;
using AscendC::DataCopyPadExtParams;
using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::PipeBarrier;
using AscendC::TBuf;
using AscendC::TPipe;
using AscendC::TPosition;
using AscendC::TQue;

constexpr uint32_t kBlockBytes = 32;  // UB addresses are aligned to it

template <HardEvent event>
__aicore__ inline void Sync()
{
    const int32_t id = static_cast<int32_t>(GetTPipePtr()->FetchEventID(event));
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}

__aicore__ inline uint32_t Least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

// Casts from and to 16 bits keep NaN and infinities while this is there. By default they are
// documented to make them 0 and the largest finite values.
template <typename T>
class NotFiniteKept {
public:
    __aicore__ inline NotFiniteKept()
    {
        if constexpr (sizeof(T) < sizeof(float)) {
            saturates_ = AscendC::GetSaturationFlag<AscendC::SaturationMode::FLOAT>();
            AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(false);
        }
    }
    __aicore__ inline ~NotFiniteKept()
    {
        if constexpr (sizeof(T) < sizeof(float)) {
            AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(saturates_);
        }
    }

private:
    bool saturates_ = false;
};

}  // namespace vllm_cold
