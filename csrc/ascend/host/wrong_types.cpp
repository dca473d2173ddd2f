// SPDX-License-Identifier: Apache-2.0
// Does not compile: one refusal of the stand-in for each function (the tests read the messages).
#include "kernel_operator.h"

namespace {

using namespace AscendC;

using Bf16 = LocalTensor<bfloat16_t>;
using Fp16 = LocalTensor<half>;
using Fp32 = LocalTensor<float>;
using Int32 = LocalTensor<int32_t>;
using Uint8 = LocalTensor<uint8_t>;
using Uint32 = LocalTensor<uint32_t>;

}  // namespace

void AddOfBf16(Bf16 x) { Add(x, x, x, 64); }
void MaxOfBf16(Bf16 x) { Max(x, x, x, 64); }
void MulsOfBf16(Bf16 x, bfloat16_t y) { Muls(x, x, y, 64); }
void AndOfFloat(Fp32 x) { And(x, x, x, 64); }
void CompareOfBf16(Uint8 mask, Bf16 x, bfloat16_t y)
{
    Compares(mask, x, y, CMPMODE::LE, 128);
}
void SelectOfInt32(Uint8 mask, Int32 x)
{
    Select(x, mask, x, 0, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);
}
void ReduceMaxOfInt32(Int32 x) { ReduceMax(x, x, x, 64); }
void CastOfInt32(Fp32 to, Int32 from) { Cast(to, from, RoundMode::CAST_NONE, 64); }
void IndexOfUint32(Uint32 x) { CreateVecIndex(x, 0u, 64); }
void SortOfHalf(Fp16 x, Uint32 ids) { Sort32(x, x, ids, 1); }
void DuplicateOfUint8(Uint8 x) { Duplicate(x, static_cast<uint8_t>(0), 64); }
void MixedTypes(Fp32 x, Int32 y) { Add(x, x, y, 64); }
void VariableNamedHalf() { int half = 0; }
void BarrierOfScalar() { PipeBarrier<PIPE_S>(); }
