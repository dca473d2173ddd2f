// SPDX-License-Identifier: Apache-2.0
// Multi-LoRA as a program of its own, so that a sanitizer, an emulator or another compiler can look at
// it: random cases in buffers that end with the last element, against double precision, on every
// instruction set of this CPU, and each row alone against the row in its batch.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/dtypes.h"
#include "../../csrc/cpu/lora.h"

namespace {

std::mt19937 rng(1);

int64_t draw(int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(rng);
}

// Elements of any dtype, exactly as many as asked for.
struct Elements {
    std::unique_ptr<char[]> data;
    int64_t size, dtype;

    Elements(int64_t count, int64_t type)
        : data(new char[static_cast<size_t>(count * kElementSize[type])]), size(count), dtype(type) {
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < count; ++i) set(i, normal(rng));
    }
    char* at(int64_t i) const { return data.get() + i * kElementSize[dtype]; }
    void set(int64_t i, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint16_t half = dtype == kBfloat16 ? to_bfloat16(bits) : to_float16(value);
        if (dtype == kFloat32) std::memcpy(at(i), &value, 4);
        else std::memcpy(at(i), &half, 2);
    }
    double get(int64_t i) const {
        if (dtype == kFloat32) {
            float value;
            std::memcpy(&value, at(i), 4);
            return value;
        }
        uint16_t bits;
        std::memcpy(&bits, at(i), 2);
        if (dtype == kBfloat16) {
            const uint32_t wide = static_cast<uint32_t>(bits) << 16;
            float value;
            std::memcpy(&value, &wide, 4);
            return value;
        }
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24)
                                               : std::ldexp(1024 + mantissa, exponent - 25);
        return bits & 0x8000 ? -magnitude : magnitude;
    }
};

struct Case {
    int64_t tokens, slots, ranks, inputs;
    std::vector<int64_t> slot_of, sizes, b_strides;
    std::vector<Elements> a, b;
    Elements x, y;
    int64_t width, x_stride, y_stride;

    std::vector<int64_t> layer(const Plan* plan) const {
        std::vector<int64_t> table = {0, reinterpret_cast<int64_t>(plan), a[0].dtype, inputs, ranks,
                                      ranks, static_cast<int64_t>(sizes.size())};
        int64_t column = 0;
        for (size_t s = 0; s < sizes.size(); ++s) {
            for (const int64_t item :
                 {reinterpret_cast<int64_t>(a[s].data.get()), ranks * inputs,
                  reinterpret_cast<int64_t>(b[s].data.get()), b_strides[s] * ranks, b_strides[s],
                  sizes[s], column})
                table.push_back(item);
            column += sizes[s];
        }
        return table;
    }
};

Case random_case(int64_t tokens) {
    const int64_t dtype = draw(0, 2), weights = draw(0, 3) == 0 ? draw(0, 2) : dtype;
    const int64_t slots = draw(1, 3), ranks = draw(1, 40), inputs = draw(1, 90);
    std::vector<int64_t> slot_of, sizes, b_strides;
    for (int64_t t = 0; t < tokens; ++t) slot_of.push_back(draw(-1, slots - 1));
    std::vector<Elements> a, b;
    int64_t width = 0;
    for (int64_t s = draw(1, 3); s > 0; --s) {
        sizes.push_back(draw(1, 80));
        width += sizes.back();
        a.emplace_back(slots * ranks * inputs, weights);
        b_strides.push_back(sizes.back() + draw(0, 3));
        b.emplace_back((slots * ranks - 1) * b_strides.back() + sizes.back(), weights);
    }
    const int64_t x_stride = inputs + draw(0, 3), y_stride = width + draw(0, 3);
    Elements x((tokens - 1) * x_stride + inputs, dtype);
    Elements y((tokens - 1) * y_stride + width, draw(0, 3) == 0 ? draw(0, 2) : dtype);
    return {tokens, slots, ranks, inputs, slot_of, sizes, b_strides, std::move(a), std::move(b),
            std::move(x), std::move(y), width, x_stride, y_stride};
}

