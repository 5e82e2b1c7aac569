/* Products of rows rounded to 8 bits with weights of 8 bits, by instructions that add up products of integers (VNNI).

Each linear layer gives what `int8.PlainMatrix` gives, with the operations around it, to the bit.

Weights lie as (out / 16, in / 4, 16, 4): one instruction multiplies 4 inputs by 4 weights of 16 outputs each, and adds
them to the outputs' sums. Inputs are taken as unsigned, 128 more than they are, which 128 times each output's weights
take back (`Linear.shift`). */

#pragma once
#include <omp.h>
#include <string.h>

#include "layers.h"

/* As in int8.py: steps of an input, steps of one that is two numbers, and what its rest is multiplied by. */
#define LARGEST 127
#define HUNDREDTHS 100
#define REST (2 * LARGEST)
#define ZERO 128 /* where unsigned inputs have their zero */

#define INPUTS 4      /* numbers of 8 bits in one of 32 */
#define INT8_ROWS 8   /* of a tile, at most */
#define INT8_BLOCKS 8 /* of a tile, at most, with LANES outputs each */
#define WIDE_BLOCKS 3 /* of a tile with INT8_ROWS: 24 sums, of 32 registers */

typedef struct { /* rows rounded to 8 bits */
    uint8_t *numbers; /* a row, or for fine layers two, with `wide` bytes each */
    float *largest;   /* what each row was divided by */
    int64_t wide;
} Rounded;

INLINE int is_fine(const Linear *layer) { return layer->kind == INT8_FINE; }

INLINE __m128i to_bytes(__m512 steps) { /* from 0 to 255, to the nearest whole one */
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(steps), _mm512_setzero_si512()));
}

/* One row, as `int8.even_out`, and `two_numbers` for a fine layer. */
static void round_row(const float *x, const Linear *layer, uint8_t *numbers, float *largest, int64_t wide) {
    const int64_t n = layer->n_in;
    const __m512 no_sign = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)), shift = _mm512_set1_ps(ZERO);
    __m512i most = _mm512_setzero_si512(); /* as integers, so that NaN is the largest */
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 there = lanes_left(n - i);
        const __m512 evened =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, layer->input_scale + i));
        most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_and_ps(evened, no_sign)));
    }
    const int32_t bits = _mm512_reduce_max_epi32(most);
    memcpy(largest, &bits, sizeof bits);
    const __m512 divisor = _mm512_set1_ps(*largest);
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 there = lanes_left(n - i);
        const __m512 evened =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, layer->input_scale + i));
        const __m512 ratio = _mm512_div_ps(evened, divisor);
        /* From -1 to 1; 0/0 and infinity/infinity, which are NaN, count as 0. */
        const __m512 part = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(ratio, ratio, _CMP_ORD_Q), ratio);
        const __m512 steps = _mm512_set1_ps(is_fine(layer) ? HUNDREDTHS : LARGEST);
        if (!is_fine(layer)) {
            _mm_mask_storeu_epi8(numbers + i, there, to_bytes(_mm512_fmadd_ps(part, steps, shift)));
            continue;
        }
        const __m512 nearest = _mm512_roundscale_ps(_mm512_mul_ps(part, steps), _MM_FROUND_TO_NEAREST_INT);
        const __m512 hundredths = _mm512_div_ps(nearest, steps);
        const __m512 left = _mm512_mul_ps(_mm512_sub_ps(part, hundredths), _mm512_set1_ps(REST));
        _mm_mask_storeu_epi8(numbers + i, there, to_bytes(_mm512_fmadd_ps(hundredths, steps, shift)));
        _mm_mask_storeu_epi8(numbers + wide + i, there, to_bytes(_mm512_fmadd_ps(left, steps, shift)));
    }
}

/* 16 outputs of one row from the sums of its numbers' products: as `int8.put_together` and `scale_back`. */
INLINE void finish(__m512i sum, __m512i of_left, const Linear *layer, int64_t out, float largest, Epilogue then, float *y) {
    const __mmask16 there = lanes_left(layer->n_out - out);
    const __m512i shift = _mm512_maskz_loadu_epi32(there, layer->shift + out);
    const __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, layer->scale + out),
                                       _mm512_set1_ps(is_fine(layer) ? (float)(1.0 / HUNDREDTHS) : (float)(1.0 / LARGEST)));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, shift)), scale);
    if (is_fine(layer)) {
        const __m512 rest = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(of_left, shift)), scale);
        product = _mm512_fmadd_ps(rest, _mm512_set1_ps((float)(1.0 / REST)), product);
    }
    const __m512 factor = _mm512_set1_ps(largest);
    __m512 result = layer->bias ? _mm512_fmadd_ps(product, factor, _mm512_maskz_loadu_ps(there, layer->bias + out))
                                : _mm512_mul_ps(product, factor);
    if (then == ADD) result = _mm512_add_ps(_mm512_maskz_loadu_ps(there, y + out), result);
    if (then == GELU) result = gelu_of(result);
    _mm512_mask_storeu_ps(y + out, there, result);
}

