/* What each instruction does to a register, and which op is which. */
#include "ins.h"

#include "../../base/f16.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- rows in and out */

void ane_row_load(float *y, const char *p, ane_dtype dtype, int64_t stride, size_t n) {
    size_t unit = ane_dtype_size(dtype);
    bool dense = stride == (int64_t)unit;
    switch (dtype) {
    case ANE_F16:
    case ANE_BF16:
    case ANE_F32:
        if (dense) {
            ane_vec_get()->load(y, p, dtype, n);
            return;
        }
        if (dtype == ANE_F32) {
            for (size_t i = 0; i < n; i++, p += stride) memcpy(&y[i], p, sizeof *y);
            return;
        }
        for (size_t i = 0; i < n; i++, p += stride) {
            uint16_t h;
            memcpy(&h, p, sizeof h);
            y[i] = dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_f32_from_bf16(h);
        }
        return;
    case ANE_I32:                       /* the bits */
        for (size_t i = 0; i < n; i++, p += stride) memcpy(&y[i], p, sizeof *y);
        return;
    default:
        ANE_ASSERT(dtype == ANE_BOOL);
        for (size_t i = 0; i < n; i++, p += stride) y[i] = *p ? 1.0f : 0.0f;
    }
}

void ane_row_store(char *p, ane_dtype dtype, int64_t stride, const float *x, size_t n) {
    size_t unit = ane_dtype_size(dtype);
    bool dense = stride == (int64_t)unit;
    switch (dtype) {
    case ANE_F16:
    case ANE_BF16:
    case ANE_F32:
        if (dense) {
            ane_vec_get()->store(p, dtype, x, n);
            return;
        }
        if (dtype == ANE_F32) {
            for (size_t i = 0; i < n; i++, p += stride) memcpy(p, &x[i], sizeof *x);
            return;
        }
        for (size_t i = 0; i < n; i++, p += stride) {
            uint16_t h = dtype == ANE_F16 ? ane_f16_from_f32(x[i]) : ane_bf16_from_f32(x[i]);
            memcpy(p, &h, sizeof h);
        }
        return;
    case ANE_I32:
        for (size_t i = 0; i < n; i++, p += stride) memcpy(p, &x[i], sizeof *x);
        return;
    default:
        ANE_ASSERT(dtype == ANE_BOOL);
        for (size_t i = 0; i < n; i++, p += stride) *p = x[i] != 0;
    }
}

/* ---------------------------------------------------------------- instructions */

#define PUBLIC(name)                                                                       \
    void ane__##name(const ane_ins *i, float *y, const float *a, const float *b,           \
                     const float *c, size_t n)
#define INS(name)                                                                          \
    static void name(const ane_ins *i, float *y, const float *a, const float *b,           \
                     const float *c, size_t n)
#define UNUSED (void)i, (void)a, (void)b, (void)c

PUBLIC(do_v1) { UNUSED; i->v1(y, a, n); }
PUBLIC(do_v2) { UNUSED; i->v2(y, a, b, n); }
PUBLIC(do_vs) { UNUSED; i->vs(y, a, i->s, n); }
INS(do_affine) { UNUSED; ane_vec_get()->affine(y, a, i->s, i->t, n); }
INS(do_libm) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = i->libm(a[j]); }
PUBLIC(do_run) { UNUSED; (void)y, (void)n; ANE_ASSERT(!"has operands of its own"); }
PUBLIC(do_fill) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = i->s; }
PUBLIC(do_copy) { UNUSED; memcpy(y, a, n * sizeof *y); }
PUBLIC(do_round) {                         /* a cast to a narrower float inside a chain */
    UNUSED;
    uint16_t h[64];
    for (size_t j = 0; j < n; j += 64) {
        size_t m = n - j < 64 ? n - j : 64;
        ane_vec_get()->store(h, (ane_dtype)i->kind, a + j, m);
        ane_vec_get()->load(y + j, h, (ane_dtype)i->kind, m);
    }
}

