/* AVX-512. */
#include "grimmgen.h"

#ifdef HAS_AVX
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#define ISA avx512
#define LANES 16
#define ROWS 6
#define WORD 1
#define TILE 1
#include "instruction_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
