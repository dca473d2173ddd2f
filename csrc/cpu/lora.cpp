// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA as a whole: which rows and columns each thread computes.
//
// Rows are cut into blocks of one adapter. Where there are enough of them, a thread takes whole blocks
// through both products, and A @ x stays in its cache. Where there are few (decoding), the threads
// share out the ranks of A @ x, meet, and share out the columns of y.
#include "lora.h"

#include <algorithm>
#include <cstdlib>

#include "lora_kernels.h"
#include "threads.h"

namespace {

// Rows in a block: enough to make up for bringing B's rows into columns, few enough for a cache.
constexpr int64_t kBlockRows = 64;
// Ranks of A that one thread takes at a time; a tile of the kernel.
constexpr int64_t kRanks = 4;
// Below this a thread costs more than it saves: bytes of weights plus products by the vector.
constexpr int64_t kPerThread = 1 << 14;

struct Block {
    int64_t slot, start, count;
};

// Memory that is kept for the next call, since there is one for every layer of every step.
struct Scratch {
    float* hidden(int64_t floats) { return static_cast<float*>(grow(0, floats * 4)); }
    Block* blocks(int64_t count) {
        return static_cast<Block*>(grow(1, count * static_cast<int64_t>(sizeof(Block))));
    }

    void* data[2];
    int64_t bytes[2];

  private:
    void* grow(int which, int64_t wanted) {
        if (bytes[which] < wanted) {
            std::free(data[which]);
            data[which] = std::malloc(static_cast<size_t>(wanted));
            bytes[which] = data[which] == nullptr ? 0 : wanted;
        }
        return data[which];
    }
};

thread_local Scratch scratch;

const LoraKernels& kernels_for(int32_t isa) {
#if defined(__x86_64__)
    if (isa == kAvx512Bf16) return kAvx512Bf16Lora;
    if (isa == kAvx512) return kAvx512Lora;
    if (isa == kAvx2) return kAvx2Lora;
#endif
    (void)isa;
    return kPortableLora;
}

const Plan* plan_of(const Layer* layer) { return reinterpret_cast<const Plan*>(layer->plan); }

int64_t count_blocks(const Plan* plan) {
    int64_t count = 0;
    for (int64_t g = 0; g < plan->num_groups; ++g)
        count += (plan->groups()[g].count + kBlockRows - 1) / kBlockRows;
    return count;
}

// `hidden` is [rows of the plan, slices * ranks] within lora_linear, [slices, tokens, ranks] between
// its halves: the same with other strides, and rows in another order.
struct Hidden {
    float* data;
    int64_t slice_stride, row_stride;
    bool by_token;  // else by the row's place in the plan
};

struct Job {
    const Layer* layer;
    const Plan* plan;
    const Block* blocks;
    int64_t num_blocks;
    const Matrix *x, *y;
    Hidden hidden;
    float scale;
    int64_t column;
    bool add;
    Shrink shrink;
    Expand expand;

    Rows rows(const Block& block) const {
        return {plan->rows() + block.start, block.count, hidden.by_token};
    }
    // What the kernels count their rows of `hidden` from.
    float* hidden_of(const Block& block, int64_t s) const {
        const int64_t row = hidden.by_token ? 0 : block.start;
        return hidden.data + s * hidden.slice_stride + row * hidden.row_stride;
    }

    // Ranks [from, to) of A @ x, for one block and slice.
    void shrink_ranks(const Block& block, int64_t s, int64_t from, int64_t to) const {
        const Layer::Slice& slice = layer->slices()[s];
        const char* a = reinterpret_cast<const char*>(slice.a) +
                        (block.slot * slice.a_slot + from * layer->inputs) *
                            kElementSize[layer->dtype];
        shrink(x->data, x->stride, rows(block), a, to - from, layer->inputs, scale,
               hidden_of(block, s) + from, hidden.row_stride);
    }

    // Columns [from, to) of a slice of y, for one block.
    void expand_columns(const Block& block, int64_t s, int64_t from, int64_t to,
                        int64_t ranks) const {
        if (ranks == 0 && add) return;
        const Layer::Slice& slice = layer->slices()[s];
        const char* b = reinterpret_cast<const char*>(slice.b) +
                        (block.slot * slice.b_slot + from) * kElementSize[layer->dtype];
        char* to_y = static_cast<char*>(y->data) +
                     (column + slice.column + from) * kElementSize[y->dtype];
        expand(hidden_of(block, s), hidden.row_stride, rows(block), b, slice.b_rank,
               ranks, to - from, to_y, y->stride, add);
    }

