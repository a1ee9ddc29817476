/* lstm.py, equations (2) to (5). Saved: i, f, c̃, o. */
#define lstm_SHAPE .gates = 4, .states = 2, .width = 4, .input_column = 0, .recurrent_rotation = 0, .extra = 0

INLINE void lstm_pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra)
{
    (void)extra;
    vec i = sigmoid(saved[0]), f = sigmoid(saved[1]), candidate = hyperbolic_tangent(saved[2]), o = sigmoid(saved[3]); /* (2), (3) */
    vec c = i * candidate + f * state[1]; /* (4) */
    new_state[0] = o * hyperbolic_tangent(c); /* (5) */
    new_state[1] = c;
    saved[0] = i, saved[1] = f, saved[2] = candidate, saved[3] = o;
}

INLINE void lstm_pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra)
{
    (void)extra, (void)d_extra;
    vec i = saved[0], f = saved[1], candidate = saved[2], o = saved[3], tanh_c = hyperbolic_tangent(new_state[1]);
    vec d_h = d_state[0], d_c = d_state[1] + d_h * o * (1.0f - tanh_c * tanh_c); /* (5) */
    saved[0] = d_c * candidate * i * (1.0f - i); /* (4), (2) */
    saved[1] = d_c * state[1] * f * (1.0f - f);
    saved[2] = d_c * i * (1.0f - candidate * candidate); /* (4), (3) */
    saved[3] = d_h * tanh_c * o * (1.0f - o); /* (5), (2) */
    d_state[0] = splat(0);
    d_state[1] = d_c * f; /* (4) */
}
