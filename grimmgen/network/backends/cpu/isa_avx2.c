/* AVX2 with FMA. */
#include "grimmgen.h"

#ifdef HAS_AVX
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ISA avx2
#define LANES 8
#define ROWS 3
#define WORD 1
#define TILE 1
#include "instruction_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
