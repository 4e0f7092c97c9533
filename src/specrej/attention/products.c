/* Products with float16 weights on the matrix units of a CPU (AMX): see products.py.

   These units multiply bfloat16 numbers, of 8 bits, and sum in float32. A float16 weight, of 11
   bits, is the sum of two bfloat16 numbers, exactly; an input of float32 is one of two but for
   2^-17 of itself. So three products give what one in float32 gives, but for about that much of
   each. A row's numbers do not depend on how many stand beside it. */

#include <stdint.h>

#if defined(__linux__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && \
    defined(__AVX512F__) && defined(__AVX512BF16__)

#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A tile has 16 rows of 32 numbers, or of 16 where they are float32. */
#define SIDE 16
#define DEEP 32
#define TILE (SIDE * DEEP)
/* Tiles of weights that are split at once, so that they stay in the first cache. */
#define CHUNK 8

/* Linux lets a process use the units once it has asked: 1, or -1 where it does not. */
int can_multiply(void) {
    const int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 1 : -1;
}

/* Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights. */
static void configure(int rows) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = t < 6 ? rows : SIDE;
    }
    /* Not the intrinsic: by that of gcc 12 the compiler need not have written all of it. */
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

/* The nearest bfloat16 numbers, as float32. */
static inline __m512 nearest(__m512 x) {
    __m512i half_up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(half_up, _mm512_set1_epi32((int)0xffff0000)));
}

/* Pairs of bfloat16 numbers, where float32 numbers hold no more than these. */
static inline __m512i pairs(__m512 first, __m512 second) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16),
                           _mm512_castps_si512(second));
}

/* Two tiles of bfloat16 from one of float16. */
static inline void split_weights(const uint16_t *from, uint16_t *to) {
    for (int64_t at = 0; at < TILE; at += DEEP) {
        _mm_prefetch((const char *)(from + at + CHUNK / 2 * TILE), _MM_HINT_T0);
        __m512 first = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(from + at)));
        __m512 second = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(from + at + SIDE)));
        __m512 first_high = nearest(first), second_high = nearest(second);
        _mm512_store_si512(to + at, pairs(first_high, second_high));
        _mm512_store_si512(to + TILE + at, pairs(_mm512_sub_ps(first, first_high),
                                                 _mm512_sub_ps(second, second_high)));
    }
}

/* One row of inputs into tiles that lie `DEEP` numbers after each other, in two parts `apart`. */
static inline void split_inputs(const float *row, int64_t inputs, uint16_t *to, int64_t apart) {
    for (int64_t at = 0; at < (inputs + DEEP - 1) / DEEP * DEEP; at += SIDE) {
        int64_t left = inputs - at;
        __mmask16 there = left >= SIDE ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
        __m512 numbers = _mm512_maskz_loadu_ps(there, row + at);
        uint16_t *tile = to + at / DEEP * TILE + at % DEEP;
        __m256i high = (__m256i)_mm512_cvtneps_pbh(numbers);
        __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(numbers, back));
        _mm256_storeu_si256((void *)tile, high);
        _mm256_storeu_si256((void *)(tile + apart), low);
    }
}

/* What the sums of a block begin with: the bias, or what is there from the inputs before. */
static inline __attribute__((always_inline)) void begin(const float *bias, const float *out,
                                                        int64_t outputs, int is_first, int two_high,
                                                        int two_wide) {
    const float *from = is_first ? bias : out;
    int64_t next = is_first ? 0 : 4 * outputs, lower = is_first ? 0 : SIDE * outputs;
    if (!from) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    _tile_loadd(0, from, next);
    if (two_wide) _tile_loadd(1, from + SIDE, next);
    if (two_high) _tile_loadd(2, from + lower, next);
    if (two_high && two_wide) _tile_loadd(3, from + lower + SIDE, next);
}

#define INPUTS(part)                                                   \
    _tile_loadd(4, inputs + k * TILE + (part) * apart, 64);            \
    if (two_high) _tile_loadd(5, inputs + below + k * TILE + (part) * apart, 64)
#define WEIGHTS(part)                                                  \
    _tile_loadd(6, weights + (2 * k + (part)) * TILE, 64);             \
    if (two_wide) _tile_loadd(7, weights + (2 * (CHUNK + k) + (part)) * TILE, 64)
