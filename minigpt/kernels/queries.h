/* Some tokens' queries in one head, and the weighted means of the values that they see. */

#pragma once
#include <string.h>

#include "vectors.h"

#define TILE 4   /* queries are computed together: a value that was read, or a key, serves all of them */
#define BLOCK 64 /* keys fit into the smallest of the processor's caches with their values */

typedef struct {
    const float *q, *k, *v;
    float *y;
    int64_t n_queries, q_step, y_step; /* numbers from one query to the next */
    int64_t n_keys; /* that the first query sees, none if <= 0; each query after it sees one more */
    int64_t stride; /* numbers from one key to the next, and from one value to the next */
    float scale;
    float *scratch; /* room_for them, aligned to 64 bytes */
} Queries;

/* Numbers that a thread needs memory for, if up to LANES queries see up to n keys. */
static int64_t room_for(int64_t n, int64_t head_dim) { return LANES * (TO_64(n) + TO_64(head_dim)); }

/* Keys that the last query sees. */
INLINE int64_t most_seen(const Queries *queries) { return queries->n_keys + queries->n_queries - 1; }

/* How many of the BLOCK keys from `s` on the i-th query sees. */
INLINE int64_t seen_in_block(const Queries *queries, int64_t i, int64_t s) {
    const int64_t n = queries->n_keys + i - s;
    return n < 0 ? 0 : n < BLOCK ? n : BLOCK;
}

typedef struct { /* of keys; the steps are numbers from one query's to the next one's, and from one key's to the next */
    const float *weights;
    int64_t query_step, key_step;
} AttentionWeights;

/* y += weights · v for some queries, the first of which is the i-th, and the keys [from, to): 64 of a head's dimensions at
   a time. */
INLINE void add_values(const int n_queries, const Queries *queries, AttentionWeights by, int64_t i, int64_t from,
                       int64_t to, int64_t head_dim) {
    float *y = queries->y + i * queries->y_step;
    const float *weights = by.weights + i * by.query_step;
    for (int64_t d = 0; d < head_dim; d += 4 * LANES) { /* as many sums as hide how long an addition takes */
        __m512 sums[TILE][4], values[4];
        __mmask16 there[4];
        UNROLLED for (int p = 0; p < 4; p++) {
            const int64_t left = head_dim - d - p * LANES;
            there[p] = left > 0 ? lanes_left(left) : 0;
            UNROLLED for (int r = 0; r < n_queries; r++)
                sums[r][p] = _mm512_maskz_loadu_ps(there[p], y + r * queries->y_step + d + p * LANES);
        }
        for (int64_t s = from; s < to; s++) {
            UNROLLED for (int p = 0; p < 4; p++)
                values[p] = _mm512_maskz_loadu_ps(there[p], queries->v + s * queries->stride + d + p * LANES);
            UNROLLED for (int r = 0; r < n_queries; r++) {
                const __m512 weight = _mm512_set1_ps(weights[r * by.query_step + s * by.key_step]);
                UNROLLED for (int p = 0; p < 4; p++) sums[r][p] = _mm512_fmadd_ps(weight, values[p], sums[r][p]);
            }
        }
        UNROLLED for (int p = 0; p < 4; p++)
            UNROLLED for (int r = 0; r < n_queries; r++)
                _mm512_mask_storeu_ps(y + r * queries->y_step + d + p * LANES, there[p], sums[r][p]);
    }
}

/* Each query's sum of weight · value over the keys that it sees, times its `factor`. Block by block, so that values are
   read from the smallest cache; for TILE queries together over the keys that all of them see. */
INLINE void weighted_sums(const Queries *queries, AttentionWeights by, const float *factor, int64_t head_dim) {
    for (int64_t i = 0; i < queries->n_queries; i++) memset(queries->y + i * queries->y_step, 0, head_dim * sizeof(float));
    for (int64_t s = 0; s < most_seen(queries); s += BLOCK)
        for (int64_t i = 0; i < queries->n_queries; i += TILE) {
            const int64_t few = queries->n_queries - i < TILE ? queries->n_queries - i : TILE;
            const int64_t together = few == TILE ? seen_in_block(queries, i, s) : 0;
            if (together) add_values(TILE, queries, by, i, s, s + together, head_dim);
            for (int64_t r = i; r < i + few; r++)
                add_values(1, queries, by, r, s + together, s + seen_in_block(queries, r, s), head_dim);
        }
    for (int64_t i = 0; i < queries->n_queries; i++)
        for (int64_t d = 0; d < head_dim; d++) queries->y[i * queries->y_step + d] *= factor[i];
}
