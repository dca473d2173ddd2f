// SPDX-License-Identifier: Apache-2.0
// Kernels of torch operators, so that compiled models can call them.
//
// A call through ctypes takes longer than the arithmetic of a small batch. torch's C interface for
// extensions (aoti_torch_*, the same for all releases from 2.10 on) takes kernels written like this. Its
// functions come as addresses, so torch is needed neither to build this library nor to load it.
#pragma once

#include "matrix.h"
#include "threads.h"

using Tensor = void*;  // AtenTensorHandle
using Stack = uint64_t;

// Order: vllm_cold/cpu/operators.py. Those that return a number return 0 on success.
struct Torch {
    int32_t (*get_data_ptr)(Tensor, void**);
    int32_t (*get_dim)(Tensor, int64_t*);
    int32_t (*get_sizes)(Tensor, int64_t**);
    int32_t (*get_strides)(Tensor, int64_t**);
    int32_t (*get_dtype)(Tensor, int32_t*);
    int32_t (*delete_tensor)(Tensor);
    void (*check)(bool, const char* function, const char* file, uint32_t line, const char* message);
    int32_t (*empty_strided)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                             int32_t device, int32_t device_index, Tensor*);
    // x @ weights^T + bias by oneDNN, with weights that it has packed
    int32_t (*linear_pointwise)(Tensor x, Tensor weights, Tensor* bias, const char* attribute,
                                const double** scalars, int64_t num_scalars, const char** algorithm,
                                Tensor*);
};

// What vllm_cold_connect was told.
struct Connection {
    Torch torch;
    int32_t dtypes[3];  // torch's numbers for ours
    int32_t device;     // torch's number for the CPU
    int32_t isa;
    int64_t process;
};
extern Connection connection;

struct View {
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = 0;

    explicit View(Tensor tensor) {
        const Torch& torch = connection.torch;
        if (torch.get_sizes(tensor, &sizes) == 0 && torch.get_strides(tensor, &strides) == 0 &&
            torch.get_dtype(tensor, &dtype) == 0 && torch.get_dim(tensor, &dim) == 0)
            return;
        dim = 0;
    }
};

inline Tensor tensor_of(Stack item) { return reinterpret_cast<Tensor>(item); }

inline void* data_of(Tensor tensor) {
    void* data = nullptr;
    connection.torch.get_data_ptr(tensor, &data);
    return data;
}

inline bool matrix_of(Tensor tensor, Matrix* matrix) {
    const View view(tensor);
    if (view.dim != 2) return false;
    int32_t known = 0;
    while (known < 3 && connection.dtypes[known] != view.dtype) ++known;
    if (known == 3 || (view.strides[1] != 1 && view.sizes[1] > 1)) return false;
    *matrix = {data_of(tensor), view.sizes[0], view.sizes[1], view.strides[0], known};
    return true;
}

// What a tensor of int64 describes by addresses; null if they are another process's.
template <class Table>
const Table* table_of(Stack item) {
    const Table* table = static_cast<const Table*>(data_of(tensor_of(item)));
    return table->process == connection.process ? table : nullptr;
}

constexpr const char* kOtherProcess =
    "vllm-cold: a compiled model has addresses of another process; clear vLLM's compilation cache "
    "(VLLM_CACHE_ROOT), and leave max_autotune off";

inline int32_t max_threads() { return have_threads() ? omp_get_max_threads() : 1; }

// The stack's tensors are the kernel's to give back, also where it fails.
inline void give_back(Stack* stack, int num_tensors, const char* file, const char* error) {
    for (int i = 0; i < num_tensors; ++i) connection.torch.delete_tensor(tensor_of(stack[i]));
    if (error != nullptr) connection.torch.check(false, __func__, file, 0, error);
}
