/* Matrix products: packing, and the register-blocked loops. ROWS × 4 vectors are a register block. */

/* The inner loop of a product reads its factors a word of 32 bits at a time: a float or, where WORD is 2, two neighbours along
 * the inner dimension, rounded to bfloat16. Sums are float32 in both cases. */
#define WORDS(K) (((K) + WORD - 1) / WORD)

#if WORD == 2
INLINE vec multiply_add(vec sum, vec left, vec right)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

/* The words (first[0], first[1]), (first[2], first[3]), … to (second[14], second[15]). */
INLINE vec neighbours(vec first, vec second) { return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

/* The words (even[0], odd[0]), (even[1], odd[1]), … */
INLINE vec pairs(vec even, vec odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)neighbours(even, odd));
}
#else
INLINE vec multiply_add(vec sum, vec left, vec right) { return sum + left * right; }
#endif

/* The right factor of a product is packed beforehand, so that the inner loop reads it sequentially: DEPTH rows of words at a
 * time, and of these a panel of 4 · LANES columns at a time; the last panel is as many vectors wide as it needs, padded with
 * zeros. A packed matrix [K, N] has WORDS(K) · ⌈N / LANES⌉ · LANES words. */
enum { PANEL = 4 * LANES };
#define PADDED(N) (((N) + LANES - 1) / LANES * LANES)

/* The first `count` of p[0], p[stride], p[2 · stride], …, then zeros. */
INLINE vec load_strided(const float *p, size stride, size count)
{
    if (stride == 1) return load_some(p, count);
    float lanes[LANES] = {0};
    for (size i = 0; i < SMALLER(count, LANES); i++) lanes[i] = p[i * stride];
    return load(lanes);
}

/* Pack panels `begin` to `end` (of ⌈N / PANEL⌉) of a matrix [K, N] whose element (k, n) is b[k · row_stride + n · column_stride].
 * Rows with `skip[k]` are packed as zeros; a null pointer skips none. */
INLINE void pack_panels(size K, size N, const float *b, size row_stride, size column_stride, const uint8_t *skip, size begin,
                        size end, float *packed)
{
#define ROW(k) \
    ((k) < K && !(skip && skip[k]) ? load_strided(b + (k) * row_stride + (n0 + n) * column_stride, column_stride, columns - n) : splat(0))
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

/* Pack panels `begin` to `end` of a matrix [K, N] whose element (k, n) stands at matrix[k · row_stride + n · column_stride]. */
static void pack(const void *arguments, size begin, size end, size share)
{
    const pack_arguments *a = arguments;
    (void)share;
    pack_panels(a->K, a->N, a->matrix, a->row_stride, a->column_stride, 0, begin, end, a->packed);
}

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
 * `scratch` has M · K floats. */
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

/* c = aᵀ b, or c += aᵀ b if `add`, for floats a [K, M]. `scratch` has K · M floats. */
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
