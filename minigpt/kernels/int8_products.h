/* Products of rows rounded to 8 bits with weights of 8 bits, by instructions that add up products of integers (VNNI).

Each linear layer gives what `int8.PlainMatrix` gives, with the operations around it, to the bit.

Weights lie as (out / 16, in / 4, 16, 4): one instruction multiplies 4 inputs by 4 weights of 16 outputs each, and adds
them to the outputs' sums. Inputs are taken as unsigned, 128 more than they are, which 128 times each output's weights
take back (`Linear.shift`). What of an input does not fit into 8 bits is carried into a second number. Few inputs have one:
they are in a list. */

#pragma once
#include <string.h>

#include "layers.h"
#include "team.h"

/* As in int8.py. */
#define LARGEST 127
#define CARRY (2 * LARGEST)
#define TYPICAL 4
#define WHOLE (1 << 24)
#define TINY 1e-30f
#define ZERO_POINT 128 /* where unsigned inputs have their zero */

#define INPUTS 4      /* numbers of 8 bits in one of 32 */
#define INT8_ROWS 8   /* of a tile, at most */
#define INT8_BLOCKS 8 /* of a tile, at most, with LANES outputs each */
#define WIDE_BLOCKS 3 /* of a tile with INT8_ROWS: 24 sums, of 32 registers */

typedef struct { /* what a group of INPUTS inputs carries, 128 more than it is; and the group's number in its row */
    int32_t four, group;
} Carry;

typedef struct { /* rows as whole numbers of steps */
    uint8_t *numbers;   /* of each row `wide` */
    Carry *carries;     /* of each row a list, with room for all of its groups */
    int32_t *n_carries; /* how long each list is */
    float *step;        /* of each row */
    int64_t wide;
} Rounded;

INLINE Carry *list_of(Rounded x, int64_t row) { return x.carries + row * (x.wide / INPUTS); }

/* The rows from r on. */
INLINE Rounded rows_from(Rounded x, int64_t r) {
    return (Rounded){x.numbers + r * x.wide, list_of(x, r), x.n_carries + r, x.step + r, x.wide};
}

INLINE __m512 to_whole(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }

INLINE __m128i to_bytes(__m512 steps) { /* from -127 to 127, as unsigned */
    return _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_add_ps(steps, _mm512_set1_ps(ZERO_POINT))));
}

/* 16 inputs, smoothed. */
INLINE __m512 smoothed(const float *x, const Linear *layer, int64_t i) {
    const __mmask16 there = lanes_left(layer->n_in - i);
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, layer->input_scale + i));
}

/* Adds those of 4 groups (16 inputs, from the i-th on) that carry something; how long the list is then. It always writes 4
   Carries, each as one number of 64 bits: there is room, for a list has room for all groups of its row. */
