// SPDX-License-Identifier: Apache-2.0
// Contrastive scoring in AscendC, for Atlas A2/A3 (vector cores only).
//
//   s = e + sum_i w_i * (a_i - e)   where e >= max(max(e) + log_alpha, -FLT_MAX, floor),
//                                   -inf elsewhere
//
// with an expert's row e and those of its amateurs a_i, taken for 0 where they are -inf. Amateurs
// are added in order; each difference and each sum is kept within +-FLT_MAX. A row is cut into
// segments (contrastive_scoring.h), a segment into tiles of kTile float32 values:
//
//   K1  maxima    each expert segment's maximum                -> workspace
//   K2  scores    threshold, scores                            -> out, or the expert's row
//   K3  total     what K2 counted in a group's segments        -> statistics
//
// With one segment a row, K2 takes the maximum itself and writes its results: one launch.
// NaN or +inf in a row of a group stops nothing: the group's scores are finite or -inf all the
// same, and the statistics, if they are wanted, say so. The maximum of an expert segment that holds
// any is +inf: so K2 knows. It then takes what is not <= FLT_MAX for 0, and every token above -inf
// is valid. In an amateur's row NaN and +inf count as 0, like -inf.
// Nor does a row number out of range stop anything: no token of the group is valid then, no memory
// besides the logits is accessed, and the statistics say so. In place, the expert's row stays as it
// is: it may be sampled from before anybody looks at the statistics.
//
// What a group's loads do not depend on is read while they are on their way.
// Every helper leaves the vector pipe behind a barrier: what it wrote may be read by the next.
#include "kernel_operator.h"

#include "contrastive_scoring.h"
#include "kernel_common.h"

namespace vllm_cold {
namespace {

constexpr float kLargest = 3.4028234663852886e38f;
constexpr float kInf = __builtin_inff();
constexpr float kNegInf = -kInf;
constexpr uint32_t kRepeatBytes = 256;                        // Sort32 aligns to it, so buffers do
constexpr uint32_t kFloatsPerBlock = kBlockBytes / sizeof(float);
constexpr uint32_t kSlotFloats = kSlotBytes / sizeof(float);
constexpr uint32_t kSlotWords = kSlotBytes / sizeof(int32_t);
constexpr uint32_t kMaskWords = kTile / 16;                   // one bit a value, in uint16_t
constexpr int64_t kNoRow = -1;                                // where a group has no amateur

// A value that the vector pipe wrote; it may write there again afterwards.
template <typename T>
__aicore__ inline T Read(const LocalTensor<T>& tensor, uint32_t index)
{
    Sync<HardEvent::V_S>();
    const T value = tensor.GetValue(index);
    Sync<HardEvent::S_V>();
    return value;
}

// The work of a launch: segments of groups, dealt to the blocks in turn.
struct Work {
    uint32_t groups;
    uint32_t vocab;
    uint32_t segments;
    uint32_t segmentLength;

    __aicore__ inline uint64_t Items() const
    {
        return static_cast<uint64_t>(groups) * segments;
    }
    __aicore__ inline uint32_t Begin(uint64_t item) const
    {
        return static_cast<uint32_t>(item % segments) * segmentLength;
    }
    __aicore__ inline uint32_t End(uint64_t item) const
    {
        return Least(vocab - Begin(item), segmentLength) + Begin(item);
    }
};

// The rows of the logits.
template <typename T>
struct Logits {
    GM_ADDR base;
    uint32_t rows;
    uint32_t vocab;
    uint64_t stride;

    __aicore__ inline bool Has(int64_t number) const
    {
        return number >= 0 && number < static_cast<int64_t>(rows);
    }
    // Of a number that it has.
    __aicore__ inline GlobalTensor<T> Row(int64_t number) const
    {
        GlobalTensor<T> row;
        row.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(base) + number * stride, vocab);
        return row;
    }
};

// One of the row numbers, weights and other settings.
template <typename T>
__aicore__ inline T Setting(GM_ADDR values, uint64_t index)
{
    GlobalTensor<T> value;
    value.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(values) + index, 1);
    return value.GetValue(0);
}

// Tiles of a row as float32, the next one loading while this one is worked on. Behind a tail of
// n < kTile values a tile holds -inf.
template <typename T>
class TileReader {
public:
    __aicore__ inline void Init(TPipe* pipe)
    {
        pipe->InitBuffer(raw_, kLoads, kTile * sizeof(T));
        if constexpr (kWiden) {
            pipe->InitBuffer(wide_, kTile * sizeof(float));
        }
    }

    __aicore__ inline void Load(const GlobalTensor<T>& row, uint32_t start, uint32_t n)
    {
        LocalTensor<T> tile = raw_.template AllocTensor<T>();
        DataCopyPadExtParams<T> padding;  // 16 bits: whatever; only n values are cast
        if constexpr (!kWiden) {
            const uint32_t over = n % kFloatsPerBlock;
            const uint32_t right = over == 0 ? 0 : kFloatsPerBlock - over;
            padding = DataCopyPadExtParams<T>(true, 0, static_cast<uint8_t>(right), kNegInf);
        }
        const DataCopyExtParams params(1, n * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);
        AscendC::DataCopyPad(tile, row[start], params, padding);
        raw_.EnQue(tile);
    }

