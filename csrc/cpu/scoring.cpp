// SPDX-License-Identifier: Apache-2.0
// The op as a whole: who computes what, and in which order.
//
// A pair takes two passes: the maxima of its expert's row, tile by tile, then the scores. As many
// pairs as share out evenly are computed by one thread each, so that the second pass finds what it
// needs of the expert's row in that core's cache. The rest is cut into segments of the vocabulary,
// of which every thread has as many as the others, or nearly, and the same ones in both passes.
// A pair whose beta adapts itself takes one more at first: the maxima of its amateur's row.
#include "scoring.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>

#include "scoring_adaptive.h"
#include "scoring_kernels.h"
#include "threads.h"

namespace {

constexpr float kInf = __builtin_inff();
constexpr float kLargest = 3.40282346638528859811704183484516925e+38f;
// Below this, a thread costs more than it saves: elements of all pairs' experts.
constexpr int64_t kPerThread = 8192;
// Scores that no core's own cache could hold are written past the caches: an ordinary store reads the
// memory first that it overwrites.
constexpr int64_t kStream = 1 << 20;
constexpr int64_t kMaxSegments = 256;
constexpr Tally kNothing{0, -1, -1, 0.0f, 0.0f, false};

// What a pair's rows are scored with: the lowest expert logit of a candidate (-inf is none, so it is
// above that), and the contrast strength. `finite`: no tile's maximum is +inf; of an amateur whose
// pair is not adaptive, that is not known yet.
struct Settings {
    float threshold, beta;
    bool finite;
};

struct Job {
    char* logits;
    int64_t row_bytes, vocab, element_size;
    const int64_t *expert_rows, *amateur_rows;
    const float *log_alpha, *beta;
    const int64_t* expert_top_k;
    const uint8_t* adaptive;
    float* out;
    float* top_scores;
    int64_t* top_ids;
    int64_t k;
    int64_t* statistics;
    const Kernels* kernels;
    bool stream;
    int64_t num_tiles;
    float* tiles;          // [pairs, num_tiles] maxima of the experts
    float* amateur_tiles;  // and of the adaptive pairs' amateurs; null if no pair is adaptive

    char* expert(int64_t pair) const { return logits + expert_rows[pair] * row_bytes; }
    char* amateur(int64_t pair) const { return logits + amateur_rows[pair] * row_bytes; }
    float* tiles_of(int64_t pair) const { return tiles + pair * num_tiles; }
    float* amateur_tiles_of(int64_t pair) const { return amateur_tiles + pair * num_tiles; }
    float largest(const float* maxima) const {
        return *std::max_element(maxima, maxima + num_tiles);
    }
    bool adapts(int64_t pair) const { return adaptive != nullptr && adaptive[pair] != 0; }

    // Tiles [from, to) of a pair's vocabulary, as tokens.
    struct Range {
        int64_t from, to;
    };
    Range tokens(Range t) const { return {t.from * kTile, std::min(t.to * kTile, vocab)}; }

    void maxima(int64_t pair, Range range) const {
        const auto [from, to] = tokens(range);
        kernels->maxima(expert(pair) + from * element_size, to - from,
                        tiles_of(pair) + range.from);
        if (!adapts(pair)) return;
        kernels->maxima(amateur(pair) + from * element_size, to - from,
                        amateur_tiles_of(pair) + range.from);
    }

    Settings settings(int64_t pair, bool* no_memory) const {
        const float best = largest(tiles_of(pair));
        Settings with{-kLargest, beta[pair], best < kInf};
        if (with.finite) with.threshold = threshold(pair, best, no_memory);
        if (adapts(pair)) {
            const float most = largest(amateur_tiles_of(pair));
            with.finite = with.finite && most < kInf;
            with.beta = with.finite ? adapted(pair, with.threshold, most, no_memory) : 0.0f;
        }
        return with;
    }

