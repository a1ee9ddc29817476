/* The kernels, for one instruction set: ISA its name, LANES, ROWS and WORD (see native.c).
 *
 *     T  steps of the window   B  rows   H  hidden units   V  vocabulary size   N = T·B predictions
 *
 * All arrays are float32, row by row, without gaps. Each function does its caller's share, `begin` to `end`, so
 * that threads need not meet within it. The steps are numbered as in grimmgen/cells/lstm.py, gru.py and softmax.py.
 */

/* ---- Vectors ------------------------------------------------------------------------------------------------ */

#define vec NAMED(vec)
#define ints NAMED(ints)
#define splat NAMED(splat)
#define load NAMED(load)
#define store NAMED(store)
#define load_some NAMED(load_some)
#define store_some NAMED(store_some)
#define add_to NAMED(add_to)
#define sum_of NAMED(sum_of)
#define largest_of NAMED(largest_of)
#define smaller NAMED(smaller)
#define larger NAMED(larger)
#define square_root NAMED(square_root)
#define exponential NAMED(exponential)
#define logistic NAMED(logistic)
#define hyperbolic_tangent NAMED(hyperbolic_tangent)
#define multiply_add NAMED(multiply_add)
#define neighbours NAMED(neighbours)
#define pairs NAMED(pairs)
#define numbers_of NAMED(numbers_of)
#define block NAMED(block)
#define blocks NAMED(blocks)
#define pack_panels NAMED(pack_panels)
#define multiply NAMED(multiply)
#define multiply_rows NAMED(multiply_rows)
#define multiply_columns NAMED(multiply_columns)
#define enter NAMED(enter)
#define lstm_steps NAMED(lstm_steps)
#define lstm_steps_back NAMED(lstm_steps_back)
#define softmax NAMED(softmax)