    // The tile that was loaded first, n values long. Release() it.
    __aicore__ inline LocalTensor<float> Take(uint32_t n)
    {
        tile_ = raw_.template DeQue<T>();
        if constexpr (kWiden) {
            LocalTensor<float> wide = wide_.template Get<float>();
            if (n < kTile) {
                AscendC::Duplicate(wide, kNegInf, static_cast<int32_t>(kTile));
                PipeBarrier<PIPE_V>();
            }
            AscendC::Cast(wide, tile_, AscendC::RoundMode::CAST_NONE, n);
            PipeBarrier<PIPE_V>();
            return wide;
        } else {
            const uint32_t padded = (n + kFloatsPerBlock - 1) / kFloatsPerBlock * kFloatsPerBlock;
            if (padded < kTile) {
                AscendC::Duplicate(tile_[padded], kNegInf, static_cast<int32_t>(kTile - padded));
                PipeBarrier<PIPE_V>();
            }
            return tile_;
        }
    }
    __aicore__ inline void Release()
    {
        raw_.FreeTensor(tile_);
    }

private:
    static constexpr bool kWiden = sizeof(T) < sizeof(float);
    static constexpr uint32_t kLoads = 2;

    TQue<TPosition::VECIN, kLoads> raw_;
    TBuf<TPosition::VECCALC> wide_;
    LocalTensor<T> tile_;
};

// Buffers that several steps use one after the other.
class Scratch {
public:
    __aicore__ inline void Init(TPipe* pipe)
    {
        pipe->InitBuffer(mask_, kTile / 8);
        pipe->InitBuffer(reduce_, kTile / 64 * 2 * sizeof(float) + kRepeatBytes);
        pipe->InitBuffer(scalar_, kRepeatBytes);
    }
    // Bit i tells whether value i compares.
    __aicore__ inline LocalTensor<uint8_t> Compare(
        const LocalTensor<float>& tile, float value, AscendC::CMPMODE mode)
    {
        LocalTensor<uint8_t> mask = mask_.Get<uint8_t>();
        AscendC::Compares(mask, tile, value, mode, kTile);
        PipeBarrier<PIPE_V>();
        return mask;
    }
    __aicore__ inline float Largest(const LocalTensor<float>& values, uint32_t count)
    {
        LocalTensor<float> largest = scalar_.Get<float>();
        AscendC::ReduceMax(
            largest, values, reduce_.Get<float>(), static_cast<int32_t>(count), false);
        return Read(largest, 0);
    }
    // The largest value of a tile, and where: the first of them.
    __aicore__ inline float LargestAt(const LocalTensor<float>& tile, uint32_t& index)
    {
        LocalTensor<float> largest = scalar_.Get<float>();
        AscendC::ReduceMax(
            largest, tile, reduce_.Get<float>(), static_cast<int32_t>(kTile), true);
        Sync<HardEvent::V_S>();
        index = largest.ReinterpretCast<uint32_t>().GetValue(1);
        const float value = largest.GetValue(0);
        Sync<HardEvent::S_V>();
        return value;
    }
    __aicore__ inline void Choose(
        const LocalTensor<float>& to, const LocalTensor<uint8_t>& mask,
        const LocalTensor<float>& from, float otherwise)
    {
        AscendC::Select(
            to, mask, from, otherwise, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE, kTile);
        PipeBarrier<PIPE_V>();
    }

private:
    TBuf<TPosition::VECCALC> mask_;
    TBuf<TPosition::VECCALC> reduce_;
    TBuf<TPosition::VECCALC> scalar_;
};

// Whether all logits it was shown are neither NaN nor +inf. A comparison with NaN is false.
class Guard {
public:
    __aicore__ inline void Init(TPipe* pipe, Scratch* scratch)
    {
        scratch_ = scratch;
        pipe->InitBuffer(good_, kMaskWords * sizeof(uint16_t));
        pipe->InitBuffer(below_, kMaskWords * sizeof(uint16_t));
    }
    __aicore__ inline void Reset()
    {
        LocalTensor<uint16_t> good = good_.Get<uint16_t>();
        AscendC::Duplicate(good, static_cast<uint16_t>(0xFFFF), static_cast<int32_t>(kMaskWords));
        PipeBarrier<PIPE_V>();
    }
    // The mask says which values are <= FLT_MAX.
    __aicore__ inline LocalTensor<uint8_t> Watch(const LocalTensor<float>& tile)
    {
        LocalTensor<uint16_t> good = good_.Get<uint16_t>();
        LocalTensor<uint8_t> mask = scratch_->Compare(tile, kLargest, AscendC::CMPMODE::LE);
        AscendC::And(
            good, good, mask.ReinterpretCast<uint16_t>(), static_cast<int32_t>(kMaskWords));
        PipeBarrier<PIPE_V>();
        return mask;
    }
    // Likewise, which values are finite: -inf is not.
    __aicore__ inline LocalTensor<uint8_t> WatchFinite(const LocalTensor<float>& tile)
    {
        constexpr int32_t words = kMaskWords;
        LocalTensor<uint16_t> below = below_.Get<uint16_t>();
        LocalTensor<uint16_t> mask = Watch(tile).ReinterpretCast<uint16_t>();
        AscendC::And(below, mask, mask, words);  // a copy
        PipeBarrier<PIPE_V>();
        scratch_->Compare(tile, -kLargest, AscendC::CMPMODE::GE);  // to the same mask
        AscendC::And(mask, mask, below, words);
        PipeBarrier<PIPE_V>();
        return mask.ReinterpretCast<uint8_t>();
    }
    // Reset() it before it watches again.
    __aicore__ inline bool AllGood()
    {
        LocalTensor<uint16_t> good = good_.Get<uint16_t>();
        for (uint32_t n = kMaskWords / 2; n >= kBlockBytes / sizeof(uint16_t); n /= 2) {
            AscendC::And(good, good, good[n], static_cast<int32_t>(n));
            PipeBarrier<PIPE_V>();
        }
        LocalTensor<uint32_t> words = good.ReinterpretCast<uint32_t>();
        uint32_t all = 0xFFFFFFFFu;
        Sync<HardEvent::V_S>();
        for (uint32_t i = 0; i < kBlockBytes / sizeof(uint32_t); ++i) {
            all &= words.GetValue(i);
        }
        Sync<HardEvent::S_V>();
        return all == 0xFFFFFFFFu;
    }

private:
    Scratch* scratch_;
    TBuf<TPosition::VECCALC> good_;
    TBuf<TPosition::VECCALC> below_;
};

