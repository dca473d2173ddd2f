// SPDX-License-Identifier: Apache-2.0
// Products of few rows as kernels of torch operators, which leave those of many rows to oneDNN.
#include "linear.h"
#include "lora_torch.h"
#include "torch_ops.h"

namespace {

const char* run(const Linear* linear, Tensor x, Tensor* y) {
    constexpr const char* kShape =
        "vllm-cold: the input of a linear layer is no matrix of the layer's dtype and width";
    if (linear == nullptr) return kOtherProcess;
    const Torch& torch = connection.torch;
    Matrix of_x;
    const bool is_matrix = matrix_of(x, &of_x);
    if (is_matrix && (of_x.dtype != linear->dtype || of_x.columns != linear->inputs)) return kShape;
    const int64_t rows = is_matrix ? of_x.rows : 0;
    const FewRows* few = reinterpret_cast<const FewRows*>(linear->few_rows);
    const int64_t inputs_summed = rows >= 1 && rows <= kFewRows ? few->inputs_summed[rows - 1] : 0;
    if (inputs_summed == 0) {
        Tensor bias = reinterpret_cast<Tensor>(linear->bias_tensor);
        const double* no_scalars = nullptr;
        const char* algorithm = "";
        return torch.linear_pointwise(x, reinterpret_cast<Tensor>(linear->weights_tensor),
                                      bias == nullptr ? nullptr : &bias, "none", &no_scalars, 0,
                                      &algorithm, y) == 0
                   ? nullptr
                   : "vllm-cold: oneDNN does not compute a linear layer's product";
    }
    const int64_t sizes[2] = {rows, linear->outputs}, strides[2] = {linear->outputs, 1};
    if (torch.empty_strided(2, sizes, strides, connection.dtypes[linear->dtype], connection.device, 0, y) != 0)
        return "vllm-cold: no memory for the output of a linear layer";
    vllm_cold_linear(linear, data_of(*y), linear->outputs, of_x.data, of_x.stride, rows, inputs_summed,
                     max_threads());
    return nullptr;
}

}  // namespace

// linear(Tensor x, Tensor linear, int outputs) -> Tensor
VLLM_COLD_EXPORT void vllm_cold_linear_op(Stack* stack, uint64_t, uint64_t) {
    Tensor y = nullptr;
    const char* error = run(table_of<Linear>(stack[1]), tensor_of(stack[0]), &y);
    give_back(stack, 2, __FILE__, error);
    stack[0] = reinterpret_cast<Stack>(y);
}

// linear_lora(Tensor x, Tensor linear, int outputs, Tensor layer, float scale) -> Tensor
VLLM_COLD_EXPORT void vllm_cold_linear_lora_op(Stack* stack, uint64_t, uint64_t) {
    Tensor y = nullptr;
    const char* error = run(table_of<Linear>(stack[1]), tensor_of(stack[0]), &y);
    if (error == nullptr) {
        error = add_lora(y, tensor_of(stack[0]), stack[3], stack[4]);
        if (error != nullptr) connection.torch.delete_tensor(y);
    }
    connection.torch.delete_tensor(tensor_of(stack[3]));
    give_back(stack, 2, __FILE__, error);
    stack[0] = reinterpret_cast<Stack>(y);
}
