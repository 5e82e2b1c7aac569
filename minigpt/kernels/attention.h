/* Each new token's weighted mean of the values that it sees, in each head. */

#pragma once
#include <omp.h>
#include <string.h>

#include "vectors.h"

#define QUERIES 8 /* look at the same keys together */
#define TILE 4    /* queries share what is read of as many keys */
#define BLOCK 64  /* keys fit into the smallest of the processor's caches with their values */

typedef struct { /* numbers between one key and the next by row, head and slot */
    int64_t row, head, slot;
} Strides;

/* Keys for which there is memory, if there may be n of them: full registers are written. */
static int64_t room_for(int64_t n) { return TO_64(n + LANES); }

/* A query's products with up to 16 keys, one key after the other, as they lie in memory; beyond `n` keys, zeros. */
INLINE __m512 scores_of(const float *q, const float *k, int64_t stride, int64_t n, int64_t head_dim) {
    __m512 sums[LANES];
    UNROLLED32 for (int j = 0; j < LANES; j++) {
        sums[j] = _mm512_setzero_ps();
        if (j < n)
            UNROLLED for (int64_t d = 0; d < head_dim; d += LANES) {
                const __mmask16 there = lanes_left(head_dim - d);
                sums[j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, q + d),
                                          _mm512_maskz_loadu_ps(there, k + j * stride + d), sums[j]);
            }
    }
    return sums_of(sums);
}

/* The products of TILE queries with TILE keys: those of a query one after the other. */
INLINE __m512 tile_of_scores(const float *q, int64_t q_step, const float *k, int64_t stride, int64_t head_dim) {
    __m512 sums[LANES], queries[TILE];
    UNROLLED32 for (int i = 0; i < LANES; i++) sums[i] = _mm512_setzero_ps();
    UNROLLED for (int64_t d = 0; d < head_dim; d += LANES) {
        const __mmask16 there = lanes_left(head_dim - d);
        UNROLLED for (int i = 0; i < TILE; i++) queries[i] = _mm512_maskz_loadu_ps(there, q + i * q_step + d);
        UNROLLED for (int j = 0; j < TILE; j++) {
            const __m512 key = _mm512_maskz_loadu_ps(there, k + j * stride + d);
            UNROLLED for (int i = 0; i < TILE; i++)
                sums[i * TILE + j] = _mm512_fmadd_ps(queries[i], key, sums[i * TILE + j]);
        }
    }
    return sums_of(sums);
}

typedef struct { /* some tokens' queries in one head, and what they see */
    const float *q, *k, *v;
    float *y, *weights;               /* of each query, with room for `room` keys */
    int64_t n_queries, q_step, y_step; /* numbers from one query to the next */
    int64_t n_keys, stride, room;     /* the first query sees so many, each one after it one more */
    float scale;
} Queries;

