// SPDX-License-Identifier: Apache-2.0
// Runs the scoring kernels on the stand-in for the tests (requests.h).
#include "contrastive_scoring.h"
#include "requests.h"

namespace {

using namespace AscendC::host;

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