/* The same for all rows and blocks of a tile; of a fine layer, every second row is what the one before leaves over. */
COMPILED_ONCE void finish_all(__m512i sums[INT8_ROWS][INT8_BLOCKS], int n_rows, int n_blocks, Rounded x,
                              const Linear *layer, int64_t block, Epilogue then, float *y) {
    const int each = is_fine(layer) ? 2 : 1;
    for (int r = 0; r < n_rows; r += each)
        for (int b = 0; b < n_blocks; b++)
            finish(sums[r][b], sums[r + each - 1][b], layer, (block + b) * LANES, x.largest[r / each], then,
                   y + r / each * layer->n_out);
}

/* The products of a few rows of numbers, for a few blocks of 16 outputs: as many sums as there are registers. */
INLINE void int8_tile(const int n_rows, const int n_blocks, Rounded x, const Linear *layer, int64_t block,
                      Epilogue then, float *y) {
    const int64_t steps = x.wide / INPUTS;
    const int8_t *weight = (const int8_t *)layer->weight + block * LANES * x.wide;
    __m512i sums[INT8_ROWS][INT8_BLOCKS];
    UNROLLED for (int r = 0; r < n_rows; r++)
        UNROLLED for (int b = 0; b < n_blocks; b++) sums[r][b] = _mm512_setzero_si512();
    for (int64_t i = 0; i < steps; i++) {
        __m512i weights[INT8_BLOCKS];
        UNROLLED for (int b = 0; b < n_blocks; b++) {
            const int8_t *lies = weight + (b * steps + i) * LANES * INPUTS;
            weights[b] = _mm512_loadu_si512(lies);
            _mm_prefetch(lies + n_blocks * x.wide * LANES, _MM_HINT_T1); /* of the next tile, while this one is computed */
        }
        UNROLLED for (int r = 0; r < n_rows; r++) {
            int32_t four;
            memcpy(&four, x.numbers + r * x.wide + i * INPUTS, INPUTS);
            UNROLLED for (int b = 0; b < n_blocks; b++)
                sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], _mm512_set1_epi32(four), weights[b]);
        }
    }
    __m512i found[INT8_ROWS][INT8_BLOCKS]; /* in memory, where `sums` are in registers */
    UNROLLED for (int r = 0; r < n_rows; r++)
        UNROLLED for (int b = 0; b < n_blocks; b++) found[r][b] = sums[r][b];
    finish_all(found, n_rows, n_blocks, x, layer, block, then, y);
}

#define INT8_TILES(n_rows, n_blocks)                                                               \
    do {                                                                                      \
        int64_t b = from;                                                                     \
        for (; b + n_blocks <= to; b += n_blocks) int8_tile(n_rows, n_blocks, x, layer, b, then, y); \
        for (; b < to; b++) int8_tile(n_rows, 1, x, layer, b, then, y);                            \
    } while (0)

/* All of the blocks [from, to) of outputs for up to INT8_ROWS rows of numbers. */
static void int8_few_rows(int64_t n, Rounded x, const Linear *layer, int64_t from, int64_t to, Epilogue then, float *y) {
    switch (n) {
        case 1: INT8_TILES(1, 8); break;
        case 2: INT8_TILES(2, 6); break;
        case 3: INT8_TILES(3, 4); break;
        case 4: INT8_TILES(4, 4); break;
        case 5: INT8_TILES(5, WIDE_BLOCKS); break;
        case 6: INT8_TILES(6, WIDE_BLOCKS); break;
        case 7: INT8_TILES(7, WIDE_BLOCKS); break;
        case 8: INT8_TILES(8, WIDE_BLOCKS); break;
    }
}

/* y = x · weightᵀ + bias for rounded rows: each thread computes its share of the outputs. */
static void multiply_int8_shared(Rounded x, int64_t n_rows, const Linear *layer, Epilogue then, float *y) {
    const int64_t each = is_fine(layer) ? 2 : 1, blocks = (layer->n_out + LANES - 1) / LANES;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = blocks * thread / threads, end = blocks * (thread + 1) / threads;
    const int64_t step = n_rows * each > INT8_ROWS ? WIDE_BLOCKS : blocks; /* of many rows, all see the same weights before the next */
    for (int64_t from = begin; from < end; from += step) {
        const int64_t to = from + step < end ? from + step : end;
        for (int64_t r = 0; r < n_rows * each; r += INT8_ROWS) {
            const int64_t n = n_rows * each - r < INT8_ROWS ? n_rows * each - r : INT8_ROWS;
            const Rounded few = {x.numbers + r * x.wide, x.largest + r / each, x.wide};
            int8_few_rows(n, few, layer, from, to, then, y + r / each * layer->n_out);
        }
    }
#pragma omp barrier
}

/* Rounds rows, after a norm if there is one, which goes through `normed`. */
static void round_shared(const float *x, int64_t n_rows, const Norm *norm, float *normed, const Linear *layer,
                         Rounded *rounded) {
    const int64_t n = layer->n_in, each = is_fine(layer) ? 2 : 1, wide = TO_64(n);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) {
        const float *row = x + r * n;
        if (norm) normalize(row, norm, normed + r * n), row = normed + r * n;
        round_row(row, layer, rounded->numbers + r * each * wide, rounded->largest + r, wide);
    }
}
