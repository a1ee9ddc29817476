/* Matrix products in vector registers: a register block is ROWS × 4 vectors. tiles.h has the same functions on tiles. */

/* Around the products of a kernel; see tiles.h. */
INLINE void begin_products(void) {}
INLINE void end_products(void) {}

#if WORD == 2
INLINE vec multiply_add(vec sum, vec left, vec right)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}
#else
INLINE vec multiply_add(vec sum, vec left, vec right) { return sum + left * right; }
#endif

/* c = a b, or c += a b if `add`, for a register block of `rows` rows and `vectors` vectors of columns; both are constants where
 * this is inlined, so that the sums stay in registers. a's element (m, k) is a[m · a_row + k · a_step]; rows of b and c are b_row
 * and c_row words apart; `columns` columns of c are written (all vectors but the last are whole). c is prefetched meanwhile. */
INLINE void block(const int rows, const int vectors, size depth, const float *a, size a_row, size a_step,
                  const float *b, size b_row, float *c, size c_row, size columns, int add)
{
    vec sum[ROWS][4];
    UNROLL(8)
    for (int m = 0; m < rows; m++) {
        for (int n = 0; add && n < vectors * LANES; n += 16) PREFETCH_FOR_WRITE(c + m * c_row + n);
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

/* The same for `count` blocks of rows, one below the other. */
ONE_COPY void blocks(size count, int rows, int vectors, size depth, const float *a, size a_row, size a_step,
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

/* c = a b, or c += a b if `add`, for words a [M, K] and panels `begin` to `end` of a packed b [K, N]. */
ONE_COPY void multiply(size M, size N, size K, const float *a, size a_row, size a_step, const float *packed,
                     float *c, size c_row, int add, size begin, size end)
{
    /* Blocks of rows as equal as possible: a small block keeps too few multiplications in flight. */
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

/* The same for floats a [M, K], whose rows are a_row apart; rows with `skip[m]` count as zeros (a null pointer skips none).
 * `scratch` has LEFT_WORDS(M, K) words. */
static void multiply_rows(size M, size N, size K, const float *a, size a_row, const uint8_t *skip,
                          const float *packed, float *c, size c_row, int add, size begin, size end, float *scratch)
{
#if WORD == 2
    for (size m = 0; m < M; m++) {
        const float *from = a + m * a_row;
        float *to = scratch + m * WORDS(K);
        for (size k = 0; k < K; k += 2 * LANES) {
            vec words = neighbours(load_some(from + k, K - k), load_some(from + k + LANES, K - k - LANES));
            store_some(to + k / 2, skip && skip[m] ? splat(0) : words, WORDS(K) - k / 2);
        }
    }
    a = scratch, a_row = WORDS(K);
#else
    if (skip && memchr(skip, 1, M)) {
        for (size m = 0; m < M; m++)
            if (skip[m]) memset(scratch + m * K, 0, K * sizeof *scratch);
            else memcpy(scratch + m * K, a + m * a_row, K * sizeof *scratch);
        a = scratch, a_row = K;
    }
#endif
    multiply(M, N, K, a, a_row, 1, packed, c, c_row, add, begin, end);
}

/* c = aᵀ b, or c += aᵀ b if `add`, for floats a [K, M]. `scratch` has LEFT_WORDS(M, K) words. */
static void multiply_columns(size M, size N, size K, const float *a, const float *packed, float *c, size c_row,
                             int add, size begin, size end, float *scratch)
{
#if WORD == 2
    for (size w = 0; w < WORDS(K); w++) {
        const float *even = a + 2 * w * M, *odd = even + M;
        for (size m = 0; m < M; m += LANES)
            store_some(scratch + w * M + m, pairs(load_some(even + m, M - m),
                       2 * w + 1 < K ? load_some(odd + m, M - m) : splat(0)), M - m);
    }
    a = scratch;
#else
    (void)scratch;
#endif
    multiply(M, N, K, a, 1, M, packed, c, c_row, add, begin, end);
}