// The largest logit between begin and end of an expert row; +inf if NaN or +inf is among them.
template <typename T>
class Maximum {
public:
    __aicore__ inline void Init(TPipe* pipe, Scratch* scratch, Guard* guard, TileReader<T>* reader)
    {
        scratch_ = scratch;
        guard_ = guard;
        reader_ = reader;
        pipe->InitBuffer(lanes_, kTile * sizeof(float));
    }
    // Loads the first tile. Find() is next.
    __aicore__ inline void Start(const GlobalTensor<T>& row, uint32_t begin, uint32_t end)
    {
        row_ = row;
        begin_ = begin;
        end_ = end;
        reader_->Load(row, begin, Least(kTile, end - begin));
    }
    __aicore__ inline float Find()
    {
        LocalTensor<float> lanes = lanes_.Get<float>();
        guard_->Reset();
        AscendC::Duplicate(lanes, kNegInf, static_cast<int32_t>(kTile));
        PipeBarrier<PIPE_V>();
        for (uint32_t start = begin_; start < end_; start += kTile) {
            if (end_ - start > kTile) {
                reader_->Load(row_, start + kTile, Least(kTile, end_ - start - kTile));
            }
            LocalTensor<float> tile = reader_->Take(Least(kTile, end_ - start));
            guard_->Watch(tile);
            AscendC::Max(lanes, lanes, tile, static_cast<int32_t>(kTile));
            PipeBarrier<PIPE_V>();
            reader_->Release();
        }
        const bool good = guard_->AllGood();
        const float largest = scratch_->Largest(lanes, kTile);  // of NaN: anything
        return good ? largest : kInf;
    }

private:
    Scratch* scratch_;
    Guard* guard_;
    TileReader<T>* reader_;
    TBuf<TPosition::VECCALC> lanes_;
    GlobalTensor<T> row_;
    uint32_t begin_;
    uint32_t end_;
};

// Where groups' inputs lie; a kernel's first arguments.
template <typename T>
struct Groups {
    Logits<T> logits;
    GM_ADDR rows;
    GM_ADDR weights;
    GM_ADDR logAlpha;
    GM_ADDR floor;
    GM_ADDR maxima;
    uint32_t streams;
    Work work;
    bool counts;  // whether statistics are wanted

    // The number of its expert's row.
    __aicore__ inline int64_t Expert(uint32_t group) const
    {
        return Setting<int64_t>(rows, static_cast<uint64_t>(group) * streams);
    }
};

// A segment's maximum, to the workspace.
class SlotWriter {
public:
    __aicore__ inline void Init(TPipe* pipe, GM_ADDR maxima, uint64_t items)
    {
        pipe->InitBuffer(slots_, 1, kRepeatBytes);
        out_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(maxima), items * kSlotFloats);
    }
    __aicore__ inline void Write(float largest, uint64_t item)
    {
        LocalTensor<float> slot = slots_.AllocTensor<float>();
        AscendC::Duplicate(slot, largest, static_cast<int32_t>(kSlotFloats));
        slots_.EnQue(slot);
        slot = slots_.DeQue<float>();
        const DataCopyExtParams params(1, kSlotBytes, 0, 0, 0);
        AscendC::DataCopyPad(out_[item * kSlotFloats], slot, params);
        slots_.FreeTensor(slot);
    }

private:
    TQue<TPosition::VECOUT, 1> slots_;
    GlobalTensor<float> out_;
};

// K1.
template <typename T>
class Maxima {
public:
    __aicore__ inline void Run(const Groups<T>& groups)
    {
        const Work& work = groups.work;
        const NotFiniteKept<T> kept;
        TPipe pipe;
        scratch_.Init(&pipe);
        guard_.Init(&pipe, &scratch_);
        reader_.Init(&pipe);
        maximum_.Init(&pipe, &scratch_, &guard_, &reader_);
        writer_.Init(&pipe, groups.maxima, work.Items());
        for (uint64_t item = AscendC::GetBlockIdx(); item < work.Items();
             item += AscendC::GetBlockNum()) {
            const uint32_t group = static_cast<uint32_t>(item / work.segments);
            const int64_t number = groups.Expert(group);
            float largest = kNegInf;  // if there is no such row: not read
            if (groups.logits.Has(number)) {
                maximum_.Start(groups.logits.Row(number), work.Begin(item), work.End(item));
                largest = maximum_.Find();
            }
            writer_.Write(largest, item);
        }
    }

private:
    Scratch scratch_;
    Guard guard_;
    TileReader<T> reader_;
    Maximum<T> maximum_;
    SlotWriter writer_;
};

