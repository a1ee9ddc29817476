/* What the translation units share: types, the kernels' arguments, and the table of an instruction set.
 *
 * A kernel is a function with one signature: a pointer to its arguments, and the share of the work that its caller does.
 * The arguments of each kernel are listed once, below, as fields of eight bytes; from the list come the structure that the
 * kernel reads and the names that Python reads at load, so that the two cannot differ.
 *
 * Nothing here starts a thread or allocates memory. No header of Python, NumPy or PyTorch is needed.
 *
 *     T  time steps    B  batch rows    H  hidden units    G  gates    V  vocabulary size    N  predictions, T·B
 */
#ifndef GRIMMGEN_H
#define GRIMMGEN_H

/* Compile for AVX? GCC on Windows cannot: it spills vectors wider than 16 bytes to a stack aligned to 16
 * (https://gcc.gnu.org/PR54412). */
#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || !defined(_WIN32))
#define HAS_AVX
#include <immintrin.h>
#endif
/* bfloat16 dot products: supported by compilers since these versions. */
#if defined(HAS_AVX) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define HAS_BF16
#endif
/* Products on tiles (AMX). On Linux alone: elsewhere it is unknown how a process gets the permission. */
#if defined(HAS_BF16) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AMX
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* All sizes and indices. */
typedef int64_t size;

/* arguments: a structure of the kernel's fields; begin, end: the caller's share of the work (rows, panels, elements); share:
 * its number, which selects scratch buffers. Shares of one kernel may run at the same time. */
typedef void kernel(const void *arguments, size begin, size end, size share);

enum {
    /* Elements of a gradient whose squares are summed by themselves, so that the norm does not depend on threads. */
    SLICE = 4096,
};

/* ---- The kernels' arguments -------------------------------------------------------------------------------------------- */

/* Each F is a field: its type and its name. The comment of each kernel describes its fields. */
#define PACK_FIELDS(F) F(size, K) F(size, N) F(const float *, matrix) F(size, row_stride) F(size, column_stride) F(float *, packed)
#define WINDOW_FORWARD_FIELDS(F) \
    F(size, T) F(size, B) F(size, H) F(const float *, x) F(const int64_t *, ids) F(const float *, bias) F(const float *, u) \
    F(const float *, extra) F(const float *, mask) F(const uint8_t *, resets) F(float *, states) F(float *, saved) F(float *, scratch)
#define WINDOW_BACKWARD_FIELDS(F) \
    F(size, T) F(size, B) F(size, H) F(const float *, u) F(const float *, extra) F(const float *, mask) \
    F(const uint8_t *, resets) F(const float *, states) F(const float *, saved) F(float *, gradients) F(const float *, d_h) \
    F(float *, d_states) F(float *, d_extra) F(float *, scratch)
#define LINEAR_FIELDS(F) \
    F(size, K) F(size, M) F(const float *, x) F(const float *, weight) F(const float *, bias) F(float *, y) F(float *, scratch)
#define WEIGHT_GRADIENT_FIELDS(F) \
    F(size, N) F(size, K) F(size, M) F(size, V) F(const int64_t *, ids) F(const uint8_t *, skip) F(const float *, x) \
    F(const float *, d_y) F(size, d_y_stride) F(float *, d_weight) F(float *, d_table) F(float *, d_bias) F(float *, scratch) \
    F(size, scratch_stride)
#define CROSS_ENTROPY_FIELDS(F) \
    F(size, N) F(size, H) F(size, V) F(const float *, hidden) F(const float *, weight) F(const float *, weight_transposed) \
    F(const float *, bias) F(const int64_t *, targets) F(float *, losses) F(float *, d_hidden) F(float *, d_weight) \
    F(float *, d_bias) F(float *, scratch) F(size, scratch_stride)
#define DROPOUT_MASK_FIELDS(F) F(const int64_t *, seed) F(size, threshold) F(const float *, scale) F(float *, mask)
#define COPY_FIELDS(F) \
    F(size, columns) F(const float *, source) F(size, row_stride) F(size, column_stride) F(float *, target) F(size, target_stride)
