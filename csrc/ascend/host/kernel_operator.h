// SPDX-License-Identifier: Apache-2.0
// A stand-in for AscendC's kernel_operator.h, to run kernels on the host and be strict about it:
// the part of the interface that ours use, with the names and signatures of asc-devkit 9.1.0 and
// the limits that its documentation gives for dav-2201 (Atlas A2/A3). Written for our tests; ships
// with nothing. What is checked besides limits: simulator.h.
//
// Where each signature was looked up, under include/basic_api of asc-devkit:
//   TPipe, TQue, TBuf                       kernel_tpipe.h
//   LocalTensor, GlobalTensor               kernel_tensor.h
//   GetTPipePtr                             kernel_common.h
//   SetSaturationFlag, GetSaturationFlag    kernel_operator_common_intf.h
//   SetFlag, WaitFlag, PipeBarrier          kernel_operator_block_sync_intf.h
//   HardEvent                               ../../impl/basic_api/kernel_event.h
//   DataCopyPad                             kernel_operator_data_copy_intf.h
//   DataCopyExtParams, DataCopyPadExtParams kernel_struct_data_copy.h
//   Add, Sub, Max, And                      kernel_operator_vec_binary_intf.h
//   Adds, Muls, Maxs, Mins                  kernel_operator_vec_binary_scalar_intf.h
//   Duplicate                               kernel_operator_vec_duplicate_intf.h
//   Cast                                    kernel_operator_vec_vconv_intf.h
//   Compares, Select                        kernel_operator_vec_cmpsel_intf.h
//   ReduceMax                               kernel_operator_vec_reduce_intf.h
//   GetBlockIdx, GetBlockNum                kernel_operator_sys_var_intf.h
//   GM_ADDR, KERNEL_TASK_TYPE_DEFAULT       ../../impl/basic_api/utils/kernel_utils_macros.h
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "simulator.h"

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR __gm__ uint8_t*
#define KERNEL_TASK_TYPE_DEFAULT(value)

