/* What a step does beside its matrix products, each in one pass over its rows: see fused.py.

   Rows are independent of each other, so a row's numbers do not depend on how many stand beside
   it. Compiled with sums in any order, but infinities and NaN as they are: a candidate on which
   the model overflows must show it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Below this many numbers waking the other threads takes longer than the work. */
#define WORTH_THREADS 262144
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
    for (int64_t j = 0; j < LANES; j++) most = lanes[j] > most ? lanes[j] : most;
    return most;
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

/* Sixteen numbers at a time, in as many registers as the CPU needs for them. */
#define WIDE 16
typedef float wide __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef float half __attribute__((vector_size(2 * WIDE)));
typedef float quarter __attribute__((vector_size(WIDE)));

/* By halves, which are copied: gcc before 12 has no shuffle by the name that others know. */
static inline float sum_of(wide x) {
    half a, more_a;
    memcpy(&a, &x, sizeof a);
    memcpy(&more_a, (const char *)&x + sizeof a, sizeof a);
    a += more_a;
    quarter b, more_b;
    memcpy(&b, &a, sizeof b);
    memcpy(&more_b, (const char *)&a + sizeof b, sizeof b);
    b += more_b;
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* Softmax over keys that come in pieces (Milakov and Gimelshein 2018), of the queries of one head. */
struct softmax {
    float most[MOST_SHARED], sum[MOST_SHARED];
    wide out[MOST / WIDE];
};

/* `n` is the number of `wide` in a head: a constant, where its numbers are to stay in registers. */
static inline __attribute__((always_inline)) void
see(struct softmax *state, const wide *queries, const float *keys, const float *values,
    int64_t num_keys, int64_t shared, int64_t n) {
    float scores[TILE];
    for (int64_t start = 0; start < num_keys; start += TILE) {
        int64_t size = num_keys - start < TILE ? num_keys - start : TILE;
        const wide *key = (const wide *)(keys + start * n * WIDE);
        const wide *value = (const wide *)(values + start * n * WIDE);
        for (int64_t s = 0; s < shared; s++) {
            const wide *query = queries + s * n;
            for (int64_t j = 0; j < size; j++) {
                wide products = query[0] * key[j * n];
                for (int64_t i = 1; i < n; i++) products += query[i] * key[j * n + i];
                scores[j] = sum_of(products);
            }
            float before = state->most[s], most = most_of(scores, size), sum = 0.0f;
            most = before > most ? before : most;
            for (int64_t j = 0; j < size; j++) {
                scores[j] = exponential(scores[j] - most);
                sum += scores[j];
            }
            float by = most > before ? exponential(before - most) : 1.0f;
            wide out[MOST / WIDE];
            for (int64_t i = 0; i < n; i++) out[i] = state->out[s * n + i] * by;
            for (int64_t j = 0; j < size; j++)
                for (int64_t i = 0; i < n; i++) out[i] += scores[j] * value[j * n + i];
            for (int64_t i = 0; i < n; i++) state->out[s * n + i] = out[i];
            state->sum[s] = state->sum[s] * by + sum;
            state->most[s] = most;
        }
    }
}

static void see_any(struct softmax *state, const wide *queries, const float *keys,
                    const float *values, int64_t num_keys, int64_t shared, int64_t dim) {
    if (dim == 64)
        see(state, queries, keys, values, num_keys, shared, 64 / WIDE);
    else if (dim == 128)
        see(state, queries, keys, values, num_keys, shared, 128 / WIDE);
    else
        see(state, queries, keys, values, num_keys, shared, dim / WIDE);
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
            int64_t first = length + 1 - window; /* of the positions that are seen */
            for (int64_t p = 0; p < num_parts; p++) first += parts[p].length;
            for (int64_t p = 0; p < num_parts; p++) {
                int64_t from = first > 0 ? first : 0, left = parts[p].length - from;
                if (left > 0)
                    see_any(&state, scaled, parts[p].keys + k * parts[p].key_stride + from * dim,
                            parts[p].values + k * parts[p].value_stride + from * dim, left, shared,
                            dim);
                first -= parts[p].length;
            }
            int64_t from = first > 0 ? first : 0;
            see_any(&state, scaled, own_keys + from * dim, own_values + from * dim,
                    length + 1 - from, shared, dim);
            float *to = out + r * kv_heads * size + k * size;
            const float *sums = (const float *)state.out;
            for (int64_t s = 0; s < shared; s++) {
                float by = 1.0f / state.sum[s];
                for (int64_t d = 0; d < dim; d++) to[s * dim + d] = sums[s * dim + d] * by;
            }
        }
    }
}
