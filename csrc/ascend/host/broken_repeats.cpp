// SPDX-License-Identifier: Apache-2.0
// Small kernels, each with one mistake in instructions that have repeats or blocks, which the
// stand-in has to find, or with none: then it finds nothing, and what they compute is right.
// `broken_repeats NAME` prints what was found.
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernel_operator.h"

namespace {

using namespace AscendC;

constexpr uint32_t kCount = 2048;

// Values and scratch in UB, and global memory, for one instruction or two.
struct Place {
    Place()
    {
        pipe.InitBuffer(input, kCount * sizeof(float));
        pipe.InitBuffer(left, kCount * sizeof(float));
        pipe.InitBuffer(output, kCount * sizeof(float));
        x = input.Get<float>();
        y = left.Get<float>();
        gm.resize(2 * kCount);
        from.SetGlobalBuffer(gm.data(), kCount);
        to.SetGlobalBuffer(gm.data() + kCount, kCount);
    }
    void Fill()
    {
        for (uint32_t i = 0; i < kCount; ++i) {
            x.SetValue(i, static_cast<float>(i % 7) - 3.0f);
        }
        PipeBarrier<PIPE_ALL>();
    }
    void Load(const DataCopyExtParams& params, bool pad)
    {
        DataCopyPadExtParams<float> padding;
        padding.isPad = pad;
        padding.rightPadding = pad ? 3 : 0;
        DataCopyPad(x, from, params, padding);
        PipeBarrier<PIPE_ALL>();
    }
    void Expect(bool good)
    {
        host::Sim().Check(good, "the result is wrong");
    }

