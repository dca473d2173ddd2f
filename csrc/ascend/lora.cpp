// SPDX-License-Identifier: Apache-2.0
// LoRA of a decoding batch in AscendC, for Atlas A2/A3 (vector cores only).
//
//   y[row] += scale * B[adapter(row)] (A[adapter(row)] x[row])     for each slice of y
//
//   shrink  sums of A's products with x, one for each rank, slice and part of x  -> workspace
//   expand  the parts' sums added in order, times scale; y += B's products with them
//
// A block sorts the rows by adapter first, kLoraWindow at a time: rows without one are left out,
// and up to kLoraGroup rows of one adapter make a group, whose weights are read once. The groups'
// pieces (lora.h) are dealt to the blocks in turn. Products and sums are float32, in an order that
// nothing but the rank and the length of x decides. No block adds to what another one wrote.
// NaN and infinities of x, the weights and y go the way of IEEE 754. A row whose adapter's number
// is none of the adapters' counts as one without.
//
// Every helper leaves the vector pipe behind a barrier: what it wrote may be read by the next.
#include "kernel_operator.h"

#include "kernel_common.h"
#include "lora.h"

namespace vllm_cold {
namespace {

using AscendC::BinaryRepeatParams;
using AscendC::ReduceType;

constexpr uint32_t kRepeat = 64;           // float32 values that an instruction takes at a time
constexpr uint32_t kMaxRepeats = 255;
constexpr uint32_t kWeightBytes = 16384;   // of B, in one step
constexpr uint32_t kTileRepeats = kLoraTile / kRepeat;
constexpr uint32_t kFewOutputs = 32;       // that ReducePairElem leaves of a repeat

__aicore__ inline uint32_t CeilDiv(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

template <typename T>
__aicore__ inline GlobalTensor<T> At(GM_ADDR base, uint64_t offset, uint32_t count)
{
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(base) + offset, count);
    return tensor;
}

// `count` values that lie side by side.
template <typename T>
__aicore__ inline void Load(const LocalTensor<T>& to, GM_ADDR base, uint64_t offset, uint32_t count)
{
    const DataCopyExtParams params(1, count * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);
    AscendC::DataCopyPad(to, At<T>(base, offset, count), params, DataCopyPadExtParams<T>());
}

template <typename T>
__aicore__ inline void Store(
    GM_ADDR base, uint64_t offset, const LocalTensor<T>& from, uint32_t count)
{
    const DataCopyExtParams params(1, count * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);
    AscendC::DataCopyPad(At<T>(base, offset, count), from, params);
}

// What both kernels know of a call.
struct Call {
    GM_ADDR indices;
    GM_ADDR weights[kLoraSlices];
    GM_ADDR sums;  // [rows, slices, parts, rankPitch]
    uint32_t rows;
    uint32_t slices;
    uint32_t adapters;
    uint32_t rank;
    uint32_t rankPitch;
    uint32_t parts;

