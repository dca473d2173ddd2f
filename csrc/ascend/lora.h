// SPDX-License-Identifier: Apache-2.0
// How a call of the multi-LoRA kernels is cut into blocks, and what it hands to the device: plain
// C++, no CANN needed. Everything here follows from shapes alone, never from which row has which
// adapter, so that a captured graph serves every batch of its size.
#pragma once

#include <cstdint>

namespace vllm_cold {

constexpr uint32_t kLoraSlices = 4;         // outputs of one input (q, k, v) that a launch takes
constexpr uint32_t kLoraMaxRank = 256;
constexpr uint32_t kLoraMaxAdapters = 2048;
constexpr uint32_t kLoraMaxRows = 2048;     // of one call: bounds the workspace
constexpr uint32_t kLoraMaxLength = 1u << 27;  // of x's and y's rows: sizes in bytes are uint32_t
constexpr uint32_t kLoraWindow = 256;       // rows that a block sorts by adapter at a time
constexpr uint32_t kLoraGroup = 8;          // rows of one adapter that share a read of its weights
constexpr uint32_t kLoraTile = 1024;        // of the input's length, in one step
constexpr uint32_t kLoraRanks = 8;          // ranks in one step
constexpr uint32_t kLoraMaxParts = 8;       // that a row's input is cut into
constexpr uint32_t kLoraOutputs = 512;      // outputs that a block adds to in one go, at most
constexpr uint32_t kLoraLeastOutputs = 64;
constexpr uint32_t kLoraLane = 8;           // float32 values in the 32 bytes that UB aligns to

struct LoraPlan {
    uint32_t parts;          // of the input's length, each summed for itself
    uint32_t partLength;     // a multiple of kLoraTile; the last part may be shorter
    uint32_t rankChunk;      // ranks of a piece of work: kLoraRanks, or half of that, ...
    uint32_t outputs;        // outputs of a piece of work, kLoraLeastOutputs to kLoraOutputs
    uint32_t rankPitch;      // the rank as the workspace holds it: a multiple of kLoraLane
    uint32_t shrinkBlocks;
    uint32_t expandBlocks;
    uint64_t workspaceBytes; // [rows, slices, parts, rankPitch] float32
};

// `rows`, `rank`, `length` (of the input) and the outputs of each slice are at least 1. How sums
// are cut (parts) depends on the length alone: a row's result is the same to the bit in every batch
// and on any number of cores. What a piece of work is depends on how many there will be if every
// other row has the same adapter, as in pairs of an expert without and an amateur with one.
inline LoraPlan MakeLoraPlan(uint64_t rows, uint32_t slices, uint32_t rank, uint32_t length,
                             const uint32_t* outputs, uint64_t cores)
{
    const auto ceilDiv = [](uint64_t a, uint64_t b) { return (a + b - 1) / b; };
    const auto least = [](uint64_t a, uint64_t b) { return a < b ? a : b; };
    const uint64_t groups = ceilDiv(rows, 2 * kLoraGroup);
    LoraPlan plan{};
    const uint64_t tiles = ceilDiv(length, kLoraTile);
    const uint64_t partTiles = ceilDiv(tiles, kLoraMaxParts);
    plan.parts = static_cast<uint32_t>(ceilDiv(tiles, partTiles));
    plan.partLength = static_cast<uint32_t>(partTiles * kLoraTile);
    const auto sums = [&](uint32_t chunk) { return ceilDiv(rank, chunk) * slices * plan.parts; };
    plan.rankChunk = kLoraRanks;
    while (plan.rankChunk > 1 && groups * sums(plan.rankChunk) < cores) {
        plan.rankChunk /= 2;
    }
    const auto pieces = [&](uint32_t size) {
        uint64_t all = 0;
        for (uint32_t slice = 0; slice < slices; ++slice) {
            all += ceilDiv(outputs[slice], size);
        }
        return all;
    };
    plan.outputs = kLoraOutputs;
    while (plan.outputs > kLoraLeastOutputs && groups * pieces(plan.outputs) < cores) {
        plan.outputs /= 2;
    }
    plan.rankPitch = static_cast<uint32_t>(ceilDiv(rank, kLoraLane) * kLoraLane);
    plan.shrinkBlocks = static_cast<uint32_t>(least(cores, rows * sums(plan.rankChunk)));
    plan.expandBlocks = static_cast<uint32_t>(least(cores, rows * pieces(plan.outputs)));
    plan.workspaceBytes = rows * slices * plan.parts * plan.rankPitch * sizeof(float);
    return plan;
}

enum class LoraType : uint32_t { kFloat, kHalf, kBfloat16 };

// Device addresses and sizes of one call. Strides are in elements.
struct LoraCall {
    LoraType type;            // of x, y and all weights
    uint8_t* y;               // [rows, all slices' outputs], row stride yStride; added to
    uint8_t* x;               // [rows, length], row stride xStride
    uint8_t* a[kLoraSlices];  // [adapters, rank, length]
    uint8_t* b[kLoraSlices];  // [adapters, outputs[slice], rank]
    uint8_t* indices;         // [rows] int64: each row's adapter, -1 for none
    uint8_t* sums;            // workspace: plan.workspaceBytes
    uint32_t outputs[kLoraSlices];
    uint32_t rows;            // 1 to kLoraMaxRows
    uint32_t slices;          // 1 to kLoraSlices
    uint32_t adapters;        // 1 to kLoraMaxAdapters
    uint32_t rank;            // 1 to kLoraMaxRank
    uint32_t length;          // 1 to kLoraMaxLength
    uint64_t xStride;
    uint64_t yStride;
    float scale;
    LoraPlan plan;
};

// Defined beside the kernels. Two launches in order on `stream`; no host sync.
void LaunchLora(const LoraCall& call, void* stream);

}  // namespace vllm_cold
