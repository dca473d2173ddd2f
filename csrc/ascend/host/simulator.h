// SPDX-License-Identifier: Apache-2.0
// The machine behind the stand-in for kernel_operator.h: one vector core's unified buffer (UB) and
// pipes, run block after block on the host. Results are computed at once, in the program's order.
// What could go wrong on the chip, where the pipes run side by side, is checked apart:
//
// - a vector clock for each pipe says which accesses of the others are known to be over. Queue
//   hand-offs, SetFlag/WaitFlag and PipeBarrier move that knowledge; nothing else does. Within a
//   pipe, too, only a barrier orders instructions, except on the scalar pipe;
// - UB is tracked in units of 32 bytes for that, and in bytes for whether it was ever written;
// - global memory is known by registered ranges, with the block that touched each byte. If none is
//   registered (as in the test of the torch binding) it is not checked.
//
// Blocks run one after the other, as on a chip with one core.
//
// A failed check throws Failure, which ends the launch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace AscendC {
namespace host {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum Pipe { kScalar, kVector, kMte2, kMte3, kPipes };
inline const char* const kPipeNames[] = {"S", "V", "MTE2", "MTE3"};

constexpr uint32_t kUbBytes = 192 * 1024;
constexpr uint32_t kUbUsable = 184 * 1024;  // above: Select's scratch and the system's
constexpr uint32_t kUnit = 32;
constexpr uint32_t kMaxBuffers = 64;
constexpr uint32_t kMaxQueued = 8;  // buffers that the queues of one position have
constexpr int32_t kEventIds = 8;
constexpr int kEvents = 64;
constexpr uint8_t kFresh = 0xFF;  // NaN in every float type

using Clock = std::array<uint64_t, kPipes>;

inline void Join(Clock& into, const Clock& from)
{
    for (int p = 0; p < kPipes; ++p) {
        into[p] = std::max(into[p], from[p]);
    }
}

enum class State { kFree, kAllocated, kEnqueued, kDequeued, kPlain };
inline const char* const kStateNames[] = {"free", "allocated", "enqueued", "dequeued", "plain"};

// A piece of UB that InitBuffer made: one of a queue's, or a TBuf's (kPlain).
struct Buffer {
    uint32_t start;
    uint32_t bytes;
    int position;
    State state;
    uint32_t generation = 0;  // of the tensor: a stale handle has an older one
    Clock ready{};            // what EnQue or FreeTensor published
};

// One operand of an instruction.
struct Operand {
    uint32_t buffer;
    uint32_t generation;
    uint32_t start;  // in UB
    uint32_t bytes;
    bool write;
};

struct Range {
    std::string name;
    uint8_t* data;
    uint64_t bytes;
    bool readOnly;
    bool fresh;  // holds nothing yet: a byte may be read only after it was written
    std::vector<uint8_t> defined;
    std::vector<int32_t> writer;  // since the launch; kNobody, a block, or kSeveral
    std::vector<int32_t> reader;
};

class Simulator {
public:
    static Simulator& Get()
    {
        static Simulator simulator;
        return simulator;
    }

    // --- Launches -------------------------------------------------------------------------------

    void Order(uint64_t seed)
    {
        seed_ = seed;
    }
    template <typename Body>
    void Launch(const std::string& kernel, uint32_t blocks, Body body)
    {
        kernel_ = kernel;
        blocks_ = blocks;
        Check(blocks > 0, "a launch without blocks");
        for (Range& range : ranges_) {
            std::fill(range.writer.begin(), range.writer.end(), kNobody);
            std::fill(range.reader.begin(), range.reader.end(), kNobody);
        }
        std::vector<uint32_t> order(blocks);
        for (uint32_t i = 0; i < blocks; ++i) {
            order[i] = i;
        }
        if (seed_ != 0) {
            std::mt19937_64 random(seed_);
            std::shuffle(order.begin(), order.end(), random);
        }
        for (uint32_t block : order) {
            StartBlock(block);
            body();
            EndBlock();
        }
        kernel_.clear();
    }
    uint32_t Block() const
    {
        return block_;
    }
    uint32_t Blocks() const
    {
        return blocks_;
    }
    // The most of UB that a kernel took, by its name.
    const std::map<std::string, uint32_t>& PeaksUb() const
    {
        return peaks_;
    }
    void ForgetRanges()
    {
        ranges_.clear();
        peaks_.clear();
    }