/* Replaces scores by exp(score - the largest), and returns 1 / their sum. */
INLINE float softmax(float *weights, int64_t n) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t s = 0; s < n; s += LANES) /* this may pass over a NaN, which `exp_of` keeps */
        most = _mm512_mask_max_ps(most, lanes_left(n - s), most, _mm512_loadu_ps(weights + s));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t s = 0; s < n; s += LANES) {
        const __m512 above = exp_of(_mm512_sub_ps(_mm512_loadu_ps(weights + s), largest));
        const __m512 e = _mm512_maskz_mov_ps(lanes_left(n - s), above);
        _mm512_storeu_ps(weights + s, e);
        sum = _mm512_add_ps(sum, e);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

/* y += weights · v for some queries and up to BLOCK keys, 64 of a head's dimensions at a time. */
INLINE void add_values(const int n_queries, const float *weights, int64_t room, const float *v, int64_t stride,
                       int64_t n, int64_t head_dim, float *y, int64_t y_step) {
    for (int64_t d = 0; d < head_dim; d += 4 * LANES) { /* as many sums as hide how long an addition takes */
        __m512 sums[TILE][4], values[4];
        __mmask16 there[4];
        UNROLLED for (int p = 0; p < 4; p++) {
            const int64_t left = head_dim - d - p * LANES;
            there[p] = left > 0 ? lanes_left(left) : 0;
            UNROLLED for (int i = 0; i < n_queries; i++)
                sums[i][p] = _mm512_maskz_loadu_ps(there[p], y + i * y_step + d + p * LANES);
        }
        for (int64_t s = 0; s < n; s++) {
            UNROLLED for (int p = 0; p < 4; p++)
                values[p] = _mm512_maskz_loadu_ps(there[p], v + s * stride + d + p * LANES);
            UNROLLED for (int i = 0; i < n_queries; i++) {
                const __m512 weight = _mm512_set1_ps(weights[i * room + s]);
                UNROLLED for (int p = 0; p < 4; p++) sums[i][p] = _mm512_fmadd_ps(weight, values[p], sums[i][p]);
            }
        }
        UNROLLED for (int p = 0; p < 4; p++)
            UNROLLED for (int i = 0; i < n_queries; i++)
                _mm512_mask_storeu_ps(y + i * y_step + d + p * LANES, there[p], sums[i][p]);
    }
}

/* How many of the BLOCK keys from `s` on the i-th query sees. */
INLINE int64_t seen_in_block(const Queries *of, int64_t i, int64_t s) {
    const int64_t n = of->n_keys + i - s;
    return n < 0 ? 0 : n < BLOCK ? n : BLOCK;
}

/* The scores of a query for the keys [begin, end) of the block from `s` on. */
INLINE void score(const Queries *of, int64_t i, int64_t s, int64_t begin, int64_t end, int64_t head_dim) {
    for (int64_t j = begin; j < end; j += LANES) {
        const float *q = of->q + i * of->q_step, *k = of->k + (s + j) * of->stride;
        const __m512 products = end - j >= LANES ? scores_of(q, k, of->stride, LANES, head_dim)
                                                 : scores_of(q, k, of->stride, end - j, head_dim);
        _mm512_storeu_ps(of->weights + i * of->room + s + j, _mm512_mul_ps(products, _mm512_set1_ps(of->scale)));
    }
}

/* The same of TILE queries for the first keys of the block, which all of them see; how many these are. */
INLINE int64_t score_together(const Queries *of, int64_t i, int64_t s, int64_t head_dim) {
    const int64_t n = seen_in_block(of, i, s) / TILE * TILE;
    for (int64_t j = 0; j < n; j += TILE) {
        const __m512 products = tile_of_scores(of->q + i * of->q_step, of->q_step, of->k + (s + j) * of->stride,
                                               of->stride, head_dim);
        const __m512 scores = _mm512_mul_ps(products, _mm512_set1_ps(of->scale));
        float *weights = of->weights + i * of->room + s + j;
        _mm_storeu_ps(weights, _mm512_extractf32x4_ps(scores, 0));
        _mm_storeu_ps(weights + of->room, _mm512_extractf32x4_ps(scores, 1));
        _mm_storeu_ps(weights + 2 * of->room, _mm512_extractf32x4_ps(scores, 2));
        _mm_storeu_ps(weights + 3 * of->room, _mm512_extractf32x4_ps(scores, 3));
    }
    return n;
}

/* Each query's weighted mean of the values that it sees, block by block, so that keys and values are read from the
   smallest cache; zeros where it sees none. What queries see together is computed together: the same sums, each added up
   key after key. */
INLINE void attend(const Queries *of, int64_t head_dim) {
    const int64_t most_keys = of->n_keys + of->n_queries - 1;
    for (int64_t s = 0; s < most_keys; s += BLOCK)
        for (int64_t i = 0; i < of->n_queries; i += TILE) {
            const int64_t few = of->n_queries - i < TILE ? of->n_queries - i : TILE;
            const int64_t done = few == TILE ? score_together(of, i, s, head_dim) : 0;
            for (int64_t r = i; r < i + few; r++) score(of, r, s, done, seen_in_block(of, r, s), head_dim);
        }
    float inverse[QUERIES];
    for (int64_t i = 0; i < of->n_queries; i++) {
        inverse[i] = of->n_keys + i > 0 ? softmax(of->weights + i * of->room, of->n_keys + i) : 0.0f;
        memset(of->y + i * of->y_step, 0, head_dim * sizeof(float));
    }
    for (int64_t s = 0; s < most_keys; s += BLOCK)
        for (int64_t i = 0; i < of->n_queries; i += TILE) {
            const int64_t few = of->n_queries - i < TILE ? of->n_queries - i : TILE;
            const int64_t all = few == TILE ? seen_in_block(of, i, s) : 0;
            const float *weights = of->weights + s, *v = of->v + s * of->stride;
            if (all)
                add_values(TILE, weights + i * of->room, of->room, v, of->stride, all, head_dim, of->y + i * of->y_step,
                           of->y_step);
            for (int64_t r = i; r < i + few; r++)
                add_values(1, weights + r * of->room + all, of->room, v + all * of->stride, of->stride,
                           seen_in_block(of, r, s) - all, head_dim, of->y + r * of->y_step, of->y_step);
        }
    for (int64_t i = 0; i < of->n_queries; i++)
        for (int64_t d = 0; d < head_dim; d++) of->y[i * of->y_step + d] *= inverse[i];
}

typedef struct { /* new tokens, and what they look at */
    const float *q, *k, *v;
    float *y;               /* (rows, tokens, heads, head_dim) */
    int64_t q_token, q_head; /* numbers between one query and the next by token and head */
    Strides strides;        /* of keys and values */
    const int64_t *pad;     /* of each row */
    int64_t n_rows, n_new;
    int64_t n_seen; /* slots that a row's last token sees, its padding included */
    int64_t n_head, head_dim;
    float scale;
} Attention;

/* Every new token in every head. Tokens see the slots from their row's padding on up to their own; padding sees none, but
   the last token sees itself. `weights` has room for QUERIES · room_for(n_seen) of each thread.

   Neighbouring queries go to different threads: they take as long. */
static void attend_shared(const Attention *of, float *weights) {
    const int64_t parts = (of->n_new + QUERIES - 1) / QUERIES, room = room_for(of->n_seen);
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < of->n_rows * of->n_head * parts; i++) {
        const int64_t t = i % parts * QUERIES, head = i / parts % of->n_head, row = i / parts / of->n_head;
        const int64_t token = row * of->n_new + t, begin = of->pad[row] < of->n_seen ? of->pad[row] : of->n_seen - 1;
        const Strides step = of->strides;
        const int64_t offset = row * step.row + head * step.head + begin * step.slot;
        const Queries some = {
            .q = of->q + token * of->q_token + head * of->q_head,
            .k = of->k + offset,
            .v = of->v + offset,
            .y = of->y + (token * of->n_head + head) * of->head_dim,
            .weights = weights + omp_get_thread_num() * QUERIES * room,
            .n_queries = of->n_new - t < QUERIES ? of->n_new - t : QUERIES,
            .q_step = of->q_token,
            .y_step = of->n_head * of->head_dim,
            .n_keys = of->n_seen - of->n_new + t + 1 - begin,
            .stride = step.slot,
            .room = room,
            .scale = of->scale,
        };
        if (of->head_dim == 64)
            attend(&some, 64); /* that of all of GPT-2's sizes, known to the compiler */
        else
            attend(&some, of->head_dim);
    }
}