// A group's threshold, and the scores of its tiles.
template <typename T>
class Scorer {
public:
    __aicore__ inline void Init(TPipe* pipe, const Groups<T>& groups)
    {
        groups_ = groups;
        scratch_.Init(pipe);
        guard_.Init(pipe, &scratch_);
        expert_.Init(pipe);
        amateur_.Init(pipe);
        if (groups_.work.segments == 1) {
            maximum_.Init(pipe, &scratch_, &guard_, &expert_);
        }
        if (groups_.work.segments > 1) {
            pipe->InitBuffer(slots_, 1, kMaxSegments * kSlotBytes);
        }
    }

    // Readies the first tiles of a segment, if there is such an expert's row.
    __aicore__ inline void Start(uint64_t item)
    {
        const Work& work = groups_.work;
        const uint32_t group = static_cast<uint32_t>(item / work.segments);
        begin_ = work.Begin(item);
        end_ = work.End(item);
        start_ = begin_;
        const int64_t number = groups_.Expert(group);
        hasExpert_ = groups_.logits.Has(number);
        inRange_ = hasExpert_;
        if (!hasExpert_) {
            return;
        }
        expertRow_ = groups_.logits.Row(number);
        if (work.segments == 1) {
            maximum_.Start(expertRow_, begin_, end_);
        } else {
            Load(expert_, expertRow_, begin_);
            LoadSlots(group);
        }
        FindAmateurs(group);
        threshold_ = Threshold(group);
        if (work.segments == 1) {
            Load(expert_, expertRow_, begin_);
        }
        guard_.Reset();
    }
    // Readies the same segment of the amateurs alone. End each of its tiles with Advance().
    __aicore__ inline void StartAmateurs()
    {
        start_ = begin_;
        guard_.Reset();
        if (amateurs_ > 0) {
            LoadAmateur(0, start_);
        }
    }
    __aicore__ inline bool HasExpert() const
    {
        return hasExpert_;
    }
    __aicore__ inline GlobalTensor<T> ExpertRow() const
    {
        return expertRow_;
    }
    __aicore__ inline uint32_t Vocab() const
    {
        return groups_.work.vocab;
    }
    // Whether there are rows of all the group's numbers.
    __aicore__ inline bool InRange() const
    {
        return inRange_;
    }
    __aicore__ inline bool Done() const
    {
        return start_ >= end_;
    }
    __aicore__ inline uint32_t Position() const
    {
        return start_;
    }
    __aicore__ inline uint32_t Count() const
    {
        return Least(kTile, end_ - start_);
    }
    // The expert's tile at Position(), with the next one on its way.
    __aicore__ inline LocalTensor<float> Take()
    {
        if (end_ - start_ > kTile) {
            Load(expert_, expertRow_, start_ + kTile);
        }
        LocalTensor<float> expert = expert_.Take(Count());
        if (!expertGood_) {
            scratch_.Choose(
                expert, scratch_.Compare(expert, kLargest, AscendC::CMPMODE::LE), expert, 0.0f);
        }
        return expert;
    }
    // An amateur's tile at Position(), with the next amateur's, or the first one's next one, on its
    // way. To be taken in order, each released before the next.
    __aicore__ inline LocalTensor<float> TakeAmateur(uint32_t amateur)
    {
        if (amateur + 1 < amateurs_) {
            LoadAmateur(amateur + 1, start_);
        } else if (end_ - start_ > kTile) {
            LoadAmateur(0, start_ + kTile);
        }
        return amateur_.Take(Count());
    }
    __aicore__ inline void ReleaseAmateur()
    {
        amateur_.Release();
    }
    // How many the group has.
    __aicore__ inline uint32_t Amateurs() const
    {
        return amateurs_;
    }
    // Whether the only one is the expert's row again: in place, that holds scores when Done.
    __aicore__ inline bool Masked(uint32_t group) const
    {
        return amateurs_ == 1 && numbers_[0] == groups_.Expert(group);
    }
    __aicore__ inline GlobalTensor<T> AmateurRow(uint32_t amateur) const
    {
        return groups_.logits.Row(numbers_[amateur]);
    }
    // From the expert's tile, and those of the amateurs, which it takes.
    __aicore__ inline void Score(
        const LocalTensor<float>& scores, const LocalTensor<float>& expert)
    {
        constexpr int32_t count = kTile;
        // A copy, of -inf the least: it is not valid, but an infinite product would make it NaN.
        AscendC::Maxs(scores, expert, -kLargest, count);
        PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < amateurs_; ++i) {
            LocalTensor<float> amateur = TakeAmateur(i);
            Finite(amateur, amateur);
            AscendC::Sub(amateur, expert, amateur, count);
            PipeBarrier<PIPE_V>();
            Saturate(amateur);
            AscendC::Muls(amateur, amateur, -weights_[i], count);
            PipeBarrier<PIPE_V>();
            AscendC::Add(scores, scores, amateur, count);
            PipeBarrier<PIPE_V>();
            Saturate(scores);
            ReleaseAmateur();
        }
        const LocalTensor<uint8_t> valid =
            scratch_.Compare(expert, threshold_, AscendC::CMPMODE::GE);
        scratch_.Choose(scores, valid, scores, kNegInf);
    }
    // What is not finite becomes 0; `to` may be the same tile.
    __aicore__ inline void Finite(const LocalTensor<float>& to, const LocalTensor<float>& from)
    {
        scratch_.Choose(to, guard_.WatchFinite(from), from, 0.0f);
    }
    // Ends with the tile at Position().
    __aicore__ inline void Next()
    {
        expert_.Release();
        Advance();
    }
    __aicore__ inline void Advance()
    {
        start_ += Count();
    }
    // Whether the group's expert row, or this segment of its amateurs', holds NaN or +inf. To be
    // asked once, when Done, of a group that has an expert.
    __aicore__ inline bool NotFinite()
    {
        const bool amateursGood = guard_.AllGood();
        return !(expertGood_ && amateursGood);
    }
    __aicore__ inline Scratch* Shared()
    {
        return &scratch_;
    }

