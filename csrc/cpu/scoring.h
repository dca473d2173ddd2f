// SPDX-License-Identifier: Apache-2.0
// The contrastive scoring op on CPUs: its C interface.
#pragma once

#include "library.h"

enum Status : int32_t {
    kOk = 0,
    kRowOutside = 1,  // a row number is not in [0, num_rows)
    kNoMemory = 2,
};

// Of a group.
constexpr int64_t kMaxAmateurs = 32;

// Scores all groups (the formula: vllm_cold/ops/scoring.py).
//
// logits: [num_rows, vocab] of `dtype`, rows `row_stride` elements apart.
// rows: [num_groups, streams], the expert's and its amateurs'; -1 where a group has fewer of these.
//   streams: 2 to kMaxAmateurs + 1.
// weights: [num_groups, streams - 1], the amateurs'.
// log_alpha, expert_top_k: [num_groups]; the second may be null.
// out: [num_groups, vocab] scores. If null, they go over the expert's row of each group in logits, which is
//   float32; what is NaN or +inf in its amateurs' becomes 0.
// statistics: may be null; else [num_groups, 3], how many tokens of the group are valid, 1 if the one with the
//   best score is not the expert's best, else 0 (of several with the same value the lowest id counts), and 1 if
//   a row of the group holds NaN or +inf, else 0; if 1, the two numbers before mean nothing.
// A row with NaN or +inf changes its own group alone, whose scores are finite or -inf, but of no meaning. If it
//   is the expert's, every token that is not -inf is valid.
// isa: at most vllm_cold_best_isa(); kAvx512Bf16 is as good as kAvx512 here. threads: how many may be used.
VLLM_COLD_EXPORT int32_t vllm_cold_score(
    void* logits, int64_t num_rows, int64_t row_stride, int64_t vocab, int32_t dtype,
    const int64_t* rows, const float* weights, const float* log_alpha, const int64_t* expert_top_k,
    int64_t num_groups, int64_t streams, float* out, int64_t* statistics, int32_t isa,
    int32_t threads);
