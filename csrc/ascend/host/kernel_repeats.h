// SPDX-License-Identifier: Apache-2.0
// Part of the stand-in for kernel_operator.h, which includes it: instructions that are told their
// repeats. A repeat is up to 256 bytes in 8 blocks of 32; strides count those blocks, but where
// sums are written they count what a repeat leaves.
//
// Where each signature was looked up, under include/basic_api of asc-devkit:
//   Mul with repeats                              kernel_operator_vec_binary_intf.h
//   BinaryRepeatParams                            kernel_struct_binary.h
//   ReduceRepeat, ReduceDataBlock, ReducePairElem kernel_operator_vec_reduce_intf.h
//   ReduceType                                    ../../impl/utils/common_types.h
// The three are of 9.1; what they were called before is kept there for old sources.
#pragma once

namespace AscendC {

enum class ReduceType { SUM, MAX, MIN };

struct BinaryRepeatParams {
    BinaryRepeatParams() {}
    BinaryRepeatParams(const uint8_t dstBlkStrideIn, const uint8_t src0BlkStrideIn,
                       const uint8_t src1BlkStrideIn, const uint8_t dstRepStrideIn,
                       const uint8_t src0RepStrideIn, const uint8_t src1RepStrideIn)
        : dstBlkStride(dstBlkStrideIn), src0BlkStride(src0BlkStrideIn),
          src1BlkStride(src1BlkStrideIn), dstRepStride(dstRepStrideIn),
          src0RepStride(src0RepStrideIn), src1RepStride(src1RepStrideIn)
    {}
    uint8_t dstBlkStride = 1;
    uint8_t src0BlkStride = 1;
    uint8_t src1BlkStride = 1;
    uint8_t dstRepStride = 8;
    uint8_t src0RepStride = 8;
    uint8_t src1RepStride = 8;
};

namespace host {

constexpr uint32_t kLanes = 64;  // float32 values of a repeat
constexpr uint32_t kBlockFloats = kUnit / sizeof(float);

inline void CheckRepeats(const char* what, int64_t mask, int64_t repeats)
{
    Sim().Check(mask >= 1 && mask <= kLanes, what, ": a mask of ", mask, " is not from 1 to 64");
    Sim().Check(repeats >= 1 && repeats <= 255, what, ": ", repeats,
                " repeats are not from 1 to 255");
}
inline void CheckBlockStride(const char* what, int64_t stride)
{
    Sim().Check(stride == 1, what, ": in the stand-in a repeat's blocks lie side by side");
}

// The first `mask` values of each repeat, `stride` blocks apart.
inline void AddRepeats(std::vector<Operand>& operands, const LocalTensor<float>& tensor,
                       uint32_t mask, uint32_t repeats, uint32_t stride, bool write)
{
    for (uint32_t i = 0; i < (stride == 0 ? 1 : repeats); ++i) {
        operands.push_back(tensor.Part(i * stride * kBlockFloats, mask, write));
    }
}

// Sums in pairs, those in pairs, and so on: a binary tree, as documented. `values` is overwritten.
inline float TreeSum(float* values, uint32_t count)
{
    for (; count > 1; count /= 2) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            values[i] = values[2 * i] + values[2 * i + 1];
        }
    }
    return values[0];
}

// Each repeat leaves `left` sums, each of kLanes / left values; lanes beyond the mask count as 0.
inline void ReduceRepeats(const char* what, const LocalTensor<float>& dst,
                          const LocalTensor<float>& src, int32_t repeats, int32_t mask,
                          int32_t dstRepStride, int32_t srcBlkStride, int32_t srcRepStride,
                          uint32_t left)
{
    CheckRepeats(what, mask, repeats);
    CheckBlockStride(what, srcBlkStride);
    const uint32_t each = kLanes / left;
    Sim().Check(mask % each == 0 || left == 1, what, ": in the stand-in the mask holds whole sums");
    Sim().Check(dstRepStride >= 1 && srcRepStride >= 0, what, ": a stride is too small");
    Aligned(what, src.Start());
    Aligned(what, dst.Start(), left == 1 ? sizeof(float) : kUnit);
    const uint32_t sums = left == 1 ? 1 : static_cast<uint32_t>(mask) / each;
    std::vector<Operand> operands;
    AddRepeats(operands, src, static_cast<uint32_t>(mask), static_cast<uint32_t>(repeats),
               static_cast<uint32_t>(srcRepStride), false);
    const size_t reads = operands.size();
    for (int32_t i = 0; i < repeats; ++i) {
        operands.push_back(dst.Part(static_cast<uint64_t>(i) * dstRepStride * left, sums, true));
    }
    for (size_t i = 0; i < reads; ++i) {  // onto the place of an earlier repeat it would be allowed
        for (size_t j = reads; j < operands.size(); ++j) {
            Apart(what, operands[j], operands[i]);
        }
    }
    Sim().Access(what, kVector, operands);
    for (int32_t i = 0; i < repeats; ++i) {
        const float* from = src.Data() + static_cast<uint64_t>(i) * srcRepStride * kBlockFloats;
        float* to = dst.Data() + static_cast<uint64_t>(i) * dstRepStride * left;
        float values[kLanes] = {};
        std::copy_n(from, mask, values);
        for (uint32_t sum = 0; sum < sums; ++sum) {
            to[sum] = TreeSum(values + sum * each, each);
        }
    }
}

}  // namespace host

