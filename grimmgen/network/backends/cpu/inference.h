/* Inference: the network one time step at a time, and tokens sampled in the same call.
 *
 * A time step of one row does little more than read all weights once, from the second-level cache where they fit. An element is
 * summed in the same order whatever B is, so that a generated text does not depend on those generated beside it.
 *
 * The fields of a network (NETWORK_FIELDS):
 *     table         [V, GH]: what a token adds to the gates of the first layer, its bias included
 *     layers        [L, 4]: pointers to the recurrent weight [H, GH] packed; from the second layer on the input weight [H, GH]
 *                   packed and the bias [GH]; and the extra weights [extra, H]
 *     output_weight [H, V] packed; output_bias [V]
 *     states        [S, L, B, H]: changed at each time step
 *     logits        [B, V]: of the token that follows the last one read
 *     scratch       [B, WH]; best [V], sums [V], candidates [V]: scratch, too
 */

/* ---- Time steps --------------------------------------------------------------------------------------------------------- */

/* Panels of the right factor that one row is multiplied with at a time: enough sums to issue a multiplication every cycle, and no
 * more than there are registers. */
#if LANES == 16 || defined(__aarch64__)
#define ABREAST 4
#else
#define ABREAST 2
#endif

/* c += a b for one row a [K] and a packed b [K, N]. */
static void multiply_row(size N, size K, const float *a, const float *packed, float *c)
{
    size whole = N / PANEL / ABREAST * ABREAST;
    for (size k0 = 0; k0 < K; k0 += DEPTH) {
        size depth = SMALLER(DEPTH, K - k0);
        for (size panel = 0; panel < whole; panel += ABREAST) {
            const float *b = packed + k0 * PADDED(N) + panel * PANEL * depth;
            float *to = c + panel * PANEL;
            vec sum[4 * ABREAST];
            UNROLL(16)
            for (int v = 0; v < 4 * ABREAST; v++) sum[v] = splat(0);
            for (size k = 0; k < depth; k++, b += PANEL) {
                vec left = splat(a[k0 + k]);
                UNROLL(16)
                for (int v = 0; v < 4 * ABREAST; v++)
                    sum[v] += left * load(b + v / 4 * PANEL * depth + v % 4 * LANES);
            }
            UNROLL(16)
            for (int v = 0; v < 4 * ABREAST; v++)
                store(to + v * LANES, sum[v] + load(to + v * LANES));
        }
    }
    multiply(1, N, K, a, 0, 1, packed, c, 0, 1, whole, (N + PANEL - 1) / PANEL);
}

/* c += a b for the rows of a [M, K]; rows of c are c_row apart. */
static void add_product(size M, size N, size K, const float *a, const float *packed, float *c, size c_row)
{
    if (M == 1) multiply_row(N, K, a, packed, c);
    else multiply(M, N, K, a, K, 1, packed, c, c_row, 1, 0, (N + PANEL - 1) / PANEL);
}

/* One token per row: the states advance by one time step. */
INLINE void read_one(const shape cell, pointwise_forward *pointwise, const network_arguments *net, const int64_t *ids)
{
    size L = net->L, B = net->B, H = net->H, GH = cell.gates * H, WH = cell.width * H;
    float *saved = net->scratch;
    for (size l = 0; l < L; l++) {
        const float *const *weights = net->layers + 4 * l;
        float *h = net->states + l * B * H;
        for (size b = 0; b < B; b++) set_input(cell, H, saved + b * WH, l ? weights[2] : net->table + ids[b] * GH, 0);
        if (l) add_product(B, GH, H, h - B * H, weights[1], saved + cell.input_column * H, WH);
        if (cell.recurrent_rotation >= 0) add_product(B, GH, H, h, weights[0], saved, WH);
        for (size b = 0; b < B; b++) {
            float *states[MOST_STATES];
            for (int k = 0; k < cell.states; k++) states[k] = net->states + ((k * L + l) * B + b) * H;
            units_forward(cell, pointwise, H, saved + b * WH, (const float *const *)states, states, weights[3], 0, 0);
        }
    }
}

static void predict(const network_arguments *net)
{
    size B = net->B, H = net->H, V = net->V;
    for (size b = 0; b < B; b++) memcpy(net->logits + b * V, net->output_bias, V * sizeof *net->logits);
    add_product(B, V, H, net->states + (net->L - 1) * B * H, net->output_weight, net->logits, V);
}

/* ---- Sampling ----------------------------------------------------------------------------------------------------------- */

/* Restore the min-heap [k] below heap[n]. */
static void sift_down(size k, float *heap, size n)
{
    float value = heap[n];
    for (size child; (child = 2 * n + 1) < k; n = child) {
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[n] = heap[child];
    }
    heap[n] = value;
}

#if LANES == 1
INLINE int any(ints found) { return found != 0; }
#else
INLINE int any(ints found)
{
    uint32_t lanes[LANES], whether = 0;
    memcpy(lanes, &found, sizeof lanes);
    for (int n = 0; n < LANES; n++) whether |= lanes[n];
    return whether != 0;
}
#endif

