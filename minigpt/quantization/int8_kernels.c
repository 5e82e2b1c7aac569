/* GPT-2's blocks with weights of 8 bits, for processors that add up products of 8-bit integers (AVX-512 VNNI).

`compiled.py` compiles and calls it, and names in Python what each function computes. To the bit:
  - a linear layer gives what `int8.PlainMatrix` gives, with the operations around it;
  - a row gives what it gives alone, for nothing is added up in an order that depends on other rows or on threads;
  - `through_blocks` gives what the other functions give that are called one after the other.

Weights lie as (out / 16, in / 4, 16, 4): one instruction multiplies 4 inputs by 4 weights of 16 outputs each, and adds
them to the outputs' sums. Inputs are taken as unsigned, 128 more than they are, which 128 times each output's weights
take back (`Linear.shift`).

A function that ends in `_shared` is called by all threads of a team with the same arguments, and they divide the work.
It ends with a barrier; that of `omp for` is one, too. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#define UNROLLED16 _Pragma("GCC unroll 16")
#define LANES 16      /* numbers of 32 bits in a register; `OUTPUTS` in compiled.py */
#define INPUTS 4      /* numbers of 8 bits in one of 32, as in compiled.py */
#define MOST_ROWS 8   /* of a tile */
#define MOST_BLOCKS 8 /* of a tile, with LANES outputs each */
#define WIDE_BLOCKS 3 /* of a tile with MOST_ROWS: 24 sums, of 32 registers */
#define AT_ONCE 128   /* rows: what is computed between two products stays in the processor's caches */
#define QUERIES 8     /* that look at the same keys together */
#define BLOCK 64      /* keys, which fit into the smallest cache with their values */
#define ALIGNED(n) (((n) + 63) / 64 * 64) /* bytes: a register, a line of the caches; `WIDE` in compiled.py */

typedef struct {
    const float *weight, *bias;
    float eps;
} Norm;

typedef struct {
    const int8_t *weight;
    const int32_t *shift; /* what 128 added to each input adds to an output */
    const float *scale, *input_scale, *bias; /* a scale for each output, a factor for each input; bias may be NULL */
    int64_t n_in, n_out, is_fine;            /* fine: inputs are two numbers of 8 bits */
} Linear;

typedef struct {
    Norm attn_norm, mlp_norm;
    Linear qkv, out, up, down;
    float scale; /* of attention's scores */
} Block;

typedef struct { /* numbers between one key and the next by row, head and slot */
    int64_t row, head, slot;
} Strides;

typedef enum { STORE, ADD, GELU } Then; /* what is done with a product */

typedef struct { /* rows rounded to 8 bits */
    uint8_t *numbers; /* a row, or for fine layers two, with `wide` bytes each */
    float *largest;   /* what each row was divided by */
    int64_t wide;
} Rounded;

INLINE __mmask16 lanes_left(int64_t n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

/* exp(x): x = n ln 2 + r, and a polynomial in r (Cephes' expf, S. Moshier 1989).

   NaN stays NaN: where one operand is NaN, min and max give the second. */
INLINE __m512 exp_of(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(104.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* GELU's tanh form: 0.5 (1 + tanh(z)) is the logistic function of 2 z. */
INLINE __m512 gelu_of(__m512 x) {
    __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cubed, x);
    __m512 e = exp_of(_mm512_mul_ps(inner, _mm512_set1_ps(-1.5957691216057308f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

static void normalize(const float *x, const Norm *norm, float *y, int64_t n) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += LANES)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes_left(n - i), x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 there = lanes_left(n - i);
        const __m512 centred = _mm512_maskz_sub_ps(there, _mm512_maskz_loadu_ps(there, x + i), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / n + norm->eps));
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 there = lanes_left(n - i);
        const __m512 z = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(there, x + i), mean), factor);
        const __m512 weight = _mm512_maskz_loadu_ps(there, norm->weight + i);
        _mm512_mask_storeu_ps(y + i, there, _mm512_fmadd_ps(z, weight, _mm512_maskz_loadu_ps(there, norm->bias + i)));
    }
}

