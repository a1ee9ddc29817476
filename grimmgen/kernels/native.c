/* The equations of grimmgen.cells for a CPU, of every cell but the mogrifier: for training its window, and the softmax
 * layer, in float32, and again with products of bfloat16; for telling one step, in float32.
 *
 * native_kernels.h and native_steps.h have them once; they are compiled here for each instruction set, under names that
 * end in the set's, and grimmgen/kernels/library.py asks `instruction_sets` which of them this machine can run.
 * Everything is called through ctypes, on plain pointers: no header of Python, NumPy or PyTorch is needed, and no
 * version of theirs is tied to. Nothing here starts a thread or allocates memory: the caller gives each of its threads
 * some of the rows or columns, and room to work in.
 */
/* Whether to compile for AVX, too. GCC on Windows cannot: it keeps vectors wider than 16 bytes on a stack that is aligned
 * to 16, and reads them as if it were to 32 or 64 (https://gcc.gnu.org/PR54412). */
#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || !defined(_WIN32))
#define HAS_AVX
#endif

#ifdef HAS_AVX
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(name, ISA)

/* Before a loop whose turns are to be laid out one after the other. MSVC, in its default mode, has no _Pragma. */
#if defined(__GNUC__)
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(turns) PRAGMA(GCC unroll turns)
#else
#define UNROLL(turns)
#endif

#define SMALLER(a, b) ((a) < (b) ? (a) : (b))
#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* All sizes and indices. */
typedef int64_t size;

enum {
    /* Words of a product's inner dimension that are done at a time: the panel of the right factor they need, four
     * vectors wide, is to stay in the first-level cache. */
    DEPTH = 128,
    /* Rows of a window that are added to the gradient by a recurrent weight at a time. */
    CHUNK = 256,
    /* Rows of logits that are made at a time: they are to stay in the second-level cache. */
    BLOCK = 128,
    /* Numbers of a gradient whose squares are added up by themselves, so that the sum does not depend on threads. */
    SLICE = 4096,
};

/* For each instruction set: LANES, the floats of a vector; ROWS, the rows of a product's register block of
 * ROWS × 4 vectors: 32 vector registers hold 6 × 4 with what it takes to feed them, 16 hold 3 × 4; and WORD, the
 * numbers that a product takes at a time: 2 for bfloat16. */
#ifdef HAS_AVX

/* Compilers have had the instructions of bfloat16 since these versions. */
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define HAS_BF16 __builtin_cpu_supports("avx512bf16")
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
#define ISA avx512bf16
#define LANES 16
#define ROWS 6
#define WORD 2
#include "native_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
#define HAS_BF16 0
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
#define ISA avx512
#define LANES 16
#define ROWS 6
#define WORD 1
#include "native_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define LANES 8
#define ROWS 3
#define WORD 1
#include "native_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

/* What every machine can run: vectors of four where the compiler has them (NEON on ARM, SSE2 on x86)… */
#if defined(__GNUC__)
#define ISA portable
#define LANES 4
#define WORD 1
#if defined(__aarch64__)
#define ROWS 6
#else
#define ROWS 3
#endif
#include "native_kernels.h"
#endif

/* …and plain C. */
#define ISA scalar
#define LANES 1
#define ROWS 2
#define WORD 1
#include "native_kernels.h"

/* The instruction sets that this machine can run, the fastest first, with a space between them; the one whose
 * products are of bfloat16 comes last. */
EXPORT const char *instruction_sets(void)
{
#ifdef HAS_AVX
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return HAS_BF16 ? "avx512 avx2 portable scalar avx512bf16" : "avx512 avx2 portable scalar";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx2 portable scalar";
#endif
#if defined(__GNUC__)
    return "portable scalar";
#else
    return "scalar";
#endif
}

/* Whether all of these are at least `least` and below `most`: the kernels look up what memory holds at such places. */
EXPORT size within(size count, const int64_t *ids, size least, size most)
{
    size outside = 0;
    for (size i = 0; i < count; i++) outside |= ids[i] < least || ids[i] >= most;
    return !outside;
}

/* Turn in circles until there is something else than `old` at a place, for some tens of microseconds at most: a thread
 * that sleeps is not woken in less. */
EXPORT void linger(size old, const volatile int64_t *place)
{
    for (int turn = 0; turn < 2500 && *place == old; turn++) {
#if defined(__x86_64__) && defined(__GNUC__)
        __builtin_ia32_pause();
#endif
    }
}

/* Of the signatures above; library.py loads no other. A library of another version is one that an editable install has
 * left behind, and would compute nonsense without a word. */
EXPORT int version(void)
{
    return 7;
}

/* Python's build expects an extension module to have this; but the library is loaded by ctypes, never imported. */
EXPORT void *PyInit__native(void)
{
    return 0;
}
