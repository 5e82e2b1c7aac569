/* Norms and linear layers, as in `c_structs.py`; and how a norm is computed. */

#pragma once
#include "vectors.h"

typedef struct {
    const float *weight, *bias;
    int64_t n;
    float eps;
} Norm;

typedef enum { FLOAT32, FLOAT16, INT8 } Kind;

typedef struct {
    const void *weight;
    const float *bias; /* may be NULL */
    int64_t n_in, n_out, kind;
    /* Of 8-bit weights alone: what 128 added to each input adds to an output, a scale for each output, a factor for
       each input. */
    const int32_t *shift;
    const float *scale, *input_scale;
} Linear;

typedef struct {
    Norm attn_norm, mlp_norm;
    Linear qkv, out, up, down;
    int64_t n_head;
    float scale; /* of attention's scores */
} Block;

typedef enum { STORE, ADD, GELU } Epilogue; /* what is done with a product */

static void normalize(const float *x, const Norm *norm, float *y) {
    const int64_t n = norm->n;
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