#define EACH1(name, expr)                                                                  \
    INS(name) {                                                                            \
        UNUSED;                                                                            \
        for (size_t j = 0; j < n; j++) {                                                   \
            float v = a[j];                                                                \
            y[j] = expr;                                                                   \
        }                                                                                  \
    }
EACH1(do_sign, v > 0 ? 1 : v < 0 ? -1 : v)
EACH1(do_not, v == 0)
EACH1(do_relu6, v < 0 ? 0 : v > 6 ? 6 : v)
EACH1(do_threshold, v < i->s ? i->s : v)
EACH1(do_clip, (v < i->s ? i->s : v) > i->t ? i->t : v < i->s ? i->s : v)
EACH1(do_leaky, v > 0 ? v : i->s * v)
EACH1(do_thresholded, v < i->s ? 0 : v)
EACH1(do_hard, i->s * v + i->t < 0 ? 0 : i->s * v + i->t > 1 ? 1 : i->s * v + i->t)
EACH1(do_softsign, isinf(v) ? copysignf(1, v) : v / (1 + fabsf(v)))
EACH1(do_elu, v > 0 ? v : i->s * expm1f(v))
EACH1(do_scaled_tanh, i->s * tanhf(i->t * v))
INS(do_clamped) {
    UNUSED;
    for (size_t j = 0; j < n; j++) {
        float v = a[j] >= 0 ? a[j] : i->s * a[j];
        y[j] = v > i->t ? i->t : v;
    }
}

#define EACH2(name, expr)                                                                  \
    INS(name) {                                                                            \
        UNUSED;                                                                            \
        for (size_t j = 0; j < n; j++) {                                                   \
            float u = a[j], v = b[j];                                                      \
            y[j] = expr;                                                                   \
        }                                                                                  \
    }
static float floor_div_f(float a, float b) {
    if (b == 0 || a != a || b != b || isinf(a)) return a / b;
    double m = fmod((double)a, (double)b), q = ((double)a - m) / (double)b;
    if (m != 0 && (b < 0) != (m < 0)) q -= 1;
    if (q == 0) return copysignf(0, a / b);
    double f = floor(q);
    return (float)(q - f > 0.5 ? f + 1 : f);
}
static float mod_f(float a, float b) {
    float m = fmodf(a, b);
    if (m != 0) return (b < 0) != (m < 0) ? m + b : m;
    return copysignf(m, b);
}
EACH2(do_floor_div, floor_div_f(u, v))
EACH2(do_mod, mod_f(u, v))
EACH2(do_pow, powf(u, v))
EACH2(do_eq, u == v)
EACH2(do_ne, u != v)
EACH2(do_lt, u < v)
EACH2(do_le, u <= v)
EACH2(do_gt, u > v)
EACH2(do_ge, u >= v)
EACH2(do_and, u != 0 && v != 0)
EACH2(do_or, u != 0 || v != 0)
EACH2(do_xor, (u != 0) != (v != 0))

PUBLIC(do_select) {                        /* bits, so that int32 and NaN pass through */
    UNUSED;
    const uint32_t *p = (const uint32_t *)(const void *)b, *q = (const uint32_t *)(const void *)c;
    uint32_t *out = (uint32_t *)(void *)y;
    for (size_t j = 0; j < n; j++) out[j] = a[j] != 0 ? p[j] : q[j];
}

/* int32: registers hold the bits. Arithmetic wraps. */
static int32_t geti(const float *x, size_t j) {
    int32_t v;
    memcpy(&v, x + j, sizeof v);
    return v;
}
static void puti(float *x, size_t j, int32_t v) { memcpy(x + j, &v, sizeof v); }
static int32_t wrap(uint32_t v) { return (int32_t)v; }
static int32_t floor_div_i(int32_t a, int32_t b) {
    if (!b) return 0;
    int64_t q = (int64_t)a / b;
    return wrap((uint32_t)(q - ((int64_t)a % b != 0 && (a < 0) != (b < 0))));
}
static int32_t mod_i(int32_t a, int32_t b) {
    return b ? wrap((uint32_t)a - (uint32_t)floor_div_i(a, b) * (uint32_t)b) : 0;
}

