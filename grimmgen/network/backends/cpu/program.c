/* The library's interface: its instruction sets, and programs of kernel calls run by a pool of threads.
 *
 * Python loads the library through ctypes and starts the worker threads; the interpreter's lock is released during a call.
 */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE /* for syscall */
#endif
#include "grimmgen.h"
#include "sources.h"

#include <time.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#include <sched.h>
#endif

extern const instruction_set instruction_set_scalar;
#if defined(__GNUC__)
extern const instruction_set instruction_set_portable;
#endif
#ifdef HAS_AVX
extern const instruction_set instruction_set_avx2, instruction_set_avx512;
#ifdef HAS_BF16
extern const instruction_set instruction_set_avx512bf16;
#endif
#ifdef HAS_AMX
extern const instruction_set instruction_set_amxbf16;

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the processor has tiles and bfloat16 products of them, and the system saves both parts of their state. */
static int has_tiles(void)
{
    const unsigned tiles = 1u << 24 | 1u << 22, xgetbv = 1u << 27, state = 3u << 17;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & xgetbv)) return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & tiles) != tiles) return 0;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & state) == state;
}

/* Ask Linux for the permission to use tiles: without it, their first instruction kills the process. It holds for all threads, also
 * later ones. The numbers are from Linux' Documentation/arch/x86/xstate.rst. */
static int may_use_tiles(void)
{
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    uint64_t permitted = 0;
    return !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) && !syscall(SYS_arch_prctl, GET_PERMISSION, &permitted) &&
           permitted >> TILE_DATA & 1;
}
#endif
#endif

/* Fill in the instruction sets that this process can use, the fastest first, those for bfloat16 products last; returns how many
 * there are. To be called before other threads run kernels. */
EXPORT size instruction_sets(const instruction_set *found[8])
{
    size count = 0;
#ifdef HAS_AVX
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (avx512) found[count++] = &instruction_set_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &instruction_set_avx2;
#endif
#if defined(__GNUC__)
    found[count++] = &instruction_set_portable;
#endif
    found[count++] = &instruction_set_scalar;
#ifdef HAS_BF16
    int bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef HAS_AMX
    if (bf16 && has_tiles() && may_use_tiles()) found[count++] = &instruction_set_amxbf16;
#endif
    if (bf16) found[count++] = &instruction_set_avx512bf16;
#endif
    return count;
}

enum { MOST_THREADS = 256 };

/* Whether all ids are at least `least` and below `most`: the kernels read memory at such places. */
EXPORT size within(size count, const int64_t *ids, size least, size most)
{
    size outside = 0;
    for (size i = 0; i < count; i++) outside |= ids[i] < least || ids[i] >= most;
    return !outside;
}

/* ---- Programs ----------------------------------------------------------------------------------------------------------- */

/* A program is a list of steps; in each step every thread makes one call, or none (a null function). All threads have finished a
 * step before any begins the next. */
typedef struct {
    kernel *function;
    const void *arguments;
    size begin, end;
} call;

/* The constants that Python needs, and the sizes of the structures that it reads or writes, which it checks at load: SLICE, the
 * most threads of a program; kernel_entry, cell_entry, instruction_set, call. */
EXPORT void constants(size values[6])
{
    const size found[6] = {SLICE, MOST_THREADS, sizeof(kernel_entry), sizeof(cell_entry), sizeof(instruction_set), sizeof(call)};
    memcpy(values, found, sizeof found);
}

/* The hash of the sources of this library. */
EXPORT const char *sources(void)
{
    return SOURCES;
}

#if defined(__GNUC__)
#define READ(address) __atomic_load_n(address, __ATOMIC_SEQ_CST)
#define WRITE(address, value) __atomic_store_n(address, value, __ATOMIC_SEQ_CST)
#define EXCHANGE(address, value) __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST)
#else
#define READ(address) InterlockedCompareExchange64(address, 0, 0)
#define WRITE(address, value) (void)InterlockedExchange64(address, value)
#define EXCHANGE(address, value) InterlockedExchange64(address, value)
#endif

#if defined(_WIN32)
static SRWLOCK lock = SRWLOCK_INIT;
static CONDITION_VARIABLE changed[MOST_THREADS]; /* initialised by zeros */
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

