/* The AVX-512 instructions that the kernels use, in plain C, for a processor without them; see emulated.py. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float floats __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(64)));

#define EMULATED static inline __attribute__((always_inline))

EMULATED floats minimum(floats a, floats b)
{
    for (int i = 0; i < 16; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}

EMULATED floats maximum(floats a, floats b)
{
    for (int i = 0; i < 16; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

EMULATED floats root(floats a)
{
    for (int i = 0; i < 16; i++) a[i] = sqrtf(a[i]);
    return a;
}

EMULATED floats load_masked(uint32_t mask, const float *from)
{
    floats a = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) a[i] = from[i];
    return a;
}

EMULATED void store_masked(float *to, uint32_t mask, floats a)
{
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) to[i] = a[i];
}

/* Round to the nearest bfloat16, ties to even; NaN stays NaN. */
EMULATED uint16_t rounded(float a)
{
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    if (a != a) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

EMULATED float widened(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}

EMULATED halves both_rounded(floats upper, floats lower)
{
    halves a;
    for (int i = 0; i < 16; i++) a[i] = rounded(lower[i]), a[16 + i] = rounded(upper[i]);
    return a;
}

EMULATED floats add_products(floats sum, halves a, halves b)
{
    for (int i = 0; i < 16; i++) {
        sum[i] += widened(a[2 * i + 1]) * widened(b[2 * i + 1]);
        sum[i] += widened(a[2 * i]) * widened(b[2 * i]);
    }
    return sum;
}

EMULATED halves permuted(halves order, halves a)
{
    halves b;
    for (int i = 0; i < 32; i++) b[i] = a[order[i] & 31];
    return b;
}

EMULATED halves reversed(const short *elements)
{
    halves a;
    for (int i = 0; i < 32; i++) a[i] = (uint16_t)elements[31 - i];
    return a;
}

#define __m512 floats
#define __m512i halves
#define __m512bh halves
#define _mm512_min_ps minimum
#define _mm512_max_ps maximum
#define _mm512_sqrt_ps root
#define _mm512_maskz_loadu_ps load_masked
#define _mm512_mask_storeu_ps store_masked
#define _mm512_cvtne2ps_pbh both_rounded
#define _mm512_dpbf16_ps add_products
#define _mm512_permutexvar_epi16 permuted
#define _mm512_set_epi16(...) reversed((const short[]){__VA_ARGS__})
