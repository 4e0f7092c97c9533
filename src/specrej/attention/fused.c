/* What a step does beside its matrix products, each in one pass over its rows: see fused.py.

   Rows are independent of each other, so a row's numbers do not depend on how many stand beside
   it. Compiled with sums in any order, but infinities and NaN as they are: a candidate on which
   the model overflows must show it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Below this many numbers waking the other threads takes longer than the work. */
#define WORTH_THREADS 131072
/* Positions whose scores are held at once, and most numbers of one head's queries. */
#define TILE 128
#define MOST 4096
#define MOST_SHARED 64
#define LANES 32
/* Less than any number at any place: what a heap is filled with. */
#define NOWHERE INT64_MAX

/* After Cephes' expf: within two units in the last place, and a loop of it becomes vectors. */
static inline float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    float y = fmaf(p, r * r, r + 1.0f);
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

/* rows[i] += added[i] where added is there; out[i] = rows[i] / hypot(|rows[i]|, least) * weight. */
void add_norm(float *rows, const float *added, const float *weight, float least, float *out,
              int64_t num_rows, int64_t dim, int threads) {
#pragma omp parallel for num_threads(threads) if (num_rows * dim >= WORTH_THREADS)
    for (int64_t r = 0; r < num_rows; r++) {
        float *row = rows + r * dim, *to = out + r * dim;
        if (added) {
            const float *more = added + r * dim;
            for (int64_t i = 0; i < dim; i++) row[i] += more[i];
        }
        float sum = least * least;
        for (int64_t i = 0; i < dim; i++) sum += row[i] * row[i];
        float by = 1.0f / sqrtf(sum);
        for (int64_t i = 0; i < dim; i++) to[i] = row[i] * by * weight[i];
    }
}

/* Neighbouring pairs of the first `turned` of each row's heads, times a complex number each. */
void turn(float *rows, const float *turns, int64_t num_rows, int64_t heads, int64_t turned,
          int64_t dim, int threads) {
#pragma omp parallel for num_threads(threads) if (num_rows * turned * dim >= WORTH_THREADS)
    for (int64_t r = 0; r < num_rows; r++) {
        const float *by = turns + r * dim;
        for (int64_t h = 0; h < turned; h++) {
            float *head = rows + (r * heads + h) * dim;
            for (int64_t i = 0; i < dim; i += 2) {
                float real = head[i], imaginary = head[i + 1];
                head[i] = real * by[i] - imaginary * by[i + 1];
                head[i + 1] = real * by[i + 1] + imaginary * by[i];
            }
        }
    }
}

/* out = silu(first half of a row) * second half. */
void gate(const float *rows, float *out, int64_t num_rows, int64_t inner, int threads) {
#pragma omp parallel for num_threads(threads) if (num_rows * inner >= WORTH_THREADS / 2)
    for (int64_t r = 0; r < num_rows; r++) {
        const float *gates = rows + r * 2 * inner, *up = gates + inner;
        float *to = out + r * inner;
        for (int64_t i = 0; i < inner; i++)
            to[i] = gates[i] / (1.0f + exponential(-gates[i])) * up[i];
    }
}

/* The largest, as many at a time as there are lanes: across these the compiler may not reorder, since
   a comparison with NaN depends on the order. */
static inline float most_of(const float *numbers, int64_t num) {
    float lanes[LANES], most = -INFINITY;
    int64_t i = 0;
    for (int64_t j = 0; j < LANES; j++) lanes[j] = -INFINITY;
    for (; i + LANES <= num; i += LANES)
        for (int64_t j = 0; j < LANES; j++)
            lanes[j] = numbers[i + j] > lanes[j] ? numbers[i + j] : lanes[j];
    for (; i < num; i++) most = numbers[i] > most ? numbers[i] : most;
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t j = 0; j < half; j++)
            lanes[j] = lanes[j + half] > lanes[j] ? lanes[j + half] : lanes[j];
    return lanes[0] > most ? lanes[0] : most;
}

/* out[r] = log(sum(exp(row r))); not finite where something in the row is not, but for minus
   infinity. */
