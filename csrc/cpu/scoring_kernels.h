// SPDX-License-Identifier: Apache-2.0
// What one instruction set offers: passes over a segment of one group's rows, on one thread.
#pragma once

#include "scoring.h"

constexpr int64_t kTile = 1024;

// What a segment says of its group: how many tokens are valid, the one with the best score and the
// expert's best one, by the lower id where several are. Ids are -1 while `count` is 0. `bad`: whether
// an amateur's logits hold NaN or +inf.
struct Tally {
    int64_t count, best_id, expert_id;
    float best, expert;
    bool bad;
};

// n elements of a group's rows, and what they are scored with. `tiles` has the maximum of each kTile of
// the expert's, +inf if one is NaN: few reach the threshold, and the others need no second look.
// `num`, of amateurs, is at least 1.
struct Segment {
    const void* expert;
    int64_t n;
    const float* tiles;
    float threshold;
    int64_t num;
    const void* amateurs[kMaxAmateurs];
    float weights[kMaxAmateurs];
};

// Passes over a segment. `scores` sets *bad if one of the amateurs' elements is NaN or +inf.
// Whatever they and the expert's are, scores are finite; NaN is valid.
struct Kernels {
    void (*maxima)(const void* x, int64_t n, float* tiles);
    // Copies the elements >= threshold of x, which holds neither NaN nor +inf, to `found`, in order;
    // returns how many there are.
    int64_t (*at_least)(const void* x, int64_t n, const float* tiles, float threshold, float* found);
    // Scores to `to`, which may be the expert's logits. `stream` (to an address aligned to 64 bytes):
    // past the caches.
    void (*scores)(const Segment& rows, float* to, bool stream, bool* bad);
    // Like `scores` without writing any: into `tally`, which is empty, but for `bad`. Before `scores`
    // in place. The first element is of token `first_id`.
    void (*tally)(const Segment& rows, int64_t first_id, Tally* tally);
};

// By dtype.
extern const Kernels kPortableKernels[3];
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels[3];
extern const Kernels kAvx512Kernels[3];
#endif
