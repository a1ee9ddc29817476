/* All kernels for one instruction set; included once by each isa_*.c, which defines
 *
 *     ISA    its name            LANES  floats of a vector
 *     ROWS   rows of a product's register block of ROWS × 4 vectors: 32 vector registers hold 6 × 4 and what feeds them, 16 hold 3 × 4
 *     WORD   elements of a product's inner dimension in a word: 2 for bfloat16
 *     TILE   rows, and words of a row, of a tile; 1 where products are computed in vector registers
 */
#include "vectors.h"
#include "packing.h"
#if TILE == 1
#include "products.h"
#else
#include "tiles.h"
#endif
#include "recurrence.h"
#include "layers.h"
#if WORD == 1
#include "inference.h"
#define INFERENCE(NAME) NAME##_read, NAME##_sample
#else
#define DEFINE_INFERENCE(NAME)
#define INFERENCE(NAME) 0, 0
#endif
/* Made by setup.py: the headers of the cells, and FOR_EACH_CELL. */
#include "cells.h"

#define DEFINE(NAME) static const shape NAME##_shape = {NAME##_SHAPE}; DEFINE_WINDOW(NAME) DEFINE_INFERENCE(NAME)
#define CELL_ENTRY(NAME) {#NAME, {NAME##_SHAPE}, NAME##_forward, NAME##_backward, INFERENCE(NAME)},
FOR_EACH_CELL(DEFINE)

static const cell_entry cells[] = {FOR_EACH_CELL(CELL_ENTRY) {0}};

static const kernel_entry kernels[] = {
    {"pack", PACK_FIELDS(FIELD_NAME), pack},
    {"linear", LINEAR_FIELDS(FIELD_NAME), linear},
    {"weight_gradient", WEIGHT_GRADIENT_FIELDS(FIELD_NAME), weight_gradient},
    {"cross_entropy", CROSS_ENTROPY_FIELDS(FIELD_NAME), cross_entropy},
    {"dropout_mask", DROPOUT_MASK_FIELDS(FIELD_NAME), dropout_mask},
    {"copy", COPY_FIELDS(FIELD_NAME), copy},
    {"lookup", LOOKUP_FIELDS(FIELD_NAME), lookup},
    {"add", ADD_FIELDS(FIELD_NAME), add},
    {"multiply", MULTIPLY_FIELDS(FIELD_NAME), multiply_elements},
    {"sum", SUM_FIELDS(FIELD_NAME), sum},
    {"squares", SQUARES_FIELDS(FIELD_NAME), squares},
    {"adam", ADAM_FIELDS(FIELD_NAME), adam},
    /* The fields alone: each cell has functions of its own. */
    {"forward", WINDOW_FORWARD_FIELDS(FIELD_NAME), 0},
    {"backward", WINDOW_BACKWARD_FIELDS(FIELD_NAME), 0},
    {"read", READ_FIELDS(FIELD_NAME), 0},
    {"sample", SAMPLE_FIELDS(FIELD_NAME), 0},
    {"network", NETWORK_FIELDS(FIELD_NAME), 0},
    {0},
};

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)
extern const instruction_set JOIN(instruction_set, ISA);
const instruction_set JOIN(instruction_set, ISA) = {STRING(ISA), LANES, WORD, TILE, CHUNK, BLOCK, kernels, cells};
