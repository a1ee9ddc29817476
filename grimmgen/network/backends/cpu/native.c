/* The equations of grimmgen.cells for a CPU, of every cell but the mogrifier: for training its window, and the softmax
 * layer, in float32, and again with products of bfloat16; for telling one step, in float32.
 *
 * native_kernels.h and native_steps.h have them once; they are compiled here for each instruction set, under names that
 * end in the set's, and grimmgen/kernels/library.py asks `instruction_sets` which of them this machine can run.
 * Everything is called through ctypes, on plain pointers: no header of Python, NumPy or PyTorch is needed, and no
 * version of theirs is tied to. Nothing here starts a thread or allocates memory: the caller lends its threads, gives
 * each of them some of the rows or columns, and room to work in.
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
#include <time.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#define EXPORT __declspec(dllexport)
#else
#include <pthread.h>
#include <sched.h>
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

/* Have memory near by when it is to be written. */
#if defined(__GNUC__)
#define PREFETCH(place) __builtin_prefetch(place, 1)
#else
#define PREFETCH(place) (void)(place)
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

/* ---- Programs ----------------------------------------------------------------------------------------------- */

/* A program is a list of steps, one after the other, in each of which every thread has a call to make, or none (a null
 * pointer in the place of its function). All threads have done a step before any begins the next. */
enum { ARGUMENTS = 16, MOST_THREADS = 256 };
typedef struct {
    void *function;
    size arguments[ARGUMENTS];
} call;

#if defined(__GNUC__)
#define READ(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
#define WRITE(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
#define EXCHANGE(place, value) __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST)
#else
#define READ(place) InterlockedCompareExchange64(place, 0, 0)
#define WRITE(place, value) (void)InterlockedExchange64(place, value)
#define EXCHANGE(place, value) InterlockedExchange64(place, value)
#endif

#if defined(_WIN32)
static SRWLOCK lock = SRWLOCK_INIT;
static CONDITION_VARIABLE changed[MOST_THREADS]; /* zeros are what they begin as */
#define LOCK() AcquireSRWLockExclusive(&lock)
#define UNLOCK() ReleaseSRWLockExclusive(&lock)
#define SLEEP(number) SleepConditionVariableSRW(&changed[number], &lock, INFINITE, 0)
#define WAKE(number) WakeConditionVariable(&changed[number])
#define YIELD() SwitchToThread()
#else
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed[MOST_THREADS] = {[0 ... MOST_THREADS - 1] = PTHREAD_COND_INITIALIZER};
#define LOCK() pthread_mutex_lock(&lock)
#define UNLOCK() pthread_mutex_unlock(&lock)
#define SLEEP(number) pthread_cond_wait(&changed[number], &lock)
#define WAKE(number) pthread_cond_signal(&changed[number])
#define YIELD() sched_yield()
#endif

/* The threads that were lent, and the program that they are at. Counters only ever rise, so that who reads one late
 * mistakes nothing; each thread's stand 64 bytes, a cache line, from those of the next. */
static struct {
    size busy; /* whether there is such a program */
    const call *calls;
    size steps, threads;
    size before; /* the steps of all programs before this one */
    size apart[3];
    struct {
        size begun, done; /* programs that the thread was called to; steps that it has done or let pass */
        size asleep;      /* whether it is to be woken */
        size apart[5];
    } thread[MOST_THREADS];
} pool;

/* Wait, as the thread of that number, until there is as much as this at a place. To be woken takes as long as a small
 * product: turn in circles for some tens of microseconds before going to sleep. Whoever is waited for may need this very
 * core. */
static void await(size number, size *place, size value)
{
    for (int turn = 0; turn < 2500; turn++) {
        if (READ(place) >= value) return;
        if (turn % 100 == 99) YIELD();
#if defined(__x86_64__) && defined(__GNUC__)
        __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
        __asm__ volatile("yield");
#endif
    }
    LOCK();
    WRITE(&pool.thread[number].asleep, 1);
    while (READ(place) < value) SLEEP(number);
    WRITE(&pool.thread[number].asleep, 0);
    UNLOCK();
}

/* Let a thread look again at the place that it waits for, which has changed. Whoever goes to sleep says so before looking
 * once more; here the place comes first: one sees the other. */
static void wake(size number)
{
    if (!READ(&pool.thread[number].asleep)) return;
    LOCK();
    WAKE(number);
    UNLOCK();
}

/* All kernels take numbers of 64 bits and pointers. Each gets sixteen, and looks at the first of them, as many as it
 * has: on these machines that is the caller's affair alone, and a pointer travels as such a number does. */
static void make(const call *called)
{
    typedef void kernel(size, size, size, size, size, size, size, size, size, size, size, size, size, size, size, size);
    const size *a = called->arguments;
    if (called->function)
        ((kernel *)called->function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                                     a[13], a[14], a[15]);
}

/* In nanoseconds since 1970. */
static int64_t now(void)
{
#if defined(_WIN32)
    FILETIME since; /* 1601, in tenths of microseconds */
    GetSystemTimePreciseAsFileTime(&since);
    return ((int64_t)((uint64_t)since.dwHighDateTime << 32 | since.dwLowDateTime) - 116444736000000000) * 100;
#else
    struct timespec since;
    timespec_get(&since, TIME_UTC);
    return (int64_t)since.tv_sec * 1000000000 + since.tv_nsec;
#endif
}

/* A thread's part of the program; the last step is waited for by the caller of `replay` alone. */
static void take_part(size number, int64_t *times)
{
    const call *calls = pool.calls + number;
    size steps = pool.steps, threads = pool.threads, before = pool.before;
    for (size step = 1; step <= steps; step++, calls += threads) {
        make(calls);
        WRITE(&pool.thread[number].done, before + step);
        for (size other = 0; other < threads; other++) wake(other);
        if (step < steps || number == 0)
            for (size other = 0; other < threads; other++) await(number, &pool.thread[other].done, before + step);
        if (times) times[step - 1] = now();
    }
}

/* Do a program, calls [steps, threads]. Where the threads are at another one, the caller does all of it.
 *
 * times [steps]: when each step was done, in nanoseconds; a null pointer where nobody asks
 */
EXPORT void replay(const call *calls, size steps, size threads, int64_t *times)
{
    if (threads > 1 && !EXCHANGE(&pool.busy, 1)) {
        pool.calls = calls, pool.steps = steps, pool.threads = threads;
        for (size n = 1; n < threads; n++) {
            WRITE(&pool.thread[n].begun, pool.thread[n].begun + 1);
            wake(n);
        }
        take_part(0, times);
        pool.before += steps;
        WRITE(&pool.busy, 0);
        return;
    }
    for (size step = 0; step < steps; step++) {
        for (size n = 0; n < threads; n++) make(calls++);
        if (times) times[step] = now();
    }
}

/* Be the thread of that number, from 1 on, for good. */
EXPORT void serve(size number)
{
    for (size program = 1;; program++) {
        await(number, &pool.thread[number].begun, program);
        take_part(number, 0);
    }
}

/* In a process that has been forked, where none of the threads are. */
EXPORT void forked(void)
{
#if !defined(_WIN32)
    memset(&pool, 0, sizeof pool);
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    for (size n = 0; n < MOST_THREADS; n++) changed[n] = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
#endif
}

/* Of the signatures above; library.py loads no other. A library of another version is one that an editable install has
 * left behind, and would compute nonsense without a word. */
EXPORT int version(void)
{
    return 8;
}

/* Python's build expects an extension module to have this; but the library is loaded by ctypes, never imported. */
EXPORT void *PyInit__native(void)
{
    return 0;
}
