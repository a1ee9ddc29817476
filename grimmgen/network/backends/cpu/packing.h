/* Matrix products: words, and the right factor. products.h and tiles.h compute with them. */

enum {
#if TILE == 1
    /* Words of a product's inner dimension per pass: the panel of the right factor that a pass reads stays in the
     * first-level cache. */
    DEPTH = 128,
    CHUNK = 256,
    BLOCK = 128, /* rows of logits; they stay in the second-level cache */
#else
    /* To load and store the sums takes as long as to multiply some 64 words: long passes, from the second-level cache. */
    DEPTH = 1024,
    CHUNK = 1024,
    BLOCK = 256,
#endif
};

/* The inner loop of a product reads its factors a word of 32 bits at a time: a float or, where WORD is 2, two neighbours along
 * the inner dimension, rounded to bfloat16; with zeros beyond the last, up to whole tiles. Sums are float32 in both cases. */
#define ROUNDED_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))
#define WORDS(K) ROUNDED_UP(((K) + WORD - 1) / WORD, TILE)
/* Words of a packed left factor [M, K], where products need one (`left_words` in backend.py). */
#define LEFT_WORDS(M, K) (ROUNDED_UP(M, TILE) * WORDS(K))
/* Rows of left factors where each of `shares` rounds up its part of M rows; also the first row of a share that begins at row M. */
#define LEFT_ROWS(M, shares) ((M) + (TILE - 1) * (shares))

#if WORD == 2
/* The words (first[0], first[1]), (first[2], first[3]), … to (second[14], second[15]). */
INLINE vec neighbours(vec first, vec second) { return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

/* The words (even[0], odd[0]), (even[1], odd[1]), … */
INLINE vec pairs(vec even, vec odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)neighbours(even, odd));
}
#endif

/* The right factor of a product is packed beforehand, so that the inner loop reads it sequentially: DEPTH rows of words at a
 * time, and of these a panel of 4 · LANES columns at a time; the last panel is as many vectors wide as it needs, padded with
 * zeros. A packed matrix [K, N] has WORDS(K) · ⌈N / LANES⌉ · LANES words. A panel is packed row by row; with tiles, a vector of
 * columns after the other, so that each tile is contiguous. */
enum { PANEL = 4 * LANES };
#define PADDED(N) ROUNDED_UP(N, LANES)

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
#if WORD == 1
            if (row_stride == 1 && !skip) {
                /* A transposed matrix, whose columns are contiguous: one column after the other. */
                float *column = packed + w0 * PADDED(N) + n0 * depth;
                for (size n = 0; n < width; n++)
                    for (size w = 0; w < depth; w++)
                        column[w * width + n] = n < columns ? b[w0 + w + (n0 + n) * column_stride] : 0;
                continue;
            }
#endif
            size row_step = TILE == 1 ? width : LANES, column_step = TILE == 1 ? 1 : depth;
            float *to = packed + w0 * PADDED(N) + n0 * depth;
            for (size n = 0; n < columns; n += LANES)
                for (size w = 0; w < depth; w++) {
                    size k = (w0 + w) * WORD;
#if WORD == 2
                    store(to + w * row_step + n * column_step, pairs(ROW(k), ROW(k + 1)));
#else
                    store(to + w * row_step + n * column_step, ROW(k));
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
