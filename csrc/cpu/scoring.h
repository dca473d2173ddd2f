// SPDX-License-Identifier: Apache-2.0
// The contrastive scoring op on CPUs: its C interface.
#pragma once

#include "library.h"

enum Status : int32_t {
    kOk = 0,
    kRowOutside = 1,  // a row number is not in [0, num_rows)
    kNoMemory = 2,
};

// Scores all pairs (the formula: vllm_cold/ops/scoring.py).
//
// logits: [num_rows, vocab] of `dtype`, rows `row_stride` elements apart.
// expert_rows, amateur_rows, log_alpha, beta, expert_top_k, adaptive: [num_pairs]; the last two may be null.
//   adaptive: 1 if the pair's beta adapts itself, with `beta` as its most; else 0.
// Output, one of:
//   out: [num_pairs, vocab] scores;
//   top_scores, top_ids: [num_pairs, k] best scores and their token ids, k <= 64;
//   all of them null: the scores go over the expert's row of each pair in logits, which is float32; what is
//   NaN or +inf in its amateur's becomes 0.
// statistics: may be null; else [num_pairs, 3], how many tokens of the pair are valid, 1 if the one with the
//   best score is not the expert's best, else 0 (of several with the same value the lowest id counts), and 1 if
//   a row of the pair holds NaN or +inf, else 0; if 1, the two numbers before mean nothing.
// A row with NaN or +inf changes its own pair alone, whose scores are finite or -inf, but of no meaning. If it is
//   the expert's, every token that is not -inf is valid. An adaptive beta is 0 in such a pair.
// isa: at most vllm_cold_best_isa(); kAvx512Bf16 is as good as kAvx512 here. threads: how many may be used.
VLLM_COLD_EXPORT int32_t vllm_cold_score(
    void* logits, int64_t num_rows, int64_t row_stride, int64_t vocab, int32_t dtype,
    const int64_t* expert_rows, const int64_t* amateur_rows, const float* log_alpha,
    const float* beta, const int64_t* expert_top_k, const uint8_t* adaptive, int64_t num_pairs,
    float* out, float* top_scores, int64_t* top_ids, int64_t k, int64_t* statistics, int32_t isa,
    int32_t threads);