#define VLLM_COLD_LAUNCH(kernel, blocks, stream, ...)                         \
    do {                                                                      \
        (void)(stream);                                                       \
        AscendC::host::Simulator::Get().Launch(#kernel, blocks, [&] { kernel(__VA_ARGS__); }); \
    } while (0)

// 16-bit floats: bits only, so that arithmetic on them does not compile. Their names are keywords
// of the chip's compiler; as macros they cannot name variables here either.
struct HalfBits {
    uint16_t bits;
};
struct Bfloat16Bits {
    uint16_t bits;
};
#define half struct HalfBits
#define bfloat16_t struct Bfloat16Bits

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

namespace AscendC {

using TEventID = int8_t;

enum class TPosition : uint8_t { GM, VECIN, VECOUT, VECCALC };
enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class SaturationMode : uint8_t { FLOAT, CAST };
enum class HardEvent : uint8_t {
    MTE2_V, V_MTE2, MTE3_V, V_MTE3, MTE3_MTE2, MTE2_MTE3, S_V, V_S, S_MTE2, MTE2_S, S_MTE3, MTE3_S
};

namespace host {

inline Simulator& Sim()
{
    return Simulator::Get();
}

// From where to where, by HardEvent.
constexpr Pipe kEnds[][2] = {
    {kMte2, kVector}, {kVector, kMte2}, {kMte3, kVector}, {kVector, kMte3},
    {kMte3, kMte2}, {kMte2, kMte3}, {kScalar, kVector}, {kVector, kScalar},
    {kScalar, kMte2}, {kMte2, kScalar}, {kScalar, kMte3}, {kMte3, kScalar}};

template <typename T, typename... Allowed>
constexpr bool kOneOf = (std::is_same_v<T, Allowed> || ...);

template <typename T>
constexpr float kLargestOf = std::is_same_v<T, half> ? 65504.0f : 0x1.fep127f;

inline float Widen(half value)
{
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t exponent = (value.bits >> 10) & 31;
    const uint32_t fraction = value.bits & 1023;
    if (exponent == 0) {
        const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    const uint32_t bits = sign | wide << 23 | fraction << 13;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline float Widen(bfloat16_t value)
{
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

}  // namespace host

// --- Tensors ------------------------------------------------------------------------------------

template <typename T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(uint32_t buffer, uint32_t generation, uint32_t start, uint32_t bytes)
        : buffer_(buffer), generation_(generation), start_(start), bytes_(bytes)
    {}

    T GetValue(const uint32_t index) const
    {
        host::Sim().Access("GetValue", host::kScalar, {Part(index, 1, false)});
        return Data()[index];
    }
    template <typename S>
    void SetValue(const uint32_t index, const S value) const
    {
        host::Sim().Access("SetValue", host::kScalar, {Part(index, 1, true)});
        Data()[index] = static_cast<T>(value);
    }
    LocalTensor operator[](const uint32_t offset) const
    {
        const uint64_t skip = static_cast<uint64_t>(offset) * sizeof(T);
        host::Sim().Check(skip <= bytes_, "operator[]: offset ", offset, " is beyond the tensor");
        const uint32_t step = static_cast<uint32_t>(skip);
        return LocalTensor(buffer_, generation_, start_ + step, bytes_ - step);
    }
    template <typename U>
    LocalTensor<U> ReinterpretCast() const
    {
        return LocalTensor<U>(buffer_, generation_, start_, bytes_);
    }

    // For the stand-in: `count` elements from `index` as an operand, and where they lie.
    host::Operand Part(uint64_t index, uint64_t count, bool write) const
    {
        host::Sim().Check((index + count) * sizeof(T) <= bytes_, "an instruction on ", count,
                          " elements from ", index, " is beyond the tensor's ", bytes_ / sizeof(T));
        return {buffer_, generation_, start_ + static_cast<uint32_t>(index * sizeof(T)),
                static_cast<uint32_t>(count * sizeof(T)), write};
    }
    host::Operand Reads(uint64_t count) const
    {
        return Part(0, count, false);
    }
    host::Operand Writes(uint64_t count) const
    {
        return Part(0, count, true);
    }
    T* Data() const
    {
        return reinterpret_cast<T*>(host::Sim().Ub(start_));
    }
    uint32_t Start() const
    {
        return start_;
    }
    uint32_t Bytes() const
    {
        return bytes_;
    }
    uint32_t Handle() const
    {
        return buffer_;
    }
    uint32_t Generation() const
    {
        return generation_;
    }
    TPosition Position() const
    {
        return static_cast<TPosition>(host::Sim().At(buffer_).position);
    }

private:
    uint32_t buffer_ = ~0u;
    uint32_t generation_ = 0;
    uint32_t start_ = 0;
    uint32_t bytes_ = 0;
};

template <typename T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(__gm__ T* buffer, uint64_t bufferSize)
    {
        data_ = buffer;
        size_ = bufferSize;
    }
    const __gm__ T* GetPhyAddr() const
    {
        return data_;
    }
    T GetValue(const uint64_t offset) const
    {
        Inside("GetValue", offset, 1);
        host::Sim().GmAccess("GetValue", host::kScalar, data_ + offset, sizeof(T), false);
        T value;
        std::memcpy(&value, data_ + offset, sizeof(T));
        return value;
    }
    GlobalTensor operator[](const uint64_t offset) const
    {
        Inside("operator[]", offset, 0);
        GlobalTensor rest;
        rest.SetGlobalBuffer(data_ + offset, size_ - offset);
        return rest;
    }
    void Inside(const char* what, uint64_t offset, uint64_t count) const
    {
        host::Sim().Check(data_ != nullptr, what, ": a GlobalTensor without SetGlobalBuffer");
        host::Sim().Check(offset + count <= size_, what, ": beyond the GlobalTensor's ", size_,
                          " elements");
    }

private:
    T* data_ = nullptr;
    uint64_t size_ = 0;
};

// --- Order --------------------------------------------------------------------------------------

template <HardEvent event>
inline void SetFlag(int32_t eventID)
{
    constexpr int number = static_cast<int>(event);
    host::Sim().SetFlag(number, eventID, host::kEnds[number][0]);
}

template <HardEvent event>
inline void WaitFlag(int32_t eventID)
{
    constexpr int number = static_cast<int>(event);
    host::Sim().WaitFlag(number, eventID, host::kEnds[number][1]);
}

template <pipe_t pipe>
inline void PipeBarrier()
{
    static_assert(pipe != PIPE_S, "PipeBarrier does not take PIPE_S");
    if constexpr (pipe == PIPE_ALL) {
        host::Sim().BarrierAll();
    } else {
        host::Sim().Barrier(static_cast<host::Pipe>(pipe));
    }
}

// --- Buffers and queues -------------------------------------------------------------------------

template <TPosition pos, int32_t depth, auto mask = 0>
class TQue {
    static_assert(pos == TPosition::VECIN || pos == TPosition::VECOUT, "a vector core's queues");
    static_assert(depth > 0, "depth 0 is for tensors in place");

public:
    template <typename T>
    LocalTensor<T> AllocTensor()
    {
        host::Simulator& sim = host::Sim();
        for (uint32_t id : buffers_) {
            host::Buffer& buffer = sim.At(id);
            if (buffer.state == host::State::kFree) {
                buffer.state = host::State::kAllocated;
                sim.Learn(kFrom, buffer.ready);
                sim.Undefine(buffer.start, buffer.bytes);
                return LocalTensor<T>(id, buffer.generation, buffer.start, buffer.bytes);
            }
        }
        sim.Fail("AllocTensor: no free buffer in the queue: it waits for ever");
    }
    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor)
    {
        host::Buffer& buffer = Own("EnQue", tensor);
        host::Sim().Check(buffer.state == host::State::kAllocated, "EnQue: the tensor is ",
                          host::kStateNames[static_cast<int>(buffer.state)], ", not allocated");
        host::Sim().Check(waiting_.size() < depth, "EnQue: more than the queue's depth, ", depth);
        buffer.state = host::State::kEnqueued;
        buffer.ready = host::Sim().Publish(kFrom);
        waiting_.push_back(tensor.Handle());
        return true;
    }
    template <typename T>
    LocalTensor<T> DeQue()
    {
        host::Sim().Check(!waiting_.empty(), "DeQue: the queue is empty: it waits for ever");
        const uint32_t id = waiting_.front();
        waiting_.erase(waiting_.begin());
        host::Buffer& buffer = host::Sim().At(id);
        buffer.state = host::State::kDequeued;
        host::Sim().Learn(kTo, buffer.ready);
        return LocalTensor<T>(id, buffer.generation, buffer.start, buffer.bytes);
    }
    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor)
    {
        host::Buffer& buffer = Own("FreeTensor", tensor);
        host::Sim().Check(buffer.state == host::State::kDequeued, "FreeTensor: the tensor is ",
                          host::kStateNames[static_cast<int>(buffer.state)], ", not dequeued");
        buffer.state = host::State::kFree;
        ++buffer.generation;
        buffer.ready = host::Sim().Publish(kTo);
    }

    // For TPipe.
    void Add(uint8_t num, uint32_t len)
    {
        host::Sim().Check(buffers_.empty(), "InitBuffer: the queue has its buffers already");
        host::Sim().Check(num > 0, "InitBuffer: a queue of no buffers");
        uint32_t queued = num;
        for (uint32_t other = 0; host::Sim().HasBuffer(other); ++other) {
            const host::Buffer& buffer = host::Sim().At(other);
            queued += buffer.position == static_cast<int>(pos) &&
                      buffer.state != host::State::kPlain;
        }
        host::Sim().Check(queued <= host::kMaxQueued, "InitBuffer: ", queued,
                          " buffers of the queues of one position, not up to ", host::kMaxQueued);
        for (uint8_t i = 0; i < num; ++i) {
            buffers_.push_back(
                host::Sim().AddBuffer(len, static_cast<int>(pos), host::State::kFree));
        }
    }

private:
    static constexpr host::Pipe kFrom = pos == TPosition::VECIN ? host::kMte2 : host::kVector;
    static constexpr host::Pipe kTo = pos == TPosition::VECIN ? host::kVector : host::kMte3;

    template <typename T>
    host::Buffer& Own(const char* what, const LocalTensor<T>& tensor)
    {
        const auto found = std::find(buffers_.begin(), buffers_.end(), tensor.Handle());
        host::Sim().Check(found != buffers_.end(), what, ": a tensor of another queue");
        host::Buffer& buffer = host::Sim().At(tensor.Handle());
        host::Sim().Check(tensor.Generation() == buffer.generation, what,
                          ": the tensor was freed");
        return buffer;
    }

    std::vector<uint32_t> buffers_;
    std::vector<uint32_t> waiting_;
};

template <TPosition pos = TPosition::VECCALC>
class TBuf {
public:
    template <typename T>
    LocalTensor<T> Get()
    {
        host::Sim().Check(buffer_ != ~0u, "Get: a TBuf without InitBuffer");
        const host::Buffer& buffer = host::Sim().At(buffer_);
        return LocalTensor<T>(buffer_, 0, buffer.start, buffer.bytes);
    }

    // For TPipe.
    void Add(uint32_t len)
    {
        host::Sim().Check(buffer_ == ~0u, "InitBuffer: the TBuf has its buffer already");
        buffer_ = host::Sim().AddBuffer(len, static_cast<int>(pos), host::State::kPlain);
    }

private:
    uint32_t buffer_ = ~0u;
};

class TPipe {
public:
    TPipe()
    {
        Current() = this;
    }
    ~TPipe()
    {
        Current() = nullptr;
    }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    template <TPosition pos, int32_t depth, auto mask>
    bool InitBuffer(TQue<pos, depth, mask>& que, uint8_t num, uint32_t len)
    {
        que.Add(num, len);
        return true;
    }
    template <TPosition pos>
    bool InitBuffer(TBuf<pos>& buf, uint32_t len)
    {
        buf.Add(len);
        return true;
    }
    TEventID FetchEventID(HardEvent event)
    {
        (void)event;
        return 0;
    }

    static TPipe*& Current()
    {
        static TPipe* current = nullptr;
        return current;
    }
};

// --- What instructions have in common -----------------------------------------------------------

namespace host {

inline void Aligned(const char* what, uint32_t start, uint32_t to = kUnit)
{
    Sim().Check(start % to == 0, what, ": UB address ", start, " is not aligned to ", to,
                " bytes");
}
// Whether the chip takes -0.0 for less than 0.0 is not documented: here it does.
inline bool Higher(float a, float b)
{
    return a > b || (a == b && !std::signbit(a) && std::signbit(b));
}
inline void Positive(const char* what, int64_t count)
{
    Sim().Check(count > 0, what, ": ", count, " elements");
}
// A destination is one of the sources, or apart from it.
inline void NoPartialOverlap(const char* what, const Operand& to, const Operand& from)
{
    const bool apart = to.start + to.bytes <= from.start || from.start + from.bytes <= to.start;
    Sim().Check(apart || to.start == from.start, what,
                ": source and destination overlap in part");
}
inline void Apart(const char* what, const Operand& to, const Operand& from)
{
    const bool apart = to.start + to.bytes <= from.start || from.start + from.bytes <= to.start;
    Sim().Check(apart, what, ": source and destination overlap");
}

template <typename T, typename F>
void Binary(const char* what, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, int32_t count, F f)
{
    Positive(what, count);
    for (uint32_t start : {dst.Start(), src0.Start(), src1.Start()}) {
        Aligned(what, start);
    }
    NoPartialOverlap(what, dst.Writes(count), src0.Reads(count));
    NoPartialOverlap(what, dst.Writes(count), src1.Reads(count));
    Sim().Access(what, kVector, {src0.Reads(count), src1.Reads(count), dst.Writes(count)});
    T* to = dst.Data();
    const T* a = src0.Data();
    const T* b = src1.Data();
    for (int32_t i = 0; i < count; ++i) {
        to[i] = f(a[i], b[i]);
    }
}

template <typename T, typename F>
void Unary(const char* what, const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count,
           F f)
{
    Positive(what, count);
    Aligned(what, dst.Start());
    Aligned(what, src.Start());
    NoPartialOverlap(what, dst.Writes(count), src.Reads(count));
    Sim().Access(what, kVector, {src.Reads(count), dst.Writes(count)});
    T* to = dst.Data();
    const T* from = src.Data();
    for (int32_t i = 0; i < count; ++i) {
        to[i] = f(from[i]);
    }
}

}  // namespace host

// --- Copies -------------------------------------------------------------------------------------

struct DataCopyExtParams {
    DataCopyExtParams() {}
    DataCopyExtParams(const uint16_t count, const uint32_t len, const uint32_t srcStrideIn,
                      const uint32_t dstStrideIn, const uint32_t rsvIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn),
          rsv(rsvIn)
    {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0;
    uint32_t srcStride = 0;
    uint32_t dstStride = 0;
    uint32_t rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() {}
    DataCopyPadExtParams(const bool isPadValue, const uint8_t leftPadValue,
                         const uint8_t rightPadValue, T padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue),
          paddingValue(padValue)
    {}
    bool isPad = false;
    uint8_t leftPadding = 0;
    uint8_t rightPadding = 0;
    T paddingValue{};
};

namespace host {

template <typename T>
void CheckCopy(const LocalTensor<T>& local, const DataCopyExtParams& params)
{
    static_assert(kOneOf<T, int8_t, uint8_t, int16_t, uint16_t, half, bfloat16_t, int32_t,
                         uint32_t, float, int64_t, uint64_t, double>,
                  "DataCopyPad: not for this dtype");
    Sim().Check(params.blockCount == 1, "DataCopyPad: the stand-in copies one block at a time");
    Sim().Check(params.blockLen > 0 && params.blockLen <= 2097151,
                "DataCopyPad: blockLen ", params.blockLen);
    Sim().Check(params.blockLen % sizeof(T) == 0, "DataCopyPad: blockLen ", params.blockLen,
                " is not whole elements");
    Aligned("DataCopyPad", local.Start());
    const TPosition position = local.Position();
    Sim().Check(position == TPosition::VECIN || position == TPosition::VECOUT,
                "DataCopyPad: between global memory and VECIN or VECOUT only");
}

}  // namespace host

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyExtParams& dataCopyParams, const DataCopyPadExtParams<T>& padParams)
{
    host::CheckCopy(dst, dataCopyParams);
    const uint32_t count = dataCopyParams.blockLen / sizeof(T);
    host::Sim().Check(padParams.leftPadding == 0, "DataCopyPad: the stand-in pads on the right");
    host::Sim().Check(padParams.rightPadding * sizeof(T) <= 32,
                      "DataCopyPad: more than 32 bytes of padding");
    const uint32_t wanted = count + padParams.rightPadding;
    const uint32_t perUnit = host::kUnit / sizeof(T);
    const uint32_t whole = (wanted + perUnit - 1) / perUnit * perUnit;
    src.Inside("DataCopyPad", 0, count);
    host::Sim().Access("DataCopyPad", host::kMte2, {dst.Writes(whole)});
    // Dummies fill the last 32 bytes; the chip says what they are only with isPad.
    const uint32_t known = padParams.isPad ? (padParams.rightPadding > 0 ? whole : count) : count;
    host::Sim().GmAccess("DataCopyPad", host::kMte2, src.GetPhyAddr(), dataCopyParams.blockLen,
                         false);
    std::memcpy(dst.Data(), src.GetPhyAddr(), dataCopyParams.blockLen);
    std::fill(dst.Data() + count, dst.Data() + known, padParams.paddingValue);
    host::Sim().Undefine(static_cast<uint32_t>(dst.Start() + known * sizeof(T)),
                         (whole - known) * sizeof(T));
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyExtParams& dataCopyParams)
{
    host::CheckCopy(src, dataCopyParams);
    const uint32_t count = dataCopyParams.blockLen / sizeof(T);
    dst.Inside("DataCopyPad", 0, count);
    host::Sim().Access("DataCopyPad", host::kMte3, {src.Reads(count)});
    host::Sim().GmAccess("DataCopyPad", host::kMte3, dst.GetPhyAddr(), dataCopyParams.blockLen,
                         true);
    std::memcpy(const_cast<T*>(dst.GetPhyAddr()), src.Data(), dataCopyParams.blockLen);
}

// --- Vector arithmetic --------------------------------------------------------------------------

#define VLLM_COLD_HOST_BINARY(name, expression, ...)                                         \
    template <typename T>                                                                    \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0,                         \
              const LocalTensor<T>& src1, const int32_t& count)                              \
    {                                                                                        \
        static_assert(host::kOneOf<T, __VA_ARGS__>, #name ": not for this dtype");           \
        host::Binary(#name, dst, src0, src1, count,                                          \
                     [](T a, T b) { return static_cast<T>(expression); });                   \
    }

#define VLLM_COLD_HOST_SCALAR(name, expression, ...)                                         \
    template <typename T>                                                                    \
    void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,    \
              const int32_t& count)                                                          \
    {                                                                                        \
        static_assert(host::kOneOf<T, __VA_ARGS__>, #name ": not for this dtype");           \
        const T b = scalarValue;                                                             \
        host::Unary(#name, dst, src, count, [b](T a) { return static_cast<T>(expression); }); \
    }

VLLM_COLD_HOST_BINARY(Add, a + b, float, int32_t)
VLLM_COLD_HOST_BINARY(Sub, a - b, float, int32_t)
VLLM_COLD_HOST_BINARY(Max, (b > a ? b : a), float, int32_t)
VLLM_COLD_HOST_BINARY(And, (a & b), uint16_t, int16_t)
VLLM_COLD_HOST_SCALAR(Adds, a + b, float, int32_t)
VLLM_COLD_HOST_SCALAR(Muls, a* b, float, int32_t)
VLLM_COLD_HOST_SCALAR(Maxs, (b > a ? b : a), float, int32_t)
VLLM_COLD_HOST_SCALAR(Mins, (b < a ? b : a), float, int32_t)

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count)
{
    static_assert(
        host::kOneOf<T, half, bfloat16_t, int16_t, uint16_t, int32_t, uint32_t, float>,
        "Duplicate: not for this dtype");
    host::Positive("Duplicate", count);
    host::Aligned("Duplicate", dst.Start());
    host::Sim().Access("Duplicate", host::kVector, {dst.Writes(count)});
    std::fill_n(dst.Data(), count, scalarValue);
}

// 16-bit floats with NaN and infinities as they are, or saturated: the default.
template <SaturationMode mode>
void SetSaturationFlag(bool enableSat)
{
    static_assert(mode == SaturationMode::FLOAT, "SetSaturationFlag: the stand-in knows FLOAT");
    host::Sim().saturates = enableSat;
}

template <SaturationMode mode>
bool GetSaturationFlag()
{
    static_assert(mode == SaturationMode::FLOAT, "GetSaturationFlag: the stand-in knows FLOAT");
    return host::Sim().saturates;
}

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint32_t count)
{
    static_assert(std::is_same_v<T, float> && host::kOneOf<U, half, bfloat16_t>,
                  "Cast: the stand-in widens half and bfloat16_t to float");
    host::Sim().Check(roundMode == RoundMode::CAST_NONE, "Cast: widening takes CAST_NONE only");
    host::Positive("Cast", count);
    host::Aligned("Cast", dst.Start());
    host::Aligned("Cast", src.Start());
    host::Apart("Cast", dst.Writes(count), src.Reads(count));
    host::Sim().Access("Cast", host::kVector, {src.Reads(count), dst.Writes(count)});
    T* to = dst.Data();
    const U* from = src.Data();
    const float largest = host::kLargestOf<U>;
    for (uint32_t i = 0; i < count; ++i) {
        const float value = host::Widen(from[i]);
        const bool keeps = !host::Sim().saturates || (value >= -largest && value <= largest);
        to[i] = keeps ? value : value > 0 ? largest : value < 0 ? -largest : 0.0f;
    }
}