private:
    __aicore__ inline void Load(TileReader<T>& reader, const GlobalTensor<T>& row, uint32_t start)
    {
        reader.Load(row, start, Least(kTile, end_ - start));
    }
    __aicore__ inline void LoadAmateur(uint32_t amateur, uint32_t start)
    {
        Load(amateur_, AmateurRow(amateur), start);
    }
    // And loads the first one's first tile.
    __aicore__ inline void FindAmateurs(uint32_t group)
    {
        const uint64_t places = groups_.streams - 1;
        amateurs_ = 0;
        for (uint64_t i = 0; i < places; ++i) {
            const int64_t number = Setting<int64_t>(groups_.rows, group * (places + 1) + 1 + i);
            if (number == kNoRow) {
                continue;
            }
            if (!groups_.logits.Has(number)) {
                inRange_ = false;
                continue;
            }
            numbers_[amateurs_] = number;
            if (amateurs_ == 0) {
                LoadAmateur(0, start_);
            }
            const float weight = Setting<float>(groups_.weights, group * places + i);
            const bool finite = weight >= -kLargest && weight <= kLargest;
            weights_[amateurs_] = finite ? weight : 0.0f;
            ++amateurs_;
        }
    }
    // From what Start() has loaded.
    __aicore__ inline float Threshold(uint32_t group)
    {
        const float logAlpha = Setting<float>(groups_.logAlpha, group);
        const float floor =
            groups_.floor != nullptr ? Setting<float>(groups_.floor, group) : kNegInf;
        const float largest = groups_.work.segments == 1 ? maximum_.Find() : LargestOfSlots();
        expertGood_ = largest <= kLargest;
        if (!inRange_) {
            return kInf;  // which no logit is by then
        }
        float threshold = largest + logAlpha;
        threshold = floor > threshold ? floor : threshold;
        // -inf is never valid.
        return expertGood_ && threshold > -kLargest ? threshold : -kLargest;
    }
    __aicore__ inline void LoadSlots(uint32_t group)
    {
        const uint32_t used = groups_.work.segments * kSlotFloats;
        GlobalTensor<float> maxima;
        maxima.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(groups_.maxima) +
                                   static_cast<uint64_t>(group) * used, used);
        LocalTensor<float> slots = slots_.template AllocTensor<float>();
        const DataCopyExtParams params(1, used * static_cast<uint32_t>(sizeof(float)), 0, 0, 0);
        AscendC::DataCopyPad(slots, maxima, params, DataCopyPadExtParams<float>());
        slots_.EnQue(slots);
    }
    __aicore__ inline float LargestOfSlots()
    {
        constexpr uint32_t all = kMaxSegments * kSlotFloats;
        const uint32_t used = groups_.work.segments * kSlotFloats;
        LocalTensor<float> slots = slots_.template DeQue<float>();
        if (used < all) {
            AscendC::Duplicate(slots[used], kNegInf, static_cast<int32_t>(all - used));
            PipeBarrier<PIPE_V>();
        }
        const float largest = scratch_.Largest(slots, all);
        slots_.FreeTensor(slots);
        return largest;
    }
    __aicore__ inline void Saturate(const LocalTensor<float>& tile)
    {
        AscendC::Maxs(tile, tile, -kLargest, static_cast<int32_t>(kTile));
        PipeBarrier<PIPE_V>();
        AscendC::Mins(tile, tile, kLargest, static_cast<int32_t>(kTile));
        PipeBarrier<PIPE_V>();
    }

    Groups<T> groups_;
    Scratch scratch_;
    Guard guard_;
    TileReader<T> expert_;
    TileReader<T> amateur_;
    Maximum<T> maximum_;
    TQue<TPosition::VECIN, 1> slots_;
    GlobalTensor<T> expertRow_;
    uint32_t amateurs_;
    int64_t numbers_[kMaxAmateurs];  // of the amateurs' rows
    float weights_[kMaxAmateurs];
    float threshold_;
    bool hasExpert_;
    bool inRange_;
    bool expertGood_;
    uint32_t begin_;
    uint32_t start_;
    uint32_t end_;
};

// What the statistics of a group are made of, for a segment or several.
struct Count {
    uint32_t fault;  // 0, kNotFinite or kOutOfRange
    uint32_t valid;
    float expert;  // the largest logit
    uint32_t expertId;
    float score;  // the best one
    uint32_t scoreId;
};

