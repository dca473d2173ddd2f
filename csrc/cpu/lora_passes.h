// SPDX-License-Identifier: Apache-2.0
// Both products for a block of rows, written once for all instruction sets. A file that includes this
// has selected its instruction set and defined `Vec` before (vec_*.h). `Dot<X, W>` multiplies a row of X
// with one of W: STEP elements at a time, as values of type V.
//
// Sums run over k and r in an order that does not depend on how many rows there are, so a row's result
// does not either.

namespace {

using F = Vec::F;
constexpr int64_t N = Vec::N;
static_assert(kColumns % (2 * N) == 0, "pairs of vectors");

// Products in float32, after conversion.
template <class X, class W>
struct FloatDot {
    static constexpr int64_t STEP = N;
    using V = F;
    template <class T>
    static V load(const T* x) {
        return Vec::load(x);
    }
    static F add(V x, V w, F sum) { return Vec::fma(x, w, sum); }
};

// Up to STEP elements, padded with zeros.
template <int64_t STEP, class T>
const T* padded(const T* x, int64_t n, T* buffer) {
    for (int64_t i = 0; i < STEP; ++i) buffer[i] = i < n ? x[i] : T{};
    return buffer;
}

// Not a method: those are shared between files, and this is compiled for one instruction set.
int64_t hidden_row(const Rows& rows, int64_t i) { return rows.hidden_by_index ? rows.index[i] : i; }

template <class T>
F load_some(const T* x, int64_t n) {
    T buffer[N];
    return Vec::load(n >= N ? x : padded<N>(x, n, buffer));
}

template <class T>
void store_some(T* to, F x, int64_t n) {
    if (n >= N) return Vec::store(to, x);
    T buffer[N];
    Vec::store(buffer, x);
    for (int64_t i = 0; i < n; ++i) to[i] = buffer[i];
}

// The next STEP elements of R rows times those of C ranks: each value loaded serves C or R products.
template <int R, int C, class X, class W>
inline __attribute__((always_inline)) void add_products(const X* const (&x)[R],
                                                        const W* const (&w)[C], int64_t k,
                                                        F* sums) {
    using D = Dot<X, W>;
    typename D::V of_w[C];
    for (int c = 0; c < C; ++c) of_w[c] = D::load(w[c] + k);
    for (int r = 0; r < R; ++r) {
        const typename D::V of_x = D::load(x[r] + k);
        for (int c = 0; c < C; ++c) sums[r * C + c] = D::add(of_x, of_w[c], sums[r * C + c]);
    }
}

template <int R, int C, class X, class W>
inline __attribute__((always_inline)) void shrink_tile(const X* const (&x)[R], const W* a,
                                                       int64_t inputs, float scale,
                                                       float* const (&hidden)[R],
                                                       int64_t column) {
    constexpr int64_t STEP = Dot<X, W>::STEP;
    constexpr int64_t kPadded = (R * C + N - 1) / N * N;
    F sums[kPadded];
    for (int64_t i = 0; i < kPadded; ++i) sums[i] = Vec::zero();
    const W* w[C];
    for (int c = 0; c < C; ++c) w[c] = a + c * inputs;
    int64_t k = 0;
    for (; k + STEP <= inputs; k += STEP) add_products(x, w, k, sums);
    if (k < inputs) {
        X tails_x[R][STEP];
        W tails_w[C][STEP];
        const X* tail_x[R];
        const W* tail_w[C];
        for (int r = 0; r < R; ++r) tail_x[r] = padded<STEP>(x[r] + k, inputs - k, tails_x[r]);
        for (int c = 0; c < C; ++c) tail_w[c] = padded<STEP>(w[c] + k, inputs - k, tails_w[c]);
        add_products(tail_x, tail_w, 0, sums);
    }
    // N sums at a time: after a transposition their lanes are added all at once.
    float totals[kPadded];
    for (int64_t first = 0; first < kPadded; first += N) {
        F lanes[N];
        for (int64_t i = 0; i < N; ++i) lanes[i] = sums[first + i];
        Vec::transpose(lanes);
        for (int64_t half = N / 2; half > 0; half /= 2)
            for (int64_t i = 0; i < half; ++i) lanes[i] = Vec::add(lanes[i], lanes[i + half]);
        Vec::store(totals + first, lanes[0]);
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) hidden[r][column + c] = scale * totals[r * C + c];
}

template <int R, class X, class W>
void shrink_rows(const X* x, int64_t x_stride, Rows rows, int64_t first, const W* a, int64_t ranks,
                 int64_t inputs, float scale, float* hidden, int64_t hidden_stride) {
    const X* from[R];
    float* to[R];
    for (int r = 0; r < R; ++r) {
        from[r] = x + rows.index[first + r] * x_stride;
        to[r] = hidden + hidden_row(rows, first + r) * hidden_stride;
    }
    int64_t c = 0;
    for (; c + 4 <= ranks; c += 4) shrink_tile<R, 4>(from, a + c * inputs, inputs, scale, to, c);
    for (; c < ranks; ++c) shrink_tile<R, 1>(from, a + c * inputs, inputs, scale, to, c);
}

template <class X, class W>
void shrink(const void* x_data, int64_t x_stride, Rows rows, const void* a_data, int64_t ranks,
            int64_t inputs, float scale, float* hidden, int64_t hidden_stride) {
    const X* x = static_cast<const X*>(x_data);
    const W* a = static_cast<const W*>(a_data);
    int64_t i = 0;
    const auto next = [&](auto kernel, int64_t count) {
        kernel(x, x_stride, rows, i, a, ranks, inputs, scale, hidden, hidden_stride);
        i += count;
    };
    while (i + 4 <= rows.count) next(shrink_rows<4, X, W>, 4);
    if (i + 3 <= rows.count) next(shrink_rows<3, X, W>, 3);
    if (i + 2 <= rows.count) next(shrink_rows<2, X, W>, 2);
    if (i < rows.count) next(shrink_rows<1, X, W>, 1);
}

// Of y, so many columns are summed at a time: R rows of them stay in the fastest cache.
constexpr int64_t kTile = 1024;

// G ranks of b are added to sums [R][kTile]: as many streams through memory.
template <int R, int G, class W>
inline __attribute__((always_inline)) void add_ranks(const float* const (&hidden)[R], int64_t r,
                                                     const W* b, int64_t b_stride, int64_t width,
                                                     float* sums) {
    F h[R * G];
    for (int i = 0; i < R * G; ++i) h[i] = Vec::set1(hidden[i / G][r + i % G]);
    b += r * b_stride;
    for (int64_t j = 0; j < width; j += N) {
        F of_b[G];
        for (int g = 0; g < G; ++g) of_b[g] = load_some(b + g * b_stride + j, width - j);
        for (int i = 0; i < R; ++i) {
            float* to = sums + i * kTile + j;
            F sum = r == 0 ? Vec::zero() : Vec::load(reinterpret_cast<const Float32*>(to));
            for (int g = 0; g < G; ++g) sum = Vec::fma(h[i * G + g], of_b[g], sum);
            Vec::store(to, sum);
        }
    }
}

// R rows of y, few of them: b is read once, as it lies.
template <int R, class W, class Y>
void expand_few(const float* hidden, int64_t hidden_stride, Rows rows, const W* b, int64_t b_stride,
                int64_t ranks, int64_t outputs, Y* y_data, int64_t y_stride, bool add) {
    const float* from[R];
    for (int i = 0; i < R; ++i) from[i] = hidden + hidden_row(rows, i) * hidden_stride;
    alignas(64) float sums[R * kTile];
    for (int64_t first = 0; first < outputs; first += kTile, b += kTile) {
        const int64_t width = outputs - first < kTile ? outputs - first : kTile;
        int64_t r = 0;
        for (; r + 4 <= ranks; r += 4) add_ranks<R, 4>(from, r, b, b_stride, width, sums);
        for (; r < ranks; ++r) add_ranks<R, 1>(from, r, b, b_stride, width, sums);
        for (int i = 0; i < R; ++i) {
            Y* y = y_data + rows.index[i] * y_stride + first;
            for (int64_t j = 0; j < width; j += N) {
                F sum = Vec::zero();
                if (ranks > 0) sum = Vec::load(reinterpret_cast<const Float32*>(sums + i * kTile + j));
                if (add) sum = Vec::add(load_some(y + j, width - j), sum);
                store_some(y + j, sum, width - j);
            }
        }
    }
}

// R rows of y, up to kColumns of each. columns: those of B, [ranks, kColumns].
template <int R, class Y>
void expand_rows(const float* hidden, int64_t hidden_stride, Rows rows, int64_t row,
                 const float* columns, int64_t ranks, int64_t width, Y* y, int64_t y_stride,
                 bool add) {
    const float* from[R];
    for (int i = 0; i < R; ++i) from[i] = hidden + hidden_row(rows, row + i) * hidden_stride;
    for (int64_t j = 0; j < width; j += 2 * N) {
        F low[R], high[R];
        for (int i = 0; i < R; ++i) low[i] = high[i] = Vec::zero();
        const float* column = columns + j;
        for (int64_t r = 0; r < ranks; ++r, column += kColumns) {
            const F first = Vec::load(reinterpret_cast<const Float32*>(column));
            const F second = Vec::load(reinterpret_cast<const Float32*>(column + N));
            for (int i = 0; i < R; ++i) {
                const F h = Vec::set1(from[i][r]);
                low[i] = Vec::fma(h, first, low[i]);
                high[i] = Vec::fma(h, second, high[i]);
            }
        }
        for (int i = 0; i < R; ++i) {
            Y* to = y + rows.index[row + i] * y_stride + j;
            const int64_t n = width - j;
            if (add) low[i] = Vec::add(load_some(to, n), low[i]);
            store_some(to, low[i], n);
            if (n <= N) continue;
            if (add) high[i] = Vec::add(load_some(to + N, n - N), high[i]);
            store_some(to + N, high[i], n - N);
        }
    }
}

template <class W, class Y>
void expand(const float* hidden, int64_t hidden_stride, Rows rows, const void* b_data,
            int64_t b_stride, int64_t ranks, int64_t outputs, void* y_data, int64_t y_stride,
            bool add) {
    const W* b = static_cast<const W*>(b_data);
    Y* y = static_cast<Y*>(y_data);
    const auto few = [&](auto kernel) {
        kernel(hidden, hidden_stride, rows, b, b_stride, ranks, outputs, y, y_stride, add);
    };
    if (rows.count == 1) return few(expand_few<1, W, Y>);
    if (rows.count == 2) return few(expand_few<2, W, Y>);
    if (rows.count == 3) return few(expand_few<3, W, Y>);
    // Else some columns at a time are brought together, as float32, for all rows.
    alignas(64) float columns[kMaxRank * kColumns];
    for (int64_t first = 0; first < outputs; first += kColumns, b += kColumns, y += kColumns) {
        const int64_t width = outputs - first < kColumns ? outputs - first : kColumns;
        for (int64_t r = 0; r < ranks; ++r) {
            for (int64_t j = 0; j < kColumns; j += N) {  // those after the last: never uninitialised
                F of_b = Vec::zero();
                if (j < width) of_b = load_some(b + r * b_stride + j, width - j);
                Vec::store(columns + r * kColumns + j, of_b);
            }
        }
        int64_t i = 0;
        const auto next = [&](auto kernel, int64_t count) {
            kernel(hidden, hidden_stride, rows, i, columns, ranks, width, y, y_stride, add);
            i += count;
        };
        while (i + 4 <= rows.count) next(expand_rows<4, Y>, 4);
        if (i + 3 <= rows.count) next(expand_rows<3, Y>, 3);
        if (i + 2 <= rows.count) next(expand_rows<2, Y>, 2);
        if (i < rows.count) next(expand_rows<1, Y>, 1);
    }
}

constexpr LoraKernels lora_kernels() {
    return {
        {{shrink<Float32, Float32>, shrink<Float32, Bfloat16>, shrink<Float32, Float16>},
         {shrink<Bfloat16, Float32>, shrink<Bfloat16, Bfloat16>, shrink<Bfloat16, Float16>},
         {shrink<Float16, Float32>, shrink<Float16, Bfloat16>, shrink<Float16, Float16>}},
        {{expand<Float32, Float32>, expand<Float32, Bfloat16>, expand<Float32, Float16>},
         {expand<Bfloat16, Float32>, expand<Bfloat16, Bfloat16>, expand<Bfloat16, Float16>},
         {expand<Float16, Float32>, expand<Float16, Bfloat16>, expand<Float16, Float16>}},
    };
}

}  // namespace
