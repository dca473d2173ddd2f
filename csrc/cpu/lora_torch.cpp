// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA as kernels of torch operators, so that compiled models can call it.
//
// A call through ctypes takes longer than the arithmetic of a small batch. torch's C interface for
// extensions (aoti_torch_*, the same for all releases from 2.10 on) takes kernels written like this. Its
// functions come as addresses, so torch is needed neither to build this library nor to load it.
#include "lora.h"
#include "threads.h"

namespace {

using Tensor = void*;  // AtenTensorHandle
using Stack = uint64_t;

// Order: vllm_cold/lora/native.py. Those that return a number return 0 on success.
struct Torch {
    int32_t (*get_data_ptr)(Tensor, void**);
    int32_t (*get_dim)(Tensor, int64_t*);
    int32_t (*get_sizes)(Tensor, int64_t**);
    int32_t (*get_strides)(Tensor, int64_t**);
    int32_t (*get_dtype)(Tensor, int32_t*);
    int32_t (*delete_tensor)(Tensor);
    void (*check)(bool, const char* function, const char* file, uint32_t line, const char* message);
};

Torch torch;
int32_t dtypes[3];  // torch's numbers for ours
int32_t isa;

constexpr const char* kMessages[] = {
    "",
    "vllm-cold: an input or output of a LoRA layer does not fit the layer's weights",
    "vllm-cold: the batch of this step has more rows than a LoRA layer was given",
    "vllm-cold: no memory for a LoRA layer's intermediate results",
    "vllm-cold: a LoRA layer's tensor is not float32, bfloat16 or float16 with contiguous rows",
};
constexpr int32_t kTensor = 4;

void* data_of(Tensor tensor) {
    void* data = nullptr;
    torch.get_data_ptr(tensor, &data);
    return data;
}

// [rows, columns], or with a batch dimension in front, whose rows follow each other.
bool matrix_of(Tensor tensor, Matrix* matrix) {
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = 0;
    if (torch.get_dim(tensor, &dim) != 0 || torch.get_sizes(tensor, &sizes) != 0 ||
        torch.get_strides(tensor, &strides) != 0 || torch.get_dtype(tensor, &dtype) != 0)
        return false;
    if (dim != 2) return false;
    int32_t known = 0;
    while (known < 3 && dtypes[known] != dtype) ++known;
    if (known == 3 || (strides[1] != 1 && sizes[1] > 1)) return false;
    *matrix = {data_of(tensor), sizes[0], sizes[1], strides[0], known};
    return true;
}

const Layer* layer_of(Stack item) {
    return static_cast<const Layer*>(data_of(reinterpret_cast<Tensor>(item)));
}

int32_t threads() { return have_threads() ? omp_get_max_threads() : 1; }

// The stack's tensors are the kernel's to give back, also where it fails.
void finish(Stack* stack, int num_tensors, int32_t status) {
    for (int i = 0; i < num_tensors; ++i)
        torch.delete_tensor(reinterpret_cast<Tensor>(stack[i]));
    if (status != kLoraOk) torch.check(false, __func__, __FILE__, __LINE__, kMessages[status]);
}

float float_of(Stack item) {
    double value;
    __builtin_memcpy(&value, &item, sizeof value);
    return static_cast<float>(value);
}

}  // namespace

// functions: of Torch. dtype_numbers: torch's for float32, bfloat16, float16.
VLLM_COLD_EXPORT void vllm_cold_lora_connect(const Torch* functions, const int32_t* dtype_numbers,
                                             int32_t instruction_set) {
    torch = *functions;
    for (int i = 0; i < 3; ++i) dtypes[i] = dtype_numbers[i];
    isa = instruction_set;
}

// lora_linear(Tensor(a!) y, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_linear_op(Stack* stack, uint64_t, uint64_t) {
    Matrix y, x;
    int32_t status = kTensor;
    if (matrix_of(reinterpret_cast<Tensor>(stack[0]), &y) &&
        matrix_of(reinterpret_cast<Tensor>(stack[1]), &x))
        status = vllm_cold_lora_linear(layer_of(stack[2]), &y, &x, float_of(stack[3]), isa,
                                       threads());
    finish(stack, 3, status);
}

// lora_shrink(Tensor(a!) hidden, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_shrink_op(Stack* stack, uint64_t, uint64_t) {
    Matrix x;
    int32_t status = kTensor;
    if (matrix_of(reinterpret_cast<Tensor>(stack[1]), &x))
        status = vllm_cold_lora_shrink(
            layer_of(stack[2]),
            static_cast<float*>(data_of(reinterpret_cast<Tensor>(stack[0]))), &x,
            float_of(stack[3]), isa, threads());
    finish(stack, 3, status);
}

// lora_expand(Tensor(a!) y, Tensor hidden, Tensor layer, int column, bool add) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_expand_op(Stack* stack, uint64_t, uint64_t) {
    Matrix y;
    int32_t status = kTensor;
    if (matrix_of(reinterpret_cast<Tensor>(stack[0]), &y))
        status = vllm_cold_lora_expand(
            layer_of(stack[2]), &y,
            static_cast<const float*>(data_of(reinterpret_cast<Tensor>(stack[1]))),
            static_cast<int64_t>(stack[3]), (stack[4] & 0xFF) != 0, isa, threads());
    finish(stack, 3, status);
}
