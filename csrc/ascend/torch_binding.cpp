// SPDX-License-Identifier: Apache-2.0
// torch.ops.vllm_cold.ascend_scores: the AscendC kernels on torch_npu's tensors.
//
// Arguments are checked by vllm_cold.ops.scoring.
#include <cstdint>
#include <optional>

#include <ATen/ATen.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUGuard.h>

#include "binding.h"
#include "contrastive_scoring.h"

namespace vllm_cold {
namespace {

LogitsType TypeOf(const at::Tensor& logits)
{
    switch (logits.scalar_type()) {
        case at::kFloat:
            return LogitsType::kFloat;
        case at::kHalf:
            return LogitsType::kHalf;
        case at::kBFloat16:
            return LogitsType::kBfloat16;
        default:
            TORCH_CHECK(false, "vllm-cold: logits are float32, bfloat16 or float16, not ",
                        logits.scalar_type());
    }
}

ScoringCall MakeCall(
    const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& weights,
    const at::Tensor& logAlpha, const std::optional<at::Tensor>& floor)
{
    TORCH_CHECK(logits.size(1) == 1 || logits.stride(1) == 1,
                "vllm-cold: the logits' last dimension is not contiguous");
    TORCH_CHECK(logits.size(0) <= INT32_MAX && rows.size(0) <= INT32_MAX,
                "vllm-cold: more than 2**31 rows");
    TORCH_CHECK(rows.size(1) >= 2 && rows.size(1) <= kMaxAmateurs + 1,
                "vllm-cold: a group has 2 to ", kMaxAmateurs + 1, " streams");
    ScoringCall call{};
    call.type = TypeOf(logits);
    call.logits = Address(logits);
    call.rows = Address(rows);
    call.weights = Address(weights);
    call.logAlpha = Address(logAlpha);
    call.floor = floor.has_value() ? Address(*floor) : nullptr;
    call.numRows = static_cast<uint32_t>(logits.size(0));
    call.groups = static_cast<uint32_t>(rows.size(0));
    call.streams = static_cast<uint32_t>(rows.size(1));
    call.vocab = static_cast<uint32_t>(logits.size(1));
    call.rowStride = static_cast<uint64_t>(logits.stride(0));
    call.plan = MakePlan(call.groups, call.vocab, VectorCores());
    return call;
}

void Scores(
    const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& weights,
    const at::Tensor& logAlpha, const std::optional<at::Tensor>& floor,
    const std::optional<at::Tensor>& out, const std::optional<at::Tensor>& statistics)
{
    const c10_npu::OptionalNPUGuard guard(logits.device());
    ScoringCall call = MakeCall(logits, rows, weights, logAlpha, floor);
    TORCH_CHECK(out.has_value() || call.type == LogitsType::kFloat,
                "vllm-cold: only float32 logits can be written over");
    const at::Tensor maxima = Workspace(logits, call.plan.slotBytes);
    call.maxima = Address(maxima);
    if (out.has_value()) {
        call.out = Address(*out);
        call.outStride = static_cast<uint64_t>(out->stride(0));
    }
    at::Tensor counts;
    if (statistics.has_value()) {
        counts = Workspace(logits, call.plan.slotBytes);
        call.counts = Address(counts);
        call.statistics = Address(*statistics);
    }
    Enqueue("ContrastiveScores", call, LaunchScores);
}

}  // namespace
}  // namespace vllm_cold

// A fragment: other libraries may register ops of this name space too.
TORCH_LIBRARY_FRAGMENT(vllm_cold, m)
{
    m.def(
        "ascend_scores(Tensor(a!) logits, Tensor rows, Tensor weights, Tensor log_alpha, "
        "Tensor? floor, Tensor(b!)? out, Tensor(c!)? statistics) -> ()");
}

TORCH_LIBRARY_IMPL(vllm_cold, PrivateUse1, m)
{
    m.impl("ascend_scores", &vllm_cold::Scores);
}
