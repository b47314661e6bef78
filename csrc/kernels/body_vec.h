/* The vector primitives of vec.h, written once over the vector type of a simd_*.h and
 * compiled once per instruction set: included by ukr_*.c only, after its simd_*.h. Every
 * function is static, so nothing here can be shared between files by the linker. */
#include "vec.h"

#include <math.h>

/* ---------------------------------------------------------------- functions of vectors */

#define F(name) f_##name
#include "body_fun.h"
#undef F

#include "body_pair.h"

/* ---------------------------------------------------------------- rows */

#define X(N, name)                                                                        \
    static void r_##name(float *y, const float *x, size_t n) {                            \
        size_t i = 0;                                                                     \
        for (; i + 2 * VW <= n; i += 2 * VW) {                                            \
            pair v = g_##name((pair){v_loadu(x + i), v_loadu(x + i + VW)});               \
            v_storeu(y + i, v.a);                                                         \
            v_storeu(y + i + VW, v.b);                                                    \
        }                                                                                 \
        for (; i + VW <= n; i += VW) v_storeu(y + i, f_##name(v_loadu(x + i)));           \
        if (i < n) v_store_n(y + i, f_##name(v_load_n(x + i, n - i)), n - i);             \
    }
ANE_VEC_UNARY_MAP(X)
#undef X

#define X(N, name)                                                                        \
    static void b_##name(float *y, const float *a, const float *b, size_t n) {            \
        size_t i = 0;                                                                     \
        for (; i + VW <= n; i += VW)                                                      \
            v_storeu(y + i, f_##name(v_loadu(a + i), v_loadu(b + i)));                    \
        if (i < n)                                                                        \
            v_store_n(y + i, f_##name(v_load_n(a + i, n - i), v_load_n(b + i, n - i)),    \
                      n - i);                                                             \
    }                                                                                     \
    static void s_##name(float *y, const float *a, float s, size_t n) {                   \
        size_t i = 0;                                                                     \
        vf v = v_set1(s);                                                                 \
        for (; i + VW <= n; i += VW) v_storeu(y + i, f_##name(v_loadu(a + i), v));        \
        if (i < n) v_store_n(y + i, f_##name(v_load_n(a + i, n - i), v), n - i);          \
    }                                                                                     \
    static void t_##name(float *y, const float *a, float s, size_t n) {                   \
        size_t i = 0;                                                                     \
        vf v = v_set1(s);                                                                 \
        for (; i + VW <= n; i += VW) v_storeu(y + i, f_##name(v, v_loadu(a + i)));        \
        if (i < n) v_store_n(y + i, f_##name(v, v_load_n(a + i, n - i)), n - i);          \
    }
ANE_VEC_BINARY_MAP(X)
#undef X

static void vec_affine(float *y, const float *x, float scale, float shift, size_t n) {
    size_t i = 0;
    vf a = v_set1(scale), b = v_set1(shift);
    for (; i + VW <= n; i += VW) v_storeu(y + i, v_fma(v_loadu(x + i), a, b));
    if (i < n) v_store_n(y + i, v_fma(v_load_n(x + i, n - i), a, b), n - i);
}
static void vec_axpy(float *y, float s, const float *x, size_t n) {
    size_t i = 0;
    vf a = v_set1(s);
    for (; i + VW <= n; i += VW) v_storeu(y + i, v_fma(v_loadu(x + i), a, v_loadu(y + i)));
    if (i < n)
        v_store_n(y + i, v_fma(v_load_n(x + i, n - i), a, v_load_n(y + i, n - i)), n - i);
}
static void vec_muladd(float *y, const float *a, const float *b, size_t n) {
    size_t i = 0;
    for (; i + VW <= n; i += VW)
        v_storeu(y + i, v_fma(v_loadu(a + i), v_loadu(b + i), v_loadu(y + i)));
    if (i < n)
        v_store_n(y + i, v_fma(v_load_n(a + i, n - i), v_load_n(b + i, n - i),
                               v_load_n(y + i, n - i)), n - i);
}

/* ---------------------------------------------------------------- reductions */

#define CHAINS 64
#define NACC (CHAINS / VW)

/* Adds the chains pairwise, halves apart: the same tree for every vector width. */
static inline float fold(float s[CHAINS]) {
    for (size_t w = CHAINS / 2; w >= VW; w /= 2)
        for (size_t i = 0; i < w; i += VW)
            v_storeu(s + i, v_add(v_loadu(s + i), v_loadu(s + i + w)));
    for (size_t w = VW / 2; w; w /= 2)
        for (size_t i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}

/* Constant trip counts, so that the chains live in registers. */
#define REDUCE(STEP)                                                                      \
    vf acc[NACC];                                                                         \
    float chains[CHAINS];                                                                 \
    size_t i = 0;                                                                         \
    UNROLL for (int j = 0; j < NACC; j++) acc[j] = v_set1(0);                             \
    for (; i + CHAINS <= n; i += CHAINS) {                                                \
        UNROLL for (int j = 0; j < NACC; j++) {                                           \
            size_t at = i + (size_t)j * VW;                                               \
            STEP(acc[j], at, v_loadu)                                                     \
        }                                                                                 \
    }                                                                                     \
    UNROLL for (int j = 0; j < NACC; j++) {                                               \
        if (i < n) {                                                                      \
            size_t left = n - i < VW ? n - i : VW, at = i;                                \
            STEP(acc[j], at, TAIL)                                                        \
            i += left;                                                                    \
        }                                                                                 \
        v_storeu(chains + j * VW, acc[j]);                                                \
    }                                                                                     \
    return fold(chains);
#define TAIL(p) v_load_n(p, left)

static float vec_sum(const float *x, size_t n) {
#define STEP(a, at, LD) a = v_add(a, LD(x + at));
    REDUCE(STEP)
#undef STEP
}
static float vec_sumsq(const float *x, size_t n) {
#define STEP(a, at, LD) { vf v = LD(x + at); a = v_fma(v, v, a); }
    REDUCE(STEP)
#undef STEP
}
static float vec_dot(const float *x, const float *y, size_t n) {
#define STEP(a, at, LD) a = v_fma(LD(x + at), LD(y + at), a);
    REDUCE(STEP)
#undef STEP
}
static float vec_sumsq_about(const float *x, float center, size_t n) {
    vf c = v_set1(center);
    size_t whole = n / VW * VW, rest = n - whole;
    float t[VW];
    /* Lanes past the end must not count: they hold center, not 0. */
    for (size_t j = 0; j < VW; j++) t[j] = j < rest ? x[whole + j] : center;
#undef TAIL
#define TAIL(p) (left == VW ? v_loadu(p) : v_loadu(t))
#define STEP(a, at, LD) { vf v = v_sub(LD(x + at), c); a = v_fma(v, v, a); }
    REDUCE(STEP)
#undef STEP
#undef TAIL
}

#define EXTREME(name, from, f)                                                            \
    static float vec_##name(const float *x, size_t n) {                                   \
        float s[VW], best = from;                                                         \
        vf a = v_set1(from), b = a;                                                       \
        size_t i = 0;                                                                     \
        for (; i + 2 * VW <= n; i += 2 * VW) {                                            \
            a = f(a, v_loadu(x + i));                                                     \
            b = f(b, v_loadu(x + i + VW));                                                \
        }                                                                                 \
        for (; i + VW <= n; i += VW) a = f(a, v_loadu(x + i));                            \
        v_storeu(s, f(a, b));                                                             \
        for (int j = 0; j < VW; j++)                                                      \
            if (!(OVER(best, s[j]))) best = s[j];                                         \
        for (; i < n; i++)                                                                \
            if (!(OVER(best, x[i]))) best = x[i];                                         \
        return best;                                                                      \
    }
/* best stays where it is NaN, or where the other is a number not beyond it. */
#define OVER(a, b) ((a) != (a) || (a) >= (b))
EXTREME(max, -INFINITY, f_max)
#undef OVER
#define OVER(a, b) ((a) != (a) || (a) <= (b))
EXTREME(min, INFINITY, f_min)
#undef OVER

static float vec_exp_sum(float *y, const float *x, float scale, float shift, size_t n) {
    vf a = v_set1(scale), b = v_set1(-shift);
#define TAIL(p) v_load_n(p, left)
#define STEP(c, at, LD)                                                                   \
    {                                                                                     \
        vf v = f_exp(v_fma(LD(x + at), a, b));                                            \
        EXP_##LD                                                                          \
        c = v_add(c, v);                                                                  \
    }
#define EXP_v_loadu v_storeu(y + at, v);
    /* Stored and read back: lanes past the end come back as zeros. */
#define EXP_TAIL v_store_n(y + at, v, left), v = v_load_n(y + at, left);
    REDUCE(STEP)
#undef STEP
#undef TAIL
}
static void vec_softmax(float *y, const float *x, size_t n) {
    float top = vec_max(x, n);
    float sum = vec_exp_sum(y, x, 1, top, n);
    s_mul(y, y, 1 / sum, n);
}

/* ---------------------------------------------------------------- conversion */

/* One loop per pair of types; `stream` writes past the caches once dst is aligned. */
#define CONVERT(name, LD, LDN, ST, STN, in, out)                                          \
    static void name(char *d, const char *s, size_t n) {                                  \
        size_t i = 0;                                                                     \
        for (; i + VW <= n; i += VW) ST(d + i * out, LD(s + i * in));                     \
        if (i < n) STN(d + i * out, LDN(s + i * in, n - i), n - i);                       \
    }
CONVERT(c_32_16, v_loadu, v_load_n, v_store16, v_store16_n, 4, 2)
CONVERT(c_32_b, v_loadu, v_load_n, v_storeb, v_storeb_n, 4, 2)
CONVERT(c_16_32, v_load16, v_load16_n, v_storeu, v_store_n, 2, 4)
CONVERT(c_16_b, v_load16, v_load16_n, v_storeb, v_storeb_n, 2, 2)
CONVERT(c_b_32, v_loadb, v_loadb_n, v_storeu, v_store_n, 2, 4)
CONVERT(c_b_16, v_loadb, v_loadb_n, v_store16, v_store16_n, 2, 2)

static void vec_convert(void *dst, ane_dtype to, const void *src, ane_dtype from, size_t n,
                        bool stream) {
    char *d = dst;
    const char *s = src;
    size_t in = from == ANE_F32 ? 4 : 2, out = to == ANE_F32 ? 4 : 2;
    bool up = from == ANE_F16 && to == ANE_F32, down = from == ANE_F32 && to == ANE_F16;
    if (VSTREAM && stream && (up || down) && (uintptr_t)d % out == 0) {
        size_t step = VSTREAM ? VSTREAM / out : 1;
        size_t head = (0 - (uintptr_t)d) % (VSTREAM ? VSTREAM : 1) / out;
        if (head > n) head = n;
        vec_convert(d, to, s, from, head, false);
        size_t i = head;
        if (up)
            for (; i + step <= n; i += step) v_stream(d + i * 4, v_load16(s + i * 2));
        else
            for (; i + step <= n; i += step)
                v_stream16(d + i * 2, v_loadu(s + i * 4), v_loadu(s + i * 4 + VW * 4));
        v_fence();
        vec_convert(d + i * out, to, s + i * in, from, n - i, false);
        return;
    }
    if (to == from) {
        if (d != s) memcpy(d, s, n * in);
    } else if (from == ANE_F32) {
        if (to == ANE_F16) c_32_16(d, s, n);
        else c_32_b(d, s, n);
    } else if (from == ANE_F16) {
        if (to == ANE_F32) c_16_32(d, s, n);
        else c_16_b(d, s, n);
    } else {
        if (to == ANE_F32) c_b_32(d, s, n);
        else c_b_16(d, s, n);
    }
}
static void vec_load(float *y, const void *x, ane_dtype dtype, size_t n) {
    vec_convert(y, ANE_F32, x, dtype, n, false);
}
static void vec_store(void *y, ane_dtype dtype, const float *x, size_t n) {
    vec_convert(y, dtype, x, ANE_F32, n, false);
}

#include "body_steps.h"

/* ---------------------------------------------------------------- the table */

#include "body_eight.h"

#define U(N, name) [ANE_VEC_##N] = r_##name,
#define B(N, name) [ANE_VEC_##N] = b_##name,
#define S(N, name) [ANE_VEC_##N] = s_##name,
#define T(N, name) [ANE_VEC_##N] = t_##name,
static const ane_vec vec_table = {
    .name = ISA_NAME,
    .load = vec_load,
    .store = vec_store,
    .unary = {ANE_VEC_UNARY_MAP(U)},
    .binary = {ANE_VEC_BINARY_MAP(B)},
    .scalar = {ANE_VEC_BINARY_MAP(S)},
    .rscalar = {ANE_VEC_BINARY_MAP(T)},
    .steps = vec_steps,
    .affine = vec_affine,
    .axpy = vec_axpy,
    .muladd = vec_muladd,
    .sum = vec_sum,
    .sumsq = vec_sumsq,
    .max = vec_max,
    .min = vec_min,
    .dot = vec_dot,
    .sumsq_about = vec_sumsq_about,
    .exp_sum = vec_exp_sum,
    .softmax = vec_softmax,
    .quantize = vec_quantize,
    .dequantize = vec_dequantize,
    .widen = vec_widen,
};
#undef U
#undef B
#undef S
#undef T