    float threshold(int64_t pair, float best, bool* no_memory) const {
        const float mask = std::max(best + log_alpha[pair], -kLargest);
        const int64_t cap = expert_top_k == nullptr ? 0 : expert_top_k[pair];
        if (cap <= 0 || cap >= vocab) return mask;
        // Of those that the mask admits, the cap-th; they are the largest, so it is the row's too.
        float* found = static_cast<float*>(std::malloc(static_cast<size_t>(vocab) * sizeof(float)));
        if (found == nullptr) {
            *no_memory = true;
            return mask;
        }
        const int64_t count = kernels->at_least(expert(pair), nullptr, vocab, tiles_of(pair),
                                                mask, found, nullptr);
        float limit = mask;
        if (count > cap) {
            std::nth_element(found, found + cap - 1, found + count,
                             [](float a, float b) { return a > b; });
            limit = found[cap - 1];
        }
        std::free(found);
        return limit;
    }

    // The beta that this step's logits call for; `most` is the amateur's largest.
    float adapted(int64_t pair, float limit, float most, bool* no_memory) const {
        const float* maxima = tiles_of(pair);
        const int64_t reaching = std::count_if(maxima, maxima + num_tiles,
                                               [limit](float tile) { return tile >= limit; });
        const size_t room = static_cast<size_t>(std::max<int64_t>(reaching, 1) * kTile);
        float* e = static_cast<float*>(std::malloc(2 * room * sizeof(float)));
        if (e == nullptr) {
            *no_memory = true;
            return 0.0f;
        }
        float* a = e + room;
        const int64_t n =
            kernels->at_least(expert(pair), amateur(pair), vocab, maxima, limit, e, a);
        const float best = n == 0 ? -kInf : *std::max_element(a, a + n);
        float result = 0.0f;
        if (best > -kInf) {
            result = beta[pair] * exp_negative(best - most) * divergence(e, a, n);
        }
        std::free(e);
        return result;
    }

    // Whether the amateur's logits hold NaN or +inf.
    bool score(int64_t pair, Range range, Settings with, Best* best) const {
        bool bad = false;
        const auto [from, to] = tokens(range);
        const char* e = expert(pair) + from * element_size;
        const char* a = amateur(pair) + from * element_size;
        const float* maxima = tiles_of(pair) + range.from;
        if (top_scores != nullptr) {
            best->k = k;
            best->count = 0;
            kernels->topk(e, a, to - from, maxima, with.threshold, with.beta, from, best, &bad);
        } else if (out != nullptr) {
            float* row = out + pair * vocab + from;
            const bool aligned = reinterpret_cast<uintptr_t>(row) % 64 == 0;
            kernels->scores(e, a, to - from, maxima, with.threshold, with.beta, row,
                            stream && aligned, &bad);
        } else {
            kernels->scores(e, a, to - from, maxima, with.threshold, with.beta,
                            reinterpret_cast<float*>(expert(pair)) + from, false, &bad);
            if (bad) make_samplable(reinterpret_cast<float*>(amateur(pair)) + from, to - from);
        }
        return bad;
    }

    static void make_samplable(float* x, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            if (!(x[i] < kInf)) x[i] = 0.0f;
        }
    }

    Tally tally(int64_t pair, Range range, Settings with) const {
        const auto [from, to] = tokens(range);
        Tally found = kNothing;
        kernels->tally(expert(pair) + from * element_size, amateur(pair) + from * element_size,
                       to - from, tiles_of(pair) + range.from, with.threshold, with.beta, from,
                       &found);
        return found;
    }

    // A pair's statistics out of the tallies of `num` segments, which lie in order of their ids.
    void count(int64_t pair, Settings with, const Tally* segments, int64_t num) const {
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
        statistics[3 * pair] = all.count;
        statistics[3 * pair + 1] = all.best_id != all.expert_id;
        statistics[3 * pair + 2] = all.bad;
    }

