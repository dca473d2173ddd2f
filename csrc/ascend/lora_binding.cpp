// SPDX-License-Identifier: Apache-2.0
// torch.ops.vllm_cold.ascend_lora: the AscendC LoRA kernels on torch_npu's tensors.
#include <algorithm>
#include <cstdint>

#include <ATen/ATen.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUGuard.h>

#include "binding.h"
#include "lora.h"

namespace vllm_cold {
namespace {

LoraType LoraTypeOf(const at::Tensor& x)
{
    switch (x.scalar_type()) {
        case at::kFloat:
            return LoraType::kFloat;
        case at::kHalf:
            return LoraType::kHalf;
        case at::kBFloat16:
            return LoraType::kBfloat16;
        default:
            TORCH_CHECK(false, "CoLD: LoRA is float32, bfloat16 or float16, not ", x.scalar_type());
    }
}

// Of all tensors, as an address of another device would be taken for one of x's.
void CheckDevices(const at::Tensor& y, const at::Tensor& x, at::TensorList a, at::TensorList b,
                  const at::Tensor& indices)
{
    const auto here = [&](const at::Tensor& tensor) { return tensor.device() == x.device(); };
    TORCH_CHECK(here(y) && here(indices) && std::all_of(a.begin(), a.end(), here) &&
                    std::all_of(b.begin(), b.end(), here),
                "CoLD: a tensor is on another device than x, ", x.device());
}

void CheckRows(const char* name, const at::Tensor& tensor, const at::Tensor& x)
{
    TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == x.size(0), "CoLD: ", name,
                " has a row for each row of x, in two dimensions");
    TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, "CoLD: ", name,
                "'s last dimension is not contiguous");
    TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "CoLD: ", name, " and x differ in dtype");
}

// [adapters, 1, rows, columns], or without the 1.
void CheckWeights(const char* name, const at::Tensor& tensor, const at::Tensor& x, int64_t adapters,
                  int64_t columns)
{
    TORCH_CHECK(tensor.dim() == 3 || (tensor.dim() == 4 && tensor.size(1) == 1), "CoLD: ", name,
                " has three dimensions, or four of which the second is 1");
    TORCH_CHECK(tensor.is_contiguous(), "CoLD: ", name, " is not contiguous");
    TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "CoLD: ", name, " and x differ in dtype");
    TORCH_CHECK(tensor.size(0) == adapters && tensor.size(-1) == columns && tensor.size(-2) >= 1,
                "CoLD: ", name, "'s shape does not fit the other tensors");
}

void Lora(const at::Tensor& y, const at::Tensor& x, at::TensorList a, at::TensorList b,
          const at::Tensor& indices, double scale)
{
    CheckDevices(y, x, a, b, indices);
    const c10_npu::OptionalNPUGuard guard(x.device());
    LoraCall call{};
    call.type = LoraTypeOf(x);
    TORCH_CHECK(!a.empty() && a.size() == b.size(), "CoLD: each slice has its A and its B");
    CheckRows("x", x, x);
    CheckRows("y", y, x);
    TORCH_CHECK(indices.dim() == 1 && indices.is_contiguous() && indices.size(0) == x.size(0) &&
                    indices.scalar_type() == at::kLong,
                "CoLD: each row has the number of its adapter, int64");
    const int64_t adapters = a[0].size(0);
    const int64_t rank = a[0].size(-2);
    TORCH_CHECK(adapters >= 1 && adapters <= kLoraMaxAdapters, "CoLD: 1 to ", kLoraMaxAdapters,
                " adapters, not ", adapters);
    TORCH_CHECK(rank >= 1 && rank <= kLoraMaxRank, "CoLD: ranks of 1 to ", kLoraMaxRank, ", not ",
                rank);
    TORCH_CHECK(x.size(1) >= 1 && x.size(1) <= kLoraMaxLength && y.size(1) <= kLoraMaxLength,
                "CoLD: rows of 1 to 2**27 values");
    int64_t width = 0;
    for (size_t slice = 0; slice < a.size(); ++slice) {
        CheckWeights("A", a[slice], x, adapters, x.size(1));
        CheckWeights("B", b[slice], x, adapters, rank);
        TORCH_CHECK(a[slice].size(-2) == rank, "CoLD: the slices' ranks differ");
        width += b[slice].size(-2);
    }
    TORCH_CHECK(width <= y.size(1), "CoLD: the slices have more outputs than y");
    TORCH_CHECK(y.size(0) <= 1 || y.stride(0) >= width, "CoLD: y's rows lie over each other");

    call.adapters = static_cast<uint32_t>(adapters);
    call.rank = static_cast<uint32_t>(rank);
    call.length = static_cast<uint32_t>(x.size(1));
    call.xStride = static_cast<uint64_t>(x.stride(0));
    call.yStride = static_cast<uint64_t>(y.stride(0));
    call.scale = static_cast<float>(scale);
    const uint64_t element = x.element_size();
    const size_t rows = static_cast<size_t>(x.size(0));
    uint64_t column = 0;
    for (size_t first = 0; first < a.size(); first += kLoraSlices) {
        call.slices = static_cast<uint32_t>(std::min<size_t>(kLoraSlices, a.size() - first));
        uint64_t columns = 0;
        for (uint32_t slice = 0; slice < call.slices; ++slice) {
            call.a[slice] = Address(a[first + slice]);
            call.b[slice] = Address(b[first + slice]);
            call.outputs[slice] = static_cast<uint32_t>(b[first + slice].size(-2));
            columns += call.outputs[slice];
        }
        for (size_t row = 0; row < rows; row += kLoraMaxRows) {
            call.rows = static_cast<uint32_t>(std::min<size_t>(kLoraMaxRows, rows - row));
            call.plan = MakeLoraPlan(call.rows, call.slices, call.rank, call.length, call.outputs,
                                     VectorCores());
            const at::Tensor sums = Workspace(x, call.plan.workspaceBytes);
            call.sums = Address(sums);
            call.x = Address(x) + row * call.xStride * element;
            call.y = Address(y) + (row * call.yStride + column) * element;
            call.indices = Address(indices) + row * sizeof(int64_t);
            Enqueue("ColdLora", call, LaunchLora);
        }
        column += columns;
    }
}

// Nothing to compute: y is changed in place, whatever its shape.
void LoraMeta(const at::Tensor& y, const at::Tensor& x, at::TensorList a, at::TensorList b,
              const at::Tensor& indices, double)
{
    CheckDevices(y, x, a, b, indices);
}

}  // namespace
}  // namespace vllm_cold

// A fragment: other libraries may register ops of this name space too.
TORCH_LIBRARY_FRAGMENT(vllm_cold, m)
{
    m.def(
        "ascend_lora(Tensor(a!) y, Tensor x, Tensor[] a, Tensor[] b, Tensor indices, float scale) "
        "-> ()");
}

TORCH_LIBRARY_IMPL(vllm_cold, PrivateUse1, m)
{
    m.impl("ascend_lora", &vllm_cold::Lora);
}

TORCH_LIBRARY_IMPL(vllm_cold, Meta, m)
{
    m.impl("ascend_lora", &vllm_cold::LoraMeta);
}
