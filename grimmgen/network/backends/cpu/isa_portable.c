/* Vectors of four floats, where the compiler has them: NEON on ARM, SSE2 on x86. */
#include "grimmgen.h"

#if defined(__GNUC__)
#define ISA portable
#define LANES 4
#define WORD 1
#define TILE 1
#if defined(__aarch64__)
#define ROWS 6
#else
#define ROWS 3
#endif
#include "instruction_set.h"
#endif
