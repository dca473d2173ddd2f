// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA on CPUs: its C interface.
//
// A step's batch is described once, by a Plan, and each LoRA layer once, by a Layer. Both are arrays of
// int64 that vllm_cold/cpu/lora_ops.py owns; the structs below are views of them.
#pragma once

#include "matrix.h"

// Which rows belong to which adapter. Rows of no adapter are in no group.
struct Plan {
    int64_t num_tokens;  // rows of the batch, with and without an adapter; -1: any, none with one
    int64_t num_rows;    // those with one
    int64_t num_groups;
    int64_t capacity;  // the num_tokens that there is room for

    struct Group {
        int64_t slot, start, count;  // rows()[start] to rows()[start + count - 1], ascending
    };
    const Group* groups() const { return reinterpret_cast<const Group*>(this + 1); }
    const int64_t* rows() const { return reinterpret_cast<const int64_t*>(groups() + capacity); }
};

// The stacked weights of one layer: A [slots, ranks, inputs] and B [slots, ranks, outputs] for each of
// the slices whose outputs lie side by side (q, k, v; gate, up). Both lie so that what one row needs
// is read in the order of memory.
struct Layer {
    int64_t process;  // a number of the process that the addresses are of
    int64_t plan;     // address of the Plan of each step
    int64_t dtype;
    int64_t inputs;
    int64_t a_ranks, b_ranks;  // they differ where ranks are split over processes
    int64_t num_slices;

    struct Slice {
        int64_t a, a_slot;  // address, elements from one slot to the next, and from one rank
        int64_t b, b_slot, b_rank;
        int64_t outputs;  // columns of B that count
        int64_t column;   // first output column
    };
    const Slice* slices() const { return reinterpret_cast<const Slice*>(this + 1); }
};

enum LoraStatus : int32_t {
    kLoraOk = 0,
    kLoraShape = 1,     // an input or output does not fit the layer
    kLoraRows = 2,      // the plan is of another number of rows
    kLoraNoMemory = 3,
};

// Ranks up to this; more needs larger buffers on the stack.
constexpr int64_t kMaxRank = 512;

// int64 elements of a Plan for up to num_tokens rows.
VLLM_COLD_EXPORT int64_t vllm_cold_lora_plan_size(int64_t num_tokens);

// Groups the rows of a batch: slots [num_tokens] has each row's slot, negative for none. Returns how
// many rows have an adapter, or -1 if there is no room.
VLLM_COLD_EXPORT int64_t vllm_cold_lora_plan(Plan* plan, const int64_t* slots, int64_t num_tokens);

// y[t, column : column + outputs] += B[slot] @ (scale * A[slot] @ x[t]), for each slice of the layer and
// each row t with an adapter. Sums are float32; y is read and written once, rounded once. What one row
// gets does not depend on the others. Slices whose A @ x is exactly zero leave y as it is.
VLLM_COLD_EXPORT int32_t vllm_cold_lora_linear(const Layer* layer, const Matrix* y, const Matrix* x,
                                               float scale, int32_t isa, int32_t threads);

// The halves of that. hidden: [slices, tokens, ranks] float32, contiguous; rows of no adapter are
// neither read nor written. add: false overwrites y's columns instead of adding. column: added to
// each slice's.
VLLM_COLD_EXPORT int32_t vllm_cold_lora_shrink(const Layer* layer, float* hidden, const Matrix* x,
                                               float scale, int32_t isa, int32_t threads);
VLLM_COLD_EXPORT int32_t vllm_cold_lora_expand(const Layer* layer, const Matrix* y,
                                               const float* hidden, int64_t column, int32_t add,
                                               int32_t isa, int32_t threads);
