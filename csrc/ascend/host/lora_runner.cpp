// SPDX-License-Identifier: Apache-2.0
// Runs the LoRA kernels on the stand-in for the tests (requests.h; tests/ops/ascend_host.py has the
// layout). Of x and y only the rows with an adapter can be touched, of the weights only those of
// adapters in use.
#include "lora.h"
#include "requests.h"

namespace {

using namespace AscendC::host;

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
    double scale;
};

struct Inputs {
    Bytes y;
    Bytes x;
    Bytes indices;
    std::vector<Bytes> a;
    std::vector<Bytes> b;
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

std::vector<Bytes> Run(const Request& r, const Inputs& in)
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
    return {y.Content()};
}

}  // namespace

int main()
{
    Request request;
    while (ReadAll(&request, sizeof(request))) {
        Inputs inputs;
        inputs.a.resize(static_cast<size_t>(request.slices));
        inputs.b.resize(static_cast<size_t>(request.slices));
        std::vector<Bytes*> all{&inputs.y, &inputs.x, &inputs.indices};
        for (std::vector<Bytes>* stack : {&inputs.a, &inputs.b}) {
            for (Bytes& bytes : *stack) {
                all.push_back(&bytes);
            }
        }
        for (Bytes* bytes : all) {
            if (!ReadBytes(*bytes)) {
                return 1;
            }
        }
        Write(RunBoth([&] { return Run(request, inputs); }));
    }
    return 0;
}