    __aicore__ inline uint64_t SumsOf(uint32_t row, uint32_t slice, uint32_t part) const
    {
        return ((static_cast<uint64_t>(row) * slices + slice) * parts + part) * rankPitch;
    }
};

// The rows with an adapter, in groups. The scalar pipe sorts them in UB, once for a window.
class Groups {
public:
    __aicore__ inline void Init(TPipe* pipe, const Call& call)
    {
        base_ = call.indices;
        rows_ = call.rows;
        adapters_ = call.adapters;
        pipe->InitBuffer(indices_, kLoraWindow * sizeof(int64_t));
        pipe->InitBuffer(open_, call.adapters * sizeof(int32_t));
        pipe->InitBuffer(members_, kLoraWindow * kLoraGroup * sizeof(uint32_t));
        pipe->InitBuffer(sizes_, kLoraWindow * sizeof(uint32_t));
        pipe->InitBuffer(adapter_, kLoraWindow * sizeof(uint32_t));
    }
    // How many there are among the window's rows, of which `first` is the first.
    __aicore__ inline uint32_t Sort(uint32_t first)
    {
        const LocalTensor<int64_t> indices = indices_.Get<int64_t>();
        const LocalTensor<int32_t> open = open_.Get<int32_t>();  // each adapter's last group
        const LocalTensor<uint32_t> members = members_.Get<uint32_t>();
        const LocalTensor<uint32_t> sizes = sizes_.Get<uint32_t>();
        const LocalTensor<uint32_t> adapters = adapter_.Get<uint32_t>();
        const uint32_t rows = Least(kLoraWindow, rows_ - first);
        if (first > 0) {
            Sync<HardEvent::S_MTE2>();
            Sync<HardEvent::S_V>();
        }
        Load(indices, base_, first, rows);
        AscendC::Duplicate(open, -1, static_cast<int32_t>(adapters_));
        PipeBarrier<PIPE_V>();
        Sync<HardEvent::MTE2_S>();
        Sync<HardEvent::V_S>();
        uint32_t groups = 0;
        for (uint32_t row = 0; row < rows; ++row) {
            const int64_t adapter = indices.GetValue(row);
            if (adapter < 0 || adapter >= static_cast<int64_t>(adapters_)) {
                continue;
            }
            const uint32_t number = static_cast<uint32_t>(adapter);
            int32_t group = open.GetValue(number);
            uint32_t size = group < 0 ? kLoraGroup : sizes.GetValue(static_cast<uint32_t>(group));
            if (size == kLoraGroup) {
                group = static_cast<int32_t>(groups);
                size = 0;
                open.SetValue(number, group);
                adapters.SetValue(groups, number);
                ++groups;
            }
            const uint32_t at = static_cast<uint32_t>(group);
            members.SetValue(at * kLoraGroup + size, first + row);
            sizes.SetValue(at, size + 1);
        }
        return groups;
    }
    __aicore__ inline uint32_t Adapter(uint32_t group)
    {
        return adapter_.Get<uint32_t>().GetValue(group);
    }
    __aicore__ inline uint32_t Size(uint32_t group)
    {
        return sizes_.Get<uint32_t>().GetValue(group);
    }
    __aicore__ inline uint32_t Row(uint32_t group, uint32_t member)
    {
        return members_.Get<uint32_t>().GetValue(group * kLoraGroup + member);
    }

private:
    GM_ADDR base_;
    uint32_t rows_;
    uint32_t adapters_;
    TBuf<TPosition::VECIN> indices_;
    TBuf<TPosition::VECCALC> open_;
    TBuf<TPosition::VECCALC> members_;
    TBuf<TPosition::VECCALC> sizes_;
    TBuf<TPosition::VECCALC> adapter_;
};

// Steps of a kernel: the next one's weights load while this one is worked on. A window's pieces are
// dealt from the block on that the last one's ended with.
template <typename Kernel>
__aicore__ inline void RunSteps(Kernel& kernel, Groups& groups, uint32_t rows, uint32_t pieces)
{
    const uint32_t blocks = static_cast<uint32_t>(AscendC::GetBlockNum());
    uint32_t turn = static_cast<uint32_t>(AscendC::GetBlockIdx());
    for (uint32_t first = 0; first < rows; first += kLoraWindow) {
        const uint32_t items = groups.Sort(first) * pieces;
        typename Kernel::Step now{};
        now.item = turn;
        turn = (turn + blocks - items % blocks) % blocks;
        if (now.item < items) {
            kernel.Find(now);
            kernel.Begin(now);
        }
        while (now.item < items) {
            typename Kernel::Step next = now;
            if (!kernel.Advance(next)) {
                next.item += blocks;
                if (next.item < items) {
                    kernel.Find(next);
                }
            }
            kernel.Start(now);
            if (next.item < items) {
                kernel.Begin(next);
            }
            kernel.Work(now);
            now = next;
        }
    }
}

template <typename T>
class Shrink {
public:
    // A tile of a part, of up to kLoraRanks ranks of a slice and up to kLoraGroup rows.
    struct Step {
        uint32_t item;
        uint32_t group;
        uint32_t slice;
        uint32_t firstRank;
        uint32_t ranks;
        uint32_t part;
        uint32_t begin;  // of the part
        uint32_t end;
        uint32_t start;  // of the tile
    };