    // Of 16-bit floats in the scalar pipe's control register; a kernel leaves it as it found it.
    bool saturates = true;

    // --- Failures -------------------------------------------------------------------------------

    [[noreturn]] void Fail(const std::string& message) const
    {
        std::ostringstream text;
        text << (kernel_.empty() ? "" : kernel_ + " ") << "block " << block_ << ": " << message;
        throw Failure(text.str());
    }
    template <typename... Parts>
    void Check(bool good, const Parts&... parts) const
    {
        if (!good) {
            std::ostringstream text;
            (text << ... << parts);
            Fail(text.str());
        }
    }

    // --- UB -------------------------------------------------------------------------------------

    uint8_t* Ub(uint32_t at)
    {
        return ub_.data() + at;
    }
    uint32_t AddBuffer(uint32_t bytes, int position, State state)
    {
        Check(bytes > 0, "InitBuffer: a buffer of no bytes");
        bytes = (bytes + kUnit - 1) / kUnit * kUnit;
        Check(buffers_.size() < kMaxBuffers, "InitBuffer: more than ", kMaxBuffers, " buffers");
        Check(used_ + bytes <= kUbUsable, "InitBuffer: ", used_ + bytes, " bytes of UB; ",
              kUbUsable, " are usable");
        Buffer buffer{used_, bytes, position, state};
        used_ += bytes;
        peaks_[kernel_] = std::max(peaks_[kernel_], used_);
        buffers_.push_back(buffer);
        return static_cast<uint32_t>(buffers_.size() - 1);
    }
    bool HasBuffer(uint32_t buffer) const
    {
        return buffer < buffers_.size();
    }
    Buffer& At(uint32_t buffer)
    {
        Check(buffer < buffers_.size(), "a tensor of no buffer: it was never given one");
        return buffers_[buffer];
    }
    void CheckHandle(const char* what, const Operand& operand)
    {
        const Buffer& buffer = At(operand.buffer);
        Check(operand.generation == buffer.generation && buffer.state != State::kFree, what,
              ": the tensor was freed");
        Check(buffer.state != State::kEnqueued, what, ": the tensor is in its queue (no DeQue)");
        const uint64_t end = static_cast<uint64_t>(operand.start) + operand.bytes;
        Check(operand.start >= buffer.start && end <= buffer.start + buffer.bytes, what,
              ": beyond the tensor's buffer");
    }
    // An instruction with its operands, before it is carried out. Reads must be of written bytes.
    void Access(const char* what, Pipe pipe, std::initializer_list<Operand> operands)
    {
        const uint64_t now = Tick(pipe);
        for (const Operand& operand : operands) {
            CheckHandle(what, operand);
            if (!operand.write) {
                const uint8_t* from = defined_.data() + operand.start;
                Check(operand.bytes == 0 || std::memchr(from, 0, operand.bytes) == nullptr, what,
                      ": reads bytes that nobody wrote (fresh UB, or padding)");
            }
        }
        for (const Operand& operand : operands) {
            ForUnits(operand, [&](Unit& unit) { CheckOrder(what, pipe, unit, operand.write); });
        }
        for (const Operand& operand : operands) {
            ForUnits(operand, [&](Unit& unit) {
                if (operand.write) {
                    unit.writer = pipe;
                    unit.written = now;
                } else {
                    unit.read[pipe] = now;
                }
            });
            if (operand.write && operand.bytes > 0) {
                std::memset(defined_.data() + operand.start, 1, operand.bytes);
            }
        }
    }
    void Undefine(uint32_t start, uint32_t bytes)
    {
        std::memset(defined_.data() + start, 0, bytes);
        std::memset(ub_.data() + start, kFresh, bytes);
    }

    // --- Order between pipes --------------------------------------------------------------------

