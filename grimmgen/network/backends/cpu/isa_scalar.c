/* Plain C, for every compiler. */
#include "grimmgen.h"

#define ISA scalar
#define LANES 1
#define ROWS 2
#define WORD 1
#define TILE 1
#include "instruction_set.h"