    __aicore__ inline void Run(
        const Call& call, GM_ADDR x, uint64_t xStride, uint32_t length, uint32_t partLength,
        uint32_t rankChunk)
    {
        call_ = call;
        x_ = x;
        xStride_ = xStride;
        length_ = length;
        partLength_ = partLength;
        rankChunk_ = rankChunk;
        chunks_ = CeilDiv(call.rank, rankChunk);
        const NotFiniteKept<T> kept;
        TPipe pipe;
        groups_.Init(&pipe, call);
        pipe.InitBuffer(in_, 2, kPlaces * kLoraTile * sizeof(T));
        if constexpr (kWiden) {
            pipe.InitBuffer(wide_, kPlaces * kLoraTile * sizeof(float));
        }
        pipe.InitBuffer(products_, kLoraRanks * kLoraTile * sizeof(float));
        pipe.InitBuffer(partial_, kLoraRanks * kTileRepeats * sizeof(float));
        pipe.InitBuffer(sums_, 2 * kSums * sizeof(float));
        pipe.InitBuffer(out_, 2, kSums * sizeof(float));
        RunSteps(*this, groups_, call.rows, call.slices * chunks_ * call.parts);
    }

    __aicore__ inline void Find(Step& step) const
    {
        uint32_t rest = step.item;
        step.part = rest % call_.parts;
        rest /= call_.parts;
        step.firstRank = rest % chunks_ * rankChunk_;
        rest /= chunks_;
        step.slice = rest % call_.slices;
        step.group = rest / call_.slices;
        step.ranks = Least(rankChunk_, call_.rank - step.firstRank);
        step.begin = step.part * partLength_;
        step.end = Least(partLength_, length_ - step.begin) + step.begin;
        step.start = step.begin;
    }
    __aicore__ inline bool Advance(Step& step) const
    {
        step.start += kLoraTile;
        return step.start < step.end;
    }
    // Loads a tile of the weights, and of the group's rows behind it.
    __aicore__ inline void Begin(const Step& step)
    {
        const uint32_t n = Count(step);
        const LocalTensor<T> tile = in_.template AllocTensor<T>();
        const uint64_t rank =
            static_cast<uint64_t>(groups_.Adapter(step.group)) * call_.rank + step.firstRank;
        const uint32_t bytes = n * static_cast<uint32_t>(sizeof(T));
        const uint32_t gap = kLoraTile * static_cast<uint32_t>(sizeof(T)) / kBlockBytes -
                             CeilDiv(bytes, kBlockBytes);
        const DataCopyExtParams params(
            static_cast<uint16_t>(step.ranks), bytes,
            (length_ - n) * static_cast<uint32_t>(sizeof(T)), gap, 0);
        AscendC::DataCopyPad(
            tile,
            At<T>(call_.weights[step.slice], rank * length_ + step.start,
                  (step.ranks - 1) * length_ + n),
            params, DataCopyPadExtParams<T>());
        const uint32_t rows = groups_.Size(step.group);
        for (uint32_t i = 0; i < rows; ++i) {
            Load(tile[(kLoraRanks + i) * kLoraTile], x_,
                 groups_.Row(step.group, i) * xStride_ + step.start, n);
        }
        in_.EnQue(tile);
    }
    __aicore__ inline void Start(const Step& step)
    {
        if (step.start == step.begin) {
            AscendC::Duplicate(sums_.Get<float>(), 0.0f, static_cast<int32_t>(2 * kSums));
            PipeBarrier<PIPE_V>();
        }
    }
    __aicore__ inline void Work(const Step& step)
    {
        const uint32_t rows = groups_.Size(step.group);
        const uint32_t n = Count(step);
        const LocalTensor<float> soFar = sums_.Get<float>();
        const LocalTensor<float> sums = soFar[kSums];
        LocalTensor<T> raw = in_.template DeQue<T>();
        if constexpr (kWiden) {
            const LocalTensor<float> wide = wide_.Get<float>();
            Widen(wide, raw, step.ranks, n);
            Widen(wide[kLoraRanks * kLoraTile], raw[kLoraRanks * kLoraTile], rows, n);
            PipeBarrier<PIPE_V>();
            in_.FreeTensor(raw);
            Multiply(wide, sums, step.ranks, rows, n);
        } else {
            Multiply(raw, sums, step.ranks, rows, n);
            in_.FreeTensor(raw);
        }
        const int32_t count = static_cast<int32_t>(rows * kLoraRanks);
        if (step.start + n < step.end) {
            AscendC::Add(soFar, soFar, sums, count);
            PipeBarrier<PIPE_V>();
            return;
        }
        LocalTensor<float> out = out_.template AllocTensor<float>();
        AscendC::Add(out, soFar, sums, count);
        PipeBarrier<PIPE_V>();
        out_.EnQue(out);
        out = out_.template DeQue<float>();
        // The last ranks take zeros along, up to the workspace's pitch.
        const bool last = step.firstRank + step.ranks == call_.rank;
        const uint32_t ranks = last ? call_.rankPitch - step.firstRank : step.ranks;
        for (uint32_t i = 0; i < rows; ++i) {
            const uint64_t at = call_.SumsOf(groups_.Row(step.group, i), step.slice, step.part);
            Store(call_.sums, at + step.firstRank, out[i * kLoraRanks], ranks);
        }
        out_.FreeTensor(out);
    }

private:
    static constexpr bool kWiden = sizeof(T) < sizeof(float);
    static constexpr uint32_t kPlaces = kLoraRanks + kLoraGroup;  // ranks first, then rows
    static constexpr uint32_t kSums = kLoraGroup * kLoraRanks;

