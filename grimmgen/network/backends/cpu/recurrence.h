/* The recurrence over a window: one loop forward and one backward, which take a cell's pointwise functions as parameters.
 *
 * A cell (`../../cells/NAME.h`) has a shape and two pointwise functions on vectors of units.
 * Its W saved columns of H floats per row and time step are used as follows: the input's share (G columns) is copied to
 * `input_column` and those after it; the recurrent product (G columns of U, rotated by `recurrent_rotation` gates to the right)
 * is added to the first G columns; the pointwise function then replaces the W columns by what the backward pass needs. The
 * backward pass replaces them by gradients: those by the recurrent product and by the input's share, in the same places.
 */

enum { MOST_STATES = 2, MOST_COLUMNS = 4, MOST_EXTRA = 3 };

/* saved: the W columns, before and after. */
typedef void pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra);

/* saved: before, what the forward pass has saved; after, the gradients. d_state: before, the gradients by the new state; after,
 * those by the state that entered, without what reaches h through the recurrent product. d_extra: set to the gradients by the
 * extra weights. */
typedef void pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra);

/* One row's units: saved [W, H]; states, new states: pointers to [H] each; mask: null for none; reset: the state counts as zeros. */
INLINE void units_forward(const shape cell, pointwise_forward *pointwise, size H, float *saved, const float *const *states,
                          float *const *new_states, const float *extra, const float *mask, int reset)
{
    for (size n = 0; n < H; n += LANES) {
        size left = H - n;
        vec columns[MOST_COLUMNS], state[MOST_STATES], new_state[MOST_STATES], weights[MOST_EXTRA];
        UNROLL(4)
        for (int k = 0; k < cell.width; k++) columns[k] = load_some(saved + k * H + n, left);
        UNROLL(2)
        for (int k = 0; k < cell.states; k++) state[k] = reset ? splat(0) : load_some(states[k] + n, left);
        UNROLL(3)
        for (int k = 0; k < cell.extra; k++) weights[k] = load_some(extra + k * H + n, left);
        pointwise(columns, state, new_state, weights);
        if (mask) new_state[0] *= load_some(mask + n, left);
        UNROLL(4)
        for (int k = 0; k < cell.width; k++) store_some(saved + k * H + n, columns[k], left);
        UNROLL(2)
        for (int k = 0; k < cell.states; k++) store_some(new_states[k] + n, new_state[k], left);
    }
}

/* Put the input's share of one row, plus the bias if there is one, where it belongs, and zeros where only the product goes. */
INLINE void set_input(const shape cell, size H, float *saved, const float *x, const float *bias)
{
    if (cell.recurrent_rotation >= 0 && cell.input_column) memset(saved, 0, cell.input_column * H * sizeof *saved);
    for (size n = 0; n < cell.gates * H; n += LANES) {
        size left = cell.gates * H - n;
        vec v = load_some(x + n, left);
        if (bias) v += load_some(bias + n, left);
        store_some(saved + cell.input_column * H + n, v, left);
    }
}

/* All time steps, for rows `begin` to `end`.
 *
 * x       [T, B, GH], or with `ids` [T, B] the input weight [V, GH], of which rows are looked up
 * bias    [GH], added to x; null for none
 * u       [H, GH] packed; unused without a recurrent product
 * extra   [extra, H]; mask [T, B, H]; resets [T, B]: null for none
 * states  [S, T + 1, B, H]; the first of each is the state before the window
 * saved   [T, B, WH]
 * scratch LEFT_ROWS(B, shares) · WORDS(H) words
 */
INLINE void recurrence_forward(const shape cell, pointwise_forward *pointwise, const forward_arguments *a, size begin, size end,
                               size share)
{
    size T = a->T, B = a->B, H = a->H, G = cell.gates, panels = (G * H + PANEL - 1) / PANEL;
    for (size t = 0; t < T; t++) {
        const uint8_t *resets = a->resets ? a->resets + t * B : 0;
        float *saved = a->saved + t * B * cell.width * H;
        for (size b = begin; b < end; b++)
            set_input(cell, H, saved + b * cell.width * H, a->x + (a->ids ? a->ids[t * B + b] : t * B + b) * G * H, a->bias);
        if (cell.recurrent_rotation >= 0)
            multiply_rows(end - begin, G * H, H, a->states + (t * B + begin) * H, H, resets ? resets + begin : 0, a->u,
                          saved + begin * cell.width * H, cell.width * H, 1, 0, panels, a->scratch + LEFT_ROWS(begin, share) * WORDS(H));
        for (size b = begin; b < end; b++) {
            const float *states[MOST_STATES];
            float *new_states[MOST_STATES];
            for (int k = 0; k < cell.states; k++) {
                new_states[k] = a->states + ((k * (T + 1) + t + 1) * B + b) * H;
                states[k] = new_states[k] - B * H;
            }
            units_forward(cell, pointwise, H, saved + b * cell.width * H, states, new_states, a->extra,
                          a->mask ? a->mask + (t * B + b) * H : 0, resets && resets[b]);
        }
    }
}

