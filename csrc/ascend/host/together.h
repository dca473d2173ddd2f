// SPDX-License-Identifier: Apache-2.0
// Blocks that wait for each other, for the simulator: a thread for each, of which one runs at a
// time. Which one goes on is drawn from a seed, so that a run can be repeated.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace AscendC {
namespace host {

class Together {
public:
    // Runs body(0) to body(count - 1). resume(i) and pause(i) are called around each stretch of
    // block i, released() when all have come to Wait(), and stuck(), which throws, when some have
    // and the others are done. What a block throws ends them all and is thrown again.
    template <typename Resume, typename Pause, typename Released, typename Stuck, typename Body>
    void Run(uint32_t count, uint64_t seed, Resume resume, Pause pause, Released released,
             Stuck stuck, Body body)
    {
        std::mt19937_64 random(seed);
        states_.assign(count, kReady);
        std::vector<std::thread> threads;
        for (uint32_t i = 0; i < count; ++i) {
            threads.emplace_back([this, i, &body] {
                Await(i);
                Keep([&] { ending_ ? void() : body(i); });
                HandOver(i, kDone);
            });
        }
        for (;;) {
            std::vector<uint32_t> ready;
            uint32_t done = 0;
            for (uint32_t i = 0; i < count; ++i) {
                done += states_[i] == kDone;
                if (states_[i] == kReady) {
                    ready.push_back(i);
                }
            }
            if (done == count) {
                break;
            }
            if (ready.empty()) {
                Keep([&] { done > 0 && !ending_ ? stuck() : released(); });
                for (State& state : states_) {
                    state = state == kWaiting ? kReady : state;
                }
                continue;
            }
            const uint32_t next = seed == 0 ? ready[0] : ready[random() % ready.size()];
            resume(next);
            running_ = next;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                turn_ = static_cast<int64_t>(next);
            }
            changed_.notify_all();
            Await(kMain);
            pause(next);
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        if (error_) {
            std::rethrow_exception(error_);
        }
    }
    // Called by the block that runs: until all have called it as often.
    void Wait()
    {
        const uint32_t me = running_;
        HandOver(me, kWaiting);
        Await(me);
        if (ending_) {
            throw Ended{};
        }
    }

private:
    enum State { kReady, kWaiting, kDone };
    struct Ended {};
    static constexpr int64_t kMain = -1;

    template <typename Work>
    void Keep(Work work)
    {
        try {
            work();
        } catch (const Ended&) {
        } catch (...) {
            error_ = error_ ? error_ : std::current_exception();
            ending_ = true;
        }
    }
    void Await(int64_t turn)
    {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return turn_ == turn; });
    }
    void HandOver(uint32_t from, State state)
    {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            states_[from] = state;
            turn_ = kMain;
        }
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t turn_ = kMain;
    uint32_t running_ = 0;
    bool ending_ = false;
    std::exception_ptr error_;
    std::vector<State> states_;
};

}  // namespace host
}  // namespace AscendC