template <typename T, typename U>
void Compares(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar,
              CMPMODE cmpMode, uint32_t count)
{
    static_assert(std::is_same_v<T, float>, "Compares: not for this dtype");
    static_assert(std::is_same_v<U, uint8_t>, "Compares: the mask is uint8_t");
    host::Positive("Compares", count);
    host::Sim().Check(count * sizeof(T) % 256 == 0, "Compares: ", count,
                      " elements are not a multiple of 256 bytes");
    host::Aligned("Compares", dst.Start());
    host::Aligned("Compares", src0.Start());
    host::Apart("Compares", dst.Writes(count / 8), src0.Reads(count));
    host::Sim().Access("Compares", host::kVector,
                       {src0.Reads(count), dst.Writes(count / 8)});
    U* to = dst.Data();
    const T* from = src0.Data();
    const T b = src1Scalar;
    for (uint32_t i = 0; i < count; ++i) {
        const T a = from[i];
        bool bit = false;
        switch (cmpMode) {
            case CMPMODE::LT: bit = a < b; break;
            case CMPMODE::GT: bit = a > b; break;
            case CMPMODE::EQ: bit = a == b; break;
            case CMPMODE::LE: bit = a <= b; break;
            case CMPMODE::GE: bit = a >= b; break;
            case CMPMODE::NE: bit = a != b; break;
        }
        uint8_t& byte = to[i / 8];
        byte = static_cast<uint8_t>((byte & ~(1u << i % 8)) | static_cast<uint32_t>(bit) << i % 8);
    }
}