/* Back-propagation through all time steps, for rows `begin` to `end`.
 *
 * u         [GH, H] packed: the transposed recurrent weight
 * saved     [T, B, WH]: of the forward pass, and its extra, mask, resets and states
 * gradients [T, B, WH]: set to the gradients; may be `saved`
 * d_h       [T, B, H]: by the hidden states; null for zeros
 * d_states  [S, B, H]: before, by the states after the window; after, by those before it
 * d_extra   [B, extra, H]: the gradients by the extra weights are added, for each row
 * scratch   LEFT_ROWS(B, shares) · WORDS(GH) words
 */
INLINE void recurrence_backward(const shape cell, pointwise_backward *pointwise, const backward_arguments *a, size begin, size end,
                                size share)
{
    size T = a->T, B = a->B, H = a->H, G = cell.gates, W = cell.width, panels = (H + PANEL - 1) / PANEL;
    for (size t = T; t-- > 0;) {
        const uint8_t *resets = a->resets ? a->resets + t * B : 0;
        for (size b = begin; b < end; b++) {
            const float *saved = a->saved + (t * B + b) * W * H, *states[MOST_STATES];
            float *gradients = a->gradients + (t * B + b) * W * H, *d_extra = a->d_extra + b * cell.extra * H;
            int reset = resets && resets[b];
            for (int k = 0; k < cell.states; k++) states[k] = a->states + ((k * (T + 1) + t) * B + b) * H;
            for (size n = 0; n < H; n += LANES) {
                size left = H - n;
                vec columns[MOST_COLUMNS], state[MOST_STATES], new_state[MOST_STATES], d_state[MOST_STATES];
                vec weights[MOST_EXTRA], d_weights[MOST_EXTRA];
                UNROLL(4)
                for (int k = 0; k < cell.width; k++) columns[k] = load_some(saved + k * H + n, left);
                UNROLL(2)
                for (int k = 0; k < cell.states; k++) {
                    state[k] = reset ? splat(0) : load_some(states[k] + n, left);
                    new_state[k] = load_some(states[k] + B * H + n, left);
                    d_state[k] = load_some(a->d_states + (k * B + b) * H + n, left);
                }
                UNROLL(3)
                for (int k = 0; k < cell.extra; k++) weights[k] = load_some(a->extra + k * H + n, left);
                if (a->d_h) d_state[0] += load_some(a->d_h + (t * B + b) * H + n, left);
                if (a->mask) d_state[0] *= load_some(a->mask + (t * B + b) * H + n, left);
                pointwise(columns, state, new_state, weights, d_state, d_weights);
                UNROLL(4)
                for (int k = 0; k < cell.width; k++) store_some(gradients + k * H + n, columns[k], left);
                UNROLL(2)
                for (int k = 0; k < cell.states; k++)
                    store_some(a->d_states + (k * B + b) * H + n, reset ? splat(0) : d_state[k], left);
                UNROLL(3)
                for (int k = 0; k < cell.extra; k++)
                    store_some(d_extra + k * H + n, load_some(d_extra + k * H + n, left) + d_weights[k], left);
            }
        }
        if (cell.recurrent_rotation >= 0)
            multiply_rows(end - begin, H, G * H, a->gradients + (t * B + begin) * W * H, W * H, 0, a->u,
                          a->d_states + begin * H, H, 1, 0, panels, a->scratch + LEFT_ROWS(begin, share) * WORDS(G * H));
        for (size b = begin; resets && b < end; b++)
            if (resets[b]) memset(a->d_states + b * H, 0, H * sizeof *a->d_states);
    }
}

/* The kernels of a cell, from its shape and its pointwise functions. The arrays above have room for cells up to MOST_…. There are none for inference in bfloat16: a time step
 * reads the weights once, so that memory bounds it, not arithmetic. */
#define DEFINE_WINDOW(NAME)                                                                               \
    static void NAME##_forward(const void *arguments, size begin, size end, size share)                   \
    {                                                                                                     \
        begin_products();                                                                                 \
        recurrence_forward(NAME##_shape, NAME##_pointwise_forward, arguments, begin, end, share);         \
        end_products();                                                                                   \
    }                                                                                                     \
    static void NAME##_backward(const void *arguments, size begin, size end, size share)                  \
    {                                                                                                     \
        begin_products();                                                                                 \
        recurrence_backward(NAME##_shape, NAME##_pointwise_backward, arguments, begin, end, share);       \
        end_products();                                                                                   \
    }