// Counts in the tiles of a segment.
class Counter {
public:
    __aicore__ inline void Init(TPipe* pipe, Scratch* scratch)
    {
        scratch_ = scratch;
        pipe->InitBuffer(lanes_, kTile * sizeof(float));
    }
    __aicore__ inline void Reset(uint32_t begin)
    {
        AscendC::Duplicate(lanes_.Get<float>(), 0.0f, static_cast<int32_t>(kTile));
        PipeBarrier<PIPE_V>();
        count_ = Count{0, 0, kNegInf, begin, kNegInf, begin};
    }
    // Of the tile that starts at token `start`; writes over `expert`.
    __aicore__ inline void Watch(
        const LocalTensor<float>& scores, const LocalTensor<float>& expert, uint32_t start)
    {
        constexpr int32_t count = kTile;
        LocalTensor<float> lanes = lanes_.Get<float>();
        RaiseTo(expert, expert, start, count_.expert, count_.expertId);
        const LocalTensor<float>& spare = expert;
        RaiseTo(scores, spare, start, count_.score, count_.scoreId);
        AscendC::Duplicate(spare, 1.0f, count);
        PipeBarrier<PIPE_V>();
        const LocalTensor<uint8_t> valid =
            scratch_->Compare(scores, -kLargest, AscendC::CMPMODE::GE);
        scratch_->Choose(spare, valid, spare, 0.0f);
        AscendC::Add(lanes, lanes, spare, count);
        PipeBarrier<PIPE_V>();
    }
    // When the segment is done. Exact up to 2^24 valid tokens.
    __aicore__ inline Count Result(uint32_t fault)
    {
        LocalTensor<float> lanes = lanes_.Get<float>();
        for (uint32_t n = kTile / 2; n >= kFloatsPerBlock; n /= 2) {
            AscendC::Add(lanes, lanes, lanes[n], static_cast<int32_t>(n));
            PipeBarrier<PIPE_V>();
        }
        Sync<HardEvent::V_S>();
        for (uint32_t i = 0; i < kFloatsPerBlock; ++i) {
            count_.valid += static_cast<uint32_t>(lanes.GetValue(i));
        }
        Sync<HardEvent::S_V>();
        count_.fault = fault;
        return count_;
    }

private:
    __aicore__ inline void RaiseTo(
        const LocalTensor<float>& tile, const LocalTensor<float>& spare, uint32_t start,
        float& best, uint32_t& bestId)
    {
        // -0.0 becomes 0.0: the maximum might take them for different values.
        AscendC::Adds(spare, tile, 0.0f, static_cast<int32_t>(kTile));
        PipeBarrier<PIPE_V>();
        uint32_t index;
        const float largest = scratch_->LargestAt(spare, index);
        if (largest > best) {
            best = largest;
            bestId = start + index;
        }
    }

    Scratch* scratch_;
    TBuf<TPosition::VECCALC> lanes_;
    Count count_;
};

// Counts in global memory: of a segment, or of a group as its statistics.
class CountWriter {
public:
    __aicore__ inline void Init(TPipe* pipe)
    {
        pipe->InitBuffer(words_, 1, kSlotBytes);
    }
    __aicore__ inline void WriteSlot(const Count& count, GM_ADDR slots, uint64_t item)
    {
        LocalTensor<int32_t> words = Start();
        LocalTensor<float> values = words.ReinterpretCast<float>();
        words.SetValue(0, static_cast<int32_t>(count.fault));
        words.SetValue(1, static_cast<int32_t>(count.valid));
        values.SetValue(2, count.expert);
        words.SetValue(3, static_cast<int32_t>(count.expertId));
        values.SetValue(4, count.score);
        words.SetValue(5, static_cast<int32_t>(count.scoreId));
        words.SetValue(6, 0);
        words.SetValue(7, 0);
        Store(words, slots, item, kSlotWords);
    }
    // `words` counted what follows. An id is read only if it is wanted.
    __aicore__ static inline void Join(Count& count, const LocalTensor<int32_t>& words)
    {
        const uint32_t fault = static_cast<uint32_t>(words.GetValue(0));
        count.fault = fault > count.fault ? fault : count.fault;
        count.valid += static_cast<uint32_t>(words.GetValue(1));
        Raise(count.expert, count.expertId, words, 2);
        Raise(count.score, count.scoreId, words, 4);
    }
    // Three int64, of which these are the low halves.
    __aicore__ inline void WriteStatistics(const Count& count, GM_ADDR statistics, uint32_t group)
    {
        LocalTensor<int32_t> words = Start();
        words.SetValue(0, static_cast<int32_t>(count.valid));
        words.SetValue(2, count.expertId != count.scoreId ? 1 : 0);
        words.SetValue(4, static_cast<int32_t>(count.fault));
        for (uint32_t high = 1; high < kStatisticsWords; high += 2) {
            words.SetValue(high, 0);
        }
        Store(words, statistics, group, kStatisticsWords);
    }

private:
    static constexpr uint32_t kStatisticsWords = 6;

    __aicore__ static inline void Raise(
        float& best, uint32_t& bestId, const LocalTensor<int32_t>& words, uint32_t at)
    {
        const float value = words.ReinterpretCast<float>().GetValue(at);
        if (value > best) {
            best = value;
            bestId = static_cast<uint32_t>(words.GetValue(at + 1));
        }
    }
    __aicore__ inline LocalTensor<int32_t> Start()
    {
        LocalTensor<int32_t> words = words_.AllocTensor<int32_t>();
        Sync<HardEvent::V_S>();
        return words;
    }
    __aicore__ inline void Store(
        LocalTensor<int32_t> words, GM_ADDR to, uint64_t place, uint32_t count)
    {
        GlobalTensor<int32_t> out;
        out.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(to) + place * count, count);
        Sync<HardEvent::S_MTE3>();
        Sync<HardEvent::S_V>();
        words_.EnQue(words);
        words = words_.DeQue<int32_t>();
        const DataCopyExtParams params(1, count * 4, 0, 0, 0);
        AscendC::DataCopyPad(out, words, params);
        words_.FreeTensor(words);
    }

    TQue<TPosition::VECOUT, 1> words_;
};

