// SPDX-License-Identifier: Apache-2.0
// The op as a whole: who computes what, and in which order.
//
// A group takes two passes: the maxima of its expert's row, tile by tile, then the scores, which read
// the amateurs' rows side by side. As many groups as share out evenly are computed by one thread each,
// so that the second pass finds what it needs of the expert's row in that core's cache. The rest is
// cut into segments of the vocabulary, of which every thread has as many as the others, or nearly, and
// the same ones in both passes.
#include "scoring.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>

#include "scoring_kernels.h"
#include "threads.h"

namespace {

constexpr float kInf = __builtin_inff();
constexpr float kLargest = 3.40282346638528859811704183484516925e+38f;
// Below this, a thread costs more than it saves: elements of two rows.
constexpr int64_t kPerThread = 8192;
// Scores that no core's own cache could hold are written past the caches: an ordinary store reads the
// memory first that it overwrites.
constexpr int64_t kStream = 1 << 20;
constexpr int64_t kMaxSegments = 256;
constexpr Tally kNothing{0, -1, -1, 0.0f, 0.0f, false};

// What is known of a group's expert: the lowest logit of a candidate (-inf is none, so it is above
// that), and whether no tile's maximum is +inf.
struct Settings {
    float threshold;
    bool finite;
};

struct Job {
    char* logits;
    int64_t row_bytes, vocab, element_size;
    const int64_t* rows;
    int64_t streams;
    const float *weights, *log_alpha;
    const int64_t* expert_top_k;
    float* out;
    int64_t* statistics;
    const Kernels* kernels;
    bool stream;
    int64_t num_tiles;
    float* tiles;  // [groups, num_tiles], the maxima of the experts' rows

    // Of stream 0, the expert, or of an amateur.
    int64_t row(int64_t group, int64_t i) const { return rows[group * streams + i]; }
    char* row_of(int64_t group, int64_t i) const { return logits + row(group, i) * row_bytes; }
    float* tiles_of(int64_t group) const { return tiles + group * num_tiles; }

    // Tiles [from, to) of a group's vocabulary, as tokens.
    struct Range {
        int64_t from, to;
    };
    Range tokens(Range t) const { return {t.from * kTile, std::min(t.to * kTile, vocab)}; }

    void maxima(int64_t group, Range range) const {
        const auto [from, to] = tokens(range);
        kernels->maxima(row_of(group, 0) + from * element_size, to - from,
                        tiles_of(group) + range.from);
    }

    Settings settings(int64_t group, bool* no_memory) const {
        const float* maxima = tiles_of(group);
        const float best = *std::max_element(maxima, maxima + num_tiles);
        if (!(best < kInf)) return {-kLargest, false};
        return {threshold(group, best, no_memory), true};
    }

    float threshold(int64_t group, float best, bool* no_memory) const {
        const float mask = std::max(best + log_alpha[group], -kLargest);
        const int64_t cap = expert_top_k == nullptr ? 0 : expert_top_k[group];
        if (cap <= 0 || cap >= vocab) return mask;
        // Of those that the mask admits, the cap-th; they are the largest, so it is the row's too.
        float* found = static_cast<float*>(std::malloc(static_cast<size_t>(vocab) * sizeof(float)));
        if (found == nullptr) {
            *no_memory = true;
            return mask;
        }
        const int64_t count =
            kernels->at_least(row_of(group, 0), vocab, tiles_of(group), mask, found);
        float limit = mask;
        if (count > cap) {
            std::nth_element(found, found + cap - 1, found + count,
                             [](float a, float b) { return a > b; });
            limit = found[cap - 1];
        }
        std::free(found);
        return limit;
    }

    // Of the amateurs, those that there are; the expert itself, without weight, if there are none.
    Segment segment(int64_t group, Range range, const Settings& with) const {
        const auto [from, to] = tokens(range);
        const int64_t start = from * element_size;
        Segment s;
        s.expert = row_of(group, 0) + start;
        s.n = to - from;
        s.tiles = tiles_of(group) + range.from;
        s.threshold = with.threshold;
        s.num = 0;
        for (int64_t i = 1; i < streams; ++i) {
            if (row(group, i) < 0) continue;
            s.amateurs[s.num] = row_of(group, i) + start;
            s.weights[s.num++] = weights[group * (streams - 1) + i - 1];
        }
        if (s.num == 0) s.amateurs[0] = s.expert, s.weights[s.num++] = 0.0f;
        return s;
    }

    // Whether the amateurs' logits hold NaN or +inf.
    bool score(int64_t group, Range range, const Settings& with) const {
        bool bad = false;
        const auto [from, to] = tokens(range);
        const Segment s = segment(group, range, with);
        if (out != nullptr) {
            float* row = out + group * vocab + from;
            const bool aligned = reinterpret_cast<uintptr_t>(row) % 64 == 0;
            kernels->scores(s, row, stream && aligned, &bad);
        } else {
            kernels->scores(s, reinterpret_cast<float*>(row_of(group, 0)) + from, false, &bad);
            for (int64_t i = 1; bad && i < streams; ++i) {
                if (row(group, i) < 0) continue;
                replace_nonfinite(reinterpret_cast<float*>(row_of(group, i)) + from, to - from);
            }
        }
        return bad;
    }

