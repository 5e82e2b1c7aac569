/* Products of rows with weights of float32 or float16 as they lie: (out, in).

The processor's memory is what few rows wait for: each weight is read once, and the next ones are asked for while these
are multiplied. The sum of each output is added up in one order, whatever rows and outputs are computed beside it. */

#pragma once
#include "layers.h"
#include "team.h"

#define PLAIN_ROWS 8     /* of a tile, at most */
#define PLAIN_OUTPUTS 12 /* of a tile, at most; with 24 sums there are registers left for inputs and weights */
#define SUMS (2 * LANES) /* of a tile, for which there is room */
#define TOGETHER 24      /* outputs whose weights stay in the processor's caches, while many rows are multiplied by them */

INLINE const void *weight_at(const Linear *layer, const Kind kind, int64_t out, int64_t i) {
    return (const char *)layer->weight + (out * layer->n_in + i) * (kind == FLOAT16 ? 2 : 4);
}

INLINE __m512 weights_from(const void *weights, const Kind kind, __mmask16 there) {
    return kind == FLOAT16 ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, weights))
                           : _mm512_maskz_loadu_ps(there, weights);
}

/* Adds the products of up to 16 inputs, from the i-th on. `ahead`: asks for the weights of the next tile meanwhile. */
INLINE void add_products(__m512 sums[SUMS], const Kind kind, const int n_rows, const int n_outputs, const int ahead,
                         const float *x, const Linear *layer, int64_t out, int64_t i, __mmask16 there) {
    __m512 weights[PLAIN_OUTPUTS];
    UNROLLED32 for (int o = 0; o < n_outputs; o++) {
        weights[o] = weights_from(weight_at(layer, kind, out + o, i), kind, there);
        if (ahead) _mm_prefetch(weight_at(layer, kind, out + o + n_outputs, i), _MM_HINT_T1);
    }
    UNROLLED for (int r = 0; r < n_rows; r++) {
        const __m512 inputs = _mm512_maskz_loadu_ps(there, x + r * layer->n_in + i);
        UNROLLED32 for (int o = 0; o < n_outputs; o++)
            sums[r * n_outputs + o] = _mm512_fmadd_ps(inputs, weights[o], sums[r * n_outputs + o]);
    }
}

/* Adds the products of the inputs that are left after the last 16, and the bias; and stores what they make. */
COMPILED_ONCE void finish_sums(__m512 sums[SUMS], const Kind kind, int n_rows, int n_outputs, const float *x,
                               const Linear *layer, int64_t out, Epilogue then, float *y) {
    const int64_t n_in = layer->n_in, whole = n_in / LANES * LANES;
    if (whole < n_in)
        for (int r = 0; r < n_rows; r++)
            for (int o = 0; o < n_outputs; o++)
                add_products(sums + r * n_outputs + o, kind, 1, 1, 0, x + r * n_in, layer, out + o, whole,
                             lanes_left(n_in - whole));
    float found[SUMS + LANES];
    for (int i = 0; i < n_rows * n_outputs; i += LANES) _mm512_storeu_ps(found + i, sums_of(sums + i));
    const __mmask16 there = lanes_left(n_outputs);
    const __m512 bias = layer->bias ? _mm512_maskz_loadu_ps(there, layer->bias + out) : _mm512_setzero_ps();
    for (int r = 0; r < n_rows; r++) {
        __m512 result = _mm512_add_ps(_mm512_loadu_ps(found + r * n_outputs), bias);
        if (then == ADD) result = _mm512_add_ps(_mm512_maskz_loadu_ps(there, y + r * layer->n_out + out), result);
        _mm512_mask_storeu_ps(y + r * layer->n_out + out, there, result);
    }
}

/* A few outputs of a few rows. */
INLINE void plain_tile(const Kind kind, const int n_rows, const int n_outputs, const int ahead, const float *x,
                       const Linear *layer, int64_t out, Epilogue then, float *y) {
    __m512 sums[SUMS], found[SUMS]; /* in registers, and in memory */
    UNROLLED32 for (int i = 0; i < n_rows * n_outputs; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t i = 0; i + LANES <= layer->n_in; i += LANES)
        add_products(sums, kind, n_rows, n_outputs, ahead, x, layer, out, i, 0xffff);
    UNROLLED32 for (int i = 0; i < SUMS; i++) found[i] = i < n_rows * n_outputs ? sums[i] : _mm512_setzero_ps();
    finish_sums(found, kind, n_rows, n_outputs, x, layer, out, then, y);
}

COMPILED_ONCE void plain_output(const Kind kind, const float *x, const Linear *layer, int64_t out, Epilogue then,
                                float *y) {
    plain_tile(kind, 1, 1, 0, x, layer, out, then, y);
}