INLINE int32_t add_to_list(__m512 carried, int64_t i, Carry *list, int32_t n) {
    const __m128i fours = to_bytes(carried);
    const __mmask8 any = _mm_cmpneq_epi32_mask(fours, _mm_set1_epi8((char)ZERO_POINT));
    const __m256i groups = _mm256_add_epi64(_mm256_set1_epi64x(i / INPUTS), _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i carries = _mm256_or_si256(_mm256_cvtepu32_epi64(fours), _mm256_slli_epi64(groups, 32));
    _mm256_storeu_si256((__m256i *)(list + n), _mm256_maskz_compress_epi64(any, carries));
    return n + __builtin_popcount(any);
}

/* One row, as `int8.quantize_rows`; how long its list is. */
static int32_t round_row(const float *x, const Linear *layer, uint8_t *numbers, Carry *list, float *step) {
    const int64_t n = layer->n_in;
    const __m512 no_sign = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
    __m512i most = _mm512_setzero_si512(), sum = _mm512_setzero_si512(); /* as integers, so that NaN is the largest */
    for (int64_t i = 0; i < n; i += LANES)
        most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_and_ps(smoothed(x, layer, i), no_sign)));
    const __m512 of_all = _mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(most)));
    const float largest = _mm512_cvtss_f32(_mm512_max_ps(_mm512_set1_ps(TINY), of_all)); /* NaN stays NaN */
    const int64_t parts = WHOLE / n;
    const __m512 per_largest = _mm512_set1_ps(parts * (1.0f / largest));
    for (int64_t i = 0; i < n; i += LANES) { /* whole numbers, whose sum is the same in any order */
        const __m512 size = _mm512_mul_ps(_mm512_and_ps(smoothed(x, layer, i), no_sign), per_largest);
        sum = _mm512_add_epi32(sum, _mm512_cvtps_epi32(size));
    }
    const float typical = _mm512_reduce_add_epi32(sum) * (float)((double)TYPICAL / (parts * n));
    const float limit = fminf(fmaxf(typical, (float)(1.0 / CARRY)), 1.0f);
    const float per_unit = LARGEST * (1.0f / (limit * largest));
    int32_t n_carries = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 whole = to_whole(_mm512_mul_ps(smoothed(x, layer, i), _mm512_set1_ps(per_unit)));
        if (_mm512_cmp_ps_mask(_mm512_and_ps(whole, no_sign), _mm512_set1_ps(LARGEST), _CMP_GT_OQ)) {
            const __m512 carried = to_whole(_mm512_mul_ps(whole, _mm512_set1_ps((float)(1.0 / CARRY))));
            whole = _mm512_fnmadd_ps(carried, _mm512_set1_ps(CARRY), whole);
            n_carries = add_to_list(carried, i, list, n_carries);
        }
        _mm_mask_storeu_epi8(numbers + i, lanes_left(n - i), to_bytes(whole));
    }
    *step = isfinite(largest) ? 1.0f / per_unit : NAN;
    return n_carries;
}

/* 16 outputs of one row from the sums of its numbers' products: as `int8.Matrix.affine`. */
INLINE void finish(__m512i sum, __m512i carried, const Linear *layer, int64_t out, float step, Epilogue then, float *y) {
    const __mmask16 there = lanes_left(layer->n_out - out);
    const __m512 scale = _mm512_maskz_loadu_ps(there, layer->scale + out);
    sum = _mm512_sub_epi32(sum, _mm512_maskz_loadu_epi32(there, layer->shift + out));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    product = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(carried), scale), _mm512_set1_ps(CARRY), product);
    const __m512 factor = _mm512_set1_ps(step);
    __m512 result = layer->bias ? _mm512_fmadd_ps(product, factor, _mm512_maskz_loadu_ps(there, layer->bias + out))
                                : _mm512_mul_ps(product, factor);
    if (then == ADD) result = _mm512_add_ps(_mm512_maskz_loadu_ps(there, y + out), result);
    if (then == GELU) result = gelu_of(result);
    _mm512_mask_storeu_ps(y + out, there, result);
}

typedef struct { /* the sums of first numbers' products, and of carried ones', for rows and blocks of outputs */
    __m512i sums[INT8_ROWS][INT8_BLOCKS], carried[INT8_ROWS][INT8_BLOCKS];
} Tile;

COMPILED_ONCE void finish_all(const Tile *tile, int n_rows, int n_blocks, Rounded x, const Linear *layer, int64_t block,
                              Epilogue then, float *y) {
    for (int r = 0; r < n_rows; r++)
        for (int b = 0; b < n_blocks; b++)
            finish(tile->sums[r][b], tile->carried[r][b], layer, (block + b) * LANES, x.step[r], then,
                   y + r * layer->n_out);
}