    __aicore__ inline uint32_t Count(const Step& step) const
    {
        return Least(kLoraTile, step.end - step.start);
    }
    __aicore__ inline void Widen(
        const LocalTensor<float>& to, const LocalTensor<T>& from, uint32_t places, uint32_t n)
    {
        constexpr AscendC::RoundMode exact = AscendC::RoundMode::CAST_NONE;
        if (n == kLoraTile) {
            AscendC::Cast(to, from, exact, places * kLoraTile);
            return;
        }
        for (uint32_t i = 0; i < places; ++i) {
            AscendC::Cast(to[i * kLoraTile], from[i * kLoraTile], exact, n);
        }
    }
    // The sums of the products of each rank with each row: [kLoraGroup, kLoraRanks].
    __aicore__ inline void Multiply(
        const LocalTensor<float>& tile, const LocalTensor<float>& sums, uint32_t ranks,
        uint32_t rows, uint32_t n)
    {
        const LocalTensor<float> products = products_.Get<float>();
        const LocalTensor<float> partial = partial_.Get<float>();
        const int32_t repeats = static_cast<int32_t>(ranks * kTileRepeats);
        if (n < kLoraTile) {  // what a tail leaves of the tile adds nothing
            AscendC::Duplicate(products, 0.0f, static_cast<int32_t>(ranks * kLoraTile));
            PipeBarrier<PIPE_V>();
        }
        for (uint32_t i = 0; i < rows; ++i) {
            const LocalTensor<float> x = tile[(kLoraRanks + i) * kLoraTile];
            for (uint32_t j = 0; j < ranks; ++j) {
                AscendC::Mul(
                    products[j * kLoraTile], tile[j * kLoraTile], x, static_cast<int32_t>(n));
            }
            PipeBarrier<PIPE_V>();
            AscendC::ReduceRepeat<ReduceType::SUM, float, float>(
                partial, products, kRepeat, repeats, 1, 1, 8);
            PipeBarrier<PIPE_V>();
            AscendC::ReduceRepeat<ReduceType::SUM, float, float>(
                sums[i * kLoraRanks], partial, kTileRepeats, static_cast<int32_t>(ranks), 1, 1,
                kTileRepeats / kLoraLane);
            PipeBarrier<PIPE_V>();
        }
    }

    Call call_;
    GM_ADDR x_;
    uint64_t xStride_;
    uint32_t length_;
    uint32_t partLength_;
    uint32_t rankChunk_;
    uint32_t chunks_;
    Groups groups_;
    TQue<TPosition::VECIN, 2> in_;
    TBuf<TPosition::VECCALC> wide_;
    TBuf<TPosition::VECCALC> products_;
    TBuf<TPosition::VECCALC> partial_;
    TBuf<TPosition::VECCALC> sums_;
    TQue<TPosition::VECOUT, 2> out_;
};

template <typename T>
class Expand {
public:
    // A tile of the weights of a piece: some of its outputs, for up to kLoraGroup rows.
    struct Step {
        uint32_t item;
        uint32_t group;
        uint32_t slice;
        uint32_t column;  // of y, where the piece begins
        uint32_t first;   // output of the slice, likewise
        uint32_t count;   // outputs of the piece
        uint32_t start;   // of the tile, from `first`
    };