#define LOOKUP_FIELDS(F) F(size, columns) F(const int64_t *, ids) F(const float *, table) F(float *, target)
#define ADD_FIELDS(F) F(const float *, a) F(const float *, b) F(float *, target)
#define MULTIPLY_FIELDS(F) F(size, columns) F(const float *, a) F(const float *, b) F(size, b_stride) F(float *, target)
#define SUM_FIELDS(F) F(size, rows) F(size, columns) F(size, divisor) F(const float *, source) F(float *, target)
#define SQUARES_FIELDS(F) F(size, tensors) F(const size *, counts) F(const float *const *, gradients) F(double *, sums)
#define ADAM_FIELDS(F) F(size, tensors) F(const size *, counts) F(float *const *, arrays) F(const float *, numbers)
#define READ_FIELDS(F) F(const void *, network) F(size, T) F(const int64_t *, ids)
#define SAMPLE_FIELDS(F) \
    F(const void *, network) F(size, N) F(const double *, uniforms) F(size, top_k) F(const double *, temperature) \
    F(const int64_t *, forbidden) F(size, forbidden_count) F(size, end) F(uint8_t *, ended) F(int64_t *, ids)
/* A network at inference; see inference.h. */
#define NETWORK_FIELDS(F) \
    F(size, L) F(size, B) F(size, H) F(size, V) F(const float *, table) F(const float *const *, layers) \
    F(const float *, output_weight) F(const float *, output_bias) F(float *, states) F(float *, logits) F(float *, scratch) \
    F(float *, best) F(double *, sums) F(size *, candidates)

#define FIELD_OF_STRUCT(type, name) type name;
#define FIELD_NAME(type, name) #name " "
#define ARGUMENTS(name, FIELDS) typedef struct { FIELDS(FIELD_OF_STRUCT) } name##_arguments;

ARGUMENTS(pack, PACK_FIELDS)
ARGUMENTS(forward, WINDOW_FORWARD_FIELDS)
ARGUMENTS(backward, WINDOW_BACKWARD_FIELDS)
ARGUMENTS(linear, LINEAR_FIELDS)
ARGUMENTS(weight_gradient, WEIGHT_GRADIENT_FIELDS)
ARGUMENTS(cross_entropy, CROSS_ENTROPY_FIELDS)
ARGUMENTS(dropout_mask, DROPOUT_MASK_FIELDS)
ARGUMENTS(copy, COPY_FIELDS)
ARGUMENTS(lookup, LOOKUP_FIELDS)
ARGUMENTS(add, ADD_FIELDS)
ARGUMENTS(multiply, MULTIPLY_FIELDS)
ARGUMENTS(sum, SUM_FIELDS)
ARGUMENTS(squares, SQUARES_FIELDS)
ARGUMENTS(adam, ADAM_FIELDS)
ARGUMENTS(read, READ_FIELDS)
ARGUMENTS(sample, SAMPLE_FIELDS)
ARGUMENTS(network, NETWORK_FIELDS)

/* ---- The table of an instruction set ------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;   /* null after the last */
    const char *fields; /* the names of the arguments, a space after each */
    kernel *function;
} kernel_entry;

/* How a cell uses what is saved for each batch row and time step (see recurrence.h), in units of H. */
typedef struct {
    size gates;              /* columns of the input's share */
    size states;
    size width;              /* columns that are saved for the backward pass */
    size input_column;       /* the first saved column that the input's share is added to */
    size recurrent_rotation; /* gates by which the columns of U are rotated to the right; -1 without a recurrent product */
    size extra;              /* rows of extra weights */
} shape;

typedef struct {
    const char *name; /* null after the last */
    shape shape;
    kernel *forward, *backward;
    kernel *read, *sample; /* null where products are of bfloat16 */
} cell_entry;

typedef struct {
    const char *name;
    size lanes; /* floats of a vector */
    size word;  /* elements of a product's inner dimension in a word of 32 bits: 2 for bfloat16 */
    size tile;  /* rows, and words of a row, of a tile; 1 without tiles */
    size chunk; /* rows of a window added to a weight gradient per pass */
    size block; /* rows of logits made at a time */
    const kernel_entry *kernels;
    const cell_entry *cells;
} instruction_set;

#endif
