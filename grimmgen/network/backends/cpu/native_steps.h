/* Telling, for one instruction set: the network one step at a time, and what it tells drawn in the same call. Included
 * at the end of native_kernels.h, whose vectors and products it uses.
 *
 *     B  stories told at once   H  hidden units   V  vocabulary size   L  layers   G  columns of a cell's gates
 *
 * The equations are those of grimmgen/cells, without dropout; the draw is that of grimmgen/decoding.py. A step of one
 * story does little more than read all weights once, from the second-level cache where they fit into it. An element is
 * summed in the same order whatever B is, so that a story does not depend on what is told beside it.
 */
#ifndef STEPS
#define STEPS

/* In the order of stepping.py. */
enum { LSTM, PEEPHOLE, GRU };

/* What `_Network` in stepping.py lays out; all arrays are Python's. */
typedef struct {
    size cell, L, B, H, V;
    const float *table;          /* [V, G]: what an n-gram adds to the gates of the first layer, its bias included */
    const float *const *layers;  /* [L, 4]: recurrent weight [H, G] packed; input weight [H, G] packed and bias [G],
                                    neither in the first layer; and peephole [3, H] or recurrent bias [H] */
    const float *output_weight;  /* [H, V] packed */
    const float *output_bias;    /* [V] */
    float *h, *c;                /* [L, B, H]: the state, changed at each step */
    float *logits;               /* [B, V]: of the n-gram that follows the last one read */
    float *gates;                /* [2, B, G]: room to work in */
    float *best;                 /* [V]: likewise */
    double *sums;                /* [V]: likewise */
    size *ids;                   /* [V]: likewise */
} network;

#endif

#define multiply_row NAMED(multiply_row)
#define product NAMED(product)
#define lstm_step NAMED(lstm_step)
#define peephole_step NAMED(peephole_step)
#define gru_step NAMED(gru_step)
#define read_one NAMED(read_one)
#define predict NAMED(predict)
#define sink NAMED(sink)
#define any NAMED(any)
#define next_from NAMED(next_from)
#define draw NAMED(draw)

/* ---- Steps -------------------------------------------------------------------------------------------------- */

/* Panels that a row is multiplied with side by side: as many sums as it takes to have a multiplication ready in every
 * cycle, and no more than there are registers for. */
#if LANES == 16 || defined(__aarch64__)
#define ABREAST 4
#else
#define ABREAST 2
#endif

/* c += a b, or c = a b without `add`, for one row a [K] and a packed b [K, N]. */
static void multiply_row(size N, size K, const float *a, const float *packed, float *c, int add)
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
                store(to + v * LANES, add || k0 ? sum[v] + load(to + v * LANES) : sum[v]);
        }
    }
    multiply(1, N, K, a, 0, 1, packed, c, 0, add, whole, (N + PANEL - 1) / PANEL);
}

/* The same for all rows of a [M, K]. */
static void product(size M, size N, size K, const float *a, const float *packed, float *c, int add)
{
    if (M == 1)
        multiply_row(N, K, a, packed, c, add);
    else
        multiply(M, N, K, a, K, 1, packed, c, N, add, 0, (N + PANEL - 1) / PANEL);
}

/* grimmgen/cells/lstm.py, (3) to (5), for one row: z [4H]; h, c [H]. */
static void lstm_step(size H, const float *z, float *h, float *c)
{
    for (size n = 0; n < H; n += LANES) {
        size left = H - n;
        vec i = logistic(load_some(z + n, left)), f = logistic(load_some(z + H + n, left));
        vec candidate = hyperbolic_tangent(load_some(z + 2 * H + n, left));
        vec o = logistic(load_some(z + 3 * H + n, left));
        vec cell = f * load_some(c + n, left) + i * candidate;
        store_some(c + n, cell, left);
        store_some(h + n, o * hyperbolic_tangent(cell), left);
    }
}

/* grimmgen/cells/peephole.py, (3) to (6), for one row: z [4H]; p [3, H]; h, c [H]. */
static void peephole_step(size H, const float *z, const float *p, float *h, float *c)
{
    for (size n = 0; n < H; n += LANES) {
        size left = H - n;
        vec old = load_some(c + n, left);
        vec i = logistic(load_some(z + n, left) + load_some(p + n, left) * old);
        vec f = logistic(load_some(z + H + n, left) + load_some(p + H + n, left) * old);
        vec cell = f * old + i * hyperbolic_tangent(load_some(z + 2 * H + n, left));
        vec o = logistic(load_some(z + 3 * H + n, left) + load_some(p + 2 * H + n, left) * cell);
        store_some(c + n, cell, left);
        store_some(h + n, o * hyperbolic_tangent(cell), left);
    }
}

/* grimmgen/cells/gru.py, (3) to (6), for one row: x, a [3H]; b [H]; h [H]. */
static void gru_step(size H, const float *x, const float *a, const float *b, float *h)
{
    for (size m = 0; m < H; m += LANES) {
        size left = H - m;
        vec r = logistic(load_some(x + m, left) + load_some(a + m, left));
        vec z = logistic(load_some(x + H + m, left) + load_some(a + H + m, left));
        vec s = load_some(a + 2 * H + m, left) + load_some(b + m, left);
        vec n = hyperbolic_tangent(load_some(x + 2 * H + m, left) + r * s);
        store_some(h + m, n + z * (load_some(h + m, left) - n), left);
    }
}