/* The worker threads and the program that they run. Counters only rise, so that a stale read is harmless; each thread's counters
 * have a cache line of their own. */
static struct {
    size busy; /* whether a program is running */
    const call *calls;
    size steps, threads;
    size steps_before; /* the steps of all earlier programs */
    size padding[3];
    struct {
        size programs; /* programs that the thread has been given */
        size done;     /* steps that it has finished */
        size asleep;
        size padding[5];
    } thread[MOST_THREADS];
} pool;

/* Wait, as thread `number`, until a counter reaches a value. Waking a thread takes as long as a small product: spin for some tens
 * of microseconds before going to sleep, and yield now and then to a thread that may need this core. */
static void wait_for(size number, size *counter, size value)
{
    for (int turn = 0; turn < 2500; turn++) {
        if (READ(counter) >= value) return;
        if (turn % 100 == 99) YIELD();
#if defined(__x86_64__) && defined(__GNUC__)
        __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
        __asm__ volatile("yield");
#endif
    }
    LOCK();
    WRITE(&pool.thread[number].asleep, 1);
    while (READ(counter) < value) SLEEP(number);
    WRITE(&pool.thread[number].asleep, 0);
    UNLOCK();
}

/* Wake a thread whose counter has changed. It announces that it sleeps before it looks at the counter once more, and the counter
 * is written before the announcement is read here: one of the two sees the other. */
static void wake(size number)
{
    if (!READ(&pool.thread[number].asleep)) return;
    LOCK();
    WAKE(number);
    UNLOCK();
}

static void run(const call *called, size share)
{
    if (called->function) called->function(called->arguments, called->begin, called->end, share);
}

/* Nanoseconds since 1970. */
static int64_t now(void)
{
#if defined(_WIN32)
    FILETIME since; /* 1601, in units of 100 ns */
    GetSystemTimePreciseAsFileTime(&since);
    return ((int64_t)((uint64_t)since.dwHighDateTime << 32 | since.dwLowDateTime) - 116444736000000000) * 100;
#else
    struct timespec since;
    clock_gettime(CLOCK_REALTIME, &since);
    return (int64_t)since.tv_sec * 1000000000 + since.tv_nsec;
#endif
}

/* A thread's part of the program. Only the caller of `run_program` waits for the last step. */
static void take_part(size number, int64_t *times)
{
    const call *calls = pool.calls + number;
    size steps = pool.steps, threads = pool.threads, before = pool.steps_before;
    for (size step = 1; step <= steps; step++, calls += threads) {
        run(calls, number);
        WRITE(&pool.thread[number].done, before + step);
        for (size other = 0; other < threads; other++) wake(other);
        if (step < steps || number == 0)
            for (size other = 0; other < threads; other++) wait_for(number, &pool.thread[other].done, before + step);
        if (times) times[step - 1] = now();
    }
}

/* Run a program, calls [steps, threads]. Where the worker threads are busy with another one, the caller runs all of it.
 *
 * times [steps]: when each step was finished, in nanoseconds; may be null
 */
EXPORT void run_program(const call *calls, size steps, size threads, int64_t *times)
{
    if (threads > 1 && !EXCHANGE(&pool.busy, 1)) {
        pool.calls = calls, pool.steps = steps, pool.threads = threads;
        for (size n = 1; n < threads; n++) {
            WRITE(&pool.thread[n].programs, pool.thread[n].programs + 1);
            wake(n);
        }
        take_part(0, times);
        pool.steps_before += steps;
        WRITE(&pool.busy, 0);
        return;
    }
    for (size step = 0; step < steps; step++) {
        for (size n = 0; n < threads; n++) run(calls++, n);
        if (times) times[step] = now();
    }
}

/* Serve as worker thread `number`, from 1 on, for ever. */
EXPORT void work(size number)
{
    for (size program = 1;; program++) {
        wait_for(number, &pool.thread[number].programs, program);
        take_part(number, 0);
    }
}

/* Reset the pool in a forked process, which has none of the threads. */
EXPORT void after_fork(void)
{
#if !defined(_WIN32)
    memset(&pool, 0, sizeof pool);
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    for (size n = 0; n < MOST_THREADS; n++) changed[n] = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
#endif
}

/* Python's build expects an extension module to export this; the library is loaded by ctypes and never imported. */
EXPORT void *PyInit__kernels(void)
{
    return 0;
}
