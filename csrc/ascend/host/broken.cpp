// SPDX-License-Identifier: Apache-2.0
// Small kernels, each with one mistake, below what the stand-in has to say of it: one for each of its
// checks. Some make none, and what they compute is checked. Prints where it says something else, and
// how many kernels there are.
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernel_operator.h"

namespace {

using namespace AscendC;
using Floats = LocalTensor<float>;
using In = TQue<TPosition::VECIN, 2>;
using Out = TQue<TPosition::VECOUT, 1>;

constexpr uint32_t kCount = 2048;
constexpr ReduceType kSum = ReduceType::SUM;
const DataCopyExtParams kFew(1, 32, 0, 0, 0);
const DataCopyPadExtParams<float> kNoPadding;
const BinaryRepeatParams kSideBySide(1, 1, 1, 8, 8, 8);

// Three buffers in UB, of which nothing is written yet, and two queues.
struct Place {
    Place(float* read, float* written)
    {
        pipe.InitBuffer(input, kCount * sizeof(float));
        pipe.InitBuffer(middle, kCount * sizeof(float));
        pipe.InitBuffer(output, kCount * sizeof(float));
        pipe.InitBuffer(in, 2, 32);
        pipe.InitBuffer(out, 1, 32);
        x = input.Get<float>();
        y = middle.Get<float>();
        z = output.Get<float>();
        from.SetGlobalBuffer(read, kCount);
        to.SetGlobalBuffer(written, kCount);
    }
    void Fill()
    {
        for (uint32_t i = 0; i < kCount; ++i) {
            x.SetValue(i, static_cast<float>(i % 7) - 3.0f);
        }
        PipeBarrier<PIPE_ALL>();
    }
    void Load(const DataCopyExtParams& params = kFew, bool pad = false)
    {
        DataCopyPad(x, from, params, DataCopyPadExtParams<float>(pad, 0, pad ? 3 : 0, 0.0f));
    }
    Floats Stored()  // by a block of its own, to its own place
    {
        Floats tensor = out.AllocTensor<float>();
        Duplicate(tensor, 1.0f, 8);
        out.EnQue(tensor);
        tensor = out.DeQue<float>();
        DataCopyPad(to[GetBlockIdx() * 8], tensor, kFew);
        return tensor;
    }
    template <typename T>
    float Rounded(float value)
    {
        LocalTensor<T> narrow = output.Get<T>();
        x.SetValue(0, value);
        PipeBarrier<PIPE_ALL>();
        Cast(narrow, x, RoundMode::CAST_RINT, 1);
        PipeBarrier<PIPE_ALL>();
        Cast(y, narrow, RoundMode::CAST_NONE, 1);
        PipeBarrier<PIPE_ALL>();
        return y.GetValue(0);
    }
    void Expect(bool good)
    {
        host::Sim().Check(good, "the result is wrong");
    }