void log_sum_exp(const float *rows, float *out, int64_t num_rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (num_rows * width >= WORTH_THREADS)
    for (int64_t r = 0; r < num_rows; r++) {
        const float *row = rows + r * width;
        float most = most_of(row, width), sum = 0.0f;
        for (int64_t i = 0; i < width; i++) sum += exponential(row[i] - most);
        out[r] = most + logf(sum);
    }
}

/* The k largest so far, the least of them first; of equals those that came first are larger. */
struct heap {
    int64_t size;
    float *values;
    int64_t *places;
};

static inline int is_less(const struct heap *heap, int64_t a, int64_t b) {
    float x = heap->values[a], y = heap->values[b];
    return x < y || (x == y && heap->places[a] > heap->places[b]);
}

static inline void swap(struct heap *heap, int64_t a, int64_t b) {
    float value = heap->values[a];
    int64_t place = heap->places[a];
    heap->values[a] = heap->values[b];
    heap->places[a] = heap->places[b];
    heap->values[b] = value;
    heap->places[b] = place;
}

/* Let what is at the top of the first `size` sink to where it belongs. */
static void sink(struct heap *heap, int64_t size) {
    for (int64_t at = 0, child; (child = 2 * at + 1) < size; at = child) {
        child += child + 1 < size && is_less(heap, child + 1, child);
        if (!is_less(heap, child, at)) break;
        swap(heap, at, child);
    }
}

/* See numbers in the order of their places. */
static void offer(struct heap *heap, const float *numbers, int64_t first, int64_t num) {
    for (int64_t i = 0; i < num; i++) {
        int64_t place = first + i;
        if (!(numbers[i] >= heap->values[0])) continue;
        if (numbers[i] == heap->values[0] && place > heap->places[0]) continue;
        heap->values[0] = numbers[i];
        heap->places[0] = place;
        sink(heap, heap->size);
    }
}

static void empty(struct heap *heap) {
    for (int64_t i = 0; i < heap->size; i++) {
        heap->values[i] = -INFINITY;
        heap->places[i] = NOWHERE;
    }
}

/* The k largest of each row in descending order, and where they are: [rows, k]. Who is among them is
   not below the k-th largest maximum of a piece. Where there are fewer, as beside NaN, it is minus
   infinity at 0. `maxima` are those of all pieces. */
void largest(const float *rows, int64_t num_rows, int64_t width, int64_t piece, int64_t k,
             float *values, int64_t *places, float *maxima, int threads) {
    int64_t pieces = width / piece;
#pragma omp parallel for num_threads(threads) if (num_rows * width >= WORTH_THREADS)
    for (int64_t r = 0; r < num_rows; r++) {
        const float *row = rows + r * width;
        float *most = maxima + r * pieces;
        struct heap heap = {k, values + r * k, places + r * k};
        for (int64_t p = 0; p < pieces; p++) most[p] = most_of(row + p * piece, piece);
        empty(&heap);
        offer(&heap, most, 0, pieces);
        float least = heap.values[0];
        empty(&heap);
        for (int64_t p = 0; p < pieces; p++)
            if (most[p] >= least) offer(&heap, row + p * piece, p * piece, piece);
        for (int64_t left = k - 1; left > 0; left--) {
            swap(&heap, 0, left);
            sink(&heap, left);
        }
        for (int64_t i = 0; i < k; i++)
            if (heap.places[i] == NOWHERE) heap.places[i] = 0;
    }
}

/* Numbers in a register, and how many registers may hold sums. */
#if defined __AVX512F__
#define WIDE 16
#define HELD 16
#elif defined __AVX__
#define WIDE 8
#define HELD 8
#else
#define WIDE 4
#define HELD 8
#endif
#define AT_ONCE (HELD / 4)
typedef float wide __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16)));

/* Its numbers as four sums. */
static inline four sums_of(wide x) {
    four sums, more;
    memcpy(&sums, &x, sizeof sums);
    for (size_t at = sizeof sums; at < sizeof x; at += sizeof more) {
        memcpy(&more, (const char *)&x + at, sizeof more);
        sums += more;
    }
    return sums;
}

