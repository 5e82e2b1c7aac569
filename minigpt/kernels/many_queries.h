/* Attention of up to LANES queries side by side: a register holds a number of each.

To the bit what few_queries.h gives: the same products, added up in the same order. */

#pragma once
#include "queries.h"

#define KEYS 4 /* share what is read of queries */

/* Up to LANES rows of 16 columns, transposed: y begins with the first column, a number of each row. Zeros stand for rows
   that are missing, and for columns that are not `there`. y is aligned to 64 bytes. */
COMPILED_ONCE void transpose(const float *x, int64_t step, int64_t n_rows, __mmask16 there, float *y) {
    __m512 a[LANES], b[LANES];
    UNROLLED32 for (int i = 0; i < LANES; i++)
        a[i] = i < n_rows ? _mm512_maskz_loadu_ps(there, x + i * step) : _mm512_setzero_ps();
    UNROLLED for (int i = 0; i < LANES; i += 2) { /* within quarters of registers: pairs of rows, then fours */
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    UNROLLED for (int i = 0; i < LANES; i += 4)
        UNROLLED for (int j = 0; j < 2; j++) {
            const __m512d one = _mm512_castps_pd(b[i + j]), other = _mm512_castps_pd(b[i + j + 2]);
            a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
        }
    UNROLLED for (int i = 0; i < 4; i++)
        UNROLLED for (int j = 0; j < 2; j++) { /* quarters 0 and 2 of four registers, then 1 and 3 */
            const __m512 low = j ? _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd) : _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
            const __m512 high = j ? _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd)
                                  : _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
            _mm512_store_ps(y + (i + 4 * j) * LANES, _mm512_shuffle_f32x4(low, high, 0x88));
            _mm512_store_ps(y + (i + 4 * j + 8) * LANES, _mm512_shuffle_f32x4(low, high, 0xdd));
        }
}

/* sums += others, register by register. */
INLINE void add_each(const int n, __m512 *sums, const __m512 *others) {
    UNROLLED for (int j = 0; j < n; j++) sums[j] = _mm512_add_ps(sums[j], others[j]);
}

/* Each query's products with n keys over the dimensions first, first + 16, first + 32, ...: what one lane adds up in
   few_queries.h. */
INLINE void every_16th(const int n, const float *q, const float *const *k, int64_t head_dim, int64_t first, __m512 *sums) {
    UNROLLED for (int j = 0; j < n; j++) sums[j] = _mm512_setzero_ps();
    UNROLLED for (int64_t d = first; d < head_dim; d += LANES) {
        const __m512 queries = _mm512_load_ps(q + d * LANES);
        UNROLLED for (int j = 0; j < n; j++) sums[j] = _mm512_fmadd_ps(queries, _mm512_set1_ps(k[j][d]), sums[j]);
    }
}

/* Lanes first to first + 3, added as `sums_of` does: (0 + 2) + (1 + 3). */
INLINE void four_of_16(const int n, const float *q, const float *const *k, int64_t head_dim, int64_t first, __m512 *sums) {
    __m512 other[KEYS], last[KEYS];
    every_16th(n, q, k, head_dim, first, sums);
    every_16th(n, q, k, head_dim, first + 2, other);
    add_each(n, sums, other);
    every_16th(n, q, k, head_dim, first + 1, other);
    every_16th(n, q, k, head_dim, first + 3, last);
    add_each(n, other, last);
    add_each(n, sums, other);
}

/* All 16 lanes, their fours added as `sums_of` does: (0 + 8) + (4 + 12). */
INLINE void products_of(const int n, const float *q, const float *const *k, int64_t head_dim, __m512 *sums) {
    __m512 other[KEYS], last[KEYS];
    four_of_16(n, q, k, head_dim, 0, sums);
    four_of_16(n, q, k, head_dim, 8, other);
    add_each(n, sums, other);
    four_of_16(n, q, k, head_dim, 4, other);
    four_of_16(n, q, k, head_dim, 12, last);
    add_each(n, other, last);
    add_each(n, sums, other);
}

/* The queries that see key s. */
INLINE __mmask16 that_see(const Queries *queries, int64_t s) {
    const int64_t blind = s - queries->n_keys + 1; /* so many of the first queries do not see it */
    return blind <= 0 ? 0xffff : blind < LANES ? (__mmask16)(0xffff << blind) : 0;
}

/* Stores the scores for n keys from s on; the largest that each query has seen so far. That may pass over a NaN, which
   `exp_of` keeps. */
INLINE __m512 score_keys(const int n, const Queries *queries, const float *q, int64_t s, int64_t head_dim, __m512 largest,
                         float *weights) {
    const float *k[KEYS];
    __m512 products[KEYS];
    UNROLLED for (int j = 0; j < n; j++) k[j] = queries->k + (s + j) * queries->stride;
    products_of(n, q, k, head_dim, products);
    UNROLLED for (int j = 0; j < n; j++) {
        const __m512 scores = _mm512_mul_ps(products[j], _mm512_set1_ps(queries->scale));
        largest = _mm512_mask_max_ps(largest, that_see(queries, s + j), largest, scores);
        _mm512_store_ps(weights + (s + j) * LANES, scores);
    }
    return largest;
}

/* Replaces scores by exp(score - the largest), and returns 1 / their sum; 0 where a query sees nothing. Up to 15 keys
   after the last one get zeros. */
COMPILED_ONCE __m512 softmax_of_all(const Queries *queries, __m512 largest, float *weights) {
    __m512 sums[LANES];
    UNROLLED32 for (int j = 0; j < LANES; j++) sums[j] = _mm512_setzero_ps();
    for (int64_t s = 0; s < most_seen(queries); s += LANES)
        UNROLLED32 for (int j = 0; j < LANES; j++) {
            float *of_key = weights + (s + j) * LANES;
            const __m512 e = exp_of(_mm512_sub_ps(_mm512_load_ps(of_key), largest));
            const __m512 seen = _mm512_maskz_mov_ps(that_see(queries, s + j), e);
            _mm512_store_ps(of_key, seen);
            sums[j] = _mm512_add_ps(sums[j], seen);
        }
    UNROLLED for (int half = LANES / 2; half; half /= 2) /* as `_mm512_reduce_add_ps` */
        UNROLLED for (int j = 0; j < half; j++) sums[j] = _mm512_add_ps(sums[j], sums[j + half]);
    return _mm512_maskz_div_ps(that_see(queries, 0), _mm512_set1_ps(1.0f), sums[0]);
}

/* Each query's weighted mean of the values that it sees; zeros where it sees none. */
INLINE void attend_many(const Queries *queries, int64_t head_dim) {
    float *q = queries->scratch, *weights = q + LANES * TO_64(head_dim), factor[LANES];
    for (int64_t d = 0; d < head_dim; d += LANES)
        transpose(queries->q + d, queries->q_step, queries->n_queries, lanes_left(head_dim - d), q + d * LANES);
    __m512 largest = _mm512_set1_ps(-INFINITY);
    int64_t s = 0;
    for (; s + KEYS <= most_seen(queries); s += KEYS)
        largest = score_keys(KEYS, queries, q, s, head_dim, largest, weights);
    for (; s < most_seen(queries); s++) largest = score_keys(1, queries, q, s, head_dim, largest, weights);
    _mm512_storeu_ps(factor, softmax_of_all(queries, largest, weights));
    weighted_sums(queries, (AttentionWeights){weights, 1, LANES}, factor, head_dim);
}