// With a scalar: mode 1. It keeps its scratch in the UB above kUbUsable.
template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            T src1, SELMODE selMode, uint32_t count)
{
    static_assert(std::is_same_v<T, float>, "Select: not for this dtype");
    static_assert(std::is_same_v<U, uint8_t>, "Select: the mask is uint8_t");
    host::Sim().Check(selMode == SELMODE::VSEL_TENSOR_SCALAR_MODE,
                      "Select: a scalar takes VSEL_TENSOR_SCALAR_MODE");
    host::Positive("Select", count);
    for (uint32_t start : {dst.Start(), selMask.Start(), src0.Start()}) {
        host::Aligned("Select", start);
    }
    const uint32_t maskBytes = (count + 7) / 8;
    host::NoPartialOverlap("Select", dst.Writes(count), src0.Reads(count));
    host::Apart("Select", dst.Writes(count), selMask.Reads(maskBytes));
    host::Sim().Access("Select", host::kVector,
                       {selMask.Reads(maskBytes), src0.Reads(count), dst.Writes(count)});
    T* to = dst.Data();
    const U* mask = selMask.Data();
    const T* from = src0.Data();
    for (uint32_t i = 0; i < count; ++i) {
        const bool bit = (mask[i / 8] >> i % 8 & 1) != 0;
        to[i] = bit ? from[i] : src1;
    }
}