template <typename T, bool isSetMask = true>
void Mul(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,
         uint64_t mask, const uint8_t repeatTime, const BinaryRepeatParams& repeatParams)
{
    static_assert(std::is_same_v<T, float>, "Mul with repeats: not for this dtype");
    static_assert(isSetMask, "Mul with repeats: the stand-in sets the mask");
    const BinaryRepeatParams& p = repeatParams;
    host::CheckRepeats("Mul", static_cast<int64_t>(mask), repeatTime);
    for (uint8_t stride : {p.dstBlkStride, p.src0BlkStride, p.src1BlkStride}) {
        host::CheckBlockStride("Mul", stride);
    }
    for (uint32_t start : {dst.Start(), src0.Start(), src1.Start()}) {
        host::Aligned("Mul", start);
    }
    const uint32_t count = static_cast<uint32_t>(mask);
    const uint32_t blocks = (count + host::kBlockFloats - 1) / host::kBlockFloats;
    host::Sim().Check(repeatTime == 1 || p.dstRepStride >= blocks,
                      "Mul: a repeat writes where another one does");
    std::vector<host::Operand> operands;
    host::AddRepeats(operands, src0, count, repeatTime, p.src0RepStride, false);
    host::AddRepeats(operands, src1, count, repeatTime, p.src1RepStride, false);
    const size_t reads = operands.size();
    host::AddRepeats(operands, dst, count, repeatTime, p.dstRepStride, true);
    for (size_t i = 0; i < reads; ++i) {
        for (size_t j = reads; j < operands.size(); ++j) {
            host::Apart("Mul", operands[j], operands[i]);
        }
    }
    host::Sim().Access("Mul", host::kVector, operands);
    for (uint32_t repeat = 0; repeat < repeatTime; ++repeat) {
        T* to = dst.Data() + repeat * p.dstRepStride * host::kBlockFloats;
        const T* a = src0.Data() + repeat * p.src0RepStride * host::kBlockFloats;
        const T* b = src1.Data() + repeat * p.src1RepStride * host::kBlockFloats;
        for (uint32_t i = 0; i < count; ++i) {
            to[i] = a[i] * b[i];
        }
    }
}

// Each repeat's first `mask` values to one sum, each 8 of them, or each 2.
#define VLLM_COLD_HOST_REDUCE(name, left)                                                        \
    template <ReduceType reduceType, typename T, typename U, bool isSetMask = true>              \
    void name(const LocalTensor<T>& dst, const LocalTensor<U>& src, const int32_t mask,          \
              const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,  \
              const int32_t srcRepStride)                                                        \
    {                                                                                            \
        static_assert(reduceType == ReduceType::SUM, #name ": the stand-in adds up");            \
        static_assert(std::is_same_v<T, float> && std::is_same_v<T, U>,                          \
                      #name ": not for this dtype");                                             \
        host::ReduceRepeats(#name, dst, src, repeatTime, mask, dstRepStride, srcBlkStride,       \
                            srcRepStride, left);                                                 \
    }

VLLM_COLD_HOST_REDUCE(ReduceRepeat, 1)
VLLM_COLD_HOST_REDUCE(ReduceDataBlock, host::kLanes / host::kBlockFloats)
VLLM_COLD_HOST_REDUCE(ReducePairElem, host::kLanes / 2)

}  // namespace AscendC
