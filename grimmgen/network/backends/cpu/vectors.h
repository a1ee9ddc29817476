/* Vectors of LANES floats, and the functions of them that the cells and the softmax need. */

#define SMALLER(a, b) ((a) < (b) ? (a) : (b))
#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* Before a loop to be unrolled. MSVC, in its default mode, has no _Pragma. */
#if defined(__GNUC__)
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(turns) PRAGMA(GCC unroll turns)
#define PREFETCH_FOR_WRITE(address) __builtin_prefetch(address, 1)
#else
#define UNROLL(turns)
#define PREFETCH_FOR_WRITE(address) (void)(address)
#endif

/* Functions too large for a copy of their own at each call. */
#if defined(__GNUC__) && !defined(__clang__)
#define ONE_COPY static __attribute__((noinline, noclone))
#else
#define ONE_COPY static
#endif

#if LANES == 1
#define INLINE static inline
typedef float vec;
typedef uint32_t ints;
INLINE ints as_ints(vec v) { ints bits; memcpy(&bits, &v, sizeof bits); return bits; }
INLINE vec as_vec(ints bits) { vec v; memcpy(&v, &bits, sizeof v); return v; }
INLINE vec splat(float a) { return a; }
INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }
#else
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t ints __attribute__((vector_size(4 * LANES)));
INLINE ints as_ints(vec v) { return (ints)v; }
INLINE vec as_vec(ints bits) { return (vec)bits; }
INLINE vec splat(float a) { return a - (vec){0}; }
#if LANES == 16
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif LANES == 8
INLINE vec vmin(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
INLINE vec vmin(vec a, vec b) { ints m = (ints)(a < b); return (vec)((m & (ints)a) | (~m & (ints)b)); }
INLINE vec vmax(vec a, vec b) { ints m = (ints)(a > b); return (vec)((m & (ints)a) | (~m & (ints)b)); }
#endif
#endif

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* The first `count` lanes, the others zero; a `count` above LANES means all. */
#if LANES == 16
#define LANE_MASK(count) (__mmask16)((count) > 0 ? (1u << (count)) - 1 : 0)
INLINE vec load_some(const float *p, size count)
{
    return count >= LANES ? load(p) : (vec)_mm512_maskz_loadu_ps(LANE_MASK(count), p);
}

INLINE void store_some(float *p, vec v, size count)
{
    if (count >= LANES) store(p, v);
    else _mm512_mask_storeu_ps(p, LANE_MASK(count), (__m512)v);
}
#else
INLINE vec load_some(const float *p, size count)
{
    if (count >= LANES) return load(p);
    float lanes[LANES] = {0};
    for (size i = 0; i < count; i++) lanes[i] = p[i];
    return load(lanes);
}

INLINE void store_some(float *p, vec v, size count)
{
    if (count >= LANES) { store(p, v); return; }
    float lanes[LANES];
    store(lanes, v);
    for (size i = 0; i < count; i++) p[i] = lanes[i];
}
#endif

/* sum += more, `count` elements. */
INLINE void add_to(float *sum, const float *more, size count)
{
    for (size n = 0; n < count; n += LANES)
        store_some(sum + n, load_some(sum + n, count - n) + load_some(more + n, count - n), count - n);
}

INLINE float sum_of(vec v)
{
    float lanes[LANES], sum = 0;
    store(lanes, v);
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

INLINE float largest_of(vec v)
{
    float lanes[LANES];
    store(lanes, v);
    float largest = lanes[0];
    for (int i = 1; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

#if LANES == 16
INLINE vec square_root(vec v) { return (vec)_mm512_sqrt_ps((__m512)v); }
#elif LANES == 8
INLINE vec square_root(vec v) { return (vec)_mm256_sqrt_ps((__m256)v); }
#else
INLINE vec square_root(vec v)
{
    float lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < LANES; i++) lanes[i] = sqrtf(lanes[i]);
    return load(lanes);
}
#endif

/* vmin and vmax return their second argument where one is NaN, so that NaN passes through. */
#define CLAMP(x, bound) vmax(splat(-(bound)), vmin(splat(bound), x))

/* exp x = 2ⁿ exp r, where n is x / ln 2 rounded and |r| ≤ ½ ln 2; the polynomial is that of Cephes (Moshier 1984). Relative
 * error below 2e-7. x is clamped to ±87, beyond which the result would leave the normal numbers. */
INLINE vec exponential(vec x)
{
    const float shift = 12582912.0f; /* 1.5 · 2²³: adding it rounds to an integer, in the low bits */
    x = CLAMP(x, 87.0f);
    vec shifted = x * 1.44269504f + shift;
    vec n = shifted - shift;
    vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return as_vec(as_ints(p) + (as_ints(shifted) << 23));
}

#if TILE > 1
/* 1 / x by an estimate to 14 bits and a step of Newton's method: relative error below 2e-7, in a third of the time. Beside products on
 * tiles, the divisions would be what takes longest. */
INLINE vec reciprocal(vec x)
{
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r + r * (1.0f - x * r);
}
#else
INLINE vec reciprocal(vec x) { return 1.0f / x; }
#endif

INLINE vec sigmoid(vec x) { return reciprocal(1.0f + exponential(-x)); }

/* A rational function of degrees 13 and 6, as in Eigen; relative error below 5e-7, near zero too. */
INLINE vec hyperbolic_tangent(vec x)
{
    x = CLAMP(x, 7.90531111f);
    vec s = x * x;
    vec p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vec q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return TILE > 1 ? x * p * reciprocal(q) : x * p / q;
}
