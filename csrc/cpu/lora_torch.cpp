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

// Order: vllm_cold/cpu_lora/cpp_ops.py. Those that return a number return 0 on success.
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
int64_t process;

constexpr const char* kMessages[] = {
    "",
    "vllm-cold: an input or output of a LoRA layer does not fit the layer's weights",
    "vllm-cold: a LoRA layer was given another number of rows than this step's batch has",
    "vllm-cold: no memory for a LoRA layer's intermediate results",
    "vllm-cold: a LoRA layer's tensor is not a matrix of float32, bfloat16 or float16 with contiguous "
    "rows",
    "vllm-cold: a LoRA layer's intermediate results are not contiguous float32 of the layer's size",
    "vllm-cold: a compiled model has addresses of another process; clear vLLM's compilation cache "
    "(VLLM_CACHE_ROOT), and leave max_autotune off",
};
constexpr int32_t kTensor = 4, kHidden = 5, kProcess = 6;

void* data_of(Tensor tensor) {
    void* data = nullptr;
    torch.get_data_ptr(tensor, &data);
    return data;
}

struct View {
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = 0;

    explicit View(Tensor tensor) {
        if (torch.get_sizes(tensor, &sizes) == 0 && torch.get_strides(tensor, &strides) == 0 &&
            torch.get_dtype(tensor, &dtype) == 0 && torch.get_dim(tensor, &dim) == 0)
            return;
        dim = 0;
    }
};

bool matrix_of(Stack item, Matrix* matrix) {
    const Tensor tensor = reinterpret_cast<Tensor>(item);
    const View view(tensor);
    if (view.dim != 2) return false;
    int32_t known = 0;
    while (known < 3 && dtypes[known] != view.dtype) ++known;
    if (known == 3 || (view.strides[1] != 1 && view.sizes[1] > 1)) return false;
    *matrix = {data_of(tensor), view.sizes[0], view.sizes[1], view.strides[0], known};
    return true;
}

// A tensor of `count` floats that follow each other; null if it is none.
float* floats_of(Stack item, int64_t count) {
    const Tensor tensor = reinterpret_cast<Tensor>(item);
    const View view(tensor);
    int64_t following = 1;
    for (int64_t d = view.dim; d-- > 0; following *= view.sizes[d])
        if (view.sizes[d] != 1 && view.strides[d] != following && count != 0) return nullptr;
    if (view.dim == 0 || view.dtype != dtypes[kFloat32] || following != count) return nullptr;
    return static_cast<float*>(data_of(tensor));
}

// Null if the table is another process's.
const Layer* layer_of(Stack item) {
    const Layer* layer = static_cast<const Layer*>(data_of(reinterpret_cast<Tensor>(item)));
    return layer->process == process ? layer : nullptr;
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

// functions: of Torch. dtype_numbers: torch's for float32, bfloat16, float16. process_number: what the
// tables of this process have.
VLLM_COLD_EXPORT void vllm_cold_lora_connect(const Torch* functions, const int32_t* dtype_numbers,
                                             int32_t instruction_set, int64_t process_number) {
    torch = *functions;
    for (int i = 0; i < 3; ++i) dtypes[i] = dtype_numbers[i];
    isa = instruction_set;
    process = process_number;
}

// lora_linear(Tensor(a!) y, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_linear_op(Stack* stack, uint64_t, uint64_t) {
    const auto run = [&] {
        const Layer* layer = layer_of(stack[2]);
        if (layer == nullptr) return kProcess;
        Matrix y, x;
        if (!matrix_of(stack[0], &y) || !matrix_of(stack[1], &x)) return kTensor;
        return vllm_cold_lora_linear(layer, &y, &x, float_of(stack[3]), isa, threads());
    };
    finish(stack, 3, run());
}

// lora_shrink(Tensor(a!) hidden, Tensor x, Tensor layer, float scale) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_shrink_op(Stack* stack, uint64_t, uint64_t) {
    const auto run = [&] {
        const Layer* layer = layer_of(stack[2]);
        if (layer == nullptr) return kProcess;
        Matrix x;
        if (!matrix_of(stack[1], &x)) return kTensor;
        float* hidden = floats_of(stack[0], layer->num_slices * x.rows * layer->a_ranks);
        if (hidden == nullptr) return kHidden;
        return vllm_cold_lora_shrink(layer, hidden, &x, float_of(stack[3]), isa, threads());
    };
    finish(stack, 3, run());
}

// lora_expand(Tensor(a!) y, Tensor hidden, Tensor layer, int column, bool add) -> ()
VLLM_COLD_EXPORT void vllm_cold_lora_expand_op(Stack* stack, uint64_t, uint64_t) {
    const auto run = [&] {
        const Layer* layer = layer_of(stack[2]);
        if (layer == nullptr) return kProcess;
        Matrix y;
        if (!matrix_of(stack[0], &y)) return kTensor;
        const float* hidden = floats_of(stack[1], layer->num_slices * y.rows * layer->b_ranks);
        if (hidden == nullptr) return kHidden;
        return vllm_cold_lora_expand(layer, &y, hidden, static_cast<int64_t>(stack[3]),
                                     (stack[4] & 0xFF) != 0, isa, threads());
    };
    finish(stack, 3, run());
}
