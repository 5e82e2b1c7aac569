/* Registers of 16 numbers, for processors with AVX-512; and exp, GELU and sums of them. */

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
/* What would only take longer to compile if it were copied into each caller. */
#define COMPILED_ONCE static __attribute__((noinline, noclone))
#define UNROLLED _Pragma("GCC unroll 8")
#define UNROLLED32 _Pragma("GCC unroll 32")
#define LANES 16                        /* numbers of 32 bits in a register */
#define TO_64(n) (((n) + 63) / 64 * 64) /* at least n: bytes of a register and a line of the caches, or as many numbers */

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

/* Of up to 16 numbers; x and y may be the same. */
INLINE void gelu_of_some(const float *x, int64_t n, float *y) {
    _mm512_mask_storeu_ps(y, lanes_left(n), gelu_of(_mm512_maskz_loadu_ps(lanes_left(n), x)));
}

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