/* Keys and values of one head that lie behind each other, and those that are seen after them: they
   are fetched meanwhile, since a CPU foresees no more than what lies in a row. */
struct run {
    const float *keys, *values, *next_keys, *next_values;
    int64_t size;
};

/* Softmax over keys that come in pieces (Milakov and Gimelshein 2018), of the queries of one head. */
struct softmax {
    float most[MOST_SHARED], sum[MOST_SHARED];
    wide out[MOST / WIDE];
};

/* Weights of a query's scores, which come as four parts each; what the weights before them are to be
   multiplied by. `num` is a multiple of LANES: a loop without a rest is one of vectors alone. */
static inline float weigh(struct softmax *state, int64_t query, const four *scores,
                          float *weights, int64_t num) {
    const float *parts = (const float *)scores;
    for (int64_t j = 0; j < num; j++)
        weights[j] = (parts[4 * j] + parts[4 * j + 1]) + (parts[4 * j + 2] + parts[4 * j + 3]);
    float before = state->most[query], most = most_of(weights, num), sum = 0.0f;
    most = before > most ? before : most;
    for (int64_t j = 0; j < num; j++) {
        weights[j] = exponential(weights[j] - most);
        sum += weights[j];
    }
    float by = most > before ? exponential(before - most) : 1.0f;
    state->sum[query] = state->sum[query] * by + sum;
    state->most[query] = most;
    return by;
}

/* Of `num` queries from the first on. `num`, and `n`, the number of `wide` in a head, are constants
   where their numbers are to stay in registers. */
static inline __attribute__((always_inline)) void
see(struct softmax *state, int64_t first, int64_t num, int64_t n, const wide *queries,
    const struct run *runs, int64_t num_runs) {
    const four nothing = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    four scores[AT_ONCE][TILE];
    float weights[AT_ONCE][TILE];
    wide out[MOST / WIDE];
    const wide *values[TILE];
    queries += first * n;
    for (int64_t from = 0; num_runs;) {
        int64_t size = 0;
        while (num_runs && size < TILE) {
            int64_t left = runs->size - from, until = size + left < TILE ? size + left : TILE;
            for (; size < until; size++, from++) {
                const wide *key = (const wide *)runs->keys + from * n;
                values[size] = (const wide *)runs->values + from * n;
                if (runs->next_keys)
                    for (int64_t i = 0; i < n; i++) {
                        __builtin_prefetch((const wide *)runs->next_keys + from * n + i);
                        __builtin_prefetch((const wide *)runs->next_values + from * n + i);
                    }
                for (int64_t s = 0; s < num; s++) {
                    wide products = queries[s * n] * key[0];
                    for (int64_t i = 1; i < n; i++) products += queries[s * n + i] * key[i];
                    scores[s][size] = sums_of(products);
                }
            }
            if (from == runs->size) {
                from = 0;
                runs++;
                num_runs--;
            }
        }
        int64_t padded = (size + LANES - 1) / LANES * LANES;
        for (int64_t s = 0; s < num; s++) {
            for (int64_t j = size; j < padded; j++) scores[s][j] = nothing;
            float by = weigh(state, first + s, scores[s], weights[s], padded);
            for (int64_t i = 0; i < n; i++) out[s * n + i] = state->out[(first + s) * n + i] * by;
        }
        for (int64_t j = 0; j < size; j++)
            for (int64_t s = 0; s < num; s++)
                for (int64_t i = 0; i < n; i++) out[s * n + i] += weights[s][j] * values[j][i];
        for (int64_t i = 0; i < num * n; i++) state->out[first * n + i] = out[i];
    }
}

#define SEE(num, n) see(state, first, num, n, queries, runs, num_runs)