// K2: to `out`, or over the expert's row of a group if that is null. Then what is not finite
// in the amateurs' rows of a group with NaN or +inf becomes 0, so that they can be sampled from.
template <typename T>
class Scores {
public:
    // `counted`: the statistics, or a place for each segment's counts if there are several.
    __aicore__ inline void Run(
        const Groups<T>& groups, GM_ADDR out, uint64_t outStride, GM_ADDR counted)
    {
        const NotFiniteKept<T> kept;
        TPipe pipe;
        scorer_.Init(&pipe, groups);
        pipe.InitBuffer(tiles_, 2, kTile * sizeof(float));
        if (groups.counts) {
            counter_.Init(&pipe, scorer_.Shared());
            writer_.Init(&pipe);
        }
        for (uint64_t item = AscendC::GetBlockIdx(); item < groups.work.Items();
             item += AscendC::GetBlockNum()) {
            const uint32_t group = static_cast<uint32_t>(item / groups.work.segments);
            scorer_.Start(item);
            if (groups.counts) {
                counter_.Reset(groups.work.Begin(item));
            }
            if (scorer_.HasExpert()) {
                const bool stored = out != nullptr || scorer_.InRange();
                StoreScores(groups, Target(group, out, outStride), stored);
            } else if (out != nullptr) {
                StoreNone(Target(group, out, outStride));
            }
            if (!groups.counts && out != nullptr) {
                continue;
            }
            const bool notFinite = scorer_.HasExpert() && scorer_.NotFinite();
            if constexpr (sizeof(T) == sizeof(float)) {
                if (notFinite && out == nullptr && !scorer_.Masked(group)) {
                    MakeSamplable();
                }
            }
            if (groups.counts) {
                const uint32_t fault = notFinite ? kNotFinite : 0;
                const Count count = counter_.Result(scorer_.InRange() ? fault : kOutOfRange);
                if (groups.work.segments == 1) {
                    writer_.WriteStatistics(count, counted, group);
                } else {
                    writer_.WriteSlot(count, counted, item);
                }
            }
        }
    }

private:
    __aicore__ inline GlobalTensor<float> Target(uint32_t group, GM_ADDR out, uint64_t outStride)
    {
        GlobalTensor<float> to;
        if (out != nullptr) {
            to.SetGlobalBuffer(
                reinterpret_cast<__gm__ float*>(out) + group * outStride, scorer_.Vocab());
        } else if constexpr (sizeof(T) == sizeof(float)) {
            to = scorer_.ExpertRow();
        }
        return to;
    }
    __aicore__ inline void StoreScores(
        const Groups<T>& groups, const GlobalTensor<float>& to, bool stored)
    {
        for (; !scorer_.Done(); scorer_.Next()) {
            const LocalTensor<float> expert = scorer_.Take();
            LocalTensor<float> scores = tiles_.AllocTensor<float>();
            scorer_.Score(scores, expert);
            if (groups.counts) {
                counter_.Watch(scores, expert, scorer_.Position());
            }
            Store(to, scores, stored);
        }
    }
    // The segment of a group of which the expert's number is out of range.
    __aicore__ inline void StoreNone(const GlobalTensor<float>& to)
    {
        for (; !scorer_.Done(); scorer_.Advance()) {
            LocalTensor<float> scores = tiles_.AllocTensor<float>();
            AscendC::Duplicate(scores, kNegInf, static_cast<int32_t>(kTile));
            Store(to, scores);
        }
    }
    // The segment once more, of the amateurs alone.
    __aicore__ inline void MakeSamplable()
    {
        for (scorer_.StartAmateurs(); !scorer_.Done(); scorer_.Advance()) {
            for (uint32_t i = 0; i < scorer_.Amateurs(); ++i) {
                const LocalTensor<float> found = scorer_.TakeAmateur(i);
                LocalTensor<float> mended = tiles_.AllocTensor<float>();
                scorer_.Finite(mended, found);
                scorer_.ReleaseAmateur();
                Store(scorer_.AmateurRow(i), mended);
            }
        }
    }
    // To its place in a row, if it is to be `stored`; frees it.
    __aicore__ inline void Store(
        const GlobalTensor<float>& row, LocalTensor<float> tile, bool stored = true)
    {
        tiles_.EnQue(tile);
        tile = tiles_.DeQue<float>();
        const uint32_t bytes = scorer_.Count() * static_cast<uint32_t>(sizeof(float));
        if (stored) {
            AscendC::DataCopyPad(
                row[scorer_.Position()], tile, DataCopyExtParams(1, bytes, 0, 0, 0));
        }
        tiles_.FreeTensor(tile);
    }

    Scorer<T> scorer_;
    Counter counter_;
    CountWriter writer_;
    TQue<TPosition::VECOUT, 2> tiles_;
};

