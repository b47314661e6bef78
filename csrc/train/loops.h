/* The loops themselves, written in the vector type of kernels/simd_*.h and compiled once
 * per instruction set by the loops_*.c files: all static, so that no shared code leaks
 * from one set of flags to another. The file that includes this has included its simd. */
#include "train.h"

#include <string.h>

typedef struct consts {
    vf scale, b1, c1, b2, c2, root, eps, rate, keep;
} consts;

typedef struct moments {
    vf p, m, v;
} moments;

static inline moments update(vf p, vf g, vf m, vf v, const consts *k) {
    moments r;
    g = v_mul(g, k->scale);
    r.m = v_add(v_mul(k->b1, m), v_mul(k->c1, g));
    r.v = v_add(v_mul(k->b2, v), v_mul(k->c2, v_mul(g, g)));
    vf root = v_add(v_mul(v_sqrt(r.v), k->root), k->eps);
    r.p = v_sub(v_mul(k->keep, p), v_mul(k->rate, v_div(r.m, root)));
    return r;
}

/* kind is a constant at every call: three loops come of this, and a fourth without. */
static inline __attribute__((always_inline)) void
loop(float *p, const float *g, float *m, float *v, char *staged, const int kind, size_t n,
     const consts *k) {
    size_t i = 0;
    for (; i + VW <= n; i += VW) {
        moments r = update(v_loadu(p + i), v_loadu(g + i), v_loadu(m + i), v_loadu(v + i), k);
        v_storeu(p + i, r.p);
        v_storeu(m + i, r.m);
        v_storeu(v + i, r.v);
        if (kind == ANE_F16) v_store16(staged + 2 * i, r.p);
        else if (kind == ANE_BF16) v_storeb(staged + 2 * i, r.p);
        else if (kind == ANE_F32) v_storeu(staged + 4 * i, r.p);
    }
    size_t t = n - i;
    if (!t) return;
    moments r = update(v_load_n(p + i, t), v_load_n(g + i, t), v_load_n(m + i, t),
                       v_load_n(v + i, t), k);
    v_store_n(p + i, r.p, t);
    v_store_n(m + i, r.m, t);
    v_store_n(v + i, r.v, t);
    if (kind == ANE_F16) v_store16_n(staged + 2 * i, r.p, t);
    else if (kind == ANE_BF16) v_storeb_n(staged + 2 * i, r.p, t);
    else if (kind == ANE_F32) v_store_n(staged + 4 * i, r.p, t);
}

static void adamw(float *p, const float *g, float *m, float *v, void *staged, ane_dtype dtype,
                  size_t n, const ane_adamw_consts *c) {
    const consts k = {v_set1(c->scale), v_set1(c->b1),  v_set1(c->c1),
                      v_set1(c->b2),    v_set1(c->c2),  v_set1(c->root),
                      v_set1(c->eps),   v_set1(c->rate), v_set1(c->keep)};
    if (!staged) loop(p, g, m, v, NULL, -1, n, &k);
    else if (dtype == ANE_F16) loop(p, g, m, v, staged, ANE_F16, n, &k);
    else if (dtype == ANE_BF16) loop(p, g, m, v, staged, ANE_BF16, n, &k);
    else loop(p, g, m, v, staged, ANE_F32, n, &k);
}

#if defined(__AVX512F__)
static size_t squares_wide(double s[ANE_NORM_LANES], const float *x, size_t n) {
    __m512d a = _mm512_loadu_pd(s), b = _mm512_loadu_pd(s + 8);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512d u = _mm512_cvtps_pd(_mm256_loadu_ps(x + i));
        __m512d w = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8));
        a = _mm512_fmadd_pd(u, u, a);
        b = _mm512_fmadd_pd(w, w, b);
    }
    _mm512_storeu_pd(s, a);
    _mm512_storeu_pd(s + 8, b);
    return i;
}
#elif defined(__AVX2__)
static size_t squares_wide(double s[ANE_NORM_LANES], const float *x, size_t n) {
    __m256d a[4];
    size_t i = 0;
    for (int j = 0; j < 4; j++) a[j] = _mm256_loadu_pd(s + 4 * j);
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 4; j++) {
            __m256d u = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * j));
            a[j] = _mm256_fmadd_pd(u, u, a[j]);
        }
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(s + 4 * j, a[j]);
    return i;
}
#else
static size_t squares_wide(double s[ANE_NORM_LANES], const float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) {
            double d = x[i + j];
            s[j] += d * d;
        }
    return i;
}
#endif

static void squares(double lanes[ANE_NORM_LANES], const float *x, size_t n) {
    double s[ANE_NORM_LANES];
    memcpy(s, lanes, sizeof s);
    for (size_t i = squares_wide(s, x, n); i < n; i++) {
        double d = x[i];
        s[i % ANE_NORM_LANES] += d * d;
    }
    memcpy(lanes, s, sizeof s);
}

#define ANE_TRAIN_TABLE(suffix)                                                            \
    const ane_train_loops ane_train_loops__##suffix = {#suffix, adamw, squares}