    TPipe pipe;
    TBuf<TPosition::VECIN> input;
    TBuf<TPosition::VECCALC> middle;
    TBuf<TPosition::VECOUT> output;
    In in;
    Out out;
    Floats x;
    Floats y;
    Floats z;
    GlobalTensor<float> from;
    GlobalTensor<float> to;
};

template <HardEvent event>
void Sync()
{
    SetFlag<event>(0);
    WaitFlag<event>(0);
}

// A buffer that is loaded, doubled and stored, with flags instead of queues; `skip` leaves one out.
void ByFlags(Place& p, int skip)
{
    for (uint32_t round = 0; round < 2; ++round) {
        p.Load();
        if (skip != 1) Sync<HardEvent::MTE2_V>();
        Add(p.z, p.x, p.x, 8);
        if (skip != 2) Sync<HardEvent::V_MTE3>();
        DataCopyPad(p.to[round * 8], p.z, kFew);
        if (skip != 3) Sync<HardEvent::MTE3_V>();
        if (skip != 4) Sync<HardEvent::V_MTE2>();
    }
}

const char* const kNothing = "nothing";

const std::vector<std::pair<std::string, std::function<void(Place&)>>> kKernels = {
    // 1. Order between pipes.
    {kNothing,  // flags
     [](Place& p) { ByFlags(p, 0); }},
    {"Add on V: read after write by MTE2 without a queue or flag MTE2_V",
     [](Place& p) { ByFlags(p, 1); }},
    {"DataCopyPad on MTE3: read after write by V without a queue or flag V_MTE3",
     [](Place& p) { ByFlags(p, 2); }},
    {"Add on V: write after read by MTE3 without a queue or flag MTE3_V",
     [](Place& p) { ByFlags(p, 3); }},
    {"DataCopyPad on MTE2: write after write by MTE2 without PipeBarrier<PIPE_MTE2>",
     [](Place& p) { ByFlags(p, 4); }},
    {"Muls on V: read after write by V without PipeBarrier<PIPE_V>",
     [](Place& p) { Duplicate(p.x, 0.0f, 8), Muls(p.y, p.x, 2.0f, 8); }},
    {"Duplicate on V: write after read by V without PipeBarrier<PIPE_V>",
     [](Place& p) { p.Fill(), Muls(p.y, p.x, 2.0f, 8), Duplicate(p.x, 0.0f, 8); }},
    {"GetValue on S: read after write by V without a queue or flag V_S",
     [](Place& p) { Duplicate(p.x, 0.0f, 8), (void)p.x.GetValue(0); }},
    {"Duplicate on V: write after write by S without a queue or flag S_V",
     [](Place& p) { p.x.SetValue(0, 1.0f), Duplicate(p.x, 0.0f, 8); }},
    {"DataCopyPad on MTE2: write after write by MTE2 without PipeBarrier<PIPE_MTE2>",
     [](Place& p) { p.Load(), p.Load(); }},
    {"Muls on V: read after write by MTE2 without a queue or flag MTE2_V",
     [](Place& p) { p.Load(), Sync<HardEvent::MTE2_S>(), Muls(p.y, p.x, 2.0f, 8); }},
    {"WaitFlag: the flag was never set", [](Place&) { WaitFlag<HardEvent::V_S>(0); }},
    {"at the end a flag is set that nobody waited for", [](Place&) { SetFlag<HardEvent::V_S>(0); }},
    {"SetFlag: the flag is set already",
     [](Place&) { SetFlag<HardEvent::V_S>(0), SetFlag<HardEvent::V_S>(0); }},
    {"SetFlag: the wait for the same flag before may not be over",
     [](Place&) { Sync<HardEvent::S_MTE3>(), Sync<HardEvent::S_MTE3>(); }},
    {"SetFlag: event id 8 is not from 0 to 7", [](Place&) { SetFlag<HardEvent::V_S>(8); }},
    {"DataCopyPad: global memory, write after write by MTE3 without PipeBarrier<PIPE_MTE3>",
     [](Place& p) { p.Fill(), DataCopyPad(p.to, p.x, kFew), DataCopyPad(p.to, p.x, kFew); }},
    {"Mul on V: read after write by V without PipeBarrier<PIPE_V>",
     [](Place& p) {
         p.Fill();
         Muls(p.y, p.x, 2.0f, 1024);
         PipeBarrier<PIPE_V>();
         Muls(p.y[8 * 16], p.x, 2.0f, 8);  // the second repeat's
         Mul(p.y[1024], p.y, p.x, uint64_t{8}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 8, 16, 8));
     }},
    {kNothing,  // what lies between repeats
     [](Place& p) {
         p.Fill();
         Muls(p.y, p.x, 2.0f, 1024);
         PipeBarrier<PIPE_V>();
         Muls(p.y[64], p.x, 2.0f, 64);
         Mul(p.y[1024], p.y, p.x, uint64_t{64}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 8, 16, 8));
     }},
    // 2. What nobody wrote.
    {"Muls: reads bytes that nobody wrote", [](Place& p) { Muls(p.y, p.x, 2.0f, 8); }},
    {"Muls: reads bytes that nobody wrote",
     [](Place& p) {
         p.Load(DataCopyExtParams(3, 5 * 4, 0, 0, 0));
         Sync<HardEvent::MTE2_V>();
         Muls(p.y, p.x, 2.0f, 24);
     }},
    {"Muls: reads bytes that nobody wrote",
     [](Place& p) {
         p.Load(DataCopyExtParams(3, 5 * 4, 8, 1, 0), true);
         Sync<HardEvent::MTE2_V>();
         Muls(p.y, p.x, 2.0f, 24);
     }},
    {"Muls: reads bytes that nobody wrote",
     [](Place& p) {
         p.Fill();
         Mul(p.y, p.x, p.x, uint64_t{7}, uint8_t{2}, kSideBySide);
         PipeBarrier<PIPE_V>();
         Muls(p.y, p.y, 2.0f, 8);
     }},
    // 3. Queues.
    {"DeQue: the queue is empty", [](Place& p) { p.in.AllocTensor<float>(), p.in.DeQue<float>(); }},
    {"Muls: the tensor is in its queue (no DeQue)",
     [](Place& p) {
         Floats x = p.in.AllocTensor<float>();
         p.in.EnQue(x);
         Muls(p.y, x, 2.0f, 8);
     }},
    {"AllocTensor: no free buffer in the queue",
     [](Place& p) { p.out.AllocTensor<float>(), p.out.AllocTensor<float>(); }},
    {"at the end a queue's tensor is still dequeued", [](Place& p) { p.Stored(); }},
    {"FreeTensor: the tensor was freed",
     [](Place& p) {
         Floats x = p.Stored();
         p.out.FreeTensor(x), p.out.FreeTensor(x);
     }},
    {"Duplicate: the tensor was freed",
     [](Place& p) {
         Floats x = p.Stored();
         p.out.FreeTensor(x);
         Duplicate(x, 0.0f, 8);
     }},
    {"EnQue: the tensor is enqueued, not allocated",
     [](Place& p) {
         Floats x = p.in.AllocTensor<float>();
         p.in.EnQue(x), p.in.EnQue(x);
     }},
    {"FreeTensor: the tensor is allocated, not dequeued",
     [](Place& p) {
         Floats x = p.in.AllocTensor<float>();
         p.in.FreeTensor(x);
     }},
    {"EnQue: a tensor of another queue",
     [](Place& p) {
         Floats x = p.in.AllocTensor<float>();
         p.out.EnQue(x);
     }},
    {"EnQue: more than the queue's depth, 1",
     [](Place& p) {
         TQue<TPosition::VECIN, 1> queue;
         p.pipe.InitBuffer(queue, 2, 32);
         queue.EnQue(queue.AllocTensor<float>()), queue.EnQue(queue.AllocTensor<float>());
     }},
    // 4. Space.
    {"InitBuffer: more than 64 buffers",
     [](Place& p) {
         std::vector<TBuf<TPosition::VECCALC>> buffers(65);
         for (auto& buffer : buffers) {
             p.pipe.InitBuffer(buffer, 32);
         }
     }},
    {"InitBuffer: 213088 bytes of UB; 188416 are usable",
     [](Place& p) {
         TBuf<TPosition::VECCALC> buffer;
         p.pipe.InitBuffer(buffer, 184 * 1024);
     }},
    {"InitBuffer: 9 buffers of the queues of one position, not up to 8",
     [](Place& p) {
         TQue<TPosition::VECIN, 7> queue;
         p.pipe.InitBuffer(queue, 7, 32);
     }},
    {"Get: a TBuf without InitBuffer", [](Place&) { TBuf<TPosition::VECCALC>().Get<float>(); }},
    {"an instruction on 2049 elements from 0 is beyond the tensor's 2048",
     [](Place& p) { Duplicate(p.x, 0.0f, kCount + 1); }},
    {"an instruction on 72 elements from 0 is beyond the tensor's 8",
     [](Place& p) {
         TBuf<TPosition::VECCALC> small;
         p.pipe.InitBuffer(small, 32);
         p.Fill();
         ReduceMax(p.y, p.x, small.Get<float>(), static_cast<int32_t>(kCount), true);
     }},
    // 5. Alignment and limits.
    {"Duplicate: UB address 4 is not aligned to 32 bytes",
     [](Place& p) { Duplicate(p.x[1], 0.0f, 8); }},
    {"DataCopyPad: more than 32 bytes of padding",
     [](Place& p) { DataCopyPad(p.x, p.from, kFew, DataCopyPadExtParams<float>(true, 0, 9, 0)); }},
    {"DataCopyPad: 4096 blocks are not from 1 to 4095",
     [](Place& p) { p.Load(DataCopyExtParams(4096, 4, 0, 0, 0)); }},
    {"DataCopyPad: the stand-in stores one block at a time",
     [](Place& p) { p.Fill(), DataCopyPad(p.to, p.x, DataCopyExtParams(2, 32, 0, 0, 0)); }},
    {"DataCopyPad: between global memory and VECIN or VECOUT only",
     [](Place& p) { DataCopyPad(p.to, p.y, kFew); }},
    {"Compares: 32 elements are not a multiple of 256 bytes",
     [](Place& p) { p.Fill(), Compares(p.middle.Get<uint8_t>(), p.x, 0.0f, CMPMODE::GE, 32); }},
    {"Select: a scalar takes VSEL_TENSOR_SCALAR_MODE",
     [](Place& p) {
         Select(p.x, p.middle.Get<uint8_t>(), p.x, 0.0f, SELMODE::VSEL_TENSOR_TENSOR_MODE, 64);
     }},
    {"Cast: widening takes CAST_NONE only",
     [](Place& p) { Cast(p.x, p.middle.Get<half>(), RoundMode::CAST_RINT, 8); }},
    {"Cast: the stand-in rounds to the nearest, CAST_RINT",
     [](Place& p) { Cast(p.middle.Get<half>(), p.x, RoundMode::CAST_NONE, 8); }},
    {"Adds: source and destination overlap in part",
     [](Place& p) { p.Fill(), Adds(p.x[8], p.x, 1.0f, 64); }},
    {"Mul: a mask of 0 is not from 1 to 64",
     [](Place& p) { p.Fill(), Mul(p.y, p.x, p.x, uint64_t{0}, uint8_t{2}, kSideBySide); }},
    {"ReduceRepeat: a mask of 65 is not from 1 to 64",
     [](Place& p) { p.Fill(), ReduceRepeat<kSum>(p.y, p.x, 65, 2, 1, 1, 8); }},
    {"ReduceDataBlock: 0 repeats are not from 1 to 255",
     [](Place& p) { p.Fill(), ReduceDataBlock<kSum>(p.y, p.x, 64, 0, 1, 1, 8); }},
    {"ReducePairElem: 256 repeats are not from 1 to 255",
     [](Place& p) { p.Fill(), ReducePairElem<kSum>(p.y, p.x, 64, 256, 1, 1, 8); }},
    {"Mul: a repeat writes where another one does",
     [](Place& p) {
         p.Fill();
         Mul(p.y, p.x, p.x, uint64_t{64}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 4, 8, 8));
     }},
    {"Mul: source and destination overlap",
     [](Place& p) { p.Fill(), Mul(p.x[32], p.x, p.x, uint64_t{64}, uint8_t{2}, kSideBySide); }},
    {"ReduceRepeat: source and destination overlap",
     [](Place& p) { p.Fill(), ReduceRepeat<kSum>(p.x, p.x, 64, 2, 1, 1, 8); }},
    {"ReducePairElem: UB address 8196 is not aligned to 32 bytes",
     [](Place& p) { p.Fill(), ReducePairElem<kSum>(p.y[1], p.x, 64, 2, 1, 1, 8); }},
    // 6. Global memory.
    {"DataCopyPad: writes to in, which is read-only",
     [](Place& p) { p.Fill(), DataCopyPad(p.from, p.x, kFew); }},
    {"GetValue: beyond the GlobalTensor's 1 elements",
     [](Place& p) { (void)p.from[kCount - 1].GetValue(1); }},
    {"GetValue: outside of every registered range",
     [](Place&) {
         float elsewhere = 0.0f;
         GlobalTensor<float> tensor;
         tensor.SetGlobalBuffer(&elsewhere, 1);
         (void)tensor.GetValue(0);
     }},
    {"GetValue: reads out where nobody wrote", [](Place& p) { (void)p.to.GetValue(0); }},
    {"DataCopyPad: two blocks write byte 0 of out",
     [](Place& p) { p.Fill(), DataCopyPad(p.to, p.x, kFew); }},
    {"GetValue: reads what another block writes, byte 0 of out",
     [](Place& p) {
         Floats x = p.Stored();
         p.out.FreeTensor(x);
         if (GetBlockIdx() == 1) {
             (void)p.to.GetValue(0);
         }
     }},
    // 7. Casts.
    {"at the end 16-bit floats do not saturate",
     [](Place&) { SetSaturationFlag<SaturationMode::FLOAT>(false); }},
    {kNothing,  // rounding
     [](Place& p) {
         SetSaturationFlag<SaturationMode::FLOAT>(false);
         const float inf = __builtin_inff();
         p.Expect(p.Rounded<half>(1.0f + 0x1p-11f) == 1.0f);  // ties to even
         p.Expect(p.Rounded<half>(1.0f + 0x1.8p-10f) == 1.0f + 0x1p-9f);
         p.Expect(p.Rounded<half>(2.0f - 0x1p-12f) == 2.0f);  // carries over
         p.Expect(p.Rounded<half>(-0x1.8p-24f) == -0x1p-23f);  // below the normal numbers
         p.Expect(p.Rounded<half>(65519.0f) == 65504.0f && p.Rounded<half>(65520.0f) == inf);
         p.Expect(p.Rounded<half>(-inf) == -inf && std::isnan(p.Rounded<half>(std::nanf(""))));
         p.Expect(p.Rounded<bfloat16_t>(1.0f + 0x1.8p-7f) == 1.0f + 0x1p-6f);
         p.Expect(p.Rounded<bfloat16_t>(3.4e38f) == inf);
         p.Expect(std::isnan(p.Rounded<bfloat16_t>(std::nanf(""))));
         SetSaturationFlag<SaturationMode::FLOAT>(true);
         p.Expect(p.Rounded<half>(inf) == 65504.0f);
         p.Expect(p.Rounded<bfloat16_t>(std::nanf("")) == 0.0f);
     }},
    {kNothing,  // sums
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum>(p.y, p.x, 9, 3, 2, 1, 2);
         ReduceDataBlock<kSum>(p.y[64], p.x, 64, 2, 2, 1, 8);
         ReducePairElem<kSum>(p.y[256], p.x, 64, 2, 1, 1, 8);
         PipeBarrier<PIPE_ALL>();
         const auto sum = [&](uint32_t first, uint32_t count) {
             float all = 0;
             for (uint32_t i = first; i < first + count; ++i) {
                 all += p.x.GetValue(i);  // small whole numbers: exact in any order
             }
             return all;
         };
         for (uint32_t i = 0; i < 64; ++i) {
             p.Expect(i >= 3 || p.y.GetValue(2 * i) == sum(16 * i, 9));
             p.Expect(i >= 16 || p.y.GetValue(64 + i % 8 + i / 8 * 16) == sum(8 * i, 8));
             p.Expect(p.y.GetValue(256 + i) == sum(2 * i, 2));
         }
     }},
};

}  // namespace

int main()
{
    std::vector<float> in(kCount, 1.0f);
    std::vector<float> out(kCount);
    host::Simulator& sim = host::Sim();
    for (const auto& [expected, kernel] : kKernels) {
        sim.ForgetRanges();
        sim.Register("in", in.data(), kCount * sizeof(float), true, false);
        sim.Register("out", out.data(), kCount * sizeof(float), false, true);
        std::string found = kNothing;
        try {
            sim.Launch("broken", expected.find(" block") != std::string::npos ? 2 : 1, [&] {
                Place place(in.data(), out.data());
                kernel(place);
            });
        } catch (const host::Failure& failure) {
            found = failure.what();
        }
        if (found.find(expected) == std::string::npos) {
            std::printf("%s: %s\n", expected.c_str(), found.c_str());
        }
    }
    std::printf("%zu\n", kKernels.size());
    return 0;
}