    Clock Publish(Pipe pipe) const
    {
        Clock clock = clock_[pipe];
        clock[pipe] = time_[pipe];
        return clock;
    }
    void Learn(Pipe pipe, const Clock& clock)
    {
        Join(clock_[pipe], clock);
    }
    void Barrier(Pipe pipe)
    {
        clock_[pipe][pipe] = time_[pipe];
    }
    void BarrierAll()
    {
        for (int to = 0; to < kPipes; ++to) {
            for (int from = 0; from < kPipes; ++from) {
                clock_[to][from] = time_[from];
            }
        }
    }
    void SetFlag(int event, int32_t id, Pipe from)
    {
        Check(id >= 0 && id < kEventIds, "SetFlag: event id ", id, " is not from 0 to 7");
        Flag& flag = flags_[event][id];
        Check(!flag.set, "SetFlag: the flag is set already");
        // The scalar pipe issues the others' instructions, so its own waits are over by now.
        Check(flag.waiter == kScalar || clock_[from][flag.waiter] >= flag.waited,
              "SetFlag: the wait for the same flag before may not be over");
        flag.set = true;
        flag.clock = Publish(from);
    }
    void WaitFlag(int event, int32_t id, Pipe to)
    {
        Check(id >= 0 && id < kEventIds, "WaitFlag: event id ", id, " is not from 0 to 7");
        Flag& flag = flags_[event][id];
        Check(flag.set, "WaitFlag: the flag was never set: the pipe waits for ever");
        flag.set = false;
        flag.waiter = to;
        flag.waited = Tick(to);
        Learn(to, flag.clock);
    }

    // --- Global memory --------------------------------------------------------------------------

    void Register(const std::string& name, void* data, uint64_t bytes, bool readOnly, bool fresh)
    {
        Range range{name, static_cast<uint8_t*>(data), bytes, readOnly, fresh, {}, {}, {}};
        if (fresh) {
            range.defined.assign(bytes, 0);
            std::memset(data, kFresh, bytes);
        }
        if (!readOnly) {
            range.writer.assign(bytes, kNobody);
            range.reader.assign(bytes, kNobody);
        }
        ranges_.push_back(std::move(range));
    }
    void GmAccess(const char* what, Pipe pipe, const void* address, uint64_t bytes, bool write)
    {
        if (bytes == 0 || ranges_.empty()) {
            return;
        }
        if (pipe == kScalar) {
            Tick(pipe);
        }
        const uint8_t* data = static_cast<const uint8_t*>(address);
        Range* range = Find(data, bytes);
        Check(range != nullptr, what, ": outside of every registered range of global memory");
        const uint64_t from = static_cast<uint64_t>(data - range->data);
        if (write) {
            Check(!range->readOnly, what, ": writes to ", range->name, ", which is read-only");
        } else if (range->fresh) {
            Check(std::memchr(range->defined.data() + from, 0, bytes) == nullptr, what, ": reads ",
                  range->name, " where nobody wrote");
        }
        if (!range->readOnly) {
            CheckRace(what, *range, from, bytes, write);
            CheckGmOrder(what, pipe, data, bytes, write);
        }
        if (write && range->fresh) {
            std::fill_n(range->defined.begin() + static_cast<int64_t>(from), bytes, uint8_t{1});
        }
    }

private:
    struct Unit {
        Pipe writer = kPipes;  // kPipes: nobody
        uint64_t written = 0;
        std::array<uint64_t, kPipes> read{};
    };
    struct Flag {
        bool set = false;
        Clock clock{};
        Pipe waiter = kScalar;
        uint64_t waited = 0;
    };
    struct Transfer {
        const uint8_t* from;
        uint64_t bytes;
        Pipe pipe;
        uint64_t time;
        bool write;
    };
    static constexpr int32_t kNobody = -1;
    static constexpr int32_t kSeveral = -2;