#define MULTIPLY                                                       \
    _tile_dpbf16ps(0, 4, 6);                                           \
    if (two_wide) _tile_dpbf16ps(1, 4, 7);                             \
    if (two_high) _tile_dpbf16ps(2, 5, 6);                             \
    if (two_high && two_wide) _tile_dpbf16ps(3, 5, 7)

/* Add the products of `num` tiles of inputs, `below` rows of tiles also those after, with `num` of
   weights, to a block of one or two tiles by one or two. */
static inline __attribute__((always_inline)) void
block(const uint16_t *inputs, int64_t apart, int64_t below, const uint16_t *weights, int64_t num,
      float *out, int64_t outputs, const float *bias, int is_first, int two_high, int two_wide) {
    /* By gcc's intrinsics tiles read no memory: what they are loaded from could be written later. */
    __asm__ volatile("" ::: "memory");
    begin(bias, out, outputs, is_first, two_high, two_wide);
    for (int64_t k = 0; k < num; k++) {
        INPUTS(0);
        WEIGHTS(1);
        MULTIPLY;
        WEIGHTS(0);
        MULTIPLY;
        INPUTS(1);
        MULTIPLY;
    }
    _tile_stored(0, out, 4 * outputs);
    if (two_wide) _tile_stored(1, out + SIDE, 4 * outputs);
    if (two_high) _tile_stored(2, out + SIDE * outputs, 4 * outputs);
    if (two_high && two_wide) _tile_stored(3, out + SIDE * outputs + SIDE, 4 * outputs);
}

static void block_of(int two_high, int two_wide, const uint16_t *inputs, int64_t apart,
                     int64_t below, const uint16_t *weights, int64_t num, float *out,
                     int64_t outputs, const float *bias, int is_first) {
    if (two_high && two_wide)
        block(inputs, apart, below, weights, num, out, outputs, bias, is_first, 1, 1);
    else if (two_high)
        block(inputs, apart, below, weights, num, out, outputs, bias, is_first, 1, 0);
    else if (two_wide)
        block(inputs, apart, below, weights, num, out, outputs, bias, is_first, 0, 1);
    else
        block(inputs, apart, below, weights, num, out, outputs, bias, is_first, 0, 0);
}

/* out[r] = weights x[r] + bias. `weights` are tiles of float16, [outputs / 16, inputs / 32, 32
   inputs, 16 outputs], zero where there are no inputs; `bias` may be null; `space` has
   room for the inputs in bfloat16, twice, whole tiles of them; `out` has whole tiles of rows, or
   `rows` where these are fewer than a tile has. */
void multiply(const float *x, const uint16_t *weights, const float *bias, float *out,
              uint16_t *space, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    if (rows == 0) return; /* a tile without rows ends the process */
    int64_t deep = (inputs + DEEP - 1) / DEEP, high = (rows + SIDE - 1) / SIDE;
    int64_t wide = outputs / SIDE, apart = deep * TILE, below = 2 * apart;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            split_inputs(x + r * inputs, inputs, space + r / SIDE * below + r % SIDE * DEEP, apart);
        uint16_t split[2 * CHUNK * 2 * TILE] __attribute__((aligned(64)));
        configure(rows < SIDE ? (int)rows : SIDE);
#pragma omp for schedule(static)
        for (int64_t w = 0; w < wide; w += 2) {
            int num_wide = w + 1 < wide ? 2 : 1;
            for (int64_t k = 0; k < deep; k += CHUNK) {
                int64_t num = deep - k < CHUNK ? deep - k : CHUNK;
                for (int i = 0; i < num_wide; i++)
                    for (int64_t j = 0; j < num; j++)
                        split_weights(weights + ((w + i) * deep + k + j) * TILE,
                                      split + (i * CHUNK + j) * 2 * TILE);
                for (int64_t h = 0; h < high; h += 2)
                    block_of(h + 1 < high, num_wide == 2, space + h * below + k * TILE, apart,
                             below, split, num, out + h * SIDE * outputs + w * SIDE, outputs,
                             bias ? bias + w * SIDE : 0, k == 0);
            }
        }
        _tile_release();
    }
}

#else

int can_multiply(void) { return 0; }

void multiply(const float *x, const uint16_t *weights, const float *bias, float *out,
              uint16_t *space, int64_t rows, int64_t inputs, int64_t outputs, int threads) {}

#endif