/* As many queries at a time as registers hold. */
static void see_all(struct softmax *state, const wide *queries, int64_t shared, int64_t dim,
                    const struct run *runs, int64_t num_runs) {
    int64_t n = dim / WIDE, at_once = n == 4 || n == 8 ? HELD / n : 1, num;
    for (int64_t first = 0; first < shared; first += num) {
        num = shared - first < at_once ? shared - first : at_once;
        switch (n * 8 + num) {
        case 4 * 8 + 4: SEE(4, 4); break;
        case 4 * 8 + 3: SEE(3, 4); break;
        case 4 * 8 + 2: SEE(2, 4); break;
        case 4 * 8 + 1: SEE(1, 4); break;
        case 8 * 8 + 2: SEE(2, 8); break;
        case 8 * 8 + 1: SEE(1, 8); break;
        case 16 * 8 + 1: SEE(1, 16); break;
        default: SEE(1, n);
        }
    }
}

/* Keys and values of one part of a prompt: [kv_heads, length, dim], heads `stride` apart. */
struct part {
    const float *keys, *values;
    int64_t length, key_stride, value_stride;
};

/* Stores the newest key and value of some rows behind the `lengths` that they have, and attends from
   it to the prompt's parts and to its own, as far back as the window reaches. Queries are [rows,
   heads, dim], keys and values [rows, kv_heads, dim], rows `strides` apart; `places` are those of the
   rows in the blocks, which are [any, kv_heads, slots, dim], of unlike slots where memory ran out
   while they grew; out is [rows, heads, dim]. */
void attend(const float *queries, const float *new_keys, const float *new_values,
            int64_t query_stride, int64_t key_stride, int64_t value_stride,
            const struct part *parts, int64_t num_parts, float *keys, float *values,
            int64_t key_slots, int64_t value_slots, const int64_t *places, const int64_t *lengths,
            int64_t window, float *out, int64_t num_rows, int64_t kv_heads, int64_t shared,
            int64_t dim, float scaling, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t k = 0; k < kv_heads; k++) {
        for (int64_t r = 0; r < num_rows; r++) {
            wide scaled[MOST / WIDE];
            struct run runs[num_parts + 1];
            struct softmax state;
            int64_t size = shared * dim, length = lengths[r];
            const float *asked = queries + r * query_stride + k * size;
            for (int64_t i = 0; i < size; i++) ((float *)scaled)[i] = asked[i] * scaling;
            for (int64_t s = 0; s < shared; s++) {
                state.most[s] = -INFINITY;
                state.sum[s] = 0.0f;
            }
            memset(state.out, 0, size * sizeof(float));
            float *own_keys = keys + (places[r] * kv_heads + k) * key_slots * dim;
            float *own_values = values + (places[r] * kv_heads + k) * value_slots * dim;
            memcpy(own_keys + length * dim, new_keys + r * key_stride + k * dim,
                   dim * sizeof(float));
            memcpy(own_values + length * dim, new_values + r * value_stride + k * dim,
                   dim * sizeof(float));
            int64_t first = length + 1 - window, num_runs = 0; /* of the positions that are seen */
            for (int64_t p = 0; p < num_parts; p++) first += parts[p].length;
            for (int64_t p = 0; p < num_parts; p++) {
                int64_t from = first > 0 ? first : 0, left = parts[p].length - from;
                if (left > 0)
                    runs[num_runs++] = (struct run){
                        .keys = parts[p].keys + k * parts[p].key_stride + from * dim,
                        .values = parts[p].values + k * parts[p].value_stride + from * dim,
                        .size = left};
                first -= parts[p].length;
            }
            int64_t from = first > 0 ? first : 0, next = places[r + (r + 1 < num_rows)];
            next = next * kv_heads + k;
            runs[num_runs++] = (struct run){own_keys + from * dim,
                                            own_values + from * dim,
                                            keys + (next * key_slots + from) * dim,
                                            values + (next * value_slots + from) * dim,
                                            length + 1 - from};
            see_all(&state, scaled, shared, dim, runs, num_runs);
            float *to = out + r * kv_heads * size + k * size;
            const float *sums = (const float *)state.out;
            for (int64_t s = 0; s < shared; s++) {
                float by = 1.0f / state.sum[s];
                for (int64_t d = 0; d < dim; d++) to[s * dim + d] = sums[s * dim + d] * by;
            }
        }
    }
}