    __aicore__ inline void Run(
        const Call& call, GM_ADDR y, uint64_t yStride, const uint32_t* widths, uint32_t outputs,
        float scale)
    {
        call_ = call;
        y_ = y;
        yStride_ = yStride;
        outputs_ = outputs;
        scale_ = scale;
        uint32_t pieces = 0;
        for (uint32_t slice = 0; slice < kLoraSlices; ++slice) {
            widths_[slice] = widths[slice];
            pieces += slice < call.slices ? CeilDiv(widths[slice], outputs) : 0;
        }
        pieces_ = pieces;
        // Ranks that fill whole 32 bytes as float32 lie side by side; others are padded with zeros.
        dense_ = call.rank % kLoraLane == 0;
        constexpr uint32_t unit = kBlockBytes / sizeof(T);
        pitch_ = dense_ ? call.rank : CeilDiv(call.rank, unit) * unit;
        tree_ = pitch_ == 8 || pitch_ == 16 || pitch_ == 32;
        tileRows_ = tree_ ? kTile / pitch_ : Least(kTile / pitch_, kMaxRepeats) / 8 * 8;
        const NotFiniteKept<T> kept;
        TPipe pipe;
        groups_.Init(&pipe, call);
        pipe.InitBuffer(in_, 2, kTile * sizeof(T));
        if constexpr (kWiden) {
            pipe.InitBuffer(wide_, kTile * sizeof(float));
            pipe.InitBuffer(wideY_, kLoraOutputs * sizeof(float));
        }
        pipe.InitBuffer(products_, kTile * sizeof(float));
        pipe.InitBuffer(partial_, 2 * kPartial * sizeof(float));
        pipe.InitBuffer(parts_, 2, call.parts * call.rankPitch * sizeof(float));
        pipe.InitBuffer(factors_, kLoraGroup * kLoraMaxRank * sizeof(float));
        pipe.InitBuffer(sums_, kLoraGroup * kLoraOutputs * sizeof(float));
        pipe.InitBuffer(yIn_, 2, kLoraOutputs * sizeof(T));
        pipe.InitBuffer(yOut_, 2, kLoraOutputs * sizeof(T));
        const int32_t all = kLoraGroup * kLoraMaxRank;
        AscendC::Duplicate(factors_.Get<float>(), 0.0f, all);  // behind the rank they stay 0
        PipeBarrier<PIPE_V>();
        RunSteps(*this, groups_, call.rows, pieces_);
    }

    __aicore__ inline void Find(Step& step) const
    {
        uint32_t piece = step.item % pieces_;
        step.group = step.item / pieces_;
        step.slice = 0;
        step.column = 0;
        for (uint32_t here = CeilDiv(widths_[0], outputs_); piece >= here;
             here = CeilDiv(widths_[step.slice], outputs_)) {
            piece -= here;
            step.column += widths_[step.slice];
            ++step.slice;
        }
        step.first = piece * outputs_;
        step.column += step.first;
        step.count = Least(outputs_, widths_[step.slice] - step.first);
        step.start = 0;
    }
    __aicore__ inline bool Advance(Step& step) const
    {
        step.start += tileRows_;
        return step.start < step.count;
    }
    // Loads a tile of the weights.
    __aicore__ inline void Begin(const Step& step)
    {
        const uint32_t n = Count(step);
        const LocalTensor<T> tile = in_.template AllocTensor<T>();
        const uint64_t output =
            static_cast<uint64_t>(groups_.Adapter(step.group)) * widths_[step.slice] + step.first +
            step.start;
        GM_ADDR weights = call_.weights[step.slice];
        if (dense_) {
            Load(tile, weights, output * call_.rank, n * call_.rank);
        } else {
            DataCopyPadExtParams<T> zeros;
            zeros.isPad = true;
            zeros.rightPadding = static_cast<uint8_t>(pitch_ - call_.rank);
            const uint32_t bytes = call_.rank * static_cast<uint32_t>(sizeof(T));
            const DataCopyExtParams params(static_cast<uint16_t>(n), bytes, 0, 0, 0);
            AscendC::DataCopyPad(
                tile, At<T>(weights, output * call_.rank, n * call_.rank), params, zeros);
        }
        in_.EnQue(tile);
    }
    // A piece's factors, while its first tile loads.
    __aicore__ inline void Start(const Step& step)
    {
        if (step.start == 0) {
            FindFactors(step, groups_.Size(step.group));
        }
    }
    __aicore__ inline void Work(const Step& step)
    {
        const uint32_t rows = groups_.Size(step.group);
        const uint32_t n = Count(step);
        const bool last = step.start + n == step.count;
        if (last) {
            LoadY(step, 0);
        }
        LocalTensor<T> raw = in_.template DeQue<T>();
        if constexpr (kWiden) {
            const LocalTensor<float> wide = wide_.Get<float>();
            AscendC::Cast(wide, raw, AscendC::RoundMode::CAST_NONE, n * pitch_);
            PipeBarrier<PIPE_V>();
            in_.FreeTensor(raw);
            Multiply(wide, step.start, rows, n);
        } else {
            Multiply(raw, step.start, rows, n);
            in_.FreeTensor(raw);
        }
        if (!last) {
            return;
        }
        for (uint32_t i = 0; i < rows; ++i) {
            if (i + 1 < rows) {
                LoadY(step, i + 1);
            }
            AddTo(step, i);
        }
    }

private:
    static constexpr bool kWiden = sizeof(T) < sizeof(float);
    static constexpr uint32_t kTile = kWeightBytes / sizeof(T);
    static constexpr uint32_t kPartial = 1024;

