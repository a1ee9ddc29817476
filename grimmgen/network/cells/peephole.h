/* peephole.py, equations (2) to (6). Saved: i, f, c̃, o; extra: p_i, p_f, p_o. */
#define peephole_SHAPE .gates = 4, .states = 2, .width = 4, .input_column = 0, .recurrent_rotation = 0, .extra = 3

INLINE void peephole_pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra)
{
    vec i = sigmoid(saved[0] + extra[0] * state[1]), f = sigmoid(saved[1] + extra[1] * state[1]); /* (2) */
    vec candidate = hyperbolic_tangent(saved[2]); /* (3) */
    vec c = i * candidate + f * state[1]; /* (4) */
    vec o = sigmoid(saved[3] + extra[2] * c); /* (5) */
    new_state[0] = o * hyperbolic_tangent(c); /* (6) */
    new_state[1] = c;
    saved[0] = i, saved[1] = f, saved[2] = candidate, saved[3] = o;
}

INLINE void peephole_pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra)
{
    vec i = saved[0], f = saved[1], candidate = saved[2], o = saved[3], tanh_c = hyperbolic_tangent(new_state[1]);
    vec d_h = d_state[0], d_o = d_h * tanh_c * o * (1.0f - o); /* (6), (5) */
    vec d_c = d_state[1] + d_h * o * (1.0f - tanh_c * tanh_c) + d_o * extra[2];
    vec d_i = d_c * candidate * i * (1.0f - i), d_f = d_c * state[1] * f * (1.0f - f); /* (4), (2) */
    d_extra[0] = d_i * state[1], d_extra[1] = d_f * state[1], d_extra[2] = d_o * new_state[1];
    saved[0] = d_i, saved[1] = d_f, saved[2] = d_c * i * (1.0f - candidate * candidate), saved[3] = d_o;
    d_state[0] = splat(0);
    d_state[1] = d_c * f + d_i * extra[0] + d_f * extra[1];
}
