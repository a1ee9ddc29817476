/* Layers without cells, elementwise operations, and the optimiser. */

/* ---- Linear layers ------------------------------------------------------------------------------------------------------ */

/* y = x W + b for rows `begin` to `end`.
 *
 * x [N, K]; weight [K, M] packed; bias [M], null for none; y [N, M]; scratch [shares, LEFT_WORDS(BLOCK, K)]
 */
static void linear(const void *arguments, size begin, size end, size share)
{
    const linear_arguments *a = arguments;
    size K = a->K, M = a->M;
    begin_products();
    for (size n = begin; n < end; n += BLOCK) {
        size rows = SMALLER(BLOCK, end - n);
        for (size row = 0; a->bias && row < rows; row++) memcpy(a->y + (n + row) * M, a->bias, M * sizeof *a->bias);
        multiply_rows(rows, M, K, a->x + n * K, K, 0, a->weight, a->y + n * M, M, a->bias != 0, 0, (M + PANEL - 1) / PANEL,
                      a->scratch + share * LEFT_WORDS(BLOCK, K));
    }
    end_products();
}

/* The gradients by the weights of y = x W + b, from d_y: panels `begin` to `end` of its M columns, so that sums do not depend on
 * the number of threads.
 *
 * x        [N, K]; rows with `skip` [N] count as zeros (null for none); K is zero where there is no such product
 * d_y      [N, M], rows d_y_stride apart
 * d_weight [K, M]; d_bias [M]: null for none
 * d_table  [V, M], by a table whose rows `ids` [N] were added to y; null for none; then d_bias is not
 * scratch  [shares, scratch_stride]; a share needs LEFT_WORDS(K, CHUNK) + CHUNK · its columns, rounded up to whole vectors
 */
static void weight_gradient(const void *arguments, size begin, size end, size share)
{
    const weight_gradient_arguments *a = arguments;
    size N = a->N, K = a->K, M = a->M, first = begin * PANEL, columns = SMALLER(end * PANEL, M) - first;
    float *scratch = a->scratch + share * a->scratch_stride, *packed = scratch + LEFT_WORDS(K, CHUNK);
    for (size v = 0; a->d_table && v < a->V; v++) memset(a->d_table + v * M + first, 0, columns * sizeof *a->d_table);
    if (a->d_bias) memset(a->d_bias + first, 0, columns * sizeof *a->d_bias);
    begin_products();
    for (size n = 0; n < N; n += CHUNK) {
        size rows = SMALLER(CHUNK, N - n);
        const float *d_y = a->d_y + n * a->d_y_stride + first;
        if (K) {
            pack_panels(rows, columns, d_y, a->d_y_stride, 1, a->skip ? a->skip + n : 0, 0, end - begin, packed);
            multiply_columns(K, columns, rows, a->x + n * K, packed, a->d_weight + first, M, n > 0, 0, end - begin, scratch);
        }
        for (size row = 0; row < rows; row++)
            if (a->d_table) add_to(a->d_table + a->ids[n + row] * M + first, d_y + row * a->d_y_stride, columns);
            else if (a->d_bias) add_to(a->d_bias + first, d_y + row * a->d_y_stride, columns);
    }
    end_products();
    for (size v = 0; a->d_table && v < a->V; v++) add_to(a->d_bias + first, a->d_table + v * M + first, columns);
}

/* ---- Elementwise operations --------------------------------------------------------------------------------------------- */

/* A dropout mask, elements `begin` to `end`: `scale` with the probability threshold / 2³², else zero. A hash of the element's
 * index and the seed decides (the mixing steps are Wellons' lowbias32), so that the mask depends on neither threads nor vectors. */
static void dropout_mask(const void *arguments, size begin, size end, size share)
{
    const dropout_mask_arguments *a = arguments;
    const uint32_t low = (uint32_t)*a->seed, high = (uint32_t)((uint64_t)*a->seed >> 32), below = (uint32_t)a->threshold;
    const float kept = *a->scale;
    float *mask = a->mask;
    (void)share;
    for (size n = begin; n < end; n++) {
        uint32_t x = (uint32_t)n ^ low;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15 ^ high) * 0x846ca68bu;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15) * 0x846ca68bu;
        mask[n] = (x ^ x >> 16) < below ? kept : 0.0f;
    }
}

