/* Attention of a few queries: keys as they lie in memory, a register holds LANES numbers of one. */

#pragma once
#include "queries.h"

#define MANY 8 /* queries, from which on many_queries.h takes less time */

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

/* Numbers from one query's weights to the next one's: full registers are written. */
INLINE int64_t weights_step(const Queries *queries) { return TO_64(most_seen(queries) + LANES); }

/* The scores of a query for the keys [begin, end) of the block from `s` on. */
INLINE void score(const Queries *queries, int64_t i, int64_t s, int64_t begin, int64_t end, int64_t head_dim) {
    for (int64_t j = begin; j < end; j += LANES) {
        const float *q = queries->q + i * queries->q_step, *k = queries->k + (s + j) * queries->stride;
        const __m512 products = end - j >= LANES ? scores_of(q, k, queries->stride, LANES, head_dim)
                                                 : scores_of(q, k, queries->stride, end - j, head_dim);
        float *weights = queries->scratch + i * weights_step(queries) + s + j;
        _mm512_storeu_ps(weights, _mm512_mul_ps(products, _mm512_set1_ps(queries->scale)));
    }
}

/* The same of TILE queries for the first keys of the block, which all of them see; how many these are. */
INLINE int64_t score_together(const Queries *queries, int64_t i, int64_t s, int64_t head_dim) {
    const int64_t n = seen_in_block(queries, i, s) / TILE * TILE, step = weights_step(queries);
    for (int64_t j = 0; j < n; j += TILE) {
        const float *q = queries->q + i * queries->q_step, *k = queries->k + (s + j) * queries->stride;
        const __m512 products = tile_of_scores(q, queries->q_step, k, queries->stride, head_dim);
        const __m512 scores = _mm512_mul_ps(products, _mm512_set1_ps(queries->scale));
        float *weights = queries->scratch + i * step + s + j;
        _mm_storeu_ps(weights, _mm512_extractf32x4_ps(scores, 0));
        _mm_storeu_ps(weights + step, _mm512_extractf32x4_ps(scores, 1));
        _mm_storeu_ps(weights + 2 * step, _mm512_extractf32x4_ps(scores, 2));
        _mm_storeu_ps(weights + 3 * step, _mm512_extractf32x4_ps(scores, 3));
    }
    return n;
}

/* Replaces scores by exp(score - the largest), and returns 1 / their sum. */
COMPILED_ONCE float softmax(float *weights, int64_t n) {
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

/* Each query's weighted mean of the values that it sees; zeros where it sees none. */
INLINE void attend_few(const Queries *queries, int64_t head_dim) {
    for (int64_t s = 0; s < most_seen(queries); s += BLOCK)
        for (int64_t i = 0; i < queries->n_queries; i += TILE) {
            const int64_t few = queries->n_queries - i < TILE ? queries->n_queries - i : TILE;
            const int64_t done = few == TILE ? score_together(queries, i, s, head_dim) : 0;
            for (int64_t r = i; r < i + few; r++) score(queries, r, s, done, seen_in_block(queries, r, s), head_dim);
        }
    const AttentionWeights by = {queries->scratch, weights_step(queries), 1};
    float factor[MANY];
    for (int64_t i = 0; i < queries->n_queries; i++) {
        const int64_t n = queries->n_keys + i;
        factor[i] = n > 0 ? softmax(queries->scratch + i * by.query_step, n) : 0.0f;
    }
    weighted_sums(queries, by, factor, head_dim);
}
