// SPDX-License-Identifier: Apache-2.0
// The passes over a segment, written once for all instruction sets. A file that includes this has
// selected its instruction set and defined `Vec` before, in its own anonymous namespace: nothing
// here may be shared between them, or the linker could keep a copy that this CPU cannot run.
//
// Vec has: N lanes; F (floats) and M (a set of lanes); load(const T*) for the three dtypes; store;
// stream (a store to an aligned address, past the caches where the CPU can) and fence after those;
// set1, sub, max and min (b where a is NaN), fma(a, b, c) = a * b + c; eq; not_below (a >= b, or NaN);
// not_below_inf (NaN or +inf); select(m, a, b) = m ? a : b; either (union); any; bits (lane i in bit i).

namespace {

constexpr float kInf = __builtin_inff();
constexpr float kLargest = 3.40282346638528859811704183484516925e+38f;

using F = Vec::F;
using M = Vec::M;
constexpr int64_t N = Vec::N;
static_assert(kTile % (4 * N) == 0, "tiles are whole, but for a row's last");

// Up to N elements, padded with what neither raises a maximum nor counts as valid or bad.
template <class T>
F load_some(const T* x, int64_t n) {
    if (n >= N) return Vec::load(x);
    T padded[N];
    for (int64_t i = 0; i < N; ++i) padded[i] = i < n ? x[i] : T::minus_infinity();
    return Vec::load(padded);
}

int64_t tile_end(int64_t start, int64_t n) {
    return start + kTile < n ? start + kTile : n;
}

template <class T>
void maxima(const void* from, int64_t n, float* tiles) {
    const T* x = static_cast<const T*>(from);
    const F low = Vec::set1(-kInf);
    for (int64_t i = 0; i < n;) {
        const int64_t end = tile_end(i, n);
        M wrong = Vec::none();
        F best[4] = {low, low, low, low};  // four chains hide the latency
        for (; i + 4 * N <= end; i += 4 * N) {
            for (int j = 0; j < 4; ++j) {
                const F value = Vec::load(x + i + j * N);
                wrong = Vec::either(wrong, Vec::not_below_inf(value));
                best[j] = Vec::max(best[j], value);
            }
        }
        for (; i < end; i += N) {
            const F value = load_some(x + i, end - i);
            wrong = Vec::either(wrong, Vec::not_below_inf(value));
            best[0] = Vec::max(best[0], value);
        }
        i = end;
        float lanes[N];
        Vec::store(lanes, Vec::max(Vec::max(best[0], best[1]), Vec::max(best[2], best[3])));
        float most = lanes[0];
        for (int64_t lane = 1; lane < N; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
        *tiles++ = Vec::any(wrong) ? kInf : most;
    }
}

template <class T>
int64_t at_least(const void* from, int64_t n, const float* tiles, float threshold, float* found) {
    const T* x = static_cast<const T*>(from);
    const F limit = Vec::set1(threshold);
    int64_t count = 0;
    for (int64_t tile = 0; tile < n; tile += kTile) {
        if (*tiles++ < threshold) continue;
        for (int64_t i = tile, end = tile_end(tile, n); i < end; i += N) {
            const F value = load_some(x + i, end - i);
            uint32_t lanes = Vec::bits(Vec::not_below(value, limit));
            if (lanes == 0) continue;
            float values[N];
            Vec::store(values, value);
            for (; lanes != 0; lanes &= lanes - 1) found[count++] = values[__builtin_ctz(lanes)];
        }
    }
    return count;
}

// What is added to the expert's logits. Of kOne amateur, all that it takes is in registers.
template <class T, bool kOne>
struct Amateurs {
    const Segment& rows;
    const T* first;
    F first_factor, limit;
    M wrong;

    explicit Amateurs(const Segment& given)
        : rows(given),
          first(static_cast<const T*>(given.amateurs[0])),
          first_factor(factor(0)),
          limit(Vec::set1(given.threshold)),
          wrong(Vec::none()) {}

    // Scores of the up to N tokens from i on; `valid` are those that have one. The threshold is above
    // -inf. NaN is not below it, and saturates like +inf: all scores are finite.
    inline __attribute__((always_inline)) F score(F e, int64_t i, int64_t n, M* valid) {
        *valid = Vec::not_below(e, limit);
        F score = add(e, look(first + i, n), first_factor, e);
        for (int64_t j = 1; !kOne && j < rows.num; ++j)
            score = add(score, look(at(j) + i, n), factor(j), e);
        return score;
    }
    // Amateurs' logits that get no score are looked at all the same.
    inline __attribute__((always_inline)) void look_at_all(int64_t i, int64_t n) {
        look(first + i, n);
        for (int64_t j = 1; !kOne && j < rows.num; ++j) look(at(j) + i, n);
    }
    inline __attribute__((always_inline)) const T* at(int64_t j) const {
        return static_cast<const T*>(rows.amateurs[j]);
    }
    inline __attribute__((always_inline)) F look(const T* from, int64_t n) {
        const F a = load_some(from, n);
        wrong = Vec::either(wrong, Vec::not_below_inf(a));
        return a;
    }
    // Of the difference e - a. Not negated: without weight it is 0, not -0.
    inline __attribute__((always_inline)) F factor(int64_t j) const {
        return Vec::set1(0.0f - rows.weights[j]);
    }
    static inline __attribute__((always_inline)) F add(F score, F a, F factor, F e) {
        const F most = Vec::set1(kLargest), least = Vec::set1(-kLargest);
        a = Vec::select(Vec::eq(a, Vec::set1(-kInf)), Vec::set1(0.0f), a);
        const F difference = Vec::max(Vec::min(Vec::sub(e, a), most), least);
        return Vec::max(Vec::min(Vec::fma(difference, factor, score), most), least);
    }
};

// Up to N scores.
void store_some(float* to, F x, int64_t n) {
    if (n >= N) return Vec::store(to, x);
    float lanes[N];
    Vec::store(lanes, x);
    for (int64_t i = 0; i < n; ++i) to[i] = lanes[i];
}

// put(i, scores, n): n <= N scores from token i on.
template <class T, bool kOne, class Put>
inline __attribute__((always_inline)) void each_score(const Segment& rows,
                                                      Amateurs<T, kOne>& amateurs, Put put) {
    const T* e = static_cast<const T*>(rows.expert);
    const int64_t n = rows.n;
    const float* tiles = rows.tiles;
    const float threshold = rows.threshold;
    const F low = Vec::set1(-kInf);
    for (int64_t i = 0; i < n;) {
        const int64_t end = tile_end(i, n);
        if (*tiles++ >= threshold) {
            for (; i < end; i += N) {
                M valid;
                const F score = amateurs.score(load_some(e + i, end - i), i, end - i, &valid);
                put(i, Vec::select(valid, score, low), end - i);
            }
        } else {
            for (; i < end; i += N) {
                amateurs.look_at_all(i, end - i);
                put(i, low, end - i);
            }
        }
        i = end;
    }
}

template <class T, bool kOne>
void scores_of(const Segment& rows, float* to, bool stream, bool* bad) {
    Amateurs<T, kOne> amateurs(rows);
    if (stream) {
        each_score(rows, amateurs, [&](int64_t i, F x, int64_t count) {
            if (count >= N) {
                Vec::stream(to + i, x);
            } else {
                store_some(to + i, x, count);
            }
        });
        Vec::fence();
    } else {
        each_score(rows, amateurs,
                   [&](int64_t i, F x, int64_t count) { store_some(to + i, x, count); });
    }
    *bad |= Vec::any(amateurs.wrong);
}

template <class T>
void scores(const Segment& rows, float* to, bool stream, bool* bad) {
    (rows.num == 1 ? scores_of<T, true> : scores_of<T, false>)(rows, to, stream, bad);
}

// Of two with the same value the first stays: tokens come by rising id.
void keep_larger(float value, int64_t id, float* most, int64_t* most_id) {
    if (*most_id >= 0 && !(value > *most)) return;
    *most = value;
    *most_id = id;
}

template <class T, bool kOne>
void tally_of(const Segment& rows, int64_t first_id, Tally* tally) {
    const T* e = static_cast<const T*>(rows.expert);
    const int64_t n = rows.n;
    const float* tiles = rows.tiles;
    Amateurs<T, kOne> amateurs(rows);
    for (int64_t tile = 0; tile < n; tile += kTile) {
        if (*tiles++ < rows.threshold) continue;
        for (int64_t i = tile, end = tile_end(tile, n); i < end; i += N) {
            const F logits = load_some(e + i, end - i);
            M valid;
            const F score = amateurs.score(logits, i, end - i, &valid);
            uint32_t lanes = Vec::bits(valid);  // of few
            if (lanes == 0) continue;
            float values[N], experts[N];
            Vec::store(values, score);
            Vec::store(experts, logits);
            for (; lanes != 0; lanes &= lanes - 1) {
                const int lane = __builtin_ctz(lanes);
                ++tally->count;
                keep_larger(values[lane], first_id + i + lane, &tally->best, &tally->best_id);
                keep_larger(experts[lane], first_id + i + lane, &tally->expert, &tally->expert_id);
            }
        }
    }
}

template <class T>
void tally(const Segment& rows, int64_t first_id, Tally* tally) {
    (rows.num == 1 ? tally_of<T, true> : tally_of<T, false>)(rows, first_id, tally);
}

template <class T>
constexpr Kernels kernels() {
    return {maxima<T>, at_least<T>, scores<T>, tally<T>};
}

}  // namespace
