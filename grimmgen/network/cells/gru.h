/* gru.py, equations (2) to (5). The recurrent product stands in the order n, r, z, so that the saved columns s, r, z, n have the
 * product in the first three and the input's share in the last three, and their gradients too; extra: b_n. */
#define gru_SHAPE .gates = 3, .states = 1, .width = 4, .input_column = 1, .recurrent_rotation = 1, .extra = 1

INLINE void gru_pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra)
{
    vec r = sigmoid(saved[1]), z = sigmoid(saved[2]); /* (2) */
    vec s = saved[0] + extra[0]; /* (3) */
    vec n = hyperbolic_tangent(saved[3] + r * s); /* (4) */
    new_state[0] = n + z * (state[0] - n); /* (5) */
    saved[0] = s, saved[1] = r, saved[2] = z, saved[3] = n;
}

INLINE void gru_pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra)
{
    (void)new_state, (void)extra;
    vec s = saved[0], r = saved[1], z = saved[2], n = saved[3], d_h = d_state[0];
    vec d_n = d_h * (1.0f - z) * (1.0f - n * n); /* (5), (4) */
    saved[0] = d_extra[0] = d_n * r; /* (4), (3) */
    saved[1] = d_n * s * r * (1.0f - r); /* (4), (2) */
    saved[2] = d_h * (state[0] - n) * z * (1.0f - z); /* (5), (2) */
    saved[3] = d_n;
    d_state[0] = d_h * z;
}
