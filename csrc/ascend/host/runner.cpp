// SPDX-License-Identifier: Apache-2.0
// Runs the kernels on the stand-in for the tests: requests on stdin, answers on stdout, until the
// end of input. Everything is little-endian int64 or raw bytes, laid out as
// tests/ops/ascend_host.py says. Each request runs with its blocks in order and again in shuffled
// order; both must agree.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "contrastive_scoring.h"
#include "simulator.h"

namespace {

using AscendC::host::Failure;
using AscendC::host::Simulator;
using Bytes = std::vector<uint8_t>;

struct Request {
    int64_t topK;  // k, or 0 for dense scores
    int64_t inPlace;
    int64_t type;
    int64_t numRows;
    int64_t vocab;
    int64_t rowStride;
    int64_t groups;
    int64_t streams;
    int64_t cores;
    int64_t together;      // whether blocks may wait for each other
    int64_t hasFloor;
    int64_t counts;        // whether statistics are wanted
    int64_t logitsOffset;  // of the first row in the base, in bytes
    int64_t baseBytes;
    int64_t outStride;
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
    uint64_t Size() const
    {
        return all_.size() - 2 * kZone;
    }
    Bytes Content()
    {
        return Bytes(Data(), Data() + Size());
    }
    void CheckZones(const char* name) const
    {
        for (uint64_t i = 0; i < kZone; ++i) {
            if (all_[i] != kGuard || all_[all_.size() - 1 - i] != kGuard) {
                throw Failure(std::string("the guard zone of ") + name + " was written to");
            }
        }
    }

private:
    static constexpr uint64_t kZone = 4096;
    static constexpr uint8_t kGuard = 0xA5;
    Bytes all_;
};

struct Inputs {
    Bytes base;
    Bytes rows;
    Bytes weights;
    Bytes logAlpha;
    Bytes floor;
};

struct Answer {
    std::string problem;  // empty, or what a check said
    Bytes base;
    Bytes out;
    Bytes scores;
    Bytes ids;
    Bytes statistics;
    std::string traffic;  // lines: kernel, range, bytes read, bytes written; "waited", kernel,
                          // numbers read before the first and second load of logits; peak of UB
};

bool ReadAll(void* to, size_t bytes)
{
    return bytes == 0 || std::fread(to, 1, bytes, stdin) == bytes;
}
void WriteBytes(const void* from, size_t bytes)
{
    const int64_t count = static_cast<int64_t>(bytes);
    std::fwrite(&count, sizeof(count), 1, stdout);
    if (bytes > 0) {
        std::fwrite(from, 1, bytes, stdout);
    }
}

void Run(const Request& r, const Inputs& in, uint64_t seed, Answer& answer)
{
    Memory base(in.base);
    Memory rows(in.rows);
    Memory weights(in.weights);
    Memory logAlpha(in.logAlpha);
    Memory floor(in.floor);
    const bool dense = r.topK == 0 && r.inPlace == 0;
    const uint64_t outBytes =
        dense ? (static_cast<uint64_t>(r.groups - 1) * r.outStride + r.vocab) * 4 : 0;
    Memory out(Bytes(outBytes, 0xFF));
    Memory scores(Bytes(static_cast<uint64_t>(r.groups * r.topK) * 4, 0xFF));
    Memory ids(Bytes(static_cast<uint64_t>(r.groups * r.topK) * 8, 0xFF));

    vllm_cold::ScoringCall call{};
    call.type = static_cast<vllm_cold::LogitsType>(r.type);
    call.plan = vllm_cold::MakePlan(r.groups, r.vocab, r.cores);
    call.plan.together = call.plan.together && r.together != 0;
    Memory maxima(Bytes(call.plan.slotBytes, 0xFF));
    Memory lists(Bytes(r.topK > 0 ? call.plan.listBytes : 0, 0xFF));
    Memory counts(Bytes(r.counts != 0 ? call.plan.slotBytes : 0, 0xFF));
    Memory statistics(Bytes(r.counts != 0 ? static_cast<uint64_t>(r.groups) * 24 : 0, 0xFF));
    call.logits = base.Data() + r.logitsOffset;
    call.rows = rows.Data();
    call.weights = weights.Data();
    call.logAlpha = logAlpha.Data();
    call.floor = r.hasFloor != 0 ? floor.Data() : nullptr;
    call.maxima = maxima.Data();
    call.lists = lists.Data();
    call.counts = r.counts != 0 ? counts.Data() : nullptr;
    call.statistics = r.counts != 0 ? statistics.Data() : nullptr;
    call.out = dense ? out.Data() : nullptr;
    call.outScores = scores.Data();
    call.outIds = ids.Data();
    call.numRows = static_cast<uint32_t>(r.numRows);
    call.groups = static_cast<uint32_t>(r.groups);
    call.streams = static_cast<uint32_t>(r.streams);
    call.vocab = static_cast<uint32_t>(r.vocab);
    call.k = static_cast<uint32_t>(r.topK);
    call.rowStride = static_cast<uint64_t>(r.rowStride);
    call.outStride = static_cast<uint64_t>(r.outStride);

    Simulator& sim = Simulator::Get();
    sim.ForgetRanges();
    sim.Order(seed);
    sim.cores = static_cast<uint32_t>(r.cores);
    const uint64_t element = r.type == 0 ? 4 : 2;
    for (int64_t row = 0; row < r.numRows; ++row) {  // what lies between rows is out of bounds
        sim.Register("logits", call.logits + row * r.rowStride * element, r.vocab * element,
                     r.inPlace == 0, false);
    }
    const auto add = [&](const char* name, Memory& memory, bool readOnly) {
        if (memory.Size() > 0) {
            sim.Register(name, memory.Data(), memory.Size(), readOnly, !readOnly);
        }
    };
    add("rows", rows, true);
    add("weights", weights, true);
    add("log_alpha", logAlpha, true);
    add("floor", floor, true);
    add("maxima", maxima, false);
    add("lists", lists, false);
    add("counts", counts, false);
    add("statistics", statistics, false);
    add("out", out, false);
    add("out_scores", scores, false);
    add("out_ids", ids, false);
    if (r.topK > 0) {
        vllm_cold::LaunchTopK(call, nullptr);
    } else {
        vllm_cold::LaunchScores(call, nullptr);
    }
    const std::pair<const char*, Memory*> all[] = {
        {"logits", &base}, {"rows", &rows}, {"weights", &weights}, {"log_alpha", &logAlpha},
        {"floor", &floor}, {"maxima", &maxima},
        {"lists", &lists}, {"counts", &counts}, {"statistics", &statistics}, {"out", &out},
        {"out_scores", &scores}, {"out_ids", &ids}};
    for (const auto& [name, memory] : all) {
        memory->CheckZones(name);
    }
    answer.base = r.inPlace != 0 ? base.Content() : Bytes();
    answer.out = out.Content();
    answer.scores = scores.Content();
    answer.ids = ids.Content();
    answer.statistics = statistics.Content();
    for (const auto& moved : sim.Moved()) {
        answer.traffic += moved.kernel + " " + moved.range + " " + std::to_string(moved.read) +
                          " " + std::to_string(moved.written) + "\n";
    }
    for (const auto& [kernel, numbers] : sim.Waited()) {
        answer.traffic += "waited " + kernel + " " + std::to_string(numbers[0]) + " " +
                          std::to_string(numbers[1]) + "\n";
    }
    answer.traffic += "ub " + std::to_string(sim.PeakUb()) + "\n";
}

Answer RunBoth(const Request& request, const Inputs& inputs)
{
    Answer inOrder;
    try {
        Run(request, inputs, 0, inOrder);
        if (vllm_cold::MakePlan(request.groups, request.vocab, request.cores).blocks > 1) {
            Answer shuffled;
            Run(request, inputs, 1 + static_cast<uint64_t>(request.vocab), shuffled);
            if (inOrder.base != shuffled.base || inOrder.out != shuffled.out ||
                inOrder.scores != shuffled.scores || inOrder.ids != shuffled.ids ||
                inOrder.statistics != shuffled.statistics) {
                throw Failure("the result depends on the order of the blocks");
            }
        }
    } catch (const Failure& failure) {
        inOrder = Answer();
        inOrder.problem = failure.what();
    }
    return inOrder;
}

}  // namespace

int main()
{
    Request request;
    while (ReadAll(&request, sizeof(request))) {
        Inputs inputs;
        const size_t groups = static_cast<size_t>(request.groups);
        const size_t streams = static_cast<size_t>(request.streams);
        inputs.base.resize(static_cast<size_t>(request.baseBytes));
        inputs.rows.resize(groups * streams * 8);
        inputs.weights.resize(groups * (streams - 1) * 4);
        inputs.logAlpha.resize(groups * 4);
        inputs.floor.resize(request.hasFloor != 0 ? groups * 4 : 0);
        for (Bytes* bytes : {&inputs.base, &inputs.rows, &inputs.weights, &inputs.logAlpha,
                             &inputs.floor}) {
            if (!ReadAll(bytes->data(), bytes->size())) {
                return 1;
            }
        }
        const Answer answer = RunBoth(request, inputs);
        WriteBytes(answer.problem.data(), answer.problem.size());
        for (const Bytes* bytes : {&answer.base, &answer.out, &answer.scores, &answer.ids,
                                   &answer.statistics}) {
            WriteBytes(bytes->data(), bytes->size());
        }
        WriteBytes(answer.traffic.data(), answer.traffic.size());
        std::fflush(stdout);
    }
    return 0;
}
