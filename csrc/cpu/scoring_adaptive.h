// SPDX-License-Identifier: Apache-2.0
// The divergence that an adaptive weight is made of (the formula: vllm_cold/ops/scoring.py).
//
// Without libm, which the library does not link. The compiler makes vectors of these loops, of the
// instruction set that the file which includes this has selected: so choices are made between integers, as a
// comparison of floats could trap, and sums are those of kLanes parts, whatever a vector's width. Without mask
// every token is a candidate. Weights do not depend on the instruction set: no operation here rounds otherwise
// in another one.

namespace {

constexpr int64_t kLanes = 16;

inline int32_t bits_of(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float as_float(int32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// x >= 0 or the least normal number, whichever is larger.
inline float above_zero(float x) {
    const int32_t bits = bits_of(x), least = 1 << 23;
    return as_float(bits > least ? bits : least);
}

// e^x for x <= 0, to two units in the last place; 0 below -87, where float32 is about to end.
inline float exp_negative(float x) {
    const float shift = 0x1.8p23f;
    // All bits set down to -87, none below.
    const int32_t near = ((bits_of(x) & 0x7FFFFFFF) - 0x42AE0001) >> 31;
    const float y = as_float(bits_of(x) & near);
    // y = n ln 2 + f with |f| <= ln 2 / 2. The sum's last bits are n, and become the exponent.
    const float sum = y * 1.44269504f + shift;
    const float n = sum - shift;
    const float f = y - n * 0.693359375f - n * -2.12194440e-4f;
    const uint32_t scale = (static_cast<uint32_t>(bits_of(sum)) + 127u) << 23;
    float series = 1.0f / 5040;
    series = series * f + 1.0f / 720;
    series = series * f + 1.0f / 120;
    series = series * f + 1.0f / 24;
    series = series * f + 1.0f / 6;
    series = series * f + 0.5f;
    series = series * f + 1.0f;
    series = series * f + 1.0f;
    return series * as_float(static_cast<int32_t>(scale) & near);
}

// log2 of x >= 0, kept finite at 0.
inline float log2_of(float x) {
    const int32_t bits = bits_of(above_zero(x));
    // x = m 2^n with m from sqrt(1/2) to sqrt(2).
    const int32_t n = (bits - 0x3F3504F3) >> 23;
    const float m = as_float(bits - n * (1 << 23));
    const float s = (m - 1.0f) / (m + 1.0f), z = s * s;  // ln m = 2 artanh s
    float series = 1.0f / 9;
    series = series * z + 1.0f / 7;
    series = series * z + 1.0f / 5;
    series = series * z + 1.0f / 3;
    series = series * z + 1.0f;
    return static_cast<float>(n) + 2.88539008f * s * series;
}

// In double precision: part j is that of elements j, j + kLanes, ...
inline double sum_of(const float* x, int64_t n) {
    double parts[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) parts[j] += static_cast<double>(x[i + j]);
    for (int64_t j = 0; i < n; ++i, ++j) parts[j] += static_cast<double>(x[i]);
    double sum = 0.0;
    for (int64_t j = 0; j < kLanes; ++j) sum += parts[j];
    return sum;
}

// The largest of n >= 1 numbers, none of which is NaN.
inline float largest_of(const float* x, int64_t n) {
    int32_t most = INT32_MIN;  // of integers in the floats' order
    for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = bits_of(x[i]), key = bits ^ ((bits >> 31) & 0x7FFFFFFF);
        most = key > most ? key : most;
    }
    return as_float(most ^ ((most >> 31) & 0x7FFFFFFF));
}

// x becomes softmax(x); its largest element is above -inf.
inline void softmax(float* x, int64_t n, float largest) {
    for (int64_t i = 0; i < n; ++i) x[i] = exp_negative(x[i] - largest);
    const float total = static_cast<float>(sum_of(x, n));
    for (int64_t i = 0; i < n; ++i) x[i] /= total;
}

float divergence(float* __restrict e, float* __restrict a, int64_t n, float most) {
    const float best = n == 0 ? -__builtin_inff() : largest_of(a, n);
    if (best == -__builtin_inff()) return 0.0f;
    softmax(e, n, largest_of(e, n));
    softmax(a, n, best);
    for (int64_t i = 0; i < n; ++i) {
        const float p = e[i], q = a[i], both = above_zero(p + q);
        e[i] = p * log2_of(2 * p / both) + q * log2_of(2 * q / both);
    }
    const float half = static_cast<float>(sum_of(e, n) / 2);
    const float share = half < 0.0f ? 0.0f : half > 1.0f ? 1.0f : half;
    return exp_negative(best - most) * share;
}

}  // namespace