    __aicore__ inline uint32_t Count(const Step& step) const
    {
        return Least(tileRows_, step.count - step.start);
    }
    __aicore__ inline void LoadParts(const Step& step, uint32_t i)
    {
        const LocalTensor<float> parts = parts_.template AllocTensor<float>();
        Load(parts, call_.sums, call_.SumsOf(groups_.Row(step.group, i), step.slice, 0),
             call_.parts * call_.rankPitch);
        parts_.EnQue(parts);
    }
    // What B is multiplied with, for each row. Where several of B's outputs lie in one repeat, as
    // often as they do.
    __aicore__ inline void FindFactors(const Step& step, uint32_t rows)
    {
        const int32_t ranks = static_cast<int32_t>(call_.rankPitch);
        const uint32_t times = tree_ ? kRepeat / pitch_ : 1;
        LoadParts(step, 0);
        for (uint32_t i = 0; i < rows; ++i) {
            if (i + 1 < rows) {
                LoadParts(step, i + 1);
            }
            LocalTensor<float> parts = parts_.template DeQue<float>();
            for (uint32_t part = 1; part < call_.parts; ++part) {
                AscendC::Add(parts, parts, parts[part * call_.rankPitch], ranks);
                PipeBarrier<PIPE_V>();
            }
            const LocalTensor<float> factors = factors_.Get<float>()[i * kLoraMaxRank];
            for (uint32_t time = 0; time < times; ++time) {
                AscendC::Muls(factors[time * pitch_], parts, scale_, ranks);
            }
            PipeBarrier<PIPE_V>();
            parts_.FreeTensor(parts);
        }
    }
    // The tile's outputs for each row, to its sums from `start` on.
    __aicore__ inline void Multiply(
        const LocalTensor<float>& tile, uint32_t start, uint32_t rows, uint32_t n)
    {
        if (tree_) {
            const uint32_t whole = CeilDiv(n, kFewOutputs) * kFewOutputs;
            if (n < whole) {
                AscendC::Duplicate(
                    tile[n * pitch_], 0.0f, static_cast<int32_t>((whole - n) * pitch_));
                PipeBarrier<PIPE_V>();
            }
            n = whole;
        }
        for (uint32_t i = 0; i < rows; ++i) {
            const LocalTensor<float> factors = factors_.Get<float>()[i * kLoraMaxRank];
            const LocalTensor<float> to = sums_.Get<float>()[i * kLoraOutputs + start];
            if (tree_) {
                MultiplyShort(to, tile, factors, n);
            } else {
                MultiplyLong(to, tile, factors, n);
            }
        }
    }
    // Ranks of 8, 16 or 32: a repeat holds several outputs. `n` is a multiple of kFewOutputs.
    __aicore__ inline void MultiplyShort(
        const LocalTensor<float>& to, const LocalTensor<float>& tile,
        const LocalTensor<float>& factors, uint32_t n)
    {
        const LocalTensor<float> products = products_.Get<float>();
        const LocalTensor<float> eights = partial_.Get<float>();
        const LocalTensor<float> pairs = eights[kPartial];
        const int32_t repeats = static_cast<int32_t>(n * pitch_ / kRepeat);
        AscendC::Mul(
            products, tile, factors, static_cast<uint64_t>(kRepeat),
            static_cast<uint8_t>(repeats), BinaryRepeatParams(1, 1, 1, 8, 8, 0));
        PipeBarrier<PIPE_V>();
        AscendC::ReduceDataBlock<ReduceType::SUM, float, float>(
            pitch_ == 8 ? to : eights, products, kRepeat, repeats, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        if (pitch_ == 32) {
            AscendC::ReducePairElem<ReduceType::SUM, float, float>(
                pairs, eights, kRepeat, static_cast<int32_t>(4 * n / kRepeat), 1, 1, 8);
            PipeBarrier<PIPE_V>();
        }
        if (pitch_ > 8) {
            AscendC::ReducePairElem<ReduceType::SUM, float, float>(
                to, pitch_ == 32 ? pairs : eights, kRepeat,
                static_cast<int32_t>(2 * n / kRepeat), 1, 1, 8);
            PipeBarrier<PIPE_V>();
        }
    }
    // Other ranks, kRepeat of an output's products at a time, the sums of those in order.
    __aicore__ inline void MultiplyLong(
        const LocalTensor<float>& to, const LocalTensor<float>& tile,
        const LocalTensor<float>& factors, uint32_t n)
    {
        const LocalTensor<float> products = products_.Get<float>();
        const LocalTensor<float> further = partial_.Get<float>();
        const uint8_t stride = static_cast<uint8_t>(pitch_ / kLoraLane);
        const BinaryRepeatParams params(1, 1, 1, stride, stride, 0);
        for (uint32_t at = 0; at < pitch_; at += kRepeat) {
            AscendC::Mul(
                products[at], tile[at], factors[at],
                static_cast<uint64_t>(Least(kRepeat, pitch_ - at)), static_cast<uint8_t>(n),
                params);
        }
        PipeBarrier<PIPE_V>();
        for (uint32_t at = 0; at < pitch_; at += kRepeat) {
            AscendC::ReduceRepeat<ReduceType::SUM, float, float>(
                at == 0 ? to : further[(at / kRepeat - 1) * kFurther], products[at],
                static_cast<int32_t>(Least(kRepeat, pitch_ - at)), static_cast<int32_t>(n), 1, 1,
                stride);
        }
        PipeBarrier<PIPE_V>();
        for (uint32_t at = kRepeat; at < pitch_; at += kRepeat) {
            AscendC::Add(
                to, to, further[(at / kRepeat - 1) * kFurther], static_cast<int32_t>(n));
            PipeBarrier<PIPE_V>();
        }
    }
    __aicore__ inline uint64_t PlaceInY(const Step& step, uint32_t i)
    {
        return groups_.Row(step.group, i) * yStride_ + step.column;
    }
    __aicore__ inline void LoadY(const Step& step, uint32_t i)
    {
        const LocalTensor<T> y = yIn_.template AllocTensor<T>();
        Load(y, y_, PlaceInY(step, i), step.count);
        yIn_.EnQue(y);
    }
    __aicore__ inline void AddTo(const Step& step, uint32_t i)
    {
        const int32_t count = static_cast<int32_t>(step.count);
        const LocalTensor<float> sums = sums_.Get<float>()[i * kLoraOutputs];
        LocalTensor<T> y = yIn_.template DeQue<T>();
        LocalTensor<T> out = yOut_.template AllocTensor<T>();
        if constexpr (kWiden) {
            const LocalTensor<float> wide = wideY_.Get<float>();
            AscendC::Cast(wide, y, AscendC::RoundMode::CAST_NONE, step.count);
            PipeBarrier<PIPE_V>();
            AscendC::Add(wide, wide, sums, count);
            PipeBarrier<PIPE_V>();
            AscendC::Cast(out, wide, AscendC::RoundMode::CAST_RINT, step.count);
        } else {
            AscendC::Add(out, y, sums, count);
        }
        PipeBarrier<PIPE_V>();
        yIn_.FreeTensor(y);
        yOut_.EnQue(out);
        out = yOut_.template DeQue<T>();
        Store(y_, PlaceInY(step, i), out, step.count);
        yOut_.FreeTensor(out);
    }

    static constexpr uint32_t kFurther = 256;

    Call call_;
    GM_ADDR y_;
    uint64_t yStride_;
    uint32_t widths_[kLoraSlices];
    uint32_t outputs_;
    float scale_;
    uint32_t pieces_;
    bool dense_;
    uint32_t pitch_;     // of an output's ranks, in UB
    bool tree_;          // whether MultiplyShort takes them
    uint32_t tileRows_;  // outputs of a tile
    Groups groups_;
    TQue<TPosition::VECIN, 2> in_;
    TBuf<TPosition::VECCALC> wide_;
    TBuf<TPosition::VECCALC> wideY_;
    TBuf<TPosition::VECCALC> products_;
    TBuf<TPosition::VECCALC> partial_;
    TQue<TPosition::VECIN, 2> parts_;
    TBuf<TPosition::VECCALC> factors_;
    TBuf<TPosition::VECCALC> sums_;
    TQue<TPosition::VECIN, 2> yIn_;
    TQue<TPosition::VECOUT, 2> yOut_;
};

}  // namespace
}  // namespace vllm_cold

#define VLLM_COLD_LORA_PARAMETERS                                                              \
    GM_ADDR indices, GM_ADDR weights0, GM_ADDR weights1, GM_ADDR weights2, GM_ADDR weights3,   \
        GM_ADDR sums, uint32_t rows, uint32_t slices, uint32_t adapters, uint32_t rank,        \
        uint32_t rankPitch, uint32_t parts

#define VLLM_COLD_LORA_CALL                                                                    \
    vllm_cold::Call                                                                            \
    {                                                                                          \
        indices, {weights0, weights1, weights2, weights3}, sums, rows, slices, adapters, rank, \
            rankPitch, parts                                                                   \
    }

#define VLLM_COLD_LORA_KERNELS(T)                                                              \
    extern "C" __global__ __aicore__ void lora_shrink_##T(                                     \
        VLLM_COLD_LORA_PARAMETERS, GM_ADDR x, uint64_t xStride, uint32_t length,               \
        uint32_t partLength, uint32_t rankChunk)                                               \
    {                                                                                          \
        KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                        \
        const vllm_cold::Call call = VLLM_COLD_LORA_CALL;                                      \
        vllm_cold::Shrink<T> kernel;                                                           \
        kernel.Run(call, x, xStride, length, partLength, rankChunk);                           \
    }                                                                                          \
    extern "C" __global__ __aicore__ void lora_expand_##T(                                     \
        VLLM_COLD_LORA_PARAMETERS, GM_ADDR y, uint64_t yStride, uint32_t width0,               \
        uint32_t width1, uint32_t width2, uint32_t width3, uint32_t outputs, float scale)      \
    {                                                                                          \
        KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                        \
        const vllm_cold::Call call = VLLM_COLD_LORA_CALL;                                      \
        const uint32_t widths[vllm_cold::kLoraSlices] = {width0, width1, width2, width3};      \
        vllm_cold::Expand<T> kernel;                                                           \
        kernel.Run(call, y, yStride, widths, outputs, scale);                                  \
    }