/* The outputs [from, to) of a few rows: as many together as a tile holds, then one by one. */
INLINE void plain_tiles(const Kind kind, const int n_rows, const int n_outputs, const int ahead, const float *x,
                        const Linear *layer, int64_t from, int64_t to, Epilogue then, float *y) {
    for (; from + n_outputs <= to; from += n_outputs)
        plain_tile(kind, n_rows, n_outputs, ahead, x, layer, from, then, y);
    for (; from < to; from++)
        for (int r = 0; r < n_rows; r++)
            plain_output(kind, x + r * layer->n_in, layer, from, then, y + r * layer->n_out);
}

INLINE void plain_few_rows(const Kind kind, const float *x, int64_t n_rows, const Linear *layer, int64_t from,
                           int64_t to, Epilogue then, float *y) {
    switch (n_rows) {
        case 1: plain_tiles(kind, 1, 12, 1, x, layer, from, to, then, y); break;
        case 2: plain_tiles(kind, 2, 8, 1, x, layer, from, to, then, y); break;
        case 3: plain_tiles(kind, 3, 8, 1, x, layer, from, to, then, y); break;
        case 4: plain_tiles(kind, 4, 6, 1, x, layer, from, to, then, y); break;
        case 5: plain_tiles(kind, 5, 4, 1, x, layer, from, to, then, y); break;
        case 6: plain_tiles(kind, 6, 4, 1, x, layer, from, to, then, y); break;
        case 7: plain_tiles(kind, 7, 3, 1, x, layer, from, to, then, y); break;
        case 8: plain_tiles(kind, 8, 3, 1, x, layer, from, to, then, y); break;
    }
}

/* The same for more than PLAIN_ROWS, by weights of float32, which come from memory for the first rows alone. */
static void plain_many_rows(const float *x, int64_t n_rows, const Linear *layer, int64_t from, int64_t to, Epilogue then,
                            float *y) {
    plain_tiles(FLOAT32, 4, 6, 1, x, layer, from, to, then, y);
    int64_t r = 4;
    for (; r + 4 <= n_rows; r += 4)
        plain_tiles(FLOAT32, 4, 6, 0, x + r * layer->n_in, layer, from, to, then, y + r * layer->n_out);
    plain_few_rows(FLOAT32, x + r * layer->n_in, n_rows - r, layer, from, to, then, y + r * layer->n_out);
}

/* Some outputs of a layer with weights of float16 as one of float32; y stays as wide as it is. */
static Linear widen(const Linear *layer, int64_t from, int64_t to, float *widened) {
    for (int64_t i = 0; i < (to - from) * layer->n_in; i += LANES) {
        const __mmask16 there = lanes_left((to - from) * layer->n_in - i);
        _mm512_mask_storeu_ps(widened + i, there, weights_from(weight_at(layer, FLOAT16, from, i), FLOAT16, there));
    }
    Linear some = *layer;
    some.weight = widened, some.kind = FLOAT32;
    if (layer->bias) some.bias = layer->bias + from;
    return some;
}

/* y = x · weightᵀ + bias: each thread computes its share of the outputs; `widened` has room for TOGETHER of its own. */
static void multiply_plain_shared(const float *x, int64_t n_rows, const Linear *layer, Epilogue then, Team team,
                                  float *widened, float *y) {
    const int64_t begin = share(layer->n_out, team.thread, team), end = share(layer->n_out, team.thread + 1, team);
    if (n_rows <= PLAIN_ROWS && layer->kind == FLOAT16)
        plain_few_rows(FLOAT16, x, n_rows, layer, begin, end, then, y);
    else if (n_rows <= PLAIN_ROWS)
        plain_few_rows(FLOAT32, x, n_rows, layer, begin, end, then, y);
    else
        for (int64_t from = begin; from < end; from += TOGETHER) {
            const int64_t to = from + TOGETHER < end ? from + TOGETHER : end;
            if (layer->kind == FLOAT16) {
                const Linear some = widen(layer, from, to, widened);
                plain_many_rows(x, n_rows, &some, 0, to - from, then, y + from);
            } else
                plain_many_rows(x, n_rows, layer, from, to, then, y);
        }
    /* Not in the tiles: of 16 numbers at once, they have at most 12. */
    if (then == GELU)
        for (int64_t r = 0; r < n_rows; r++)
            for (int64_t out = begin; out < end; out += LANES) {
                float *some = y + r * layer->n_out + out;
                gelu_of_some(some, end - out, some);
            }
    wait_for_all(team);
}