/* ---- Linear layers ---- */

INLINE __m128i to_bytes(__m512 steps) { /* from 0 to 255, to the nearest whole one */
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(steps), _mm512_setzero_si512()));
}

/* One row, as `int8.even_out`, and `two_numbers` for a fine layer. */
static void round_row(const float *x, const Linear *layer, uint8_t *numbers, float *largest, int64_t wide) {
    const int64_t n = layer->n_in;
    const __m512 no_sign = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)), shift = _mm512_set1_ps(128.0f);
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
        const __m512 steps = _mm512_set1_ps(layer->is_fine ? 100.0f : 127.0f);
        if (!layer->is_fine) {
            _mm_mask_storeu_epi8(numbers + i, there, to_bytes(_mm512_fmadd_ps(part, steps, shift)));
            continue;
        }
        const __m512 nearest = _mm512_roundscale_ps(_mm512_mul_ps(part, steps), _MM_FROUND_TO_NEAREST_INT);
        const __m512 hundredths = _mm512_div_ps(nearest, steps);
        const __m512 left = _mm512_mul_ps(_mm512_sub_ps(part, hundredths), _mm512_set1_ps(254.0f));
        _mm_mask_storeu_epi8(numbers + i, there, to_bytes(_mm512_fmadd_ps(hundredths, steps, shift)));
        _mm_mask_storeu_epi8(numbers + wide + i, there, to_bytes(_mm512_fmadd_ps(left, steps, shift)));
    }
}

/* 16 outputs of one row from the sums of its numbers' products: as `int8.put_together` and `scale_back`. */
INLINE void finish(__m512i sum, __m512i of_left, const Linear *layer, int64_t out, float largest, Then then, float *y) {
    const __mmask16 there = lanes_left(layer->n_out - out);
    const __m512i shift = _mm512_maskz_loadu_epi32(there, layer->shift + out);
    const __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, layer->scale + out),
                                       _mm512_set1_ps(layer->is_fine ? (float)(1.0 / 100) : (float)(1.0 / 127)));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, shift)), scale);
    if (layer->is_fine) {
        const __m512 rest = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(of_left, shift)), scale);
        product = _mm512_fmadd_ps(rest, _mm512_set1_ps((float)(1.0 / 254)), product);
    }
    const __m512 factor = _mm512_set1_ps(largest);
    __m512 result = layer->bias ? _mm512_fmadd_ps(product, factor, _mm512_maskz_loadu_ps(there, layer->bias + out))
                                : _mm512_mul_ps(product, factor);
    if (then == ADD) result = _mm512_add_ps(_mm512_maskz_loadu_ps(there, y + out), result);
    if (then == GELU) result = gelu_of(result);
    _mm512_mask_storeu_ps(y + out, there, result);
}

/* The same for all rows and blocks of a tile; of a fine layer, every second row is what the one before leaves over. */
static void finish_all(__m512i sums[MOST_ROWS][MOST_BLOCKS], int n_rows, int n_blocks, Rounded x, const Linear *layer,
                       int64_t block, Then then, float *y) {
    const int each = layer->is_fine ? 2 : 1;
    for (int r = 0; r < n_rows; r += each)
        for (int b = 0; b < n_blocks; b++)
            finish(sums[r][b], sums[r + each - 1][b], layer, (block + b) * LANES, x.largest[r / each], then,
                   y + r / each * layer->n_out);
}