// K3: the counts of a group's segments to its statistics.
class Total {
public:
    __aicore__ inline void Run(
        GM_ADDR slots, uint32_t groups, uint32_t segments, GM_ADDR statistics)
    {
        TPipe pipe;
        pipe.InitBuffer(in_, 1, kMaxSegments * kSlotBytes);
        writer_.Init(&pipe);
        const uint32_t blocks = static_cast<uint32_t>(AscendC::GetBlockNum());
        for (uint32_t group = static_cast<uint32_t>(AscendC::GetBlockIdx()); group < groups;
             group += blocks) {
            writer_.WriteStatistics(CountOf(slots, group, groups, segments), statistics, group);
        }
    }

private:
    __aicore__ inline Count CountOf(
        GM_ADDR slots, uint32_t group, uint32_t groups, uint32_t segments)
    {
        const uint64_t words = segments * kSlotWords;
        GlobalTensor<int32_t> all;
        all.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(slots), groups * words);
        LocalTensor<int32_t> in = in_.AllocTensor<int32_t>();
        const DataCopyExtParams params(1, segments * kSlotBytes, 0, 0, 0);
        AscendC::DataCopyPad(in, all[group * words], params, DataCopyPadExtParams<int32_t>());
        in_.EnQue(in);
        in = in_.DeQue<int32_t>();
        Sync<HardEvent::V_S>();
        Count count{0, 0, kNegInf, 0, kNegInf, 0};
        for (uint32_t i = 0; i < segments; ++i) {
            CountWriter::Join(count, in[i * kSlotWords]);
        }
        Sync<HardEvent::S_V>();
        in_.FreeTensor(in);
        return count;
    }

    TQue<TPosition::VECIN, 1> in_;
    CountWriter writer_;
};

}  // namespace
}  // namespace vllm_cold

#define VLLM_COLD_GROUP_PARAMETERS                                                           \
    GM_ADDR logits, GM_ADDR rows, GM_ADDR weights, GM_ADDR logAlpha, GM_ADDR floor,          \
        GM_ADDR maxima, uint32_t numRows, uint32_t groups, uint32_t streams, uint32_t vocab, \
        uint32_t segments, uint32_t segmentLength, uint64_t rowStride

#define VLLM_COLD_GROUPS(T)                                                          \
    vllm_cold::Groups<T>                                                             \
    {                                                                                \
        {logits, numRows, vocab, rowStride}, rows, weights, logAlpha, floor, maxima, \
            streams, {groups, vocab, segments, segmentLength}, false                 \
    }

#define VLLM_COLD_KERNELS(T)                                                                 \
    extern "C" __global__ __aicore__ void contrastive_maxima_##T(VLLM_COLD_GROUP_PARAMETERS) \
    {                                                                                        \
        KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                      \
        const vllm_cold::Groups<T> inputs = VLLM_COLD_GROUPS(T);                             \
        vllm_cold::Maxima<T> kernel;                                                         \
        kernel.Run(inputs);                                                                  \
    }                                                                                        \
    extern "C" __global__ __aicore__ void contrastive_scores_##T(                            \
        VLLM_COLD_GROUP_PARAMETERS, GM_ADDR out, uint64_t outStride, GM_ADDR counted)        \
    {                                                                                        \
        KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                      \
        vllm_cold::Groups<T> inputs = VLLM_COLD_GROUPS(T);                                   \
        inputs.counts = counted != nullptr;                                                  \
        vllm_cold::Scores<T> kernel;                                                         \
        kernel.Run(inputs, out, outStride, counted);                                         \
    }

VLLM_COLD_KERNELS(float)
VLLM_COLD_KERNELS(half)
VLLM_COLD_KERNELS(bfloat16_t)

extern "C" __global__ __aicore__ void contrastive_total(
    GM_ADDR counts, uint32_t groups, uint32_t segments, GM_ADDR statistics)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    vllm_cold::Total kernel;
    kernel.Run(counts, groups, segments, statistics);
}

namespace vllm_cold {

#define VLLM_COLD_GROUP_ARGUMENTS(c)                                                     \
    (c).logits, (c).rows, (c).weights, (c).logAlpha, (c).floor, (c).maxima, (c).numRows, \
        (c).groups, (c).streams, (c).vocab, (c).plan.segments, (c).plan.segmentLength,   \
        (c).rowStride

#define VLLM_COLD_LAUNCH_SCORES(T, c, stream)                                            \
    do {                                                                                 \
        if ((c).plan.segments > 1) {                                                     \
            VLLM_COLD_LAUNCH(contrastive_maxima_##T, (c).plan.blocks, stream,            \
                             VLLM_COLD_GROUP_ARGUMENTS(c));                              \
        }                                                                                \
        VLLM_COLD_LAUNCH(contrastive_scores_##T, (c).plan.blocks, stream,                \
                         VLLM_COLD_GROUP_ARGUMENTS(c), (c).out, (c).outStride,           \
                         (c).plan.segments > 1 ? (c).counts : (c).statistics);           \
    } while (0)

void LaunchScores(const ScoringCall& call, void* stream)
{
    if (call.type == LogitsType::kFloat) {
        VLLM_COLD_LAUNCH_SCORES(float, call, stream);
    } else if (call.type == LogitsType::kHalf) {
        VLLM_COLD_LAUNCH_SCORES(half, call, stream);
    } else {
        VLLM_COLD_LAUNCH_SCORES(bfloat16_t, call, stream);
    }
    if (call.plan.segments > 1 && call.statistics != nullptr) {
        VLLM_COLD_LAUNCH(contrastive_total, call.plan.totalBlocks, stream, call.counts, call.groups,
                         call.plan.segments, call.statistics);
    }
}

}  // namespace vllm_cold