    TPipe pipe;
    TBuf<TPosition::VECIN> input;
    TBuf<TPosition::VECCALC> left;
    TBuf<TPosition::VECOUT> output;
    LocalTensor<float> x;
    LocalTensor<float> y;
    std::vector<float> gm;
    GlobalTensor<float> from;
    GlobalTensor<float> to;
};

constexpr ReduceType kSum = ReduceType::SUM;
const BinaryRepeatParams kSideBySide(1, 1, 1, 8, 8, 8);

template <typename T>
float Rounded(Place& p, float value)
{
    LocalTensor<T> narrow = p.output.Get<T>();
    p.x.SetValue(0, value);
    PipeBarrier<PIPE_ALL>();
    Cast(narrow, p.x, RoundMode::CAST_RINT, 1);
    PipeBarrier<PIPE_ALL>();
    Cast(p.y, narrow, RoundMode::CAST_NONE, 1);
    PipeBarrier<PIPE_ALL>();
    return p.y.GetValue(0);
}

const std::map<std::string, std::function<void(Place&)>> kKernels = {
    {"reads a repeat that is not there yet",
     [](Place& p) {
         p.Fill();
         Muls(p.y, p.x, 2.0f, 1024);
         PipeBarrier<PIPE_V>();
         Muls(p.y[8 * 16], p.x, 2.0f, 8);  // the second repeat's
         Mul(p.y[1024], p.y, p.x, uint64_t{8}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 8, 16, 8));
     }},
    {"reads between repeats",
     [](Place& p) {
         p.Fill();
         Muls(p.y, p.x, 2.0f, 1024);
         PipeBarrier<PIPE_V>();
         Muls(p.y[64], p.x, 2.0f, 64);
         Mul(p.y[1024], p.y, p.x, uint64_t{64}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 8, 16, 8));
     }},
    {"reads what an instruction leaves",
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum, float, float>(p.y, p.x, 64, 20, 1, 1, 8);
         Muls(p.y[64], p.y[16], 2.0f, 4);
     }},
    {"padding of a block",
     [](Place& p) {
         p.Load(DataCopyExtParams(3, 5 * 4, 0, 0, 0), false);
         Muls(p.y, p.x, 2.0f, 24);
     }},
    {"place between blocks",
     [](Place& p) {
         p.Load(DataCopyExtParams(3, 5 * 4, 8, 1, 0), true);
         Muls(p.y, p.x, 2.0f, 24);
     }},
    {"lane beyond the mask",
     [](Place& p) {
         p.Fill();
         Mul(p.y, p.x, p.x, uint64_t{7}, uint8_t{2}, kSideBySide);
         PipeBarrier<PIPE_V>();
         Muls(p.y, p.y, 2.0f, 8);
     }},
    {"mask of 0",
     [](Place& p) {
         p.Fill();
         Mul(p.y, p.x, p.x, uint64_t{0}, uint8_t{2}, kSideBySide);
     }},
    {"mask of 65",
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum, float, float>(p.y, p.x, 65, 2, 1, 1, 8);
     }},
    {"no repeat",
     [](Place& p) {
         p.Fill();
         ReduceDataBlock<kSum, float, float>(p.y, p.x, 64, 0, 1, 1, 8);
     }},
    {"256 repeats",
     [](Place& p) {
         p.Fill();
         ReducePairElem<kSum, float, float>(p.y, p.x, 64, 256, 1, 1, 8);
     }},
    {"repeats over each other",
     [](Place& p) {
         p.Fill();
         Mul(p.y, p.x, p.x, uint64_t{64}, uint8_t{2}, BinaryRepeatParams(1, 1, 1, 4, 8, 8));
     }},
    {"repeats over their source",
     [](Place& p) {
         p.Fill();
         Mul(p.x[32], p.x, p.x, uint64_t{64}, uint8_t{2}, kSideBySide);
     }},
    {"sums over their source",
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum, float, float>(p.x, p.x, 64, 2, 1, 1, 8);
     }},
    {"sums at 4 bytes",
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum, float, float>(p.y[1], p.x, 64, 2, 1, 1, 8);
     }},
    {"sums at 3 bytes",
     [](Place& p) {
         p.Fill();
         const LocalTensor<uint8_t> bytes = p.y.ReinterpretCast<uint8_t>();
         ReduceRepeat<kSum, float, float>(bytes[3].ReinterpretCast<float>(), p.x, 64, 2, 1, 1, 8);
     }},
    {"pairs at 4 bytes",
     [](Place& p) {
         p.Fill();
         ReducePairElem<kSum, float, float>(p.y[1], p.x, 64, 2, 1, 1, 8);
     }},
    {"eights of 4 bytes",
     [](Place& p) {
         p.Fill();
         ReduceDataBlock<kSum, float, float>(p.y, p.x[1], 64, 2, 1, 1, 8);
     }},
    {"4096 blocks", [](Place& p) { p.Load(DataCopyExtParams(4096, 4, 0, 0, 0), false); }},
    {"half an element between blocks",
     [](Place& p) { p.Load(DataCopyExtParams(2, 4, 2, 0, 0), false); }},
    {"blocks beyond the tensor",
     [](Place& p) { p.Load(DataCopyExtParams(2, 32, 0, 256, 0), false); }},
    {"blocks beyond global memory",
     [](Place& p) { p.Load(DataCopyExtParams(3, 32, 4 * kCount, 0, 0), false); }},
    {"stored blocks",
     [](Place& p) {
         LocalTensor<float> out = p.output.Get<float>();
         Duplicate(out, 1.0f, 64);
         PipeBarrier<PIPE_ALL>();
         DataCopyPad(p.to, out, DataCopyExtParams(2, 32, 0, 0, 0));
     }},
    {"rounding without saying how",
     [](Place& p) {
         p.Fill();
         Cast(p.output.Get<half>(), p.x, RoundMode::CAST_NONE, 8);
     }},
    {"sums",
     [](Place& p) {
         p.Fill();
         ReduceRepeat<kSum, float, float>(p.y, p.x, 9, 3, 2, 1, 2);
         ReduceDataBlock<kSum, float, float>(p.y[64], p.x, 64, 2, 2, 1, 8);
         ReducePairElem<kSum, float, float>(p.y[256], p.x, 64, 2, 1, 1, 8);
         PipeBarrier<PIPE_ALL>();
         const auto sum = [&](uint32_t first, uint32_t count) {
             float all = 0;
             for (uint32_t i = first; i < first + count; ++i) {
                 all += p.x.GetValue(i);  // small whole numbers: exact in any order
             }
             return all;
         };
         for (uint32_t i = 0; i < 3; ++i) {
             p.Expect(p.y.GetValue(2 * i) == sum(16 * i, 9));
         }
         for (uint32_t i = 0; i < 16; ++i) {
             p.Expect(p.y.GetValue(64 + i % 8 + i / 8 * 16) == sum(8 * i, 8));
         }
         for (uint32_t i = 0; i < 64; ++i) {
             p.Expect(p.y.GetValue(256 + i) == sum(2 * i, 2));
         }
     }},
    {"rounding",
     [](Place& p) {
         SetSaturationFlag<SaturationMode::FLOAT>(false);
         const float inf = __builtin_inff();
         p.Expect(Rounded<half>(p, 1.0f + 0x1p-11f) == 1.0f);  // ties to even
         p.Expect(Rounded<half>(p, 1.0f + 0x1.8p-10f) == 1.0f + 0x1p-9f);
         p.Expect(Rounded<half>(p, 2.0f - 0x1p-12f) == 2.0f);  // carries over
         p.Expect(Rounded<half>(p, -0x1.8p-24f) == -0x1p-23f);  // below the normal numbers
         p.Expect(Rounded<half>(p, 0x1.ffcp-15f) == 0x1p-14f);
         p.Expect(Rounded<half>(p, 65519.0f) == 65504.0f);
         p.Expect(Rounded<half>(p, 65520.0f) == inf);
         p.Expect(Rounded<half>(p, -inf) == -inf);
         p.Expect(std::isnan(Rounded<half>(p, std::nanf(""))));
         p.Expect(Rounded<bfloat16_t>(p, 1.0f + 0x1p-8f) == 1.0f);
         p.Expect(Rounded<bfloat16_t>(p, 1.0f + 0x1.8p-7f) == 1.0f + 0x1p-6f);
         p.Expect(Rounded<bfloat16_t>(p, 3.4e38f) == inf);
         p.Expect(std::isnan(Rounded<bfloat16_t>(p, std::nanf(""))));
         SetSaturationFlag<SaturationMode::FLOAT>(true);
         p.Expect(Rounded<half>(p, inf) == 65504.0f);
         p.Expect(Rounded<half>(p, 1e6f) == 65504.0f);
         p.Expect(Rounded<bfloat16_t>(p, std::nanf("")) == 0.0f);
     }},
};

}  // namespace

int main(int argc, char** argv)
{
    if (argc < 2) {
        for (const auto& kernel : kKernels) {
            std::printf("%s\n", kernel.first.c_str());
        }
        return 0;
    }
    try {
        host::Sim().Launch(argv[1], 1, [&] {
            Place place;
            kKernels.at(argv[1])(place);
        });
    } catch (const host::Failure& failure) {
        std::printf("%s\n", failure.what());
    }
    return 0;
}