    // One list out of those of `num` segments, which lie in order of their ids.
    void merge(int64_t pair, const Best* segments, int64_t num) const {
        int64_t next[kMaxSegments] = {};
        for (int64_t i = 0; i < k; ++i) {
            int64_t from = -1;
            for (int64_t s = 0; s < num; ++s) {
                if (next[s] == segments[s].count) continue;
                if (from < 0 || segments[s].scores[next[s]] > segments[from].scores[next[from]])
                    from = s;
            }
            top_scores[pair * k + i] = from < 0 ? -kInf : segments[from].scores[next[from]];
            top_ids[pair * k + i] = from < 0 ? -1 : segments[from].ids[next[from]++];
        }
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
                        int32_t dtype, const int64_t* expert_rows, const int64_t* amateur_rows,
                        const float* log_alpha, const float* beta, const int64_t* expert_top_k,
                        const uint8_t* adaptive, int64_t num_pairs, float* out, float* top_scores,
                        int64_t* top_ids, int64_t k, int64_t* statistics, int32_t isa,
                        int32_t threads) {
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        if (expert_rows[pair] < 0 || expert_rows[pair] >= num_rows) return kRowOutside;
        if (amateur_rows[pair] < 0 || amateur_rows[pair] >= num_rows) return kRowOutside;
    }
    const int64_t num_tiles = (vocab + kTile - 1) / kTile;
    const int64_t useful = num_pairs * vocab / kPerThread;
    const int64_t num_threads = std::clamp<int64_t>(threads, 1, std::max<int64_t>(useful, 1));
    const int64_t split = num_pairs % num_threads;
    const int64_t whole = num_pairs - split;
    int64_t segments = 1;
    if (split > 0) {
        segments = std::min({num_threads / std::gcd(num_threads, split), num_tiles,
                             std::max<int64_t>(4 * num_threads / split, 1), kMaxSegments});
    }
    const int64_t tasks = split * segments;
    const bool lists_wanted = top_scores != nullptr;
    const int64_t rows = adaptive == nullptr ? num_pairs : 2 * num_pairs;
    float* tiles =
        static_cast<float*>(std::malloc(static_cast<size_t>(rows * num_tiles) * sizeof(float)));
    Settings* settings =  // of the split pairs
        static_cast<Settings*>(std::malloc(static_cast<size_t>(split + 1) * sizeof(Settings)));
    Best* lists = static_cast<Best*>(
        std::malloc(static_cast<size_t>(lists_wanted ? tasks + 1 : 1) * sizeof(Best)));
    const bool counted = statistics != nullptr;
    Tally* tallies = static_cast<Tally*>(
        std::malloc(static_cast<size_t>(counted ? tasks + 1 : 1) * sizeof(Tally)));
    std::atomic<bool> no_memory{tiles == nullptr || settings == nullptr || lists == nullptr ||
                                tallies == nullptr};

    const Job job{static_cast<char*>(logits), row_stride * kElementSize[dtype], vocab,
                  kElementSize[dtype], expert_rows, amateur_rows, log_alpha, beta, expert_top_k,
                  adaptive, out, top_scores, top_ids, k, statistics, kernels_for(isa) + dtype,
                  num_pairs * vocab >= kStream, num_tiles, tiles,
                  adaptive == nullptr ? nullptr : tiles + num_pairs * num_tiles};
    const Job::Range all{0, num_tiles};

    auto body = [&](Team team) {
        bool found_no_memory = false;
        for (int64_t pair = team.thread; pair < whole; pair += team.size) {
            job.maxima(pair, all);
            const Settings with = job.settings(pair, &found_no_memory);
            Tally found = counted ? job.tally(pair, all, with) : kNothing;
            Best list;
            found.bad = job.score(pair, all, with, &list);
            if (counted) job.count(pair, with, &found, 1);
            if (lists_wanted) job.merge(pair, &list, 1);
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
                const int64_t pair = whole + task / segments;
                const Settings with = settings[task / segments];
                if (counted) tallies[task] = job.tally(pair, segment(task), with);
                const bool bad =
                    job.score(pair, segment(task), with, lists_wanted ? lists + task : nullptr);
                if (counted) tallies[task].bad = bad;
            }
            if (lists_wanted || counted) {
                team.barrier();
                for (int64_t p = team.thread; p < split; p += team.size) {
                    if (lists_wanted) job.merge(whole + p, lists + p * segments, segments);
                    if (counted)
                        job.count(whole + p, settings[p], tallies + p * segments, segments);
                }
            }
        }
        if (found_no_memory) no_memory = true;
    };
    if (!no_memory) parallel(num_threads, body);
    std::free(tiles);
    std::free(settings);
    std::free(lists);
    std::free(tallies);
    return no_memory ? kNoMemory : kOk;
}