#define INT1(name, expr)                                                                   \
    INS(name) {                                                                            \
        UNUSED;                                                                            \
        for (size_t j = 0; j < n; j++) {                                                   \
            int32_t v = geti(a, j);                                                        \
            puti(y, j, expr);                                                              \
        }                                                                                  \
    }
#define INT2(name, expr)                                                                   \
    INS(name) {                                                                            \
        UNUSED;                                                                            \
        for (size_t j = 0; j < n; j++) {                                                   \
            int32_t u = geti(a, j), v = geti(b, j);                                        \
            puti(y, j, expr);                                                              \
        }                                                                                  \
    }
#define CMPI(name, op)                                                                     \
    INS(name) {                                                                            \
        UNUSED;                                                                            \
        for (size_t j = 0; j < n; j++) y[j] = geti(a, j) op geti(b, j);                    \
    }
INT1(do_abs_i, v < 0 ? wrap(0u - (uint32_t)v) : v)
INT1(do_sign_i, (v > 0) - (v < 0))
INT1(do_square_i, wrap((uint32_t)v * (uint32_t)v))
INT1(do_threshold_i, v < i->k ? i->k : v)
INT2(do_add_i, wrap((uint32_t)u + (uint32_t)v))
INT2(do_sub_i, wrap((uint32_t)u - (uint32_t)v))
INT2(do_mul_i, wrap((uint32_t)u * (uint32_t)v))
INT2(do_max_i, u > v ? u : v)
INT2(do_min_i, u < v ? u : v)
INT2(do_floor_div_i, floor_div_i(u, v))
INT2(do_mod_i, mod_i(u, v))
CMPI(do_eq_i, ==)
CMPI(do_ne_i, !=)
CMPI(do_lt_i, <)
CMPI(do_le_i, <=)
CMPI(do_gt_i, >)
CMPI(do_ge_i, >=)
PUBLIC(do_f2i) {
    UNUSED;
    for (size_t j = 0; j < n; j++) {
        float v = a[j];
        puti(y, j, v != v ? 0 : v >= 0x1p31f ? INT32_MAX : v <= -0x1p31f ? INT32_MIN
                                                                         : (int32_t)v);
    }
}
PUBLIC(do_i2f) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = (float)geti(a, j); }
PUBLIC(do_f2b) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = a[j] != 0; }
PUBLIC(do_i2b) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = geti(a, j) != 0; }

/* ---------------------------------------------------------------- op table */