    static void replace_nonfinite(float* x, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            if (!(x[i] < kInf)) x[i] = 0.0f;
        }
    }

    Tally tally(int64_t group, Range range, const Settings& with) const {
        Tally found = kNothing;
        kernels->tally(segment(group, range, with), tokens(range).from, &found);
        return found;
    }

    // A group's statistics out of the tallies of `num` segments, which lie in order of their ids.
    void count(int64_t group, const Settings& with, const Tally* segments, int64_t num) const {
        Tally all = kNothing;
        all.bad = !with.finite;
        for (const Tally* t = segments; t < segments + num; ++t) {
            all.bad = all.bad || t->bad;
            if (t->count == 0) continue;
            if (all.count == 0 || t->best > all.best) all.best = t->best, all.best_id = t->best_id;
            if (all.count == 0 || t->expert > all.expert)
                all.expert = t->expert, all.expert_id = t->expert_id;
            all.count += t->count;
        }
        statistics[3 * group] = all.count;
        statistics[3 * group + 1] = all.best_id != all.expert_id;
        statistics[3 * group + 2] = all.bad;
    }
};

const Kernels* kernels_for(int32_t isa) {
#if defined(__x86_64__)
    if (isa >= kAvx512) return kAvx512Kernels;
    if (isa == kAvx2) return kAvx2Kernels;
#endif
    (void)isa;
    return kPortableKernels;
}

}  // namespace

int32_t vllm_cold_score(void* logits, int64_t num_rows, int64_t row_stride, int64_t vocab,
                        int32_t dtype, const int64_t* rows, const float* weights,
                        const float* log_alpha, const int64_t* expert_top_k, int64_t num_groups,
                        int64_t streams, float* out, int64_t* statistics, int32_t isa,
                        int32_t threads) {
    for (int64_t i = 0; i < num_groups * streams; ++i) {
        if (rows[i] < (i % streams == 0 ? 0 : -1) || rows[i] >= num_rows) return kRowOutside;
    }
    const int64_t num_tiles = (vocab + kTile - 1) / kTile;
    const int64_t useful = num_groups * streams * vocab / 2 / kPerThread;
    const int64_t num_threads = std::clamp<int64_t>(threads, 1, std::max<int64_t>(useful, 1));
    const int64_t split = num_groups % num_threads;
    const int64_t whole = num_groups - split;
    int64_t segments = 1;
    if (split > 0) {
        segments = std::min({num_threads / std::gcd(num_threads, split), num_tiles,
                             std::max<int64_t>(4 * num_threads / split, 1), kMaxSegments});
    }
    const int64_t tasks = split * segments;
    float* tiles = static_cast<float*>(
        std::malloc(static_cast<size_t>(num_groups * num_tiles) * sizeof(float)));
    Settings* settings =  // of the split groups
        static_cast<Settings*>(std::malloc(static_cast<size_t>(split + 1) * sizeof(Settings)));
    const bool counted = statistics != nullptr;
    Tally* tallies = static_cast<Tally*>(
        std::malloc(static_cast<size_t>(counted ? tasks + 1 : 1) * sizeof(Tally)));
    std::atomic<bool> no_memory{tiles == nullptr || settings == nullptr || tallies == nullptr};

    const Job job{static_cast<char*>(logits), row_stride * kElementSize[dtype], vocab,
                  kElementSize[dtype], rows, streams, weights, log_alpha, expert_top_k, out,
                  statistics, kernels_for(isa) + dtype, num_groups * vocab >= kStream, num_tiles,
                  tiles};
    const Job::Range all{0, num_tiles};

    auto body = [&](Team team) {
        bool found_no_memory = false;
        for (int64_t group = team.thread; group < whole; group += team.size) {
            job.maxima(group, all);
            const Settings with = job.settings(group, &found_no_memory);
            Tally found = counted ? job.tally(group, all, with) : kNothing;
            found.bad = job.score(group, all, with);
            if (counted) job.count(group, with, &found, 1);
        }
        if (split > 0) {
            const auto segment = [&](int64_t task) {
                const int64_t s = task % segments;
                return Job::Range{s * num_tiles / segments, (s + 1) * num_tiles / segments};
            };
            for (int64_t task = team.thread; task < tasks; task += team.size)
                job.maxima(whole + task / segments, segment(task));
            team.barrier();
            for (int64_t p = team.thread; p < split; p += team.size)
                settings[p] = job.settings(whole + p, &found_no_memory);
            team.barrier();
            for (int64_t task = team.thread; task < tasks; task += team.size) {
                const int64_t group = whole + task / segments;
                const Settings& with = settings[task / segments];
                if (counted) tallies[task] = job.tally(group, segment(task), with);
                const bool bad = job.score(group, segment(task), with);
                if (counted) tallies[task].bad = bad;
            }
            if (counted) {
                team.barrier();
                for (int64_t p = team.thread; p < split; p += team.size)
                    job.count(whole + p, settings[p], tallies + p * segments, segments);
            }
        }
        if (found_no_memory) no_memory = true;
    };
    if (!no_memory) parallel(num_threads, body);
    std::free(tiles);
    std::free(settings);
    std::free(tallies);
    return no_memory ? kNoMemory : kOk;
}