#if LANES == 1
#define INLINE static inline
typedef float vec;
typedef uint32_t ints;
#define AS_INTS(v) NAMED(as_ints)(v)
#define AS_VEC(v) NAMED(as_vec)(v)
static inline ints NAMED(as_ints)(vec v) { ints bits; memcpy(&bits, &v, sizeof bits); return bits; }
static inline vec NAMED(as_vec)(ints bits) { vec v; memcpy(&v, &bits, sizeof v); return v; }
INLINE vec splat(float a) { return a; }
INLINE vec smaller(vec a, vec b) { return a < b ? a : b; }
INLINE vec larger(vec a, vec b) { return a > b ? a : b; }
#else
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t ints __attribute__((vector_size(4 * LANES)));
#define AS_INTS(v) ((ints)(v))
#define AS_VEC(v) ((vec)(v))
INLINE vec splat(float a) { return a - (vec){0}; }
#if LANES == 16
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif LANES == 8
INLINE vec smaller(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
INLINE vec smaller(vec a, vec b) { ints m = (ints)(a < b); return (vec)((m & (ints)a) | (~m & (ints)b)); }
INLINE vec larger(vec a, vec b) { ints m = (ints)(a > b); return (vec)((m & (ints)a) | (~m & (ints)b)); }
#endif
#endif

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* The first `count` lanes, the others zero; `count` beyond LANES means all. */
#if LANES == 16
#define MASK(count) (__mmask16)((count) > 0 ? (1u << (count)) - 1 : 0)
INLINE vec load_some(const float *p, size count)
{
    return count >= LANES ? load(p) : (vec)_mm512_maskz_loadu_ps(MASK(count), p);
}

INLINE void store_some(float *p, vec v, size count)
{
    if (count >= LANES) store(p, v);
    else _mm512_mask_storeu_ps(p, MASK(count), (__m512)v);
}
#else
INLINE vec load_some(const float *p, size count)
{
    if (count >= LANES) return load(p);
    float lanes[LANES] = {0};
    for (size i = 0; i < count; i++) lanes[i] = p[i];
    return load(lanes);
}

INLINE void store_some(float *p, vec v, size count)
{
    if (count >= LANES) { store(p, v); return; }
    float lanes[LANES];
    store(lanes, v);
    for (size i = 0; i < count; i++) p[i] = lanes[i];
}
#endif

/* sum += more */
INLINE void add_to(float *sum, const float *more, size count)
{
    for (size n = 0; n < count; n += LANES)
        store_some(sum + n, load_some(sum + n, count - n) + load_some(more + n, count - n), count - n);
}

INLINE float sum_of(vec v)
{
    float lanes[LANES], sum = 0;
    store(lanes, v);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

INLINE float largest_of(vec v)
{
    float lanes[LANES];
    store(lanes, v);
    float largest = lanes[0];
    for (int i = 1; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

#if LANES == 16
INLINE vec square_root(vec v) { return (vec)_mm512_sqrt_ps((__m512)v); }
#elif LANES == 8
INLINE vec square_root(vec v) { return (vec)_mm256_sqrt_ps((__m256)v); }
#else
INLINE vec square_root(vec v)
{
    float lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < LANES; i++) lanes[i] = sqrtf(lanes[i]);
    return load(lanes);
}
#endif

/* `smaller` and `larger` give their second argument where one is not a number, so that this lets NaN through. */
#define CUT_OFF(x, bound) larger(splat(-(bound)), smaller(splat(bound), x))

/* exp x = 2ⁿ exp r, where n is x / ln 2 rounded and |r| ≤ ½ ln 2; the polynomial is that of Cephes (Moshier 1984).
 * The relative error is under 2e-7. Beyond ±87, where the result would leave the normal numbers, x is cut off. */
INLINE vec exponential(vec x)
{
    const float shift = 12582912.0f; /* 1.5 · 2²³: what is added to it is rounded to an integer, in its low bits */
    x = CUT_OFF(x, 87.0f);
    vec shifted = x * 1.44269504f + shift;
    vec n = shifted - shift;
    vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return AS_VEC(AS_INTS(p) + (AS_INTS(shifted) << 23));
}

INLINE vec logistic(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* A rational function of the degrees 13 and 6, as in Eigen; the relative error is under 5e-7, near zero too. */
INLINE vec hyperbolic_tangent(vec x)
{
    x = CUT_OFF(x, 7.90531111f);
    vec s = x * x;
    vec p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vec q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}

/* ---- Products ----------------------------------------------------------------------------------------------- */

/* A product's inner loop takes its factors a word at a time, four bytes in the place of a float: a number, or, where
 * WORD is 2, two neighbours along the inner dimension, rounded to bfloat16. The sums are float32 in either case. */
#define WORDS(K) (((K) + WORD - 1) / WORD)

#if WORD == 2
INLINE vec multiply_add(vec sum, vec left, vec right)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

/* The words of first[0] first[1], first[2] first[3], … to second[14] second[15]. */
INLINE vec neighbours(vec first, vec second) { return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

/* The words of even[0] odd[0], even[1] odd[1], … */
INLINE vec pairs(vec even, vec odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)neighbours(even, odd));
}
#else
INLINE vec multiply_add(vec sum, vec left, vec right) { return sum + left * right; }
#endif

/* The right factor of a product is packed beforehand, so that the inner loop reads it straight on: DEPTH of its
 * rows of words at a time, and of these a panel of 4 · LANES columns at a time, the last panel as many vectors wide as
 * it takes, filled up with zeros. A packed [K, N] takes WORDS(K) · ⌈N / LANES⌉ · LANES words. */
enum { NAMED(PANEL) = 4 * LANES };
#define PANEL NAMED(PANEL)
#define PADDED(N) (((N) + LANES - 1) / LANES * LANES)

/* The first `count` of from[0], from[right], from[2 · right], …, then zeros. */
INLINE vec numbers_of(const float *from, size right, size count)
{
    if (right == 1) return load_some(from, count);
    float lanes[LANES] = {0};
    for (size i = 0; i < SMALLER(count, LANES); i++) lanes[i] = from[i * right];
    return load(lanes);
}

/* Pack the panels `begin` to `end` (of all ⌈N / PANEL⌉) of a matrix [K, N], whose element (k, n) is
 * b[k · down + n · right]. Rows with `skip[k]` become zero; a null pointer skips none. */
INLINE void pack_panels(size K, size N, const float *b, size down, size right, const uint8_t *skip, size begin,
                        size end, float *packed)
{
#define ROW(k) \
    ((k) < K && !(skip && skip[k]) ? numbers_of(b + (k) * down + (n0 + n) * right, right, columns - n) : splat(0))
    for (size w0 = 0; w0 < WORDS(K); w0 += DEPTH) {
        size depth = SMALLER(DEPTH, WORDS(K) - w0);
        for (size panel = begin; panel < end; panel++) {
            size n0 = panel * PANEL, columns = SMALLER(PANEL, N - n0), width = PADDED(columns);
            float *to = packed + w0 * PADDED(N) + n0 * depth;
            for (size n = 0; n < columns; n += LANES)
                for (size w = 0; w < depth; w++) {
                    size k = (w0 + w) * WORD;
#if WORD == 2
                    store(to + w * width + n, pairs(ROW(k), ROW(k + 1)));
#else
                    store(to + w * width + n, ROW(k));
#endif
                }
        }
    }
#undef ROW
}

EXPORT void NAMED(pack)(size K, size N, const float *b, size down, size right, float *packed, size begin, size end)
{
    pack_panels(K, N, b, down, right, 0, begin, end, packed);
}

/* c = a b, or c += a b where `add`, for `rows` rows and `vectors` vectors of columns; both are constants wherever this
 * is inlined, so that the sums are registers. a[m · a_row + k · a_step]; b and c have b_row and c_row words a row, and
 * of c `columns` are written: all but the last vector are whole. What c had is fetched while the sums are made. */
INLINE void block(const int rows, const int vectors, size depth, const float *a, size a_row, size a_step,
                  const float *b, size b_row, float *c, size c_row, size columns, int add)
{
    vec sum[ROWS][4];
    UNROLL(8)
    for (int m = 0; m < rows; m++) {
        for (int n = 0; add && n < vectors * LANES; n += 16) PREFETCH(c + m * c_row + n);
        UNROLL(4)
        for (int v = 0; v < vectors; v++) sum[m][v] = splat(0);
    }
    for (size k = 0; k < depth; k++, a += a_step, b += b_row) {
        vec right[4];
        UNROLL(4)
        for (int v = 0; v < vectors; v++) right[v] = load(b + v * LANES);
        UNROLL(8)
        for (int m = 0; m < rows; m++) {
            vec left = splat(a[m * a_row]);
            UNROLL(4)
            for (int v = 0; v < vectors; v++) sum[m][v] = multiply_add(sum[m][v], left, right[v]);
        }
    }
    UNROLL(8)
    for (int m = 0; m < rows; m++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            float *to = c + m * c_row + v * LANES;
            size left = v + 1 < vectors ? LANES : columns - v * LANES;
            store_some(to, add ? sum[m][v] + load_some(to, left) : sum[m][v], left);
        }
}

/* The same for `count` blocks, one below the other. */
static void blocks(size count, int rows, int vectors, size depth, const float *a, size a_row, size a_step,
                   const float *b, size b_row, float *c, size c_row, size columns, int add)
{
#define CASE(m, v)                                                                        \
    case 4 * (m) + (v):                                                                   \
        for (; count > 0; count--, a += (m) * a_row, c += (m) * c_row)                    \
            block(m, v, depth, a, a_row, a_step, b, b_row, c, c_row, columns, add);       \
        return;
#define CASES(m) CASE(m, 1) CASE(m, 2) CASE(m, 3) CASE(m, 4)
    switch (4 * rows + vectors) {
    CASES(1) CASES(2)
#if ROWS > 2
    CASES(3)
#endif
#if ROWS > 3
    CASES(4) CASES(5) CASES(6)
#endif
    }
#undef CASE
#undef CASES
}

/* c = a b, or c += a b where `add`, for words a [M, K] and a packed b [K, N], of it the panels `begin` to `end`. */
static void multiply(size M, size N, size K, const float *a, size a_row, size a_step, const float *packed,
                     float *c, size c_row, int add, size begin, size end)
{
    /* Blocks of rows as equal as can be: a small one keeps too few multiplications under way. */
    size count = (M + ROWS - 1) / ROWS, rows = M / LARGER(1, count), larger = M - rows * count;
    for (size w0 = 0; w0 < WORDS(K); w0 += DEPTH) {
        size depth = SMALLER(DEPTH, WORDS(K) - w0);
        for (size panel = begin; panel < end; panel++) {
            size n0 = panel * PANEL, columns = SMALLER(PANEL, N - n0);
            const float *b = packed + w0 * PADDED(N) + n0 * depth, *from = a + w0 * a_step;
            size width = PADDED(columns), upper = larger * (rows + 1);
            blocks(larger, (int)rows + 1, (int)(width / LANES), depth, from, a_row, a_step, b, width, c + n0, c_row,
                   columns, add || w0);
            blocks(count - larger, (int)rows, (int)(width / LANES), depth, from + upper * a_row, a_row, a_step, b,
                   width, c + upper * c_row + n0, c_row, columns, add || w0);
        }
    }
}

/* The same for numbers a [M, K], whose rows stand a_row apart; those with `skip[m]` count as zeros (a null pointer
 * skips none). `room` has M · K floats. */
static void multiply_rows(size M, size N, size K, const float *a, size a_row, const uint8_t *skip,
                          const float *packed, float *c, size c_row, int add, size begin, size end, float *room)
{
#if WORD == 2
    for (size m = 0; m < M; m++) {
        const float *from = a + m * a_row;
        float *to = room + m * WORDS(K);
        for (size k = 0; k < K; k += 2 * LANES) {
            vec words = neighbours(load_some(from + k, K - k), load_some(from + k + LANES, K - k - LANES));
            store_some(to + k / 2, skip && skip[m] ? splat(0) : words, WORDS(K) - k / 2);
        }
    }
    a = room, a_row = WORDS(K);
#else
    if (skip && memchr(skip, 1, M)) {
        for (size m = 0; m < M; m++)
            if (skip[m]) memset(room + m * K, 0, K * sizeof *room);
            else memcpy(room + m * K, a + m * a_row, K * sizeof *room);
        a = room, a_row = K;
    }
#endif
    multiply(M, N, K, a, a_row, 1, packed, c, c_row, add, begin, end);
}

/* c = aᵀ b, or c += aᵀ b where `add`, for numbers a [K, M]. `room` has K · M floats. */
static void multiply_columns(size M, size N, size K, const float *a, const float *packed, float *c, size c_row,
                             int add, size begin, size end, float *room)
{
#if WORD == 2
    for (size w = 0; w < WORDS(K); w++) {
        const float *even = a + 2 * w * M, *odd = even + M;
        for (size m = 0; m < M; m += LANES)
            store_some(room + w * M + m, pairs(load_some(even + m, M - m),
                       2 * w + 1 < K ? load_some(odd + m, M - m) : splat(0)), M - m);
    }
    a = room;
#else
    (void)room;
#endif
    multiply(M, N, K, a, 1, M, packed, c, c_row, add, begin, end);
}

/* ---- The window of the LSTM --------------------------------------------------------------------------------- */

/* What the input adds to the gates of one row: z = x, or z = x + bias where there is one. */
INLINE void enter(float *z, const float *x, const float *bias, size count)
{
    for (size n = 0; n < count; n += LANES) {
        vec given = load_some(x + n, count - n);
        if (bias) given += load_some(bias + n, count - n);
        store_some(z + n, given, count - n);
    }
}

/* Forward through all steps, for the rows `begin` to `end`. Where there are peepholes, what they add comes before
 * steps (3) and (5): the steps (3) and (5) of grimmgen/cells/peephole.py.
 *
 * x      [T, B, 4H], or, where there are `ids` [T, B], the input weights [V, 4H], to which `bias` [4H] is added
 * u      [H, 4H] packed
 * peephole [3, H], mask [T, B, H], starts [T, B]: null pointers where there are none
 * h, c   [T + 1, B, H]: the states, of which the first is given
 * gates  [T, B, 4H]: i, f, c̃, o
 * room   [B, H] to work in
 */
INLINE void lstm_steps(size T, size B, size H, const float *x, const int64_t *ids, const float *bias, const float *u,
                       const float *peephole, const float *mask, const uint8_t *starts, float *h, float *c,
                       float *gates, float *room, size begin, size end)
{
    size rows = end - begin, panels = (4 * H + PANEL - 1) / PANEL;
    for (size t = 0; t < T; t++) {
        const uint8_t *start = starts ? starts + t * B : 0;
        for (size b = begin; b < end; b++)
            enter(gates + (t * B + b) * 4 * H, x + (ids ? ids[t * B + b] : t * B + b) * 4 * H, bias, 4 * H);
        multiply_rows(rows, 4 * H, H, h + (t * B + begin) * H, H, start ? start + begin : 0, u, /* (1), (2) */
                      gates + (t * B + begin) * 4 * H, 4 * H, 1, 0, panels, room + begin * H);
        for (size b = begin; b < end; b++) {
            float *z = gates + (t * B + b) * 4 * H, *c_in = c + (t * B + b) * H, *c_out = c_in + B * H;
            float *h_out = h + ((t + 1) * B + b) * H;
            for (size n = 0; n < H; n += LANES) {
                size left = H - n;
                vec entered = start && start[b] ? splat(0) : load_some(c_in + n, left);
                vec i = load_some(z + n, left), f = load_some(z + H + n, left), o = load_some(z + 3 * H + n, left);
                if (peephole) {
                    i += load_some(peephole + n, left) * entered;
                    f += load_some(peephole + H + n, left) * entered;
                }
                i = logistic(i), f = logistic(f); /* (3) */
                vec candidate = hyperbolic_tangent(load_some(z + 2 * H + n, left));
                vec cell = i * candidate + f * entered; /* (4) */
                if (peephole) o += load_some(peephole + 2 * H + n, left) * cell;
                o = logistic(o);
                vec out = o * hyperbolic_tangent(cell); /* (5) */
                if (mask) out *= load_some(mask + (t * B + b) * H + n, left);
                store_some(z + n, i, left);
                store_some(z + H + n, f, left);
                store_some(z + 2 * H + n, candidate, left);
                store_some(z + 3 * H + n, o, left);
                store_some(c_out + n, cell, left);
                store_some(h_out + n, out, left);
            }
        }
    }
}

/* Compiled twice: without peepholes nothing is asked about them at every vector. */
EXPORT void NAMED(lstm_forward)(size T, size B, size H, const float *x, const int64_t *ids, const float *bias,
                                const float *u, const float *peephole, const float *mask, const uint8_t *starts,
                                float *h, float *c, float *gates, float *room, size begin, size end)
{
    if (peephole) lstm_steps(T, B, H, x, ids, bias, u, peephole, mask, starts, h, c, gates, room, begin, end);
    else lstm_steps(T, B, H, x, ids, bias, u, 0, mask, starts, h, c, gates, room, begin, end);
}

/* Backward through all steps, for the rows `begin` to `end`: the gradient by each z, in the place of the gates, which
 * saves much of what goes to and from memory.
 *
 * u_transposed  [4H, H] packed; peephole, mask, starts, c as `lstm_forward` was given or left them
 * gates         [T, B, 4H]: before, the gates; after, the gradients by z
 * grad_h        [T, B, H], by the hidden states that came out; null is zero
 * d_h, d_c      [B, H]: before, the gradients by the last states beyond grad_h; after, those by the first states
 * d_peephole    [B, 3, H]: the gradients by the peepholes, each row's own, are added to it
 * room          [B, 4H] to work in
 */
INLINE void lstm_steps_back(size T, size B, size H, const float *u_transposed, const float *peephole,
                            const float *mask, const uint8_t *starts, const float *c, float *gates,
                            const float *grad_h, float *d_h, float *d_c, float *d_peephole, float *room, size begin,
                            size end)
{
    size panels = (H + PANEL - 1) / PANEL;
    for (size t = T; t-- > 0;) {
        const uint8_t *start = starts ? starts + t * B : 0;
        for (size b = begin; b < end; b++) {
            const float *c_in = c + (t * B + b) * H, *c_out = c_in + B * H;
            float *gate = gates + (t * B + b) * 4 * H, *d_z = gate;
            for (size n = 0; n < H; n += LANES) {
                size left = H - n;
                vec i = load_some(gate + n, left), f = load_some(gate + H + n, left);
                vec candidate = load_some(gate + 2 * H + n, left), o = load_some(gate + 3 * H + n, left);
                vec out = load_some(c_out + n, left), tanh_c = hyperbolic_tangent(out);
                vec d_out = load_some(d_h + b * H + n, left), d_cell = load_some(d_c + b * H + n, left);
                if (grad_h) d_out += load_some(grad_h + (t * B + b) * H + n, left);
                if (mask) d_out *= load_some(mask + (t * B + b) * H + n, left); /* (5) */
                vec d_o = d_out * tanh_c * o * (1.0f - o);
                d_cell += d_out * o * (1.0f - tanh_c * tanh_c);
                if (peephole) d_cell += d_o * load_some(peephole + 2 * H + n, left);
                vec entered = start && start[b] ? splat(0) : load_some(c_in + n, left); /* (4), (3) */
                vec d_i = d_cell * candidate * i * (1.0f - i), d_f = d_cell * entered * f * (1.0f - f);
                vec d_entered = d_cell * f;
                if (peephole) {
                    float *sum = d_peephole + b * 3 * H + n;
                    d_entered += d_i * load_some(peephole + n, left) + d_f * load_some(peephole + H + n, left);
                    store_some(sum, load_some(sum, left) + d_i * entered, left);
                    store_some(sum + H, load_some(sum + H, left) + d_f * entered, left);
                    store_some(sum + 2 * H, load_some(sum + 2 * H, left) + d_o * out, left);
                }
                store_some(d_z + n, d_i, left);
                store_some(d_z + H + n, d_f, left);
                store_some(d_z + 2 * H + n, d_cell * i * (1.0f - candidate * candidate), left);
                store_some(d_z + 3 * H + n, d_o, left);
                store_some(d_c + b * H + n, start && start[b] ? splat(0) : d_entered, left); /* (1) */
            }
        }
        multiply_rows(end - begin, H, 4 * H, gates + (t * B + begin) * 4 * H, 4 * H, 0, u_transposed, /* (2) */
                      d_h + begin * H, H, 0, 0, panels, room + begin * 4 * H);
        for (size b = begin; start && b < end; b++)
            if (start[b]) memset(d_h + b * H, 0, H * sizeof *d_h); /* (1) */
    }
}

EXPORT void NAMED(lstm_backward)(size T, size B, size H, const float *u_transposed, const float *peephole,
                                 const float *mask, const uint8_t *starts, const float *c, float *gates,
                                 const float *grad_h, float *d_h, float *d_c, float *d_peephole, float *room,
                                 size begin, size end)
{
    if (peephole)
        lstm_steps_back(T, B, H, u_transposed, peephole, mask, starts, c, gates, grad_h, d_h, d_c, d_peephole, room,
                        begin, end);
    else lstm_steps_back(T, B, H, u_transposed, 0, mask, starts, c, gates, grad_h, d_h, d_c, 0, room, begin, end);
}

/* ---- The window of the GRU ---------------------------------------------------------------------------------- */

/* Forward through all steps, for the rows `begin` to `end`.
 *
 * The columns of the recurrent product stand in the order n, r, z here, not r, z, n: so that of what is kept for a row,
 * s, r, z, n, the first three columns are this product, and the last three what the input adds to; their gradients too.
 *
 * x       [T, B, 3H], or, where there are `ids` [T, B], the input weights [V, 3H], to which `bias` [3H] is added
 * u       [H, 3H] packed, b_n [H]
 * mask    [T, B, H], starts [T, B]: null pointers where there are none
 * h       [T + 1, B, H]: the states, of which the first is given
 * gates   [T, B, 4H]: s, r, z, n
 * room    [B, H] to work in
 */
EXPORT void NAMED(gru_forward)(size T, size B, size H, const float *x, const int64_t *ids, const float *bias,
                               const float *u, const float *b_n, const float *mask, const uint8_t *starts, float *h,
                               float *gates, float *room, size begin, size end)
{
    size rows = end - begin, panels = (3 * H + PANEL - 1) / PANEL;
    for (size t = 0; t < T; t++) {
        const uint8_t *start = starts ? starts + t * B : 0;
        for (size b = begin; b < end; b++) {
            float *a = gates + (t * B + b) * 4 * H;
            memcpy(a, b_n, H * sizeof *a); /* (4) */
            enter(a + H, x + (ids ? ids[t * B + b] : t * B + b) * 3 * H, bias, 3 * H);
        }
        multiply_rows(rows, 3 * H, H, h + (t * B + begin) * H, H, start ? start + begin : 0, u, /* (1), (2) */
                      gates + (t * B + begin) * 4 * H, 4 * H, 1, 0, panels, room + begin * H);
        for (size b = begin; b < end; b++) {
            float *a = gates + (t * B + b) * 4 * H, *h_in = h + (t * B + b) * H, *h_out = h_in + B * H;
            for (size n = 0; n < H; n += LANES) {
                size left = H - n;
                vec s = load_some(a + n, left), r = logistic(load_some(a + H + n, left)); /* (3) */
                vec z = logistic(load_some(a + 2 * H + n, left));
                vec candidate = hyperbolic_tangent(load_some(a + 3 * H + n, left) + r * s); /* (5) */
                vec entered = start && start[b] ? splat(0) : load_some(h_in + n, left);
                vec out = candidate + z * (entered - candidate); /* (6) */
                if (mask) out *= load_some(mask + (t * B + b) * H + n, left);
                store_some(a + H + n, r, left);
                store_some(a + 2 * H + n, z, left);
                store_some(a + 3 * H + n, candidate, left);
                store_some(h_out + n, out, left);
            }
        }
    }
}

/* Backward through all steps, for the rows `begin` to `end`: the gradients by a and x, in the place of the gates.
 *
 * u_transposed  [3H, H] packed; mask, starts, h as `gru_forward` was given or left them
 * gates         [T, B, 4H]: before, s, r, z, n; after, the gradients by a_n, by a_r and x_r, by a_z and x_z, by x_n
 * grad_h        [T, B, H], by the hidden states that came out
 * d_h           [B, H]: before, the gradient by the last state beyond grad_h; after, that by the first state
 * room          [B, 3H] to work in
 */
EXPORT void NAMED(gru_backward)(size T, size B, size H, const float *u_transposed, const float *mask,
                                const uint8_t *starts, const float *h, float *gates, const float *grad_h, float *d_h,
                                float *room, size begin, size end)
{
    size panels = (H + PANEL - 1) / PANEL;
    for (size t = T; t-- > 0;) {
        const uint8_t *start = starts ? starts + t * B : 0;
        for (size b = begin; b < end; b++) {
            const float *h_in = h + (t * B + b) * H;
            float *gate = gates + (t * B + b) * 4 * H;
            for (size n = 0; n < H; n += LANES) {
                size left = H - n;
                vec s = load_some(gate + n, left), r = load_some(gate + H + n, left);
                vec z = load_some(gate + 2 * H + n, left), candidate = load_some(gate + 3 * H + n, left);
                vec d_out = load_some(d_h + b * H + n, left) + load_some(grad_h + (t * B + b) * H + n, left);
                if (mask) d_out *= load_some(mask + (t * B + b) * H + n, left); /* (6) */
                vec entered = start && start[b] ? splat(0) : load_some(h_in + n, left);
                vec d_x_n = d_out * (1.0f - z) * (1.0f - candidate * candidate); /* (5) */
                store_some(gate + n, d_x_n * r, left); /* (4) */
                store_some(gate + H + n, d_x_n * s * r * (1.0f - r), left); /* (3) */
                store_some(gate + 2 * H + n, d_out * (entered - candidate) * z * (1.0f - z), left);
                store_some(gate + 3 * H + n, d_x_n, left);
                store_some(d_h + b * H + n, d_out * z, left);
            }
        }
        multiply_rows(end - begin, H, 3 * H, gates + (t * B + begin) * 4 * H, 4 * H, 0, u_transposed, /* (2) */
                      d_h + begin * H, H, 1, 0, panels, room + begin * 3 * H);
        for (size b = begin; start && b < end; b++)
            if (start[b]) memset(d_h + b * H, 0, H * sizeof *d_h); /* (1) */
    }
}

/* ---- Layers that are no cells -------------------------------------------------------------------------------- */

/* y = x W + b for the rows `begin` to `end`.
 *
 * x [N, K]; weight [K, M] packed; bias [M], a null pointer where there is none; y [N, M]
 * room [BLOCK, K]
 */
EXPORT void NAMED(affine)(size N, size K, size M, const float *x, const float *weight, const float *bias, float *y,
                          float *room, size begin, size end)
{
    (void)N;
    for (size n = begin; n < end; n += BLOCK) {
        size rows = SMALLER(BLOCK, end - n);
        for (size row = 0; bias && row < rows; row++) memcpy(y + (n + row) * M, bias, M * sizeof *bias);
        multiply_rows(rows, M, K, x + n * K, K, 0, weight, y + n * M, M, bias != 0, 0, (M + PANEL - 1) / PANEL, room);
    }
}

/* The gradients by the weights of y = x W + b, from those by y: of their M columns the panels `begin` to `end`, so that
 * the sums do not depend on how many threads make them. For the recurrent weights, x are the hidden states that
 * entered, and y what they add to the gates.
 *
 * x           [N, K], its rows with `skip` [N] (where a story starts) count as zeros; a null pointer skips none; where
 *             there is no such product, K is zero
 * grad        [N, M] by y, its rows `grad_row` apart
 * grad_weight [K, M] and grad_bias [M]
 * grad_input  [V, M] by what `ids` [N] were looked up in, to be added to y; null pointers where there is no such thing
 * room        [CHUNK, K + the columns rounded up to whole vectors], for these columns alone
 */
EXPORT void NAMED(weights)(size N, size K, size M, size V, const int64_t *ids, const uint8_t *skip, const float *x,
                           const float *grad, size grad_row, float *grad_weight, float *grad_input,
                           float *grad_bias, float *room, size begin, size end)
{
    size first = begin * PANEL, columns = SMALLER(end * PANEL, M) - first;
    float *packed = room + CHUNK * K;
    for (size v = 0; grad_input && v < V; v++) memset(grad_input + v * M + first, 0, columns * sizeof *grad_input);
    if (grad_bias) memset(grad_bias + first, 0, columns * sizeof *grad_bias);
    for (size n = 0; n < N; n += CHUNK) {
        size rows = SMALLER(CHUNK, N - n);
        const float *d_y = grad + n * grad_row + first;
        if (K) {
            pack_panels(rows, columns, d_y, grad_row, 1, skip ? skip + n : 0, 0, end - begin, packed);
            multiply_columns(K, columns, rows, x + n * K, packed, grad_weight + first, M, n > 0, 0, end - begin, room);
        }
        for (size row = 0; row < rows; row++)
            if (grad_input) add_to(grad_input + ids[n + row] * M + first, d_y + row * grad_row, columns);
            else if (grad_bias) add_to(grad_bias + first, d_y + row * grad_row, columns);
    }
    for (size v = 0; grad_input && v < V; v++) add_to(grad_bias + first, grad_input + v * M + first, columns);
}

/* The dropout mask of a window, elements `begin` to `end`: `scale` with the probability threshold / 2³², else zero.
 * Each is decided by a number of its own, a hash of its index and the seed (the mixing steps are Wellons' lowbias32),
 * and so does not depend on threads or vectors. */
EXPORT void NAMED(dropout_mask)(const int64_t *seed, size threshold, const float *scale, float *mask, size begin,
                                size end)
{
    const uint32_t low = (uint32_t)*seed, high = (uint32_t)((uint64_t)*seed >> 32), below = (uint32_t)threshold;
    const float kept = *scale;
    for (size n = begin; n < end; n++) {
        uint32_t x = (uint32_t)n ^ low;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15 ^ high) * 0x846ca68bu;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15) * 0x846ca68bu;
        mask[n] = (x ^ x >> 16) < below ? kept : 0.0f;
    }
}

/* ---- Small operations --------------------------------------------------------------------------------------- */

/* Those of PyTorch's that stand between the kernels in an update. */

/* to[r, c] = from[r · down + c · right], for the rows `begin` to `end`, `to_down` apart; from a null pointer, zeros. */
EXPORT void NAMED(copy)(size columns, const float *from, size down, size right, float *to, size to_down, size begin,
                        size end)
{
    for (size r = begin; r < end; r++)
        if (!from) memset(to + r * to_down, 0, columns * sizeof *to);
        else if (right == 1) memcpy(to + r * to_down, from + r * down, columns * sizeof *to);
        else
            for (size c = 0; c < columns; c++) to[r * to_down + c] = from[r * down + c * right];
}

/* to = a + b, elements `begin` to `end`. */
EXPORT void NAMED(add)(const float *a, const float *b, float *to, size begin, size end)
{
    for (size n = begin; n < end; n += LANES)
        store_some(to + n, load_some(a + n, end - n) + load_some(b + n, end - n), end - n);
}

/* to = a b, rows of `columns` numbers each, `begin` to `end`; those of b are `b_row` apart, or zero: one for all. */
EXPORT void NAMED(multiply_rowwise)(size columns, const float *a, const float *b, size b_row, float *to, size begin,
                                    size end)
{
    for (size r = begin; r < end; r++)
        for (size n = 0; n < columns; n += LANES) {
            size i = r * columns + n, left = columns - n;
            store_some(to + i, load_some(a + i, left) * load_some(b + r * b_row + n, left), left);
        }
}

/* to [columns]: the sum over all rows of `from` over a divisor, for the columns `begin` to `end`. */
EXPORT void NAMED(sum)(size rows, size columns, size divisor, const float *from, float *to, size begin, size end)
{
    for (size c = begin; c < end; c++) {
        double sum = 0;
        for (size r = 0; r < rows; r++) sum += from[r * columns + c];
        to[c] = (float)(sum / divisor);
    }
}

/* ---- The optimiser ------------------------------------------------------------------------------------------- */

/* Both take all of the weights at once, `tensors` arrays of counts[i] numbers each, and count their parts through. */

/* The sums of the squares of the gradients: for each of their slices, of SLICE numbers, one. */
EXPORT void NAMED(squares)(size tensors, const size *counts, const float *const *gradients, double *sums, size begin,
                           size end)
{
    for (size i = 0, from = 0, slices; i < tensors; i++, from += slices) {
        slices = (counts[i] + SLICE - 1) / SLICE;
        for (size slice = LARGER(begin, from); slice < SMALLER(end, from + slices); slice++) {
            size first = (slice - from) * SLICE, left = SMALLER(SLICE, counts[i] - first);
            vec sum = splat(0), more = splat(0);
            for (size n = first; n < first + left; n += 2 * LANES) {
                vec a = load_some(gradients[i] + n, first + left - n);
                vec b = load_some(gradients[i] + n + LANES, first + left - n - LANES);
                sum += a * a, more += b * b;
            }
            sums[slice] = (double)sum_of(sum) + (double)sum_of(more);
        }
    }
}

/* A step for the weights; the steps are numbered as in grimmgen/optimiser.py.
 *
 * arrays  of each the weight, the gradient, the mean and the mean square
 * rates   what `AdamW.step` calls scale, 1 - β₁, β₂, 1 - β₂, kept, pace, root, ε
 */
EXPORT void NAMED(adamw)(size tensors, const size *counts, float *const (*arrays)[4], const float *rates, size begin,
                         size end)
{
    const float scale = rates[0], share = rates[1], beta2 = rates[2], share2 = rates[3], kept = rates[4];
    const float pace = rates[5], root = rates[6], epsilon = rates[7];
    for (size i = 0, from = 0; i < tensors; from += counts[i], i++) {
        float *weight = arrays[i][0], *gradient = arrays[i][1], *mean = arrays[i][2], *mean_square = arrays[i][3];
        size last = SMALLER(end - from, counts[i]);
        for (size n = LARGER(begin - from, 0); n < last; n += LANES) {
            vec g = load_some(gradient + n, last - n) * scale; /* (1) */
            vec m = load_some(mean + n, last - n), v = load_some(mean_square + n, last - n); /* (2) */
            m += (g - m) * share;
            v = v * beta2 + g * g * share2;
            vec w = load_some(weight + n, last - n) * kept - pace * m / (square_root(v) * root + epsilon); /* (3), (4) */
            store_some(mean + n, m, last - n);
            store_some(mean_square + n, v, last - n);
            store_some(weight + n, w, last - n);
        }
    }
}

/* ---- The softmax layer -------------------------------------------------------------------------------------- */

/* One row of logits [V]: returns -ln p of the target, puts scale · (p - onehot(target)) in their place, and adds that
 * to `total` [V], if that is no null pointer. */
static float softmax(size V, float *y, size target, float scale, float *total)
{
    float largest = y[0];
    if (V >= LANES) {
        vec most = load(y);
        for (size n = LANES; n + LANES <= V; n += LANES) most = larger(most, load(y + n));
        largest = largest_of(most);
    }
    for (size n = V / LANES * LANES; n < V; n++) largest = y[n] > largest ? y[n] : largest;
    float at_target = y[target], sum = 0;
    vec sums = splat(0);
    for (size n = 0; n < V; n += LANES) {
        vec e = exponential(load_some(y + n, V - n) - largest);
        store_some(y + n, e, V - n);
        if (V - n >= LANES) sums += e;
    }
    sum = sum_of(sums);
    for (size n = V / LANES * LANES; n < V; n++) sum += y[n];
    vec factor = splat(scale / sum);
    for (size n = 0; n < V; n += LANES) {
        vec d_y = load_some(y + n, V - n) * factor;
        store_some(y + n, d_y, V - n);
        if (total) store_some(total + n, load_some(total + n, V - n) + d_y, V - n);
    }
    y[target] -= scale;
    if (total) total[target] -= scale;
    return largest - at_target + logf(sum);
}

/* Losses, and gradients of their sum / N, for the rows `begin` to `end` of N.
 *
 * hidden  [N, H]; weight [H, V] packed, weight_transposed [V, H] packed; bias [V]; targets [N], below zero is none
 * losses  [N]
 * grad_hidden [N, H], grad_weight [H, V], grad_bias [V]: the last two sums over these rows only;
 *             null pointers where no gradients are wanted
 * room        [BLOCK, 2 · V rounded up to whole vectors + the larger of H and V]
 */
EXPORT void NAMED(cross_entropy)(size N, size H, size V, const float *hidden, const float *weight,
                                 const float *weight_transposed, const float *bias, const int64_t *targets,
                                 float *losses, float *grad_hidden, float *grad_weight, float *grad_bias,
                                 float *room, size begin, size end)
{
    size panels = (V + PANEL - 1) / PANEL, panels_h = (H + PANEL - 1) / PANEL;
    size width = PADDED(V);
    float *packed = room + BLOCK * width, *left = packed + BLOCK * width;
    if (grad_bias) memset(grad_bias, 0, V * sizeof *grad_bias);
    /* A block of logits becomes its own gradient while it is in the cache. */
    for (size n0 = begin; n0 < end; n0 += BLOCK) {
        size rows = SMALLER(BLOCK, end - n0);
        const float *h = hidden + n0 * H;
        for (size row = 0; row < rows; row++) memcpy(room + row * width, bias, V * sizeof *bias);
        multiply_rows(rows, V, H, h, H, 0, weight, room, width, 1, 0, panels, left);
        for (size row = 0; row < rows; row++) {
            float *y = room + row * width;
            size target = targets[n0 + row];
            losses[n0 + row] = target < 0 ? 0 : softmax(V, y, target, 1.0f / N, grad_bias);
            if (target < 0) memset(y, 0, V * sizeof *y);
        }
        if (!grad_hidden) continue;
        multiply_rows(rows, H, V, room, width, 0, weight_transposed, grad_hidden + n0 * H, H, 0, 0, panels_h, left);
        pack_panels(rows, V, room, width, 1, 0, 0, panels, packed);
        multiply_columns(H, V, rows, h, packed, grad_weight, V, n0 > begin, 0, panels, left);
    }
}

/* bfloat16 has no equations of its own for telling: one step reads the weights once, and is not about products. */
#if WORD == 1
#include "native_steps.h"
#endif

#undef vec
#undef ints
#undef splat
#undef load
#undef store
#undef load_some
#undef store_some
#undef add_to
#undef sum_of
#undef largest_of
#undef smaller
#undef larger
#undef square_root
#undef exponential
#undef logistic
#undef hyperbolic_tangent
#undef multiply_add
#undef neighbours
#undef pairs
#undef numbers_of
#undef block
#undef blocks
#undef pack_panels
#undef multiply
#undef multiply_rows
#undef multiply_columns
#undef enter
#undef lstm_steps
#undef lstm_steps_back
#undef softmax
#undef INLINE
#undef AS_INTS
#undef AS_VEC
#undef PANEL
#undef CUT_OFF
#undef MASK
#undef PADDED
#undef ISA
#undef LANES
#undef ROWS
#undef WORD
#undef WORDS
