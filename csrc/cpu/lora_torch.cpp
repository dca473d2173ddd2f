// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA as kernels of torch operators.
#include "lora.h"
#include "lora_torch.h"

namespace {

constexpr const char* kMessages[] = {
    "",
    "vllm-cold: an input or output of a LoRA layer does not fit the layer's weights",
    "vllm-cold: a LoRA layer was given another number of rows than this step's batch has",
    "vllm-cold: no memory for a LoRA layer's intermediate results",
    "vllm-cold: a LoRA layer's tensor is not a matrix of float32, bfloat16 or float16 with contiguous "
    "rows",
    "vllm-cold: a LoRA layer's intermediate results are not contiguous float32 of the layer's size",
    kOtherProcess,
};
constexpr int32_t kTensor = 4, kHidden = 5, kProcess = 6;

// A tensor of `count` floats that follow each other; null if it is none.
float* floats_of(Stack item, int64_t count) {
    const Tensor tensor = tensor_of(item);
    const View view(tensor);
    int64_t following = 1;
    for (int64_t d = view.dim; d-- > 0; following *= view.sizes[d])
        if (view.sizes[d] != 1 && view.strides[d] != following && count != 0) return nullptr;
    if (view.dim == 0 || view.dtype != connection.dtypes[kFloat32] || following != count) return nullptr;
    return static_cast<float*>(data_of(tensor));
}

void finish(Stack* stack, int num_tensors, int32_t status) {
    give_back(stack, num_tensors, __FILE__, status == kLoraOk ? nullptr : kMessages[status]);
}

float float_of(Stack item) {
    double value;
    __builtin_memcpy(&value, &item, sizeof value);
    return static_cast<float>(value);
}

int32_t linear(Tensor of_y, Tensor of_x, Stack table, Stack scale) {
    const Layer* layer = table_of<Layer>(table);
    if (layer == nullptr) return kProcess;
    if (reinterpret_cast<const Plan*>(layer->plan)->num_rows == 0) return kLoraOk;
    Matrix y, x;
    if (!matrix_of(of_y, &y) || !matrix_of(of_x, &x)) return kTensor;
    return vllm_cold_lora_linear(layer, &y, &x, float_of(scale), connection.isa, max_threads());
}

}  // namespace

const char* add_lora(Tensor y, Tensor x, Stack layer, Stack scale) {
    const int32_t status = linear(y, x, layer, scale);
    return status == kLoraOk ? nullptr : kMessages[status];
}

// lora_linear(Tensor(a!) y, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_linear_op(Stack* stack, uint64_t, uint64_t) {
    give_back(stack, 3, __FILE__, add_lora(tensor_of(stack[0]), tensor_of(stack[1]), stack[2], stack[3]));
}

// lora_shrink(Tensor(a!) hidden, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_shrink_op(Stack* stack, uint64_t, uint64_t) {
    const auto run = [&] {
        const Layer* layer = table_of<Layer>(stack[2]);
        if (layer == nullptr) return kProcess;
        Matrix x;
        if (!matrix_of(tensor_of(stack[1]), &x)) return kTensor;
        float* hidden = floats_of(stack[0], layer->num_slices * x.rows * layer->a_ranks);
        if (hidden == nullptr) return kHidden;
        return vllm_cold_lora_shrink(layer, hidden, &x, float_of(stack[3]), connection.isa, max_threads());
    };
    finish(stack, 3, run());
}

// lora_expand(Tensor(a!) y, Tensor hidden, Tensor layer, int column, bool add) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_expand_op(Stack* stack, uint64_t, uint64_t) {
    const auto run = [&] {
        const Layer* layer = table_of<Layer>(stack[2]);
        if (layer == nullptr) return kProcess;
        Matrix y;
        if (!matrix_of(tensor_of(stack[0]), &y)) return kTensor;
        const float* hidden = floats_of(stack[1], layer->num_slices * y.rows * layer->b_ranks);
        if (hidden == nullptr) return kHidden;
        return vllm_cold_lora_expand(layer, &y, hidden, static_cast<int64_t>(stack[3]),
                                     (stack[4] & 0xFF) != 0, connection.isa, max_threads());
    };
    finish(stack, 3, run());
}
