// SPDX-License-Identifier: Apache-2.0
// How a call is cut into blocks, and what it hands to the device: C++ without CANN.
#pragma once

#include <cstdint>

namespace vllm_cold {

constexpr uint32_t kMaxAmateurs = 32;      // of a group
constexpr uint32_t kTile = 4096;           // logits that one step of a block works on
constexpr uint32_t kMaxSegments = 64;      // of one row
constexpr uint32_t kSegmentUnit = 256;     // segment lengths are multiples of it
constexpr uint32_t kUncut = 8192;          // a row no longer is one segment: that is one launch
constexpr uint32_t kSlotBytes = 32;        // one segment's maximum, or its counts, in a workspace
constexpr uint32_t kNotFinite = 1;         // third of a group's statistics: a row has NaN or +inf
constexpr uint32_t kOutOfRange = 3;        // likewise: a row number is out of range

// Row numbers and groups are 32 bits on the device: as many as one launch can index.
struct Plan {
    uint32_t segments;       // of each row, at least 1, none of them empty
    uint32_t segmentLength;  // a multiple of kSegmentUnit; the last segment may be shorter
    uint32_t blocks;         // of the launches that work on segments
    uint32_t totalBlocks;    // of the launch that adds up what segments counted
    uint64_t slotBytes;      // workspace of maxima, or of counts; 0 if one block does a row
};

// Few groups: a row is cut so that the longest segment has as few tiles as the cores allow, into as
// few segments as that takes. Many groups: one block per row, and blocks take rows in turn when
// there are more rows than cores.
inline Plan MakePlan(uint64_t groups, uint64_t vocab, uint64_t cores)
{
    const auto ceilDiv = [](uint64_t a, uint64_t b) { return (a + b - 1) / b; };
    const auto least = [](uint64_t a, uint64_t b) { return a < b ? a : b; };
    const uint64_t most = vocab > kUncut ? least(cores / groups, kMaxSegments) : 1;
    const uint64_t tiles = ceilDiv(ceilDiv(vocab, kTile), most > 0 ? most : 1);
    const uint64_t wanted = ceilDiv(vocab, tiles * kTile);
    const uint64_t length = ceilDiv(ceilDiv(vocab, wanted), kSegmentUnit) * kSegmentUnit;
    const uint64_t segments = ceilDiv(vocab, length);  // rounding up may leave fewer
    Plan plan{};
    plan.segments = static_cast<uint32_t>(segments);
    plan.segmentLength = static_cast<uint32_t>(length);
    plan.blocks = static_cast<uint32_t>(least(cores, groups * segments));
    plan.totalBlocks = static_cast<uint32_t>(least(cores, groups));
    plan.slotBytes = segments > 1 ? groups * segments * kSlotBytes : 0;
    return plan;
}

enum class LogitsType : uint32_t { kFloat, kHalf, kBfloat16 };

// Device addresses and sizes of one call. Strides are in elements.
struct ScoringCall {
    LogitsType type;
    uint8_t* logits;         // [numRows, vocab], row stride rowStride
    uint8_t* rows;           // [groups, streams] int64: expert's, amateurs'; -1 for no amateur
    uint8_t* weights;        // [groups, streams - 1] float32, the amateurs'
    uint8_t* logAlpha;       // [groups] float32
    uint8_t* floor;          // [groups] float32, the lowest expert logit admitted, or null
    uint8_t* maxima;         // workspace: plan.slotBytes
    uint8_t* counts;         // workspace: plan.slotBytes, or null without statistics
    uint8_t* out;            // [groups, vocab] float32, stride outStride; null: over experts' rows
    uint8_t* statistics;     // [groups, 3] int64: valid, changed, fault; or null
    uint32_t numRows;
    uint32_t groups;
    uint32_t streams;        // 2 to kMaxAmateurs + 1
    uint32_t vocab;
    uint64_t rowStride;
    uint64_t outStride;
    Plan plan;
};

// Defined next to the kernels. Launches in order on `stream`; no host sync.
void LaunchScores(const ScoringCall& call, void* stream);

}  // namespace vllm_cold