// The result for tokens [from, to), as bytes of the rows.
std::vector<char> compute(const Case& c, int64_t from, int64_t to, int32_t isa, int32_t threads) {
    const int64_t tokens = to - from;
    std::vector<int64_t> buffer(static_cast<size_t>(vllm_cold_lora_plan_size(tokens)));
    Plan* plan = reinterpret_cast<Plan*>(buffer.data());
    plan->capacity = tokens;
    vllm_cold_lora_plan(plan, c.slot_of.data() + from, tokens);
    const std::vector<int64_t> table = c.layer(plan);
    const int64_t size = kElementSize[c.y.dtype];
    const size_t bytes = static_cast<size_t>(((tokens - 1) * c.y_stride + c.width) * size);
    std::unique_ptr<char[]> y(new char[bytes]);
    std::memcpy(y.get(), c.y.at(from * c.y_stride), bytes);
    const Matrix to_y{y.get(), tokens, c.width, c.y_stride, c.y.dtype};
    const Matrix of_x{c.x.at(from * c.x_stride), tokens, c.inputs, c.x_stride, c.x.dtype};
    const int32_t status = vllm_cold_lora_linear(reinterpret_cast<const Layer*>(table.data()),
                                                 &to_y, &of_x, 0.5f, isa, threads);
    if (status != kLoraOk) std::printf("status %d\n", status), std::exit(1);
    std::vector<char> rows;
    for (int64_t t = 0; t < tokens; ++t) {
        const char* row = y.get() + t * c.y_stride * size;
        rows.insert(rows.end(), row, row + c.width * size);
    }
    return rows;
}

bool right(const Case& c, const std::vector<char>& rows) {
    Elements got(0, c.y.dtype);
    got.data.reset(new char[rows.size()]);
    std::memcpy(got.data.get(), rows.data(), rows.size());
    const double eps = c.y.dtype == kFloat32 ? 1e-5 : c.y.dtype == kBfloat16 ? 8e-3 : 2e-3;
    for (int64_t t = 0; t < c.tokens; ++t) {
        int64_t column = 0;
        for (size_t s = 0; s < c.sizes.size(); ++s) {
            std::vector<double> hidden(static_cast<size_t>(c.ranks));
            const int64_t slot = c.slot_of[static_cast<size_t>(t)];
            for (int64_t r = 0; slot >= 0 && r < c.ranks; ++r)
                for (int64_t k = 0; k < c.inputs; ++k)
                    hidden[static_cast<size_t>(r)] +=
                        0.5 * c.x.get(t * c.x_stride + k) *
                        c.a[s].get((slot * c.ranks + r) * c.inputs + k);
            for (int64_t n = 0; n < c.sizes[s]; ++n, ++column) {
                double want = c.y.get(t * c.y_stride + column), terms = std::fabs(want);
                for (int64_t r = 0; slot >= 0 && r < c.ranks; ++r) {
                    const double term = hidden[static_cast<size_t>(r)] *
                                        c.b[s].get((slot * c.ranks + r) * c.b_strides[s] + n);
                    want += term;
                    terms += std::fabs(term);
                }
                if (!(std::fabs(got.get(t * c.width + column) - want) <= eps * (terms + 1)))
                    return false;
            }
        }
    }
    return true;
}

}  // namespace

int main() {
    int checked = 0;
    for (int32_t isa = 0; isa <= vllm_cold_best_isa(); ++isa) {
        for (int i = 0; i < 60; ++i) {
            const Case c = random_case(i < 50 ? draw(1, 12) : draw(60, 140));
            const std::vector<char> rows = compute(c, 0, c.tokens, isa, i % 4 + 1);
            const size_t row = rows.size() / static_cast<size_t>(c.tokens);
            bool good = right(c, rows);
            for (int64_t t = 0; t < c.tokens; t += 1 + c.tokens / 5) {
                const std::vector<char> alone = compute(c, t, t + 1, isa, 1);
                good = good && std::memcmp(alone.data(), rows.data() + row * static_cast<size_t>(t),
                                           row) == 0;
            }
            if (!good) {
                std::printf("wrong: isa %d, case %d\n", isa, i);
                return 1;
            }
            ++checked;
        }
    }
    std::printf("%d right\n", checked);
}