/* The products of what is carried, for a few rows and blocks of 16 outputs. */
INLINE void multiply_carried(int n_rows, const int n_blocks, Rounded x, const int8_t *weight, Tile *tile) {
    for (int r = 0; r < n_rows; r++) {
        __m512i sums[INT8_BLOCKS], shifts[INT8_BLOCKS];
        UNROLLED for (int b = 0; b < n_blocks; b++) sums[b] = shifts[b] = _mm512_setzero_si512();
        const Carry *list = list_of(x, r);
        for (const Carry *one = list; one < list + x.n_carries[r]; one++)
            UNROLLED for (int b = 0; b < n_blocks; b++) {
                const __m512i weights = _mm512_loadu_si512(weight + (b * x.wide / INPUTS + one->group) * LANES * INPUTS);
                sums[b] = _mm512_dpbusd_epi32(sums[b], _mm512_set1_epi32(one->four), weights);
                shifts[b] = _mm512_dpbusd_epi32(shifts[b], _mm512_set1_epi8((char)ZERO_POINT), weights);
            }
        UNROLLED for (int b = 0; b < n_blocks; b++) tile->carried[r][b] = _mm512_sub_epi32(sums[b], shifts[b]);
    }
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
    Tile tile; /* in memory, where `sums` are in registers */
    UNROLLED for (int r = 0; r < n_rows; r++)
        UNROLLED for (int b = 0; b < n_blocks; b++) tile.sums[r][b] = sums[r][b];
    multiply_carried(n_rows, n_blocks, x, weight, &tile);
    finish_all(&tile, n_rows, n_blocks, x, layer, block, then, y);
}

/* The blocks [from, to) of outputs: as many together as a tile holds, then one by one. */
INLINE void int8_tiles(const int n_rows, const int n_blocks, Rounded x, const Linear *layer, int64_t from, int64_t to,
                       Epilogue then, float *y) {
    for (; from + n_blocks <= to; from += n_blocks) int8_tile(n_rows, n_blocks, x, layer, from, then, y);
    for (; from < to; from++) int8_tile(n_rows, 1, x, layer, from, then, y);
}

/* All of the blocks [from, to) of outputs for up to INT8_ROWS rows of numbers. */
static void int8_few_rows(int64_t n, Rounded x, const Linear *layer, int64_t from, int64_t to, Epilogue then, float *y) {
    switch (n) {
        case 1: int8_tiles(1, 8, x, layer, from, to, then, y); break;
        case 2: int8_tiles(2, 6, x, layer, from, to, then, y); break;
        case 3: int8_tiles(3, 4, x, layer, from, to, then, y); break;
        case 4: int8_tiles(4, 4, x, layer, from, to, then, y); break;
        case 5: int8_tiles(5, WIDE_BLOCKS, x, layer, from, to, then, y); break;
        case 6: int8_tiles(6, WIDE_BLOCKS, x, layer, from, to, then, y); break;
        case 7: int8_tiles(7, WIDE_BLOCKS, x, layer, from, to, then, y); break;
        case 8: int8_tiles(8, WIDE_BLOCKS, x, layer, from, to, then, y); break;
    }
}

/* y = x · weightᵀ + bias for rounded rows: each thread computes its share of the outputs. */
static void multiply_int8_shared(Rounded x, int64_t n_rows, const Linear *layer, Epilogue then, Team team, float *y) {
    const int64_t blocks = (layer->n_out + LANES - 1) / LANES;
    const int64_t begin = share(blocks, team.thread, team), end = share(blocks, team.thread + 1, team);
    /* Of many rows, all see the same weights before the next. */
    const int64_t each = n_rows > INT8_ROWS ? WIDE_BLOCKS : blocks;
    for (int64_t from = begin; from < end; from += each) {
        const int64_t to = from + each < end ? from + each : end;
        for (int64_t r = 0; r < n_rows; r += INT8_ROWS) {
            const int64_t n = n_rows - r < INT8_ROWS ? n_rows - r : INT8_ROWS;
            int8_few_rows(n, rows_from(x, r), layer, from, to, then, y + r * layer->n_out);
        }
    }
    wait_for_all(team);
}

static void round_shared(const float *x, int64_t n_rows, const Linear *layer, Team team, Rounded *rounded) {
    for (int64_t r = share(n_rows, team.thread, team); r < share(n_rows, team.thread + 1, team); r++)
        rounded->n_carries[r] = round_row(x + r * layer->n_in, layer, rounded->numbers + r * rounded->wide,
                                          list_of(*rounded, r), rounded->step + r);
    wait_for_all(team);
}
