/* coupled.py, equations (2) to (5). Saved: f, c̃, o. */
#define coupled_SHAPE .gates = 3, .states = 2, .width = 3, .input_column = 0, .recurrent_rotation = 0, .extra = 0

INLINE void coupled_pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra)
{
    (void)extra;
    vec f = sigmoid(saved[0]), candidate = hyperbolic_tangent(saved[1]), o = sigmoid(saved[2]); /* (2), (3) */
    vec c = candidate + f * (state[1] - candidate); /* (4) */
    new_state[0] = o * hyperbolic_tangent(c); /* (5) */
    new_state[1] = c;
    saved[0] = f, saved[1] = candidate, saved[2] = o;
}

INLINE void coupled_pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra)
{
    (void)extra, (void)d_extra;
    vec f = saved[0], candidate = saved[1], o = saved[2], tanh_c = hyperbolic_tangent(new_state[1]);
    vec d_h = d_state[0], d_c = d_state[1] + d_h * o * (1.0f - tanh_c * tanh_c); /* (5) */
    saved[0] = d_c * (state[1] - candidate) * f * (1.0f - f); /* (4), (2) */
    saved[1] = d_c * (1.0f - f) * (1.0f - candidate * candidate); /* (4), (3) */
    saved[2] = d_h * tanh_c * o * (1.0f - o); /* (5), (2) */
    d_state[0] = splat(0);
    d_state[1] = d_c * f; /* (4) */
}
