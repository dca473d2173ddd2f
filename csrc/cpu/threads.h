// SPDX-License-Identifier: Apache-2.0
// Threads from the OpenMP runtime that the process has already: torch's.
//
// A second runtime would bring threads of its own, and those of the two would spin against each other
// on the same cores. So nothing is linked. The functions are what GCC compiles `#pragma omp` to;
// LLVM's and Intel's runtimes offer them too. A process without any computes on one thread.
#pragma once

#include <cstdint>

extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads,
                                         unsigned flags);
__attribute__((weak)) void GOMP_barrier();
__attribute__((weak)) int omp_get_thread_num();
__attribute__((weak)) int omp_get_num_threads();
__attribute__((weak)) int omp_get_max_threads();
}

inline bool have_threads() {
    return GOMP_parallel != nullptr && GOMP_barrier != nullptr && omp_get_thread_num != nullptr &&
           omp_get_num_threads != nullptr && omp_get_max_threads != nullptr;
}

// One thread's place among those that run the same body.
struct Team {
    int64_t thread, size;

    void barrier() const {
        if (size > 1) GOMP_barrier();
    }
};

// Runs body(team) on up to num_threads threads, and returns when all have finished.
template <class Body>
void parallel(int64_t num_threads, Body& body) {
    if (num_threads <= 1 || !have_threads()) {
        body(Team{0, 1});
        return;
    }
    const auto run = [](void* data) {
        (*static_cast<Body*>(data))(Team{omp_get_thread_num(), omp_get_num_threads()});
    };
    GOMP_parallel(run, &body, static_cast<unsigned>(num_threads), 0);
}
