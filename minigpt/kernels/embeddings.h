/* What enters the first block: the embedding of each token and that of its position, added up. */

#pragma once
#include "plain_products.h"

typedef struct { /* of embeddings */
    const void *weight; /* (n, width) */
    int64_t n, width, kind;
    const float *scale, *input_scale; /* of 8-bit weights alone: of each embedding, and of each dimension */
} Table;

/* Up to 16 dimensions of an embedding, from the i-th on; 8-bit ones multiplied in the order of `Int8Embedding.forward`. */
INLINE __m512 embedding_of(const Table *table, int64_t id, int64_t i) {
    const int64_t at = id * table->width + i;
    const __mmask16 there = lanes_left(table->width - i);
    if (table->kind == FLOAT32) return weights_from((const float *)table->weight + at, FLOAT32, there);
    if (table->kind == FLOAT16) return weights_from((const uint16_t *)table->weight + at, FLOAT16, there);
    const __m512i whole = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(there, (const int8_t *)table->weight + at));
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(table->scale[id]));
    return _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(there, table->input_scale + i));
}

/* The sum of both, whose tables are as wide. */
static void embed(const Table *of_tokens, int64_t token, const Table *of_positions, int64_t position, float *x) {
    for (int64_t i = 0; i < of_tokens->width; i += LANES) {
        const __m512 sum = _mm512_add_ps(embedding_of(of_tokens, token, i), embedding_of(of_positions, position, i));
        _mm512_mask_storeu_ps(x + i, lanes_left(of_tokens->width - i), sum);
    }
}
