/* The loops themselves, compiled once per instruction set by the loops_*.c files: all
 * static, so that no shared code leaks from one set of flags to another. */
#include "train.h"

#include "../base/f16.h"

#include <math.h>

static inline void adamw_one(float *p, float g, float *m, float *v,
                             const ane_adamw_consts *k) {
    g *= k->scale;
    float a = k->b1 * *m + k->c1 * g;
    float b = k->b2 * *v + k->c2 * (g * g);
    *m = a;
    *v = b;
    *p = k->keep * *p - k->rate * (a / (sqrtf(b) * k->root + k->eps));
}

static void adamw(float *restrict p, const float *restrict g, float *restrict m,
                  float *restrict v, size_t n, const ane_adamw_consts *consts) {
    const ane_adamw_consts k = *consts;
    size_t i = 0;
    for (; i + ANE_TRAIN_TILE <= n; i += ANE_TRAIN_TILE)
        for (size_t j = 0; j < ANE_TRAIN_TILE; j++)
            adamw_one(p + i + j, g[i + j], m + i + j, v + i + j, &k);
    for (; i < n; i++) adamw_one(p + i, g[i], m + i, v + i, &k);
}

static void squares(double *restrict lanes, const float *restrict x, size_t n) {
    double s[ANE_NORM_LANES];
    size_t i = 0;
    for (size_t j = 0; j < ANE_NORM_LANES; j++) s[j] = lanes[j];
    for (; i + ANE_NORM_LANES <= n; i += ANE_NORM_LANES)
        for (size_t j = 0; j < ANE_NORM_LANES; j++) {
            double d = x[i + j];
            s[j] += d * d;
        }
    for (; i < n; i++) {
        double d = x[i];
        s[i % ANE_NORM_LANES] += d * d;
    }
    for (size_t j = 0; j < ANE_NORM_LANES; j++) lanes[j] = s[j];
}

static void to_bf16(uint16_t *restrict dst, const float *restrict src, size_t n) {
    size_t i = 0;
    for (; i + ANE_TRAIN_TILE <= n; i += ANE_TRAIN_TILE)
        for (size_t j = 0; j < ANE_TRAIN_TILE; j++) dst[i + j] = ane_bf16_from_f32(src[i + j]);
    for (; i < n; i++) dst[i] = ane_bf16_from_f32(src[i]);
}

#ifdef __F16C__
#include <immintrin.h>
static void to_f16(uint16_t *restrict dst, const float *restrict src, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(dst + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) dst[i] = ane_f16_from_f32(src[i]);
}
#else
static void to_f16(uint16_t *restrict dst, const float *restrict src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = ane_f16_from_f32(src[i]);
}
#endif

#define ANE_TRAIN_TABLE(suffix)                                                            \
    const ane_train_loops ane_train_loops__##suffix = {#suffix, adamw, squares, to_f16,    \
                                                       to_bf16}