/* The first n from `begin` on with y[n] ≥ bound, or V. Most logits are skipped a panel at a time. */
INLINE size next_from(size V, const float *y, size begin, float bound)
{
    for (size n = begin; n < V; n++) {
        for (; n + PANEL <= V; n += PANEL) {
            ints found = (ints)(load(y + n) >= bound) | (ints)(load(y + n + LANES) >= bound) |
                         (ints)(load(y + n + 2 * LANES) >= bound) | (ints)(load(y + n + 3 * LANES) >= bound);
            if (any(found)) break;
        }
        for (size end = SMALLER(n + PANEL, V); n < end; n++)
            if (y[n] >= bound) return n;
        n--;
    }
    return V;
}

/* Draw an id from the logits y [V]: `temper`, `top_k`, `keep_end` and `draw` of grimmgen/sampling/logits.py, fused. The
 * temperature does not change which logits are the best. */
static size draw(const network_arguments *net, const float *y, size top_k, double temperature, double uniform, size end)
{
    size V = net->V, *ids = net->candidates, equals = 0, count = 0;
    int keep_end;
    float *best = net->best, largest = -INFINITY, least;
    double *sums = net->sums, total = 0;
    if (temperature == 0) { top_k = 1; temperature = 1; }
    if (top_k < 1 || top_k > V) top_k = V;
    keep_end = top_k > 1 && top_k < V;
    memcpy(best, y, top_k * sizeof *best);
    if (top_k < V) {
        for (size n = top_k / 2; n-- > 0;) sift_down(top_k, best, n);
        for (size n = top_k; (n = next_from(V, y, n, best[0])) < V; n++)
            if (y[n] > best[0]) {
                best[0] = y[n];
                sift_down(top_k, best, 0);
            }
    }
    /* Of those that equal the least of the best, the first ones are taken. */
    least = top_k < V ? best[0] : -INFINITY;
    for (size n = 0; n < top_k; n++) {
        if (best[n] > largest) largest = best[n];
        equals += best[n] == least;
    }
    for (size n = 0; n < V; n++) {
        int taken;
        n = next_from(V, y, n, least);
        if (keep_end && n > end) {
            n = end;
            taken = 1;
        } else if (n < V)
            taken = y[n] > least || equals-- > 0 || (keep_end && n == end);
        else
            break;
        if (n == end) keep_end = 0;
        if (taken) {
            total += exp((float)((y[n] - largest) / temperature));
            ids[count] = n;
            sums[count++] = total;
        }
    }
    for (size n = 0; n < count; n++)
        if (sums[n] > uniform * total) return ids[n];
    return V - 1;
}

/* Read T tokens per row, ids [T, B], each below V; the logits are those after the last. */
INLINE void read_tokens(const shape cell, pointwise_forward *pointwise, const read_arguments *a)
{
    const network_arguments *net = a->network;
    for (size t = 0; t < a->T; t++) read_one(cell, pointwise, net, a->ids + t * net->B);
    predict(net);
}

/* Sample N tokens per row, each read before the next: ids [N, B]; after `end` only `end`.
 *
 * uniforms    [N, B], from 0 to 1
 * top_k       sample among this many best and the end; 0 is all, 1 the best alone
 * temperature one number; 0 is always the best
 * forbidden   [forbidden_count]: ids that are not sampled
 * ended       [B]: the rows that have sampled `end`
 */
INLINE void sample_tokens(const shape cell, pointwise_forward *pointwise, const sample_arguments *a)
{
    const network_arguments *net = a->network;
    size B = net->B;
    for (size t = 0; t < a->N; t++) {
        int64_t *ids = a->ids + t * B;
        for (size b = 0; b < B; b++) {
            float *y = net->logits + b * net->V;
            for (size n = 0; n < a->forbidden_count; n++) y[a->forbidden[n]] = -INFINITY;
            ids[b] = a->ended[b] ? a->end : draw(net, y, a->top_k, *a->temperature, a->uniforms[t * B + b], a->end);
            a->ended[b] = ids[b] == a->end;
        }
        if (memchr(a->ended, 0, B)) {
            read_one(cell, pointwise, net, ids);
            predict(net);
        }
    }
}

#define DEFINE_INFERENCE(NAME)                                                                  \
    static void NAME##_read(const void *arguments, size begin, size end, size share)            \
    {                                                                                           \
        (void)begin, (void)end, (void)share;                                                    \
        read_tokens(NAME##_shape, NAME##_pointwise_forward, arguments);                         \
    }                                                                                           \
    static void NAME##_sample(const void *arguments, size begin, size end, size share)          \
    {                                                                                           \
        (void)begin, (void)end, (void)share;                                                    \
        sample_tokens(NAME##_shape, NAME##_pointwise_forward, arguments);                       \
    }