VLLM_COLD_LORA_KERNELS(float)
VLLM_COLD_LORA_KERNELS(half)
VLLM_COLD_LORA_KERNELS(bfloat16_t)

namespace vllm_cold {

#define VLLM_COLD_LORA_ARGUMENTS(c, weights)                                                   \
    (c).indices, (c).weights[0], (c).weights[1], (c).weights[2], (c).weights[3], (c).sums,     \
        (c).rows, (c).slices, (c).adapters, (c).rank, (c).plan.rankPitch, (c).plan.parts

#define VLLM_COLD_LAUNCH_LORA(T, c, stream)                                                    \
    do {                                                                                       \
        VLLM_COLD_LAUNCH(lora_shrink_##T, (c).plan.shrinkBlocks, stream,                       \
                         VLLM_COLD_LORA_ARGUMENTS(c, a), (c).x, (c).xStride, (c).length,       \
                         (c).plan.partLength, (c).plan.rankChunk);                             \
        VLLM_COLD_LAUNCH(lora_expand_##T, (c).plan.expandBlocks, stream,                       \
                         VLLM_COLD_LORA_ARGUMENTS(c, b), (c).y, (c).yStride, (c).outputs[0],   \
                         (c).outputs[1], (c).outputs[2], (c).outputs[3], (c).plan.outputs,     \
                         (c).scale);                                                           \
    } while (0)

void LaunchLora(const LoraCall& call, void* stream)
{
    if (call.type == LoraType::kFloat) {
        VLLM_COLD_LAUNCH_LORA(float, call, stream);
    } else if (call.type == LoraType::kHalf) {
        VLLM_COLD_LAUNCH_LORA(half, call, stream);
    } else {
        VLLM_COLD_LAUNCH_LORA(bfloat16_t, call, stream);
    }
}

}  // namespace vllm_cold