    // How many ranks count: after them A @ x is exactly zero for all rows of the block. So it is for
    // layers that an adapter leaves alone, and for ranks that it does not use.
    int64_t used_ranks(const Block& block, int64_t s) const {
        int64_t used = 0;
        const int64_t* index = plan->rows() + block.start;
        for (int64_t i = 0; i < block.count; ++i) {
            const float* h =
                hidden_of(block, s) + (hidden.by_token ? index[i] : i) * hidden.row_stride;
            for (int64_t r = layer->b_ranks; r > used; --r) {
                if (h[r - 1] != 0.0f) used = r;  // NaN counts
            }
        }
        return used;
    }
};

// The part of n units that is this thread's.
struct Range {
    int64_t from, to;
};
Range share(const Team& team, int64_t n) {
    return {n * team.thread / team.size, n * (team.thread + 1) / team.size};
}

int32_t run(Job& job, bool shrinks, bool expands, int64_t threads) {
    const Layer* layer = job.layer;
    const Plan* plan = job.plan;
    if (plan->num_rows == 0) return kLoraOk;
    job.num_blocks = count_blocks(plan);
    Block* blocks = scratch.blocks(job.num_blocks);
    if (blocks == nullptr) return kLoraNoMemory;
    job.blocks = blocks;
    for (int64_t g = 0, i = 0; g < plan->num_groups; ++g) {
        const Plan::Group& group = plan->groups()[g];
        for (int64_t done = 0; done < group.count; done += kBlockRows)
            blocks[i++] = {group.slot, group.start + done,
                           std::min(kBlockRows, group.count - done)};
    }

    const int64_t slices = layer->num_slices;
    int64_t outputs = 0, columns = 0;
    for (int64_t s = 0; s < slices; ++s) {
        outputs += layer->slices()[s].outputs;
        columns += (layer->slices()[s].outputs + kColumns - 1) / kColumns;
    }
    const int64_t weights = (shrinks ? slices * layer->a_ranks * layer->inputs : 0) +
                            (expands ? outputs * layer->b_ranks : 0);
    const int64_t work = weights * kElementSize[layer->dtype] * plan->num_groups +
                         weights * plan->num_rows / 16;
    const int64_t useful = std::clamp<int64_t>(work / kPerThread, 1, threads);

    auto whole_blocks = [&](Team team) {
        const Range mine = share(team, job.num_blocks);
        for (int64_t i = mine.from; i < mine.to; ++i) {
            const Block& block = job.blocks[i];
            for (int64_t s = 0; shrinks && s < slices; ++s)
                job.shrink_ranks(block, s, 0, layer->a_ranks);
            for (int64_t s = 0; expands && s < slices; ++s)
                job.expand_columns(block, s, 0, layer->slices()[s].outputs,
                                   job.used_ranks(block, s));
        }
    };
    const int64_t pieces = (layer->a_ranks + kRanks - 1) / kRanks;
    auto ranks_then_columns = [&](Team team) {
        if (shrinks) {
            const Range mine = share(team, job.num_blocks * slices * pieces);
            for (int64_t i = mine.from; i < mine.to; ++i) {
                const int64_t from = i % pieces * kRanks;
                job.shrink_ranks(job.blocks[i / pieces / slices], i / pieces % slices, from,
                                 std::min(from + kRanks, layer->a_ranks));
            }
        }
        if (!expands) return;
        if (shrinks) team.barrier();
        const Range mine = share(team, job.num_blocks * columns);
        int64_t first = 0;  // unit of work that the slice at hand begins with
        for (int64_t b = 0; b < job.num_blocks; ++b) {
            for (int64_t s = 0; s < slices; ++s) {
                const int64_t size = layer->slices()[s].outputs;
                const int64_t last = first + (size + kColumns - 1) / kColumns;
                const int64_t from = std::max(mine.from, first), to = std::min(mine.to, last);
                if (from < to)
                    job.expand_columns(job.blocks[b], s, (from - first) * kColumns,
                                       std::min((to - first) * kColumns, size),
                                       job.used_ranks(job.blocks[b], s));
                first = last;
            }
        }
    };
    if (useful == 1 || job.num_blocks >= 2 * useful)
        parallel(useful, whole_blocks);
    else
        parallel(useful, ranks_then_columns);
    return kLoraOk;
}

// Whether a matrix has as many rows as the plan, and the columns that the layer reads or writes.
int32_t check(const Plan* plan, const Matrix* matrix, int64_t columns) {
    if (matrix->columns < columns || matrix->dtype < 0 || matrix->dtype > 2) return kLoraShape;
    return plan->num_tokens < 0 || matrix->rows == plan->num_tokens ? kLoraOk : kLoraRows;
}

int64_t last_column(const Layer* layer) {
    int64_t last = 0;
    for (int64_t s = 0; s < layer->num_slices; ++s)
        last = std::max(last, layer->slices()[s].column + layer->slices()[s].outputs);
    return last;
}

}  // namespace

