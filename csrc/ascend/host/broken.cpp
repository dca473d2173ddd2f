// SPDX-License-Identifier: Apache-2.0
// Small kernels, each with one mistake that the stand-in has to find and that no change of a line
// in ours would make. `broken NAME` prints what was found; "good" makes no mistake.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernel_operator.h"

namespace {

using namespace AscendC;

constexpr uint32_t kCount = 256;

struct Gm {
    float in[4 * kCount];
    float out[4 * kCount];
    GlobalTensor<float> From(uint32_t at = 0)
    {
        return Tensor(in, at);
    }
    GlobalTensor<float> To(uint32_t at = 0)
    {
        return Tensor(out, at);
    }

private:
    static GlobalTensor<float> Tensor(float* data, uint32_t at)
    {
        GlobalTensor<float> tensor;
        tensor.SetGlobalBuffer(data, 4 * kCount);
        return tensor[at];
    }
};

const DataCopyExtParams kWhole(1, kCount * sizeof(float), 0, 0, 0);

void Load(const LocalTensor<float>& to, Gm& gm)
{
    DataCopyPad(to, gm.From(), kWhole, DataCopyPadExtParams<float>());
}

template <HardEvent event>
void Sync()
{
    SetFlag<event>(GetTPipePtr()->FetchEventID(event));
    WaitFlag<event>(GetTPipePtr()->FetchEventID(event));
}

// A buffer that is loaded, doubled and stored, with flags instead of queues; `skip` leaves one out.
void ByFlags(Gm& gm, int skip)
{
    TPipe pipe;
    TBuf<TPosition::VECIN> buffer;
    TBuf<TPosition::VECOUT> other;
    pipe.InitBuffer(buffer, kCount * sizeof(float));
    pipe.InitBuffer(other, kCount * sizeof(float));
    LocalTensor<float> x = buffer.Get<float>();
    LocalTensor<float> y = other.Get<float>();
    for (uint32_t round = 0; round < 2; ++round) {
        Load(x, gm);
        if (skip != 1) Sync<HardEvent::MTE2_V>();
        Add(y, x, x, kCount);
        if (skip != 2) Sync<HardEvent::V_MTE3>();
        DataCopyPad(gm.To(round * kCount), y, kWhole);
        if (skip != 3) Sync<HardEvent::MTE3_V>();
        if (skip != 4) Sync<HardEvent::V_MTE2>();
    }
}

// Each block stores a number, waits for the others and takes the next one's; `skip` leaves out that
// the last one waits, or all, or that the number is loaded.
void Meet(Gm& gm, int skip)
{
    TPipe pipe;
    TQue<TPosition::VECIN, 1> in;
    TQue<TPosition::VECOUT, 1> out;
    pipe.InitBuffer(in, 1, 32);
    pipe.InitBuffer(out, 1, 32);
    const uint32_t block = static_cast<uint32_t>(GetBlockIdx());
    const uint32_t blocks = static_cast<uint32_t>(GetBlockNum());
    const DataCopyExtParams params(1, 32, 0, 0, 0);
    LocalTensor<float> x = out.AllocTensor<float>();
    Duplicate(x, 1.0f, 8);
    out.EnQue(x);
    x = out.DeQue<float>();
    DataCopyPad(gm.To(block * 8), x, params);
    out.FreeTensor(x);
    if (skip == 1 && block == blocks - 1) {
        return;
    }
    if (skip != 2) {
        SyncAll();
    }
    const uint32_t next = (block + 1) % blocks * 8;
    if (skip == 3) {
        (void)gm.To(next).GetValue(0);
        return;
    }
    x = in.AllocTensor<float>();
    DataCopyPad(x, gm.To(next), params, DataCopyPadExtParams<float>());
    in.EnQue(x);
    x = in.DeQue<float>();
    in.FreeTensor(x);
}

void MeetAs(Gm& gm, int skip)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
    Meet(gm, skip);
}

// Kernels whose blocks are there together, and how many.
const std::map<std::string, uint32_t> kTogether = {
    {"good together", 3}, {"a block does not come", 3}, {"nobody waits", 3},
    {"a number past the data cache", 3}, {"more blocks than cores", 41},
    {"waiting in a kernel of the wrong type", 3},
};

