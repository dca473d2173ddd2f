// SPDX-License-Identifier: Apache-2.0
// What the runners have in common: requests on stdin, answers on stdout, until the end of input.
// Everything is little-endian int64 or raw bytes, laid out as tests/ops/ascend_host.py says. Each
// request runs with its blocks in order and again in shuffled order; both must agree.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "simulator.h"

namespace AscendC {
namespace host {

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

inline bool ReadAll(void* to, size_t bytes)
{
    return bytes == 0 || std::fread(to, 1, bytes, stdin) == bytes;
}
inline bool ReadBytes(Bytes& to)
{
    int64_t count;
    if (!ReadAll(&count, sizeof(count))) {
        return false;
    }
    to.resize(static_cast<size_t>(count));
    return ReadAll(to.data(), to.size());
}
inline void WriteBytes(const void* from, size_t bytes)
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
inline void Write(const Answer& answer)
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

}  // namespace host
}  // namespace AscendC