/* The products of a few rows of numbers, for a few blocks of 16 outputs: as many sums as there are registers. */
INLINE void tile(const int n_rows, const int n_blocks, Rounded x, const Linear *layer, int64_t block, Then then,
                 float *y) {
    const int64_t steps = x.wide / INPUTS;
    const int8_t *weight = layer->weight + block * LANES * x.wide;
    __m512i sums[MOST_ROWS][MOST_BLOCKS];
    UNROLLED for (int r = 0; r < n_rows; r++)
        UNROLLED for (int b = 0; b < n_blocks; b++) sums[r][b] = _mm512_setzero_si512();
    for (int64_t i = 0; i < steps; i++) {
        __m512i weights[MOST_BLOCKS];
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
    __m512i found[MOST_ROWS][MOST_BLOCKS]; /* in memory, where `sums` are in registers */
    UNROLLED for (int r = 0; r < n_rows; r++)
        UNROLLED for (int b = 0; b < n_blocks; b++) found[r][b] = sums[r][b];
    finish_all(found, n_rows, n_blocks, x, layer, block, then, y);
}

#define TILES(n_rows, n_blocks)                                                               \
    do {                                                                                      \
        int64_t b = from;                                                                     \
        for (; b + n_blocks <= to; b += n_blocks) tile(n_rows, n_blocks, x, layer, b, then, y); \
        for (; b < to; b++) tile(n_rows, 1, x, layer, b, then, y);                            \
    } while (0)

/* All of the blocks [from, to) of outputs for up to MOST_ROWS rows of numbers. */
static void few_rows(int64_t n, Rounded x, const Linear *layer, int64_t from, int64_t to, Then then, float *y) {
    switch (n) {
        case 1: TILES(1, 8); break;
        case 2: TILES(2, 6); break;
        case 3: TILES(3, 4); break;
        case 4: TILES(4, 4); break;
        case 5: TILES(5, WIDE_BLOCKS); break;
        case 6: TILES(6, WIDE_BLOCKS); break;
        case 7: TILES(7, WIDE_BLOCKS); break;
        case 8: TILES(8, WIDE_BLOCKS); break;
    }
}

/* y = x · weightᵀ + bias for rounded rows: each thread computes its share of the outputs. */
static void multiply_shared(Rounded x, int64_t n_rows, const Linear *layer, Then then, float *y) {
    const int64_t each = layer->is_fine ? 2 : 1, blocks = (layer->n_out + LANES - 1) / LANES;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = blocks * thread / threads, end = blocks * (thread + 1) / threads;
    const int64_t step = n_rows * each > MOST_ROWS ? WIDE_BLOCKS : blocks; /* of many rows, all see the same weights before the next */
    for (int64_t from = begin; from < end; from += step) {
        const int64_t to = from + step < end ? from + step : end;
        for (int64_t r = 0; r < n_rows * each; r += MOST_ROWS) {
            const int64_t n = n_rows * each - r < MOST_ROWS ? n_rows * each - r : MOST_ROWS;
            const Rounded few = {x.numbers + r * x.wide, x.largest + r / each, x.wide};
            few_rows(n, few, layer, from, to, then, y + r / each * layer->n_out);
        }
    }
#pragma omp barrier
}

/* Rounds rows, after a norm if there is one, which goes through `normed`. */
static void round_shared(const float *x, int64_t n_rows, const Norm *norm, float *normed, const Linear *layer,
                         Rounded *rounded) {
    const int64_t n = layer->n_in, each = layer->is_fine ? 2 : 1, wide = ALIGNED(n);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) {
        const float *row = x + r * n;
        if (norm) normalize(row, norm, normed + r * n, n), row = normed + r * n;
        round_row(row, layer, rounded->numbers + r * each * wide, rounded->largest + r, wide);
    }
}

/* ---- Attention ---- */

/* Keys for which there is memory, if there may be n of them: full registers are written. */
static int64_t room_for(int64_t n) { return ALIGNED(n + LANES); }

