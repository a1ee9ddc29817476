/* mingru.py, equations (1) to (3). Saved: z, h̃. */
#define mingru_SHAPE .gates = 2, .states = 1, .width = 2, .input_column = 0, .recurrent_rotation = -1, .extra = 0

INLINE void mingru_pointwise_forward(vec *saved, const vec *state, vec *new_state, const vec *extra)
{
    (void)extra;
    saved[0] = sigmoid(saved[0]); /* (1) */
    new_state[0] = state[0] + saved[0] * (saved[1] - state[0]); /* (3) */
}

INLINE void mingru_pointwise_backward(vec *saved, const vec *state, const vec *new_state, const vec *extra, vec *d_state, vec *d_extra)
{
    (void)new_state, (void)extra, (void)d_extra;
    vec z = saved[0], candidate = saved[1], d_h = d_state[0];
    saved[0] = d_h * (candidate - state[0]) * z * (1.0f - z); /* (3), (1) */
    saved[1] = d_h * z; /* (3), (2) */
    d_state[0] = d_h * (1.0f - z);
}