/* target[r, c] = source[r · row_stride + c · column_stride], rows `begin` to `end`; zeros from a null source. */
static void copy(const void *arguments, size begin, size end, size share)
{
    const copy_arguments *a = arguments;
    (void)share;
    for (size r = begin; r < end; r++) {
        float *target = a->target + r * a->target_stride;
        if (!a->source) memset(target, 0, a->columns * sizeof *target);
        else if (a->column_stride == 1) memcpy(target, a->source + r * a->row_stride, a->columns * sizeof *target);
        else
            for (size c = 0; c < a->columns; c++) target[c] = a->source[r * a->row_stride + c * a->column_stride];
    }
}

/* target[r] = table[ids[r]], rows `begin` to `end` of `columns` elements. */
static void lookup(const void *arguments, size begin, size end, size share)
{
    const lookup_arguments *a = arguments;
    (void)share;
    for (size r = begin; r < end; r++)
        memcpy(a->target + r * a->columns, a->table + a->ids[r] * a->columns, a->columns * sizeof *a->target);
}

/* target = a + b, elements `begin` to `end`. */
static void add(const void *arguments, size begin, size end, size share)
{
    const add_arguments *a = arguments;
    (void)share;
    for (size n = begin; n < end; n += LANES)
        store_some(a->target + n, load_some(a->a + n, end - n) + load_some(a->b + n, end - n), end - n);
}

/* target = a b, rows `begin` to `end` of `columns` elements; rows of b are b_stride apart, or b_stride is 0: one row for all. */
static void multiply_elements(const void *arguments, size begin, size end, size share)
{
    const multiply_arguments *a = arguments;
    (void)share;
    for (size r = begin; r < end; r++)
        for (size n = 0; n < a->columns; n += LANES) {
            size i = r * a->columns + n, left = a->columns - n;
            store_some(a->target + i, load_some(a->a + i, left) * load_some(a->b + r * a->b_stride + n, left), left);
        }
}

/* target [columns]: the sum over all rows of the source, over a divisor, columns `begin` to `end`. */
static void sum(const void *arguments, size begin, size end, size share)
{
    const sum_arguments *a = arguments;
    (void)share;
    for (size c = begin; c < end; c++) {
        double total = 0;
        for (size r = 0; r < a->rows; r++) total += a->source[r * a->columns + c];
        a->target[c] = (float)(total / a->divisor);
    }
}

/* ---- The optimiser ------------------------------------------------------------------------------------------------------ */

/* The sum of the squares of each slice of SLICE elements of the gradients, slices `begin` to `end`.
 *
 * counts [tensors]: elements of each; gradients [tensors]: pointers; sums: one for each slice
 */
static void squares(const void *arguments, size begin, size end, size share)
{
    const squares_arguments *a = arguments;
    (void)share;
    for (size i = 0, from = 0, slices; i < a->tensors; i++, from += slices) {
        slices = (a->counts[i] + SLICE - 1) / SLICE;
        for (size slice = LARGER(begin, from); slice < SMALLER(end, from + slices); slice++) {
            size first = (slice - from) * SLICE, last = SMALLER(first + SLICE, a->counts[i]);
            const float *gradient = a->gradients[i];
            vec even = splat(0), odd = splat(0);
            for (size n = first; n < last; n += 2 * LANES) {
                vec v = load_some(gradient + n, last - n), w = load_some(gradient + n + LANES, last - n - LANES);
                even += v * v, odd += w * w;
            }
            a->sums[slice] = (double)sum_of(even) + (double)sum_of(odd);
        }
    }
}

/* One step of Adam, elements `begin` to `end` of all weights together; the equations are numbered in optimiser.py.
 *
 * counts [tensors]: elements of each; arrays [tensors, 4]: pointers to weight, gradient, m and v
 * numbers [8]: scale, 1 - β₁, β₂, 1 - β₂, kept, pace, root, ε
 */
static void adam(const void *arguments, size begin, size end, size share)
{
    const adam_arguments *a = arguments;
    const float scale = a->numbers[0], share1 = a->numbers[1], beta2 = a->numbers[2], share2 = a->numbers[3];
    const float kept = a->numbers[4], pace = a->numbers[5], root = a->numbers[6], epsilon = a->numbers[7];
    (void)share;
    for (size i = 0, from = 0; i < a->tensors; from += a->counts[i], i++) {
        float *const *arrays = a->arrays + 4 * i, *weight = arrays[0], *gradient = arrays[1], *mean = arrays[2], *square = arrays[3];
        size last = SMALLER(end - from, a->counts[i]);
        for (size n = LARGER(begin - from, 0); n < last; n += LANES) {
            size left = last - n;
            vec g = load_some(gradient + n, left) * scale; /* (1) */
            vec m = load_some(mean + n, left), v = load_some(square + n, left);
            m += (g - m) * share1; /* (2) */
            v = v * beta2 + g * g * share2;
            vec w = load_some(weight + n, left) * kept - pace * m / (square_root(v) * root + epsilon); /* (3), (4) */
            store_some(mean + n, m, left);
            store_some(square + n, v, left);
            store_some(weight + n, w, left);
        }
    }
}

