// SPDX-License-Identifier: Apache-2.0
// Runs the C++ kernels on cases from standard input, outside of Python: with sanitizers, or on an
// emulated CPU. Buffers are allocated at their exact sizes, so that a byte beyond is seen.
// tests/ops/test_native.py writes the cases and reads the results.
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>

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

enum Form : int64_t { kDense, kInPlace };

struct Header {
    int64_t logits_bytes, num_rows, row_stride, vocab, dtype, num_groups, streams, form, isa, threads,
        capped;
};

}  // namespace

int main() {
    const int64_t best = vllm_cold_best_isa();
    write_all(&best, sizeof best);
    for (;;) {
        Header h;
        read_all(&h, sizeof h);
        char* logits = read_array<char>(h.logits_bytes);
        int64_t* rows = read_array<int64_t>(h.num_groups * h.streams);
        float* weights = read_array<float>(h.num_groups * (h.streams - 1));
        float* log_alpha = read_array<float>(h.num_groups);
        int64_t* caps = h.capped ? read_array<int64_t>(h.num_groups) : nullptr;
        float* out = h.form == kDense ? allocate<float>(h.num_groups * h.vocab) : nullptr;
        int64_t* statistics = allocate<int64_t>(h.num_groups * 3);
        const int64_t status = vllm_cold_score(
            logits, h.num_rows, h.row_stride, h.vocab, static_cast<int32_t>(h.dtype), rows, weights,
            log_alpha, caps, h.num_groups, h.streams, out, statistics,
            static_cast<int32_t>(h.isa < best ? h.isa : best), static_cast<int32_t>(h.threads));
        write_all(&status, sizeof status);
        if (out != nullptr) write_all(out, h.num_groups * h.vocab * 4);
        if (h.form == kInPlace) write_all(logits, h.logits_bytes);
        write_all(statistics, h.num_groups * 24);
        for (void* array : {static_cast<void*>(logits), static_cast<void*>(rows),
                            static_cast<void*>(weights), static_cast<void*>(log_alpha),
                            static_cast<void*>(caps), static_cast<void*>(out),
                            static_cast<void*>(statistics)})
            std::free(array);
    }
}
