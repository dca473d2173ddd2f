// SPDX-License-Identifier: Apache-2.0
// Runs the C++ kernels on cases from standard input, outside of Python: with sanitizers, or on an
// emulated CPU. Buffers are allocated at their exact sizes, so that a byte beyond is seen.
// tests/ops/test_native.py writes the cases and reads the results.
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "../../csrc/cpu/lora.h"
#include "../../csrc/cpu/scoring.h"

namespace {

void read_all(void* to, int64_t size) {
    for (char* at = static_cast<char*>(to); size > 0;) {
        const ssize_t got = read(0, at, static_cast<size_t>(size));
        if (got <= 0) _exit(0);  // no more cases
        at += got;
        size -= got;
    }
}

void write_all(const void* from, int64_t size) {
    for (const char* at = static_cast<const char*>(from); size > 0;) {
        const ssize_t put = write(1, at, static_cast<size_t>(size));
        if (put <= 0) _exit(2);
        at += put;
        size -= put;
    }
}

template <class T>
T* allocate(int64_t count) {
    return static_cast<T*>(std::malloc(static_cast<size_t>(count) * sizeof(T)));
}

template <class T>
T* read_array(int64_t count) {
    T* array = allocate<T>(count);
    read_all(array, count * static_cast<int64_t>(sizeof(T)));
    return array;
}

enum Form : int64_t { kDense, kInPlace, kLora };

int64_t best;  // instruction set
int64_t least(int64_t isa) { return isa < best ? isa : best; }

struct Scores {
    int64_t logits_bytes, num_rows, row_stride, vocab, dtype, num_groups, streams, isa, threads, capped;
};

void score(bool in_place) {
    Scores h;
    read_all(&h, sizeof h);
    char* logits = read_array<char>(h.logits_bytes);
    int64_t* rows = read_array<int64_t>(h.num_groups * h.streams);
    float* weights = read_array<float>(h.num_groups * (h.streams - 1));
    float* log_alpha = read_array<float>(h.num_groups);
    int64_t* caps = h.capped ? read_array<int64_t>(h.num_groups) : nullptr;
    float* out = in_place ? nullptr : allocate<float>(h.num_groups * h.vocab);
    int64_t* statistics = allocate<int64_t>(h.num_groups * 3);
    const int64_t status = vllm_cold_score(
        logits, h.num_rows, h.row_stride, h.vocab, static_cast<int32_t>(h.dtype), rows, weights,
        log_alpha, caps, h.num_groups, h.streams, out, statistics,
        static_cast<int32_t>(least(h.isa)), static_cast<int32_t>(h.threads));
    write_all(&status, sizeof status);
    if (in_place) write_all(logits, h.logits_bytes);
    else write_all(out, h.num_groups * h.vocab * 4);
    write_all(statistics, h.num_groups * 24);
    for (void* array : {static_cast<void*>(logits), static_cast<void*>(rows),
                        static_cast<void*>(weights), static_cast<void*>(log_alpha),
                        static_cast<void*>(caps), static_cast<void*>(out),
                        static_cast<void*>(statistics)})
        std::free(array);
}

struct Lora {
    int64_t tokens, x_bytes, x_stride, x_dtype, y_bytes, y_stride, y_dtype, width, dtype, inputs, ranks,
        slices, isa, threads;
    double scale;
};
struct Slice {
    int64_t a_bytes, b_bytes, b_slot, b_rank, outputs, column;
};

void lora() {
    Lora h;
    read_all(&h, sizeof h);
    int64_t* slots = read_array<int64_t>(h.tokens);
    char* x = read_array<char>(h.x_bytes);
    char* y = read_array<char>(h.y_bytes);
    Plan* plan = reinterpret_cast<Plan*>(allocate<int64_t>(vllm_cold_lora_plan_size(h.tokens)));
    plan->capacity = h.tokens;
    vllm_cold_lora_plan(plan, slots, h.tokens);
    std::vector<int64_t> table = {0, reinterpret_cast<int64_t>(plan), h.dtype, h.inputs, h.ranks, h.ranks,
                                  h.slices};
    std::vector<void*> weights;
    for (int64_t i = 0; i < h.slices; ++i) {
        Slice of;
        read_all(&of, sizeof of);
        char* a = read_array<char>(of.a_bytes);
        char* b = read_array<char>(of.b_bytes);
        for (const int64_t item : {reinterpret_cast<int64_t>(a), h.ranks * h.inputs,
                                   reinterpret_cast<int64_t>(b), of.b_slot, of.b_rank, of.outputs, of.column})
            table.push_back(item);
        weights.insert(weights.end(), {a, b});
    }
    const Matrix to_y{y, h.tokens, h.width, h.y_stride, h.y_dtype};
    const Matrix of_x{x, h.tokens, h.inputs, h.x_stride, h.x_dtype};
    const int64_t status = vllm_cold_lora_linear(
        reinterpret_cast<const Layer*>(table.data()), &to_y, &of_x, static_cast<float>(h.scale),
        static_cast<int32_t>(least(h.isa)), static_cast<int32_t>(h.threads));
    write_all(&status, sizeof status);
    write_all(y, h.y_bytes);
    weights.insert(weights.end(), {slots, x, y, plan});
    for (void* array : weights) std::free(array);
}

}  // namespace

int main() {
    best = vllm_cold_best_isa();
    write_all(&best, sizeof best);
    for (;;) {
        int64_t form;
        read_all(&form, sizeof form);
        if (form == kLora) lora();
        else score(form == kInPlace);
    }
}
