/* Products in the vector registers of an x86 CPU: see products.py.

   Weights are float32, or are read as float16, two bytes each, and become float32 in a register.
   All else is float32. Each number is one sum over the inputs in their order, so a row's numbers do
   not depend on how many stand beside it. */

#include <stdint.h>

#if defined __AVX512F__ || (defined __AVX2__ && defined __FMA__ && defined __F16C__)

#include <immintrin.h>

/* Outputs of a panel of weights, and what its inputs are padded to a multiple of. */
#define SIDE 16
#define DEEP 32

/* Below this many multiplications waking the other threads takes longer than the work. */
#define WORTH_THREADS 262144
/* Bytes that the cache fetches at once. */
#define LINE 64

/* A block has some rows and some panels, as many as registers hold sums of. */
#if defined __AVX512F__
#define WIDE 16
#define ROWS 8
#define PANELS 3
#define IN_REGISTER(operation) _mm512_##operation
#define LOAD_HALVES _mm256_loadu_si256
typedef __m512 wide;
#else
#define WIDE 8
#define ROWS 6
#define PANELS 1
#define IN_REGISTER(operation) _mm256_##operation
#define LOAD_HALVES _mm_loadu_si128
typedef __m256 wide;
#endif

static inline wide load(const float *from) { return IN_REGISTER(loadu_ps)(from); }
static inline wide load_half(const uint16_t *from) {
    return IN_REGISTER(cvtph_ps)(LOAD_HALVES((const void *)from));
}
static inline wide repeat(float number) { return IN_REGISTER(set1_ps)(number); }
static inline wide add_product(wide a, wide b, wide sum) {
    return IN_REGISTER(fmadd_ps)(a, b, sum);
}
static inline void store(float *to, wide numbers) { IN_REGISTER(storeu_ps)(to, numbers); }

/* Registers that a panel takes. */
#define PARTS (SIDE / WIDE)

int has_registers(void) { return 1; }

static inline wide load_weights(const void *weights, int64_t at, int is_half) {
    return is_half ? load_half((const uint16_t *)weights + at) : load((const float *)weights + at);
}

/* out[r] = weights x[r] + bias, of some rows and some panels, which lie `apart`. `rows`, `panels`
   and `is_half` are constants, so that sums stay in registers. What is behind these panels is
   fetched meanwhile: several are read at a time, which no CPU foresees. */
static inline __attribute__((always_inline)) void
block(const float *x, int64_t inputs, const void *weights, int64_t apart, const float *bias,
      float *out, int64_t outputs, int rows, int panels, int is_half) {
    const int64_t size = is_half ? sizeof(uint16_t) : sizeof(float);
    wide sums[ROWS][PANELS * PARTS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < panels * PARTS; i++)
            sums[r][i] = bias ? load(bias + i * WIDE) : repeat(0.0f);
    for (int64_t k = 0; k < inputs; k++) {
        const char *next = (const char *)weights + panels * (apart + k * SIDE) * size;
        for (int64_t at = 0; at < panels * SIDE * size; at += LINE)
            _mm_prefetch(next + at, _MM_HINT_T1);
        wide numbers[PANELS * PARTS];
        for (int p = 0; p < panels; p++)
            for (int i = 0; i < PARTS; i++)
                numbers[p * PARTS + i] =
                    load_weights(weights, p * apart + k * SIDE + i * WIDE, is_half);
        for (int r = 0; r < rows; r++) {
            wide number = repeat(x[r * inputs + k]);
            for (int i = 0; i < panels * PARTS; i++)
                sums[r][i] = add_product(number, numbers[i], sums[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < panels * PARTS; i++) store(out + r * outputs + i * WIDE, sums[r][i]);
}

#define BLOCK(rows, panels, is_half)                                                        \
    case rows:                                                                              \
        block(x, inputs, weights, apart, bias, out, outputs, rows, panels, is_half); break

#define SIX_BLOCKS(panels, is_half)                                                         \
    BLOCK(1, panels, is_half); BLOCK(2, panels, is_half); BLOCK(3, panels, is_half);        \
    BLOCK(4, panels, is_half); BLOCK(5, panels, is_half); BLOCK(6, panels, is_half)
#if ROWS == 8
#define BLOCKS(panels, is_half)                                                             \
    SIX_BLOCKS(panels, is_half); BLOCK(7, panels, is_half); BLOCK(8, panels, is_half)
#else
#define BLOCKS SIX_BLOCKS
#endif

static void block_of(int64_t rows, int64_t panels, const float *x, int64_t inputs,
                     const void *weights, int64_t apart, const float *bias, float *out,
                     int64_t outputs, int is_half) {
    switch (panels == PANELS ? 2 * PANELS + is_half : is_half) {
    case 2 * PANELS + 1: switch (rows) { BLOCKS(PANELS, 1); } break;
    case 2 * PANELS: switch (rows) { BLOCKS(PANELS, 0); } break;
    case 1: switch (rows) { BLOCKS(1, 1); } break;
    case 0: switch (rows) { BLOCKS(1, 0); } break;
    }
}

/* out[r] = weights x[r] + bias. `weights` are panels of float16 or float32, [outputs / 16, inputs,
   16], their inputs padded to a multiple of 32; `bias` may be null. */
void multiply_in_registers(const float *x, const void *weights, const float *bias, float *out,
                           int64_t rows, int64_t inputs, int64_t outputs, int is_half,
                           int threads) {
    int64_t apart = (inputs + DEEP - 1) / DEEP * DEEP * SIDE, num_panels = outputs / SIDE;
    int64_t size = is_half ? sizeof(uint16_t) : sizeof(float);
    int64_t num_groups = num_panels / PANELS + num_panels % PANELS;
    int64_t num_blocks = (rows + ROWS - 1) / ROWS;
    int is_worth = rows * inputs * outputs >= WORTH_THREADS;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static) if (is_worth)
    for (int64_t g = 0; g < num_groups; g++) {
        for (int64_t b = 0; b < num_blocks; b++) {
            /* What does not fill a group goes panel by panel. */
            int64_t rest = g - num_panels / PANELS, panels = rest < 0 ? PANELS : 1;
            int64_t p = rest < 0 ? g * PANELS : num_panels / PANELS * PANELS + rest;
            int64_t r = rows * b / num_blocks, end = rows * (b + 1) / num_blocks;
            block_of(end - r, panels, x + r * inputs, inputs,
                     (const char *)weights + p * apart * size, apart, bias ? bias + p * SIDE : 0,
                     out + r * outputs + p * SIDE, outputs, is_half);
        }
    }
}

#else

int has_registers(void) { return 0; }

void multiply_in_registers(const float *x, const void *weights, const float *bias, float *out,
                           int64_t rows, int64_t inputs, int64_t outputs, int is_half,
                           int threads) {}

#endif