/* One n-gram a row: the states take one step. */
static void read_one(const network *net, const int64_t *ids)
{
    size B = net->B, H = net->H, G = (net->cell == GRU ? 3 : 4) * H;
    float *x = net->gates, *a = x + B * G;
    for (size l = 0; l < net->L; l++) {
        const float *const *weights = net->layers + 4 * l, *own = weights[3];
        float *h = net->h + l * B * H, *c = net->c + l * B * H;
        for (size b = 0; b < B; b++) memcpy(x + b * G, l ? weights[2] : net->table + ids[b] * G, G * sizeof *x);
        if (l) product(B, G, H, h - B * H, weights[1], x, 1);
        /* The GRU's reset gate scales what the recurrent weight makes of h, and that alone. */
        product(B, G, H, h, weights[0], net->cell == GRU ? a : x, net->cell != GRU);
        for (size b = 0; b < B; b++, h += H, c += H)
            switch (net->cell) {
            case LSTM: lstm_step(H, x + b * G, h, c); break;
            case PEEPHOLE: peephole_step(H, x + b * G, own, h, c); break;
            case GRU: gru_step(H, x + b * G, a + b * G, own, h); break;
            }
    }
}

static void predict(const network *net)
{
    size B = net->B, H = net->H, V = net->V;
    for (size b = 0; b < B; b++) memcpy(net->logits + b * V, net->output_bias, V * sizeof *net->logits);
    product(B, V, H, net->h + (net->L - 1) * B * H, net->output_weight, net->logits, 1);
}

/* Read T n-grams a row, ids [T, B], each below V; the logits are those after the last. */
EXPORT void NAMED(read)(const network *net, size T, const int64_t *ids)
{
    for (size t = 0; t < T; t++) read_one(net, ids + t * net->B);
    predict(net);
}

/* ---- The draw ----------------------------------------------------------------------------------------------- */

/* Put heap[n] in its place among the k numbers below it: none is larger than its two children. */
static void sink(size k, float *heap, size n)
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

/* The first n from `begin` on with y[n] ≥ bound, or V. Most numbers are passed over a panel at a time. */
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

/* An id, drawn with a random number from 0 to 1 among the k best logits y [V] and the end, at a temperature: `temper`,
 * `top_k`, `or_end` and `draw` of decoding.py. The k best are the same before the temperature as after it. */
static size draw(const network *net, const float *y, size k, double temperature, double number, size end)
{
    size V = net->V, *ids = net->ids, equals = 0, count = 0;
    int ending;
    float *best = net->best, largest = -INFINITY, least;
    double *sums = net->sums, sum = 0;
    if (temperature == 0) { k = 1; temperature = 1; }
    if (k < 1 || k > V) k = V;
    ending = k > 1 && k < V;
    memcpy(best, y, k * sizeof *best);
    if (k < V) {
        for (size n = k / 2; n-- > 0;) sink(k, best, n);
        for (size n = k; (n = next_from(V, y, n, best[0])) < V; n++)
            if (y[n] > best[0]) {
                best[0] = y[n];
                sink(k, best, 0);
            }
    }
    /* Of those that equal the least of the best, the first ones are taken. */
    least = k < V ? best[0] : -INFINITY;
    for (size n = 0; n < k; n++) {
        if (best[n] > largest) largest = best[n];
        equals += best[n] == least;
    }
    for (size n = 0; n < V; n++) {
        int taken;
        n = next_from(V, y, n, least);
        if (ending && n > end) {
            n = end;
            taken = 1;
        } else if (n < V)
            taken = y[n] > least || equals-- > 0 || (ending && n == end);
        else
            break;
        if (n == end) ending = 0;
        if (taken) {
            sum += exp((float)((y[n] - largest) / temperature));
            ids[count] = n;
            sums[count++] = sum;
        }
    }
    for (size n = 0; n < count; n++)
        if (sums[n] > number * sum) return ids[n];
    return V - 1;
}

/* Draw N n-grams a row, each read before the next: ids [N, B], after `end` only `end`.
 *
 * numbers      [N, B], random numbers from 0 to 1
 * k            draw among this many best and the end; 0 is all, 1 the best alone
 * temperature  one number; 0 is always the best
 * never        [nevers]: ids that are not drawn
 * ended        [B]: the rows that have told `end`
 */
EXPORT void NAMED(tell)(const network *net, size N, const double *numbers, size k, const double *temperature,
                        const int64_t *never, size nevers, size end, uint8_t *ended, int64_t *ids)
{
    size B = net->B;
    for (size t = 0; t < N; t++, numbers += B, ids += B) {
        for (size b = 0; b < B; b++) {
            float *y = net->logits + b * net->V;
            for (size n = 0; n < nevers; n++) y[never[n]] = -INFINITY;
            ids[b] = ended[b] ? end : draw(net, y, k, *temperature, numbers[b], end);
            ended[b] = ids[b] == end;
        }
        if (memchr(ended, 0, B)) {
            read_one(net, ids);
            predict(net);
        }
    }
}

#undef multiply_row
#undef product
#undef lstm_step
#undef peephole_step
#undef gru_step
#undef read_one
#undef predict
#undef sink
#undef any
#undef next_from
#undef draw
#undef ABREAST
