/* Matrix products on tiles (AMX): the functions of products.h, for bfloat16.
 *
 * A tile has 16 rows of 16 words, one KB: words of the left or of the right factor, or sums. Factors are packed tile by tile, with
 * zeros beyond their ends; a product multiplies 2 × 2 tiles at a time.
 */

/* Configure the eight tiles, once in each call of a kernel; afterwards release them: there is less to save when the thread is
 * interrupted, and the core may sleep. */
INLINE void begin_products(void)
{
    static const struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t bytes[16]; /* of a row, for each tile */
        uint8_t rows[16];
    } palette = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&palette);
}

INLINE void end_products(void) { _tile_release(); }

/* c = a b, or c += a b if `add`, for `down` × `right` tiles of c, each 1 or 2 and a constant where this is inlined; c's rows are c_row words apart.
 *
 * a, b: the first tiles of the factors, others along the inner dimension follow; those below or to the right are a_below or
 * b_right words further
 */
INLINE void tile_block(const int down, const int right, size depth, const float *a, size a_below, const float *b, size b_right,
                       float *c, size c_row, int add)
{
    float *c_below = c + TILE * c_row;
    /* GCC does not know that loading a tile reads memory: let no store be moved below this line. */
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
        _tile_loadd(0, c, 4 * c_row);
        if (right > 1) _tile_loadd(1, c + TILE, 4 * c_row);
        if (down > 1) _tile_loadd(2, c_below, 4 * c_row);
        if (down > 1 && right > 1) _tile_loadd(3, c_below + TILE, 4 * c_row);
    }
    for (size k = 0; k < depth * TILE; k += TILE * TILE) {
        _tile_loadd(4, a + k, 64);
        _tile_loadd(6, b + k, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (right > 1) {
            _tile_loadd(7, b + b_right + k, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (down > 1) {
            _tile_loadd(5, a + a_below + k, 64);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (down > 1 && right > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 4 * c_row);
    if (right > 1) _tile_stored(1, c + TILE, 4 * c_row);
    if (down > 1) _tile_stored(2, c_below, 4 * c_row);
    if (down > 1 && right > 1) _tile_stored(3, c_below + TILE, 4 * c_row);
}

/* target = source [rows, columns], whose rows are target_row and source_row apart. */
INLINE void copy_block(size rows, size columns, const float *source, size source_row, float *target, size target_row)
{
    for (size m = 0; m < rows; m++)
        for (size n = 0; n < columns; n += LANES)
            store_some(target + m * target_row + n, load_some(source + m * source_row + n, columns - n), columns - n);
}

/* c = a b, or c += a b if `add`, for a packed a [M, K] and panels `begin` to `end` of a packed b [K, N]. */
ONE_COPY void multiply(size M, size N, size K, const float *a, const float *packed, float *c, size c_row, int add, size begin,
                       size end)
{
    enum { BOTH = 2 * TILE };
    float edge[BOTH * BOTH] __attribute__((aligned(64))) = {0}; /* serves where less than whole tiles of c are left */
    for (size w0 = 0; w0 < WORDS(K); w0 += DEPTH) {
        size depth = SMALLER(DEPTH, WORDS(K) - w0), last = SMALLER(end * PANEL, N);
        for (size n = begin * PANEL; n < last; n += BOTH)
            for (size m = 0; m < M; m += BOTH) {
                size rows = SMALLER(BOTH, M - m), columns = SMALLER(BOTH, last - n), to_row = c_row;
                const float *left = a + m * WORDS(K) + w0 * TILE, *right = packed + w0 * PADDED(N) + n * depth;
                float *to = c + m * c_row + n;
                int whole = rows % TILE == 0 && columns % TILE == 0, more = add || w0;
                if (!whole) {
                    if (more) copy_block(rows, columns, to, c_row, edge, BOTH);
                    to = edge, to_row = BOTH;
                }
#define CASE(down, across) tile_block(down, across, depth, left, TILE * WORDS(K), right, depth * TILE, to, to_row, more)
                if (rows > TILE && columns > TILE) CASE(2, 2);
                else if (rows > TILE) CASE(2, 1);
                else if (columns > TILE) CASE(1, 2);
                else CASE(1, 1);
#undef CASE
                if (!whole) copy_block(rows, columns, edge, BOTH, c + m * c_row + n, c_row);
            }
    }
}

/* Where the tile of words at row m and word w of a packed left factor begins, both multiples of TILE. */
#define LEFT_TILE(m, w) ((m) * WORDS(K) + (w) * TILE)

/* The same for floats a [M, K], whose rows are a_row apart; rows with `skip[m]` count as zeros (a null pointer skips none).
 * `scratch` has LEFT_WORDS(M, K) words. */
static void multiply_rows(size M, size N, size K, const float *a, size a_row, const uint8_t *skip, const float *packed, float *c,
                          size c_row, int add, size begin, size end, float *scratch)
{
    for (size m = 0; m < ROUNDED_UP(M, TILE); m++)
        for (size w = 0; w < WORDS(K); w += TILE) {
            const float *from = a + m * a_row + 2 * w;
            size left = m >= M || (skip && skip[m]) ? 0 : K - 2 * w;
            store(scratch + LEFT_TILE(m / TILE * TILE, w) + m % TILE * TILE,
                  neighbours(load_some(from, left), load_some(from + LANES, left - LANES)));
        }
    multiply(M, N, K, scratch, packed, c, c_row, add, begin, end);
}

/* Transpose a tile of words. Each step exchanges the halves of the rows and columns whose numbers differ in one bit. */
INLINE void transpose(vec *rows)
{
    const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    UNROLL(4)
    for (int bit = 1; bit < TILE; bit *= 2) {
        /* Elements 16 to 31 are those of the second row. */
        const ints other = (ints)((lane & bit) != 0), upper = lane ^ (other & (bit | 16)), lower = lane ^ (~other & bit) ^ (other & 16);
        UNROLL(16)
        for (int m = 0; m < TILE; m++) {
            if (m & bit) continue;
            __m512 first = (__m512)rows[m], second = (__m512)rows[m + bit];
            rows[m] = (vec)_mm512_permutex2var_ps(first, (__m512i)upper, second);
            rows[m + bit] = (vec)_mm512_permutex2var_ps(first, (__m512i)lower, second);
        }
    }
}

/* c = aᵀ b, or c += aᵀ b if `add`, for floats a [K, M]. `scratch` has LEFT_WORDS(M, K) words. */
static void multiply_columns(size M, size N, size K, const float *a, const float *packed, float *c, size c_row, int add, size begin,
                             size end, float *scratch)
{
#define ROW(k) ((k) < K ? load_some(a + (k) * M + m, M - m) : splat(0))
    for (size m = 0; m < M; m += TILE)
        for (size w = 0; w < WORDS(K); w += TILE) {
            vec tile[TILE];
            for (size i = 0; i < TILE; i++) tile[i] = pairs(ROW(2 * (w + i)), ROW(2 * (w + i) + 1));
            transpose(tile);
            for (size i = 0; i < TILE; i++) store(scratch + LEFT_TILE(m, w) + i * TILE, tile[i]);
        }
#undef ROW
    multiply(M, N, K, scratch, packed, c, c_row, add, begin, end);
}
