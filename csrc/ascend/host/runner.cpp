// SPDX-License-Identifier: Apache-2.0
// Runs the scoring kernels on the stand-in for the tests: requests on stdin, answers on stdout,
// until the end of input. Everything is little-endian int64 or raw bytes, laid out as
// tests/ops/ascend_host.py says. Each request runs with its blocks in order and again in shuffled
// order; both must agree.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "contrastive_scoring.h"
#include "simulator.h"

namespace {

using namespace AscendC::host;

using Bytes = std::vector<uint8_t>;

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
    uint64_t Size() const
    {
        return all_.size() - 2 * kZone;
    }
    Bytes Content() const
    {
        return Bytes(all_.begin() + kZone, all_.end() - kZone);
    }
    void CheckZones(const std::string& name) const
    {
        for (int64_t i = 0; i < kZone; ++i) {
            if (all_[i] != kGuard || all_[all_.size() - 1 - i] != kGuard) {
                throw Failure("the guard zone of " + name + " was written to");
            }
        }
    }

private:
    static constexpr int64_t kZone = 4096;
    static constexpr uint8_t kGuard = 0xA5;
    Bytes all_;
};

struct Answer {
    std::string problem;  // empty, or what a check said
    std::vector<Bytes> outputs;
    std::string report;  // lines: kernel, peak of UB
};

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

// run() carries the request out and returns its outputs.
template <typename Run>
Answer RunBoth(Run run)
{
    Simulator& sim = Simulator::Get();
    Answer answer;
    try {
        for (const uint64_t seed : {0, 1}) {
            sim.ForgetRanges();
            sim.Order(seed);
            const std::vector<Bytes> outputs = run();
            if (seed > 0 && outputs != answer.outputs) {
                throw Failure("the result depends on the order of the blocks");
            }
            answer.outputs = outputs;
        }
        for (const auto& [kernel, bytes] : sim.PeaksUb()) {
            answer.report += kernel + " " + std::to_string(bytes) + "\n";
        }
    } catch (const Failure& failure) {
        answer = Answer{failure.what(), answer.outputs, ""};
    }
    return answer;
}

// The number of outputs first.
void Write(const Answer& answer)
{
    WriteBytes(answer.problem.data(), answer.problem.size());
    WriteBytes(answer.report.data(), answer.report.size());
    const int64_t count = static_cast<int64_t>(answer.outputs.size());
    std::fwrite(&count, sizeof(count), 1, stdout);
    for (const Bytes& bytes : answer.outputs) {
        WriteBytes(bytes.data(), bytes.size());
    }
    std::fflush(stdout);
}

struct Request {
    int64_t inPlace;
    int64_t type;
    int64_t numRows;
    int64_t vocab;
    int64_t rowStride;
    int64_t groups;
    int64_t streams;
    int64_t cores;
    int64_t hasFloor;
    int64_t counts;        // whether statistics are wanted
    int64_t logitsOffset;  // of the first row in the base, in bytes
    int64_t outStride;
};

enum Input { kBase, kRows, kWeights, kLogAlpha, kFloor, kInputs };

// The base if it is written to, scores and statistics.
std::vector<Bytes> Run(const Request& r, const std::vector<Bytes>& in)
{
    const uint64_t groups = static_cast<uint64_t>(r.groups);
    const uint64_t outBytes = r.inPlace != 0 ? 0 : ((groups - 1) * r.outStride + r.vocab) * 4;
    vllm_cold::ScoringCall call{};
    call.plan = vllm_cold::MakePlan(r.groups, r.vocab, r.cores);
    std::vector<Memory> inputs(in.begin(), in.end());
    Memory maxima(Bytes(call.plan.slotBytes, 0xFF));
    Memory counts(Bytes(r.counts != 0 ? call.plan.slotBytes : 0, 0xFF));
    Memory statistics(Bytes(r.counts != 0 ? groups * 24 : 0, 0xFF));
    Memory out(Bytes(outBytes, 0xFF));
    call.type = static_cast<vllm_cold::LogitsType>(r.type);
    call.logits = inputs[kBase].Data() + r.logitsOffset;
    call.rows = inputs[kRows].Data();
    call.weights = inputs[kWeights].Data();
    call.logAlpha = inputs[kLogAlpha].Data();
    call.floor = r.hasFloor != 0 ? inputs[kFloor].Data() : nullptr;
    call.maxima = maxima.Data();
    call.counts = r.counts != 0 ? counts.Data() : nullptr;
    call.statistics = r.counts != 0 ? statistics.Data() : nullptr;
    call.out = r.inPlace != 0 ? nullptr : out.Data();
    call.numRows = static_cast<uint32_t>(r.numRows);
    call.groups = static_cast<uint32_t>(r.groups);
    call.streams = static_cast<uint32_t>(r.streams);
    call.vocab = static_cast<uint32_t>(r.vocab);
    call.rowStride = static_cast<uint64_t>(r.rowStride);
    call.outStride = static_cast<uint64_t>(r.outStride);

    Simulator& sim = Simulator::Get();
    const uint64_t element = r.type == 0 ? 4 : 2;
    for (int64_t row = 0; row < r.numRows; ++row) {  // what lies between rows is out of bounds
        sim.Register("logits", call.logits + row * r.rowStride * element, r.vocab * element,
                     r.inPlace == 0, false);
    }
    const char* const names[kInputs] = {"logits", "rows", "weights", "log_alpha", "floor"};
    for (int i = kRows; i < kInputs; ++i) {
        sim.Register(names[i], inputs[i].Data(), inputs[i].Size(), true, false);
    }
    const std::pair<const char*, Memory*> outputs[] = {
        {"maxima", &maxima}, {"counts", &counts}, {"statistics", &statistics}, {"out", &out}};
    for (const auto& [name, memory] : outputs) {
        sim.Register(name, memory->Data(), memory->Size(), false, true);
    }
    vllm_cold::LaunchScores(call, nullptr);
    for (int i = 0; i < kInputs; ++i) {
        inputs[i].CheckZones(names[i]);
    }
    for (const auto& [name, memory] : outputs) {
        memory->CheckZones(name);
    }
    return {r.inPlace != 0 ? inputs[kBase].Content() : Bytes(), out.Content(),
            statistics.Content()};
}

}  // namespace

int main()
{
    Request request;
    while (ReadAll(&request, sizeof(request))) {
        std::vector<Bytes> inputs(kInputs);
        for (Bytes& bytes : inputs) {
            if (!ReadBytes(bytes)) {
                return 1;
            }
        }
        Write(RunBoth([&] { return Run(request, inputs); }));
    }
    return 0;
}