/* The sums of 16 registers, as one register: pairs of them are laid beside each other and added, four times. */
INLINE __m512 sums_of(const __m512 v[LANES]) {
    __m512 pairs[8], fours[4];
    UNROLLED for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    UNROLLED for (int i = 0; i < 4; i++) {
        const __m512d one = _mm512_castps_pd(pairs[2 * i]), other = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(one, other)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(one, other)));
    }
    const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x44),
                                     _mm512_shuffle_f32x4(fours[0], fours[1], 0xee));
    const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x44),
                                      _mm512_shuffle_f32x4(fours[2], fours[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

/* A query's products with up to 16 keys, one key after the other, as they lie in memory; beyond `n` keys, zeros. */
INLINE __m512 scores_of(const float *q, const float *k, int64_t stride, int64_t n, int64_t head_dim) {
    __m512 sums[LANES];
    UNROLLED16 for (int j = 0; j < LANES; j++) {
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

typedef struct { /* some tokens' queries in one head, and what they see */
    const float *q, *k, *v;
    float *y, *weights;               /* of each query, with room for `room` keys */
    int64_t n_queries, q_step, y_step; /* numbers from one query to the next */
    int64_t n_keys, stride, room;     /* the first query sees so many, each one after it one more */
    float scale;
} Queries;

/* Weights that are not divided by their sum yet, and the inverse of that: exp(score - the largest). */
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

/* y += weights · v for up to BLOCK keys, 64 of a head's dimensions at a time. */
INLINE void add_values(const float *weights, const float *v, int64_t stride, int64_t n, int64_t head_dim, float *y) {
    for (int64_t i = 0; i < head_dim; i += 4 * LANES) { /* as many sums as hide how long an addition takes */
        __m512 part[4];
        __mmask16 there[4];
        UNROLLED for (int p = 0; p < 4; p++) {
            const int64_t left = head_dim - i - p * LANES;
            there[p] = left > 0 ? lanes_left(left) : 0;
            part[p] = _mm512_maskz_loadu_ps(there[p], y + i + p * LANES);
        }
        for (int64_t s = 0; s < n; s++)
            UNROLLED for (int p = 0; p < 4; p++)
                part[p] = _mm512_fmadd_ps(_mm512_set1_ps(weights[s]),
                                          _mm512_maskz_loadu_ps(there[p], v + s * stride + i + p * LANES), part[p]);
        UNROLLED for (int p = 0; p < 4; p++) _mm512_mask_storeu_ps(y + i + p * LANES, there[p], part[p]);
    }
}

/* Each query's weighted mean of the values that it sees, block by block, so that keys and values are read from the
   smallest cache; zeros where it sees none. */
INLINE void attend(const Queries *of, int64_t head_dim) {
    const int64_t most_keys = of->n_keys + of->n_queries - 1;
    for (int64_t s = 0; s < most_keys; s += BLOCK)
        for (int64_t i = 0; i < of->n_queries; i++) {
            const int64_t n = of->n_keys + i - s < BLOCK ? of->n_keys + i - s : BLOCK;
            for (int64_t j = 0; j < n; j += LANES) {
                const float *q = of->q + i * of->q_step, *k = of->k + (s + j) * of->stride;
                const __m512 products = n - j >= LANES ? scores_of(q, k, of->stride, LANES, head_dim)
                                                       : scores_of(q, k, of->stride, n - j, head_dim);
                _mm512_storeu_ps(of->weights + i * of->room + s + j,
                                 _mm512_mul_ps(products, _mm512_set1_ps(of->scale)));
            }
        }
    float inverse[QUERIES];
    for (int64_t i = 0; i < of->n_queries; i++) {
        inverse[i] = of->n_keys + i > 0 ? softmax(of->weights + i * of->room, of->n_keys + i) : 0.0f;
        memset(of->y + i * of->y_step, 0, head_dim * sizeof(float));
    }
    for (int64_t s = 0; s < most_keys; s += BLOCK)
        for (int64_t i = 0; i < of->n_queries; i++) {
            const int64_t n = of->n_keys + i - s < BLOCK ? of->n_keys + i - s : BLOCK;
            add_values(of->weights + i * of->room + s, of->v + s * of->stride, of->stride, n, head_dim,
                       of->y + i * of->y_step);
        }
    for (int64_t i = 0; i < of->n_queries; i++)
        for (int64_t d = 0; d < head_dim; d++) of->y[i * of->y_step + d] *= inverse[i];
}

/* Every new token in every head. Tokens see the slots from their row's padding on up to their own; padding sees none, but
   the last token sees itself.

   q lies as (rows, tokens, ...) with `q_token` numbers from one token to the next and `q_head` from one head to the
   next; y as (rows, tokens, heads, head_dim). Neighbouring queries go to different threads: they take as long. */
static void attend_shared(const float *q, int64_t q_token, int64_t q_head, const float *k, const float *v,
                          Strides strides, const int64_t *pad, int64_t n_seen, int64_t n_rows, int64_t n_new,
                          int64_t n_head, int64_t head_dim, float scale, float *weights, float *y) {
    const int64_t parts = (n_new + QUERIES - 1) / QUERIES;
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < n_rows * n_head * parts; i++) {
        const int64_t t = i % parts * QUERIES, head = i / parts % n_head, row = i / parts / n_head;
        const int64_t token = row * n_new + t, begin = pad[row] < n_seen ? pad[row] : n_seen - 1;
        const int64_t offset = row * strides.row + head * strides.head + begin * strides.slot;
        const Queries of = {
            q + token * q_token + head * q_head, k + offset, v + offset,
            y + (token * n_head + head) * head_dim, weights,
            n_new - t < QUERIES ? n_new - t : QUERIES, q_token, n_head * head_dim,
            n_seen - n_new + t + 1 - begin, strides.slot, room_for(n_seen), scale,
        };
        if (head_dim == 64)
            attend(&of, 64); /* that of all of GPT-2's sizes, known to the compiler */
        else
            attend(&of, head_dim);
    }
}

/* ---- What is called from Python ---- */

typedef struct { /* memory for what is computed on the way */
    float *normed, *hidden; /* of at most AT_ONCE rows */
    Rounded rounded;
} Scratch;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Room for layers of up to `width` inputs, and `hidden` ones in the MLP; NULL if there is none. */
static Scratch *new_scratch(int64_t n_rows, int64_t width, int64_t hidden) {
    const int64_t rows = smaller(n_rows, AT_ONCE), wide = ALIGNED(width > hidden ? width : hidden);
    const int64_t normed = ALIGNED(rows * width * 4), of_hidden = ALIGNED(rows * hidden * 4);
    const int64_t numbers = 2 * rows * wide, largest = ALIGNED(rows * 4);
    Scratch *scratch = malloc(sizeof *scratch);
    char *memory = aligned_alloc(64, normed + of_hidden + numbers + largest);
    if (!scratch || !memory) {
        free(scratch), free(memory);
        return NULL;
    }
    scratch->normed = (float *)memory;
    scratch->hidden = (float *)(memory + normed);
    scratch->rounded.numbers = (uint8_t *)(memory + normed + of_hidden);
    scratch->rounded.largest = (float *)(memory + normed + of_hidden + numbers);
    return scratch;
}

static void free_scratch(Scratch *scratch) {
    if (scratch) free(scratch->normed);
    free(scratch);
}

/* A layer for at most AT_ONCE rows; inputs beyond its own are multiplied by weights of zero, so any number will do. */
static void linear_shared(const float *x, int64_t n_rows, const Norm *norm, const Linear *layer, Then then,
                          Scratch *s, float *y) {
    Rounded rounded = s->rounded;
    rounded.wide = ALIGNED(layer->n_in);
    round_shared(x, n_rows, norm, s->normed, layer, &rounded);
    multiply_shared(rounded, n_rows, layer, then, y);
}

/* Both additions of a block to the residual stream x; y is what the heads give. */
static void add_branches_shared(float *x, const float *y, int64_t n_rows, const Block *block, Scratch *s) {
    linear_shared(y, n_rows, NULL, &block->out, ADD, s, x);
    linear_shared(x, n_rows, &block->mlp_norm, &block->up, GELU, s, s->hidden);
    linear_shared(s->hidden, n_rows, NULL, &block->down, ADD, s, x);
}

void layer_norm(const float *x, int64_t n_rows, int64_t n, const Norm *norm, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) normalize(x + r * n, norm, y + r * n, n);
}

void gelu(const float *x, int64_t n, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += LANES) {
        const __mmask16 there = lanes_left(n - i);
        _mm512_mask_storeu_ps(y + i, there, gelu_of(_mm512_maskz_loadu_ps(there, x + i)));
    }
}

/* The rest return whether there was memory for them. */

int linear(const float *x, int64_t n_rows, const Linear *layer, float *y) {
    Scratch *scratch = new_scratch(n_rows, layer->n_in, 0);
    if (!scratch) return 0;
#pragma omp parallel
    for (int64_t r = 0; r < n_rows; r += AT_ONCE)
        linear_shared(x + r * layer->n_in, smaller(n_rows - r, AT_ONCE), NULL, layer, STORE, scratch,
                      y + r * layer->n_out);
    free_scratch(scratch);
    return 1;
}

int attention(const float *q, int64_t q_token, int64_t q_head, const float *k, const float *v, Strides strides,
              const int64_t *pad, int64_t n_seen, int64_t n_rows, int64_t n_new, int64_t n_head, int64_t head_dim,
              float scale, float *y) {
    float *weights = malloc(omp_get_max_threads() * QUERIES * room_for(n_seen) * sizeof(float));
    if (!weights) return 0;
#pragma omp parallel
    attend_shared(q, q_token, q_head, k, v, strides, pad, n_seen, n_rows, n_new, n_head, head_dim, scale,
                  weights + omp_get_thread_num() * QUERIES * room_for(n_seen), y);
    free(weights);
    return 1;
}

/* New tokens through all blocks, in place: x is (n_rows, n_new, width); keys and values of layer l begin at
   `slots + l * layer_stride`, values `value_offset` after the keys. */
int through_blocks(float *x, const Block *blocks, int64_t n_layer, float *slots, int64_t layer_stride,
                   int64_t value_offset, Strides strides, const int64_t *pad, int64_t length, int64_t n_rows,
                   int64_t n_new, int64_t n_head) {
    const int64_t width = blocks->out.n_in, head_dim = width / n_head, n_tokens = n_rows * n_new;
    const int64_t n_seen = length + n_new;
    Scratch *scratch = new_scratch(n_tokens, width, blocks->down.n_in);
    float *qkv = malloc(n_tokens * 3 * width * sizeof(float)), *mixed = malloc(n_tokens * width * sizeof(float));
    float *weights = malloc(omp_get_max_threads() * QUERIES * room_for(n_seen) * sizeof(float));
    const int is_room = scratch && qkv && mixed && weights;
#pragma omp parallel if (is_room)
    for (int64_t layer = 0; layer < (is_room ? n_layer : 0); layer++) {
        const Block *block = blocks + layer;
        float *k = slots + layer * layer_stride, *v = k + value_offset;
        for (int64_t r = 0; r < n_tokens; r += AT_ONCE)
            linear_shared(x + r * width, smaller(n_tokens - r, AT_ONCE), &block->attn_norm, &block->qkv, STORE, scratch,
                          qkv + r * 3 * width);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n_tokens * n_head; i++) {
            const int64_t token = i / n_head, head = i % n_head, slot = length + token % n_new;
            const int64_t offset = token / n_new * strides.row + head * strides.head + slot * strides.slot;
            const float *own = qkv + token * 3 * width + head * head_dim;
            memcpy(k + offset, own + width, head_dim * sizeof(float));
            memcpy(v + offset, own + 2 * width, head_dim * sizeof(float));
        }
        attend_shared(qkv, 3 * width, head_dim, k, v, strides, pad, n_seen, n_rows, n_new, n_head, head_dim,
                      block->scale, weights + omp_get_thread_num() * QUERIES * room_for(n_seen), mixed);
        for (int64_t r = 0; r < n_tokens; r += AT_ONCE)
            add_branches_shared(x + r * width, mixed + r * width, smaller(n_tokens - r, AT_ONCE), block, scratch);
    }
    free_scratch(scratch);
    free(qkv), free(mixed), free(weights);
    return is_room;
}