/* ---- The softmax layer -------------------------------------------------------------------------------------------------- */

/* One row of logits [V]: returns -ln p of the target, replaces the logits by scale · (p - onehot(target)), and adds that to
 * `total` [V] unless it is null. */
static float softmax(size V, float *y, size target, float scale, float *total)
{
    float largest = y[0];
    if (V >= LANES) {
        vec most = load(y);
        for (size n = LANES; n + LANES <= V; n += LANES) most = vmax(most, load(y + n));
        largest = largest_of(most);
    }
    for (size n = V / LANES * LANES; n < V; n++) largest = y[n] > largest ? y[n] : largest;
    float at_target = y[target], sum_all = 0;
    vec sums = splat(0);
    for (size n = 0; n < V; n += LANES) {
        vec e = exponential(load_some(y + n, V - n) - largest);
        store_some(y + n, e, V - n);
        if (V - n >= LANES) sums += e;
    }
    sum_all = sum_of(sums);
    for (size n = V / LANES * LANES; n < V; n++) sum_all += y[n];
    vec factor = splat(scale / sum_all);
    for (size n = 0; n < V; n += LANES) {
        vec d_y = load_some(y + n, V - n) * factor;
        store_some(y + n, d_y, V - n);
        if (total) store_some(total + n, load_some(total + n, V - n) + d_y, V - n);
    }
    y[target] -= scale;
    if (total) total[target] -= scale;
    return largest - at_target + logf(sum_all);
}

/* Losses, and the gradients of their sum / N, rows `begin` to `end` of N. A block of logits becomes its own gradient while it is
 * in the cache.
 *
 * hidden  [N, H]; weight [H, V] packed; weight_transposed [V, H] packed; bias [V]; targets [N], negative for none
 * losses  [N]
 * d_hidden [N, H], d_weight [shares, H, V], d_bias [shares, V]: the last two are sums over a share; null without gradients
 * scratch [shares, scratch_stride]; a share needs 2 · BLOCK · V, rounded up to whole vectors, and the most of
 * LEFT_WORDS(BLOCK, H), LEFT_WORDS(BLOCK, V), LEFT_WORDS(H, BLOCK)
 */
static void cross_entropy(const void *arguments, size begin, size end, size share)
{
    const cross_entropy_arguments *a = arguments;
    size N = a->N, H = a->H, V = a->V, panels = (V + PANEL - 1) / PANEL, panels_h = (H + PANEL - 1) / PANEL, width = PADDED(V);
    float *logits = a->scratch + share * a->scratch_stride, *packed = logits + BLOCK * width, *left = packed + BLOCK * width;
    float *d_bias = a->d_bias ? a->d_bias + share * V : 0, *d_weight = a->d_weight + share * H * V;
    if (d_bias) memset(d_bias, 0, V * sizeof *d_bias);
    begin_products();
    for (size n0 = begin; n0 < end; n0 += BLOCK) {
        size rows = SMALLER(BLOCK, end - n0);
        const float *h = a->hidden + n0 * H;
        for (size row = 0; row < rows; row++) memcpy(logits + row * width, a->bias, V * sizeof *a->bias);
        multiply_rows(rows, V, H, h, H, 0, a->weight, logits, width, 1, 0, panels, left);
        for (size row = 0; row < rows; row++) {
            float *y = logits + row * width;
            size target = a->targets[n0 + row];
            a->losses[n0 + row] = target < 0 ? 0 : softmax(V, y, target, 1.0f / N, d_bias);
            if (target < 0) memset(y, 0, V * sizeof *y);
        }
        if (!a->d_hidden) continue;
        multiply_rows(rows, H, V, logits, width, 0, a->weight_transposed, a->d_hidden + n0 * H, H, 0, 0, panels_h, left);
        pack_panels(rows, V, logits, width, 1, 0, 0, panels, packed);
        multiply_columns(H, V, rows, h, packed, d_weight, V, n0 > begin, 0, panels, left);
    }
    end_products();
}