static const ane_code codes[] = {
    {"abs", ane__do_v1, do_abs_i, ANE_VEC_ABS, NULL, false},
    {"acos", do_libm, NULL, 0, acosf, false},
    {"add", ane__do_v2, do_add_i, ANE_VEC_ADD, NULL, false},
    {"asin", do_libm, NULL, 0, asinf, false},
    {"atan", do_libm, NULL, 0, atanf, false},
    {"atanh", do_libm, NULL, 0, atanhf, false},
    {"ceil", do_libm, NULL, 0, ceilf, false},
    {"clamped_relu", do_clamped, NULL, 0, NULL, false},
    {"clip", do_clip, NULL, 0, NULL, false},
    {"cos", do_libm, NULL, 0, cosf, false},
    {"cosh", do_libm, NULL, 0, coshf, false},
    {"elu", do_elu, NULL, 0, NULL, false},
    {"equal", do_eq, do_eq_i, 0, NULL, false},
    {"erf", ane__do_v1, NULL, ANE_VEC_ERF, NULL, false},
    {"exp", ane__do_v1, NULL, ANE_VEC_EXP, NULL, false},
    {"exp2", do_libm, NULL, 0, exp2f, false},
    {"floor", do_libm, NULL, 0, floorf, false},
    {"floor_div", do_floor_div, do_floor_div_i, 0, NULL, false},
    {"gelu", ane__do_v1, NULL, ANE_VEC_GELU, NULL, false},
    {"greater", do_gt, do_gt_i, 0, NULL, false},
    {"greater_equal", do_ge, do_ge_i, 0, NULL, false},
    {"inverse", ane__do_v1, NULL, ANE_VEC_RECIP, NULL, false},
    {"leaky_relu", do_leaky, NULL, 0, NULL, false},
    {"less", do_lt, do_lt_i, 0, NULL, false},
    {"less_equal", do_le, do_le_i, 0, NULL, false},
    {"linear_activation", do_affine, NULL, 0, NULL, false},
    {"log", ane__do_v1, NULL, ANE_VEC_LOG, NULL, false},
    {"logical_and", do_and, NULL, 0, NULL, false},
    {"logical_not", do_not, NULL, 0, NULL, false},
    {"logical_or", do_or, NULL, 0, NULL, false},
    {"logical_xor", do_xor, NULL, 0, NULL, false},
    {"maximum", ane__do_v2, do_max_i, ANE_VEC_MAX, NULL, false},
    {"minimum", ane__do_v2, do_min_i, ANE_VEC_MIN, NULL, false},
    {"mod", do_mod, do_mod_i, 0, NULL, false},
    {"mul", ane__do_v2, do_mul_i, ANE_VEC_MUL, NULL, false},
    {"not_equal", do_ne, do_ne_i, 0, NULL, false},
    {"pow", do_pow, NULL, 0, NULL, true},
    {"real_div", ane__do_v2, NULL, ANE_VEC_DIV, NULL, false},
    {"relu", ane__do_v1, NULL, ANE_VEC_RELU, NULL, false},
    {"relu6", do_relu6, NULL, 0, NULL, false},
    {"round", do_libm, NULL, 0, rintf, false},
    {"rsqrt", ane__do_v1, NULL, ANE_VEC_RSQRT, NULL, false},
    {"scaled_tanh", do_scaled_tanh, NULL, 0, NULL, false},
    {"sigmoid", ane__do_v1, NULL, ANE_VEC_SIGMOID, NULL, false},
    {"sigmoid_hard", do_hard, NULL, 0, NULL, false},
    {"sign", do_sign, do_sign_i, 0, NULL, false},
    {"silu", ane__do_v1, NULL, ANE_VEC_SILU, NULL, false},
    {"sin", do_libm, NULL, 0, sinf, false},
    {"sinh", do_libm, NULL, 0, sinhf, false},
    {"softplus", ane__do_v1, NULL, ANE_VEC_SOFTPLUS, NULL, false},
    {"softsign", do_softsign, NULL, 0, NULL, false},
    {"sqrt", ane__do_v1, NULL, ANE_VEC_SQRT, NULL, false},
    {"square", ane__do_v1, do_square_i, ANE_VEC_SQUARE, NULL, false},
    {"sub", ane__do_v2, do_sub_i, ANE_VEC_SUB, NULL, false},
    {"tan", do_libm, NULL, 0, tanf, false},
    {"tanh", ane__do_v1, NULL, ANE_VEC_TANH, NULL, false},
    {"threshold", do_threshold, do_threshold_i, 0, NULL, false},
    {"thresholded_relu", do_thresholded, NULL, 0, NULL, false},
};

const ane_code *ane_code_of(const char *name) {
    size_t lo = 0, hi = sizeof codes / sizeof *codes;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strcmp(name, codes[mid].name);
        if (!c) return &codes[mid];
        if (c < 0) hi = mid;
        else lo = mid + 1;
    }
    return NULL;
}