int64_t vllm_cold_lora_plan_size(int64_t num_tokens) {
    return static_cast<int64_t>(sizeof(Plan) / 8) + 4 * num_tokens;
}

int64_t vllm_cold_lora_plan(Plan* plan, const int64_t* slots, int64_t num_tokens) {
    plan->num_rows = plan->num_groups = plan->num_tokens = 0;
    if (num_tokens > plan->capacity) return -1;
    auto* groups = const_cast<Plan::Group*>(plan->groups());
    auto* rows = const_cast<int64_t*>(plan->rows());
    // Count, in order of the slots. There are few, and neighbours mostly have the same.
    const auto find = [&](int64_t slot) {
        int64_t g = 0;
        while (g < plan->num_groups && groups[g].slot < slot) ++g;
        return g;
    };
    for (int64_t t = 0, g = 0; t < num_tokens; ++t) {
        if (slots[t] < 0) continue;
        if (t == 0 || slots[t] != slots[t - 1]) g = find(slots[t]);
        if (g == plan->num_groups || groups[g].slot != slots[t]) {
            for (int64_t i = plan->num_groups++; i > g; --i) groups[i] = groups[i - 1];
            groups[g] = {slots[t], 0, 0};
        }
        ++groups[g].count;
        ++plan->num_rows;
    }
    for (int64_t g = 0, start = 0; g < plan->num_groups; ++g) {
        groups[g].start = start;
        start += groups[g].count;
        groups[g].count = 0;
    }
    for (int64_t t = 0, g = 0; t < num_tokens; ++t) {
        if (slots[t] < 0) continue;
        if (t == 0 || slots[t] != slots[t - 1]) g = find(slots[t]);
        rows[groups[g].start + groups[g].count++] = t;
    }
    plan->num_tokens = num_tokens;
    return plan->num_rows;
}

int32_t vllm_cold_lora_linear(const Layer* layer, const Matrix* y, const Matrix* x, float scale,
                              int32_t isa, int32_t threads) {
    const Plan* plan = plan_of(layer);
    if (plan->num_rows == 0) return kLoraOk;
    if (x->columns != layer->inputs || layer->a_ranks != layer->b_ranks) return kLoraShape;
    for (const int32_t status : {check(plan, x, 0), check(plan, y, last_column(layer))})
        if (status != kLoraOk) return status;
    const int64_t width = layer->num_slices * layer->a_ranks;
    float* hidden = scratch.hidden(plan->num_rows * width);
    if (hidden == nullptr) return kLoraNoMemory;
    const LoraKernels& kernels = kernels_for(isa);
    Job job{layer, plan, nullptr, 0, x, y, {hidden, layer->a_ranks, width, false}, scale, 0, true,
            kernels.shrink[x->dtype][layer->dtype], kernels.expand[layer->dtype][y->dtype]};
    return run(job, true, true, threads);
}

int32_t vllm_cold_lora_shrink(const Layer* layer, float* hidden, const Matrix* x, float scale,
                              int32_t isa, int32_t threads) {
    const Plan* plan = plan_of(layer);
    if (plan->num_rows == 0) return kLoraOk;
    if (x->columns != layer->inputs) return kLoraShape;
    if (const int32_t status = check(plan, x, 0)) return status;
    const Hidden to{hidden, x->rows * layer->a_ranks, layer->a_ranks, true};
    Job job{layer, plan, nullptr, 0, x, nullptr, to, scale, 0, true,
            kernels_for(isa).shrink[x->dtype][layer->dtype], nullptr};
    return run(job, true, false, threads);
}

int32_t vllm_cold_lora_expand(const Layer* layer, const Matrix* y, const float* hidden,
                              int64_t column, int32_t add, int32_t isa, int32_t threads) {
    const Plan* plan = plan_of(layer);
    if (plan->num_rows == 0) return kLoraOk;
    if (const int32_t status = check(plan, y, column + last_column(layer))) return status;
    const Hidden from{const_cast<float*>(hidden), y->rows * layer->b_ranks, layer->b_ranks, true};
    Job job{layer, plan, nullptr, 0, nullptr, y, from, 1.0f, column, add != 0, nullptr,
            kernels_for(isa).expand[layer->dtype][y->dtype]};
    return run(job, false, true, threads);
}