// dst, like the scratch, counts as written by the vector pipe: GetValue needs a V_S flag. The index
// of the first of several maxima, as bits. Looking for it takes more scratch.
template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               const LocalTensor<T>& sharedTmpBuffer, const int32_t count, bool calIndex = 0)
{
    static_assert(std::is_same_v<T, float>, "ReduceMax: not for this dtype");
    host::Positive("ReduceMax", count);
    host::Aligned("ReduceMax", src.Start());
    host::Aligned("ReduceMax", sharedTmpBuffer.Start());
    host::Aligned("ReduceMax", dst.Start(), 8);
    const uint32_t repeats = (static_cast<uint32_t>(count) + 63) / 64;
    uint32_t scratch = 0;
    for (uint32_t left = repeats * 2, step = left; step > 0; left = step) {
        scratch += (left + 7) / 8 * 8;
        step = calIndex && left > 2 ? (left + 63) / 64 * 2 : 0;
    }
    host::Apart("ReduceMax", sharedTmpBuffer.Writes(scratch), src.Reads(count));
    host::Sim().Access("ReduceMax", host::kVector,
                       {src.Reads(count), sharedTmpBuffer.Writes(scratch),
                        dst.Writes(calIndex ? 2 : 1)});
    const T* from = src.Data();
    uint32_t largest = 0;
    for (uint32_t i = 1; i < static_cast<uint32_t>(count); ++i) {
        largest = host::Higher(from[i], from[largest]) ? i : largest;
    }
    const T value = from[largest];
    std::memset(sharedTmpBuffer.Data(), host::kFresh, scratch * sizeof(T));
    dst.Data()[0] = value;
    if (calIndex) {
        std::memcpy(dst.Data() + 1, &largest, sizeof(largest));
    }
}

// --- The block ----------------------------------------------------------------------------------

inline int64_t GetBlockIdx()
{
    return host::Sim().Block();
}
inline int64_t GetBlockNum()
{
    return host::Sim().Blocks();
}
}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr()
{
    AscendC::host::Sim().Check(AscendC::TPipe::Current() != nullptr, "GetTPipePtr: no TPipe");
    return AscendC::TPipe::Current();
}
