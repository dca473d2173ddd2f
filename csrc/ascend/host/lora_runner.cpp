// SPDX-License-Identifier: Apache-2.0
// Runs the LoRA kernels on the stand-in for the tests: requests on stdin, answers on stdout, until
// the end of input. Everything is little-endian int64 or raw bytes, laid out as
// tests/ops/lora_host.py says. Each request runs with its blocks in order and again in shuffled
// order; both must agree. Of x and y only the rows with an adapter can be touched, of the weights
// only those of adapters in use.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "lora.h"
#include "simulator.h"

namespace {

using AscendC::host::Failure;
using AscendC::host::Simulator;
using Bytes = std::vector<uint8_t>;

struct Request {
    int64_t type;
    int64_t rows;
    int64_t length;
    int64_t rank;
    int64_t adapters;
    int64_t slices;
    int64_t outputs[vllm_cold::kLoraSlices];
    int64_t xStride;
    int64_t yStride;
    int64_t cores;
    int64_t planOnly;
    double scale;
};

// An allocation of the device, with guard zones that nothing may touch.
class Memory {
public:
    explicit Memory(const Bytes& content) : all_(kZone + content.size() + kZone, kGuard)
    {
        if (!content.empty()) {
            std::memcpy(Data(), content.data(), content.size());
        }
    }
    uint8_t* Data()
    {
        return all_.data() + kZone;
    }
    Bytes Content() const
    {
        return Bytes(all_.begin() + kZone, all_.end() - kZone);
    }
    void CheckZones(const char* name) const
    {
        for (int64_t i = 0; i < kZone; ++i) {
            if (all_[i] != kGuard || all_[all_.size() - 1 - i] != kGuard) {
                throw Failure(std::string("the guard zone of ") + name + " was written to");
            }
        }
    }

private:
    static constexpr int64_t kZone = 4096;
    static constexpr uint8_t kGuard = 0xA5;
    Bytes all_;
};

struct Inputs {
    Bytes y;
    Bytes x;
    Bytes indices;
    std::vector<Bytes> a;
    std::vector<Bytes> b;
};

struct Answer {
    std::string problem;  // empty, or what a check said
    Bytes y;
    std::string report;   // lines: kernel, range, bytes read, bytes written; "ub", kernel, peak
};

vllm_cold::LoraPlan PlanOf(const Request& r)
{
    uint32_t outputs[vllm_cold::kLoraSlices];
    for (uint32_t i = 0; i < vllm_cold::kLoraSlices; ++i) {
        outputs[i] = static_cast<uint32_t>(r.outputs[i]);
    }
    return vllm_cold::MakeLoraPlan(
        static_cast<uint64_t>(r.rows), static_cast<uint32_t>(r.slices),
        static_cast<uint32_t>(r.rank), static_cast<uint32_t>(r.length), outputs,
        static_cast<uint64_t>(r.cores));
}

void Run(const Request& r, const Inputs& in, uint64_t seed, Answer& answer)
{
    const uint64_t element = r.type == 0 ? 4 : 2;
    Memory y(in.y);
    Memory x(in.x);
    Memory indices(in.indices);
    std::vector<Memory> a(in.a.begin(), in.a.end());
    std::vector<Memory> b(in.b.begin(), in.b.end());
    vllm_cold::LoraCall call{};
    call.plan = PlanOf(r);
    Memory sums(Bytes(call.plan.workspaceBytes, 0xFF));
    call.type = static_cast<vllm_cold::LoraType>(r.type);
    call.y = y.Data();
    call.x = x.Data();
    call.indices = indices.Data();
    call.sums = sums.Data();
    call.rows = static_cast<uint32_t>(r.rows);
    call.slices = static_cast<uint32_t>(r.slices);
    call.adapters = static_cast<uint32_t>(r.adapters);
    call.rank = static_cast<uint32_t>(r.rank);
    call.length = static_cast<uint32_t>(r.length);
    call.xStride = static_cast<uint64_t>(r.xStride);
    call.yStride = static_cast<uint64_t>(r.yStride);
    call.scale = static_cast<float>(r.scale);

    Simulator& sim = Simulator::Get();
    sim.ForgetRanges();
    sim.Order(seed);
    uint64_t width = 0;
    for (int64_t i = 0; i < r.slices; ++i) {
        call.a[i] = a[i].Data();
        call.b[i] = b[i].Data();
        call.outputs[i] = static_cast<uint32_t>(r.outputs[i]);
        width += r.outputs[i];
    }
    std::vector<bool> used(r.adapters, false);
    for (int64_t row = 0; row < r.rows; ++row) {
        int64_t adapter;
        std::memcpy(&adapter, in.indices.data() + row * 8, 8);
        if (adapter < 0 || adapter >= r.adapters) {
            continue;
        }
        used[adapter] = true;
        sim.Register("x", call.x + row * r.xStride * element, r.length * element, true, false);
        sim.Register("y", call.y + row * r.yStride * element, width * element, false, false);
    }
    for (int64_t adapter = 0; adapter < r.adapters; ++adapter) {
        for (int64_t i = 0; used[adapter] && i < r.slices; ++i) {
            const uint64_t ofA = r.rank * r.length * element;
            const uint64_t ofB = r.rank * r.outputs[i] * element;
            sim.Register("a" + std::to_string(i), call.a[i] + adapter * ofA, ofA, true, false);
            sim.Register("b" + std::to_string(i), call.b[i] + adapter * ofB, ofB, true, false);
        }
    }
    sim.Register("indices", call.indices, r.rows * 8, true, false);
    sim.Register("sums", call.sums, call.plan.workspaceBytes, false, true);
    vllm_cold::LaunchLora(call, nullptr);
    y.CheckZones("y");
    x.CheckZones("x");
    indices.CheckZones("indices");
    sums.CheckZones("sums");
    for (int64_t i = 0; i < r.slices; ++i) {
        a[i].CheckZones("a");
        b[i].CheckZones("b");
    }
    answer.y = y.Content();
    for (const auto& moved : sim.Moved()) {
        answer.report += moved.kernel + " " + moved.range + " " + std::to_string(moved.read) + " " +
                         std::to_string(moved.written) + "\n";
    }
    for (const auto& [kernel, bytes] : sim.PeaksUb()) {
        answer.report += "ub " + kernel + " " + std::to_string(bytes) + "\n";
    }
}

Answer RunBoth(const Request& request, const Inputs& inputs)
{
    Answer inOrder;
    try {
        Run(request, inputs, 0, inOrder);
        Answer shuffled;
        Run(request, inputs, 1 + static_cast<uint64_t>(request.length), shuffled);
        if (inOrder.y != shuffled.y) {
            throw Failure("the result depends on the order of the blocks");
        }
    } catch (const Failure& failure) {
        inOrder = Answer();
        inOrder.problem = failure.what();
    }
    return inOrder;
}

bool ReadAll(void* to, size_t bytes)
{
    return bytes == 0 || std::fread(to, 1, bytes, stdin) == bytes;
}
bool ReadBytes(Bytes& to)
{
    int64_t count;
    if (!ReadAll(&count, sizeof(count))) {
        return false;
    }
    to.resize(static_cast<size_t>(count));
    return ReadAll(to.data(), to.size());
}
void WriteBytes(const void* from, size_t bytes)
{
    const int64_t count = static_cast<int64_t>(bytes);
    std::fwrite(&count, sizeof(count), 1, stdout);
    if (bytes > 0) {
        std::fwrite(from, 1, bytes, stdout);
    }
}

std::string Describe(const vllm_cold::LoraPlan& plan)
{
    std::string text;
    for (const uint64_t value :
         {static_cast<uint64_t>(plan.parts), static_cast<uint64_t>(plan.partLength),
          static_cast<uint64_t>(plan.rankChunk), static_cast<uint64_t>(plan.outputs),
          static_cast<uint64_t>(plan.rankPitch), static_cast<uint64_t>(plan.shrinkBlocks),
          static_cast<uint64_t>(plan.expandBlocks), plan.workspaceBytes}) {
        text += std::to_string(value) + " ";
    }
    return text;
}

}  // namespace

int main()
{
    Request request;
    while (ReadAll(&request, sizeof(request))) {
        Answer answer;
        if (request.planOnly == 0) {
            Inputs inputs;
            inputs.a.resize(static_cast<size_t>(request.slices));
            inputs.b.resize(static_cast<size_t>(request.slices));
            bool whole = ReadBytes(inputs.y) && ReadBytes(inputs.x) && ReadBytes(inputs.indices);
            for (Bytes& bytes : inputs.a) {
                whole = whole && ReadBytes(bytes);
            }
            for (Bytes& bytes : inputs.b) {
                whole = whole && ReadBytes(bytes);
            }
            if (!whole) {
                return 1;
            }
            answer = RunBoth(request, inputs);
        }
        const std::string plan = Describe(PlanOf(request));
        WriteBytes(answer.problem.data(), answer.problem.size());
        WriteBytes(plan.data(), plan.size());
        WriteBytes(answer.y.data(), answer.y.size());
        WriteBytes(answer.report.data(), answer.report.size());
        std::fflush(stdout);
    }
    return 0;
}
