/* AVX-512 with products of bfloat16 on tiles (AMX). */
#include "grimmgen.h"

#ifdef HAS_AMX
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#define ISA amxbf16
#define LANES 16
#define WORD 2
#define TILE 16
#include "instruction_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