const std::map<std::string, std::function<void(Gm&)>> kKernels = {
    {"good together", [](Gm& gm) { MeetAs(gm, 0); }},
    {"a block does not come", [](Gm& gm) { MeetAs(gm, 1); }},
    {"nobody waits", [](Gm& gm) { MeetAs(gm, 2); }},
    {"a number past the data cache", [](Gm& gm) { MeetAs(gm, 3); }},
    {"more blocks than cores", [](Gm& gm) { MeetAs(gm, 0); }},
    {"waiting in a kernel of the wrong type", [](Gm& gm) { Meet(gm, 0); }},
    {"waiting one after the other", [](Gm& gm) { MeetAs(gm, 0); }},
    {"good", [](Gm& gm) { ByFlags(gm, 0); }},
    {"MTE2 to V", [](Gm& gm) { ByFlags(gm, 1); }},
    {"V to MTE3", [](Gm& gm) { ByFlags(gm, 2); }},
    {"MTE3 to V", [](Gm& gm) { ByFlags(gm, 3); }},
    {"V to MTE2", [](Gm& gm) { ByFlags(gm, 4); }},
    {"two loads to one place",
     [](Gm& gm) {
         TPipe pipe;
         TBuf<TPosition::VECIN> buffer;
         pipe.InitBuffer(buffer, kCount * sizeof(float));
         Load(buffer.Get<float>(), gm);
         Load(buffer.Get<float>(), gm);
     }},
    {"scalar to V",
     [](Gm&) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         pipe.InitBuffer(buffer, 32);
         LocalTensor<float> x = buffer.Get<float>();
         Duplicate(x, 0.0f, 8);
         Sync<HardEvent::V_S>();
         x.SetValue(0, 1.0f);
         Muls(x, x, 2.0f, 8);
     }},
    {"scalar to MTE3",
     [](Gm& gm) {
         TPipe pipe;
         TBuf<TPosition::VECOUT> buffer;
         pipe.InitBuffer(buffer, 32);
         for (uint32_t i = 0; i < 8; ++i) {
             buffer.Get<float>().SetValue(i, 1.0f);
         }
         DataCopyPad(gm.To(), buffer.Get<float>(), DataCopyExtParams(1, 32, 0, 0, 0));
     }},
    {"flag to another pipe",
     [](Gm& gm) {
         TPipe pipe;
         TBuf<TPosition::VECIN> buffer;
         pipe.InitBuffer(buffer, kCount * sizeof(float));
         Load(buffer.Get<float>(), gm);
         Sync<HardEvent::MTE2_S>();
         Muls(buffer.Get<float>(), buffer.Get<float>(), 2.0f, kCount);
     }},
    {"flag never waited for",
     [](Gm&) {
         TPipe pipe;
         SetFlag<HardEvent::V_S>(0);
     }},
    {"flag set twice",
     [](Gm&) {
         TPipe pipe;
         SetFlag<HardEvent::V_S>(0);
         SetFlag<HardEvent::V_S>(0);
     }},
    {"flag set again too soon",
     [](Gm&) {
         TPipe pipe;
         Sync<HardEvent::S_MTE3>();
         Sync<HardEvent::S_MTE3>();
     }},
    {"store over a load",
     [](Gm& gm) {
         TPipe pipe;
         TBuf<TPosition::VECIN> buffer;
         TBuf<TPosition::VECOUT> other;
         pipe.InitBuffer(buffer, kCount * sizeof(float));
         pipe.InitBuffer(other, kCount * sizeof(float));
         Duplicate(other.Get<float>(), 0.0f, kCount);
         Sync<HardEvent::V_MTE3>();
         DataCopyPad(gm.To(), other.Get<float>(), kWhole);
         DataCopyPad(buffer.Get<float>(), gm.To(), kWhole, DataCopyPadExtParams<float>());
     }},
    {"65 buffers",
     [](Gm&) {
         TPipe pipe;
         std::vector<TBuf<TPosition::VECCALC>> buffers(65);
         for (auto& buffer : buffers) {
             pipe.InitBuffer(buffer, 32);
         }
     }},
    {"1 byte more than UB",
     [](Gm&) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         TBuf<TPosition::VECCALC> last;
         pipe.InitBuffer(buffer, 184 * 1024 - 32 + 1);  // takes 32 bytes for the last one
         pipe.InitBuffer(last, 1);
     }},
    {"9 buffers of one position's queues",
     [](Gm&) {
         TPipe pipe;
         TBuf<TPosition::VECIN> none;  // of a queue
         TQue<TPosition::VECOUT, 1> other;
         TQue<TPosition::VECIN, 4> queue;
         TQue<TPosition::VECIN, 4> four;
         TQue<TPosition::VECIN, 1> ninth;
         pipe.InitBuffer(none, 32);
         pipe.InitBuffer(other, 1, 32);
         pipe.InitBuffer(queue, 4, 32);
         pipe.InitBuffer(four, 4, 32);
         pipe.InitBuffer(ninth, 1, 32);
     }},
    {"enqueued twice",
     [](Gm&) {
         TPipe pipe;
         TQue<TPosition::VECIN, 2> queue;
         pipe.InitBuffer(queue, 2, 32);
         LocalTensor<float> x = queue.AllocTensor<float>();
         queue.EnQue(x);
         queue.EnQue(x);
     }},
    {"freed before it was dequeued",
     [](Gm&) {
         TPipe pipe;
         TQue<TPosition::VECIN, 1> queue;
         pipe.InitBuffer(queue, 1, 32);
         LocalTensor<float> x = queue.AllocTensor<float>();
         queue.FreeTensor(x);
     }},
    {"overlap in part",
     [](Gm&) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         pipe.InitBuffer(buffer, 1024);
         LocalTensor<float> x = buffer.Get<float>();
         Duplicate(x, 0.0f, 256);
         PipeBarrier<PIPE_V>();
         Adds(x[8], x, 1.0f, 64);
     }},
    {"one block needs another",
     [](Gm& gm) {
         TPipe pipe;
         TQue<TPosition::VECIN, 1> in;
         TQue<TPosition::VECOUT, 1> out;
         pipe.InitBuffer(in, 1, 32);
         pipe.InitBuffer(out, 1, 32);
         const uint32_t block = static_cast<uint32_t>(GetBlockIdx());
         const DataCopyExtParams params(1, 32, 0, 0, 0);
         LocalTensor<float> x = out.AllocTensor<float>();
         Duplicate(x, 1.0f, 8);
         out.EnQue(x);
         x = out.DeQue<float>();
         DataCopyPad(gm.To(block * 8), x, params);
         out.FreeTensor(x);
         if (block > 0) {
             DataCopyPad(in.AllocTensor<float>(), gm.To((block - 1) * 8), params,
                         DataCopyPadExtParams<float>());
         }
     }},
    {"outside", [](Gm& gm) { (void)gm.From(4 * kCount - 1)[2]; }},
    {"another memory",
     [](Gm&) {
         float elsewhere = 0.0f;
         GlobalTensor<float> tensor;
         tensor.SetGlobalBuffer(&elsewhere, 1);
         (void)tensor.GetValue(0);
     }},
};

}  // namespace

int main(int argc, char** argv)
{
    const auto found = argc == 2 ? kKernels.find(argv[1]) : kKernels.end();
    if (found == kKernels.end()) {
        for (const auto& [name, kernel] : kKernels) {
            std::printf("%s\n", name.c_str());
        }
        return 2;
    }
    Gm gm{};
    host::Simulator& sim = host::Simulator::Get();
    sim.Register("in", gm.in, sizeof(gm.in), true, false);
    sim.Register("out", gm.out, sizeof(gm.out), false, false);
    const auto kernel = [&] { found->second(gm); };
    try {
        const auto together = kTogether.find(found->first);
        if (together != kTogether.end()) {
            sim.LaunchTogether("broken", together->second, kernel);
        } else {
            sim.Launch("broken", found->first == "one block needs another" ? 2 : 1, kernel);
        }
    } catch (const host::Failure& failure) {
        std::printf("%s\n", failure.what());
    }
    return 0;
}