    void StartBlock(uint32_t block)
    {
        block_ = block;
        buffers_.clear();
        used_ = 0;
        time_.fill(0);
        for (Clock& clock : clock_) {
            clock.fill(0);
        }
        units_.assign(kUbBytes / kUnit, Unit{});
        Undefine(0, kUbBytes);
        for (auto& ids : flags_) {
            ids.fill(Flag{});
        }
        transfers_.clear();
        saturates = true;
    }
    void EndBlock()
    {
        Check(saturates, "at the end 16-bit floats do not saturate, as they did at the start");
        for (const Buffer& buffer : buffers_) {
            Check(buffer.state == State::kPlain || buffer.state == State::kFree,
                  "at the end a queue's tensor is still ",
                  kStateNames[static_cast<int>(buffer.state)]);
        }
        for (const auto& ids : flags_) {
            for (const Flag& flag : ids) {
                Check(!flag.set, "at the end a flag is set that nobody waited for");
            }
        }
    }
    uint64_t Tick(Pipe pipe)
    {
        const uint64_t now = ++time_[pipe];
        if (pipe == kScalar) {
            clock_[pipe][pipe] = now;  // the scalar pipe keeps its own order
        }
        return now;
    }
    template <typename Body>
    void ForUnits(const Operand& operand, Body body)
    {
        if (operand.bytes == 0) {
            return;
        }
        const uint32_t last = (operand.start + operand.bytes - 1) / kUnit;
        for (uint32_t i = operand.start / kUnit; i <= last; ++i) {
            body(units_[i]);
        }
    }
    void CheckOrder(const char* what, Pipe pipe, const Unit& unit, bool write) const
    {
        const Clock& known = clock_[pipe];
        if (unit.writer != kPipes && known[unit.writer] < unit.written) {
            FailOrder(what, pipe, write ? "write after write" : "read after write", unit.writer);
        }
        if (write) {
            for (int p = 0; p < kPipes; ++p) {
                if (known[p] < unit.read[p]) {
                    FailOrder(what, pipe, "write after read", static_cast<Pipe>(p));
                }
            }
        }
    }
    [[noreturn]] void FailOrder(const char* what, Pipe pipe, const char* hazard, Pipe by) const
    {
        Fail(std::string(what) + " on " + kPipeNames[pipe] + ": " + hazard + " by " +
             kPipeNames[by] + " without " + Remedy(by, pipe));
    }
    static std::string Remedy(Pipe from, Pipe to)
    {
        if (from == to) {
            return std::string("PipeBarrier<PIPE_") + kPipeNames[from] + ">";
        }
        return std::string("a queue or flag ") + kPipeNames[from] + "_" + kPipeNames[to];
    }
    Range* Find(const uint8_t* data, uint64_t bytes)
    {
        for (Range& range : ranges_) {
            if (data >= range.data && data < range.data + range.bytes) {
                return data + bytes <= range.data + range.bytes ? &range : nullptr;
            }
        }
        return nullptr;
    }
    void CheckRace(const char* what, Range& range, uint64_t from, uint64_t bytes, bool write)
    {
        const int32_t me = static_cast<int32_t>(block_);
        for (uint64_t i = from; i < from + bytes; ++i) {
            int32_t& writer = range.writer[i];
            int32_t& reader = range.reader[i];
            if (writer != kNobody && writer != me) {
                FailRace(what, write ? "two blocks write" : "reads what another block writes,",
                         range, i);
            }
            if (write && reader != kNobody && reader != me) {
                FailRace(what, "writes what another block reads,", range, i);
            }
            if (write) {
                writer = me;
            } else {
                reader = reader == kNobody || reader == me ? me : kSeveral;
            }
        }
    }
    [[noreturn]] void FailRace(const char* what, const char* race, const Range& range,
                               uint64_t byte) const
    {
        Fail(std::string(what) + ": " + race + " byte " + std::to_string(byte) + " of " +
             range.name);
    }
    void CheckGmOrder(const char* what, Pipe pipe, const uint8_t* data, uint64_t bytes, bool write)
    {
        for (const Transfer& other : transfers_) {
            const bool apart = data + bytes <= other.from || other.from + other.bytes <= data;
            if (apart || (!write && !other.write) || clock_[pipe][other.pipe] >= other.time) {
                continue;
            }
            Fail(std::string(what) + ": global memory, " + (write ? "write" : "read") + " after " +
                 (other.write ? "write" : "read") + " by " + kPipeNames[other.pipe] + " without " +
                 Remedy(other.pipe, pipe));
        }
        transfers_.push_back({data, bytes, pipe, time_[pipe], write});
    }

    uint64_t seed_ = 0;
    std::string kernel_;
    uint32_t block_ = 0;
    uint32_t blocks_ = 0;
    uint32_t used_ = 0;
    std::map<std::string, uint32_t> peaks_;
    std::vector<Buffer> buffers_;
    std::vector<Unit> units_;
    std::array<uint64_t, kPipes> time_{};
    std::array<Clock, kPipes> clock_{};
    std::array<std::array<Flag, kEventIds>, kEvents> flags_{};
    std::vector<Range> ranges_;
    std::vector<Transfer> transfers_;
    std::vector<uint8_t> ub_ = std::vector<uint8_t>(kUbBytes);
    std::vector<uint8_t> defined_ = std::vector<uint8_t>(kUbBytes);
};

}  // namespace host
}  // namespace AscendC
