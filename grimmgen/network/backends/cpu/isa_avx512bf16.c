/* AVX-512 with products of bfloat16. */
#include "grimmgen.h"

#ifdef HAS_BF16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#define ISA avx512bf16
#define LANES 16
#define ROWS 6
#define WORD 2
#define TILE 1
#include "instruction_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
