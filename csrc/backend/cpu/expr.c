/* Ops to instructions, and the interpreter of one tile. */
#include "expr.h"

#include "../../base/f16.h"
#include "ops.h"
#include "view.h"

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

#define INS(name)                                                                          \
    static void name(const ane_ins *i, float *y, const float *a, const float *b,           \
                     const float *c, size_t n)
#define UNUSED (void)i, (void)a, (void)b, (void)c

INS(do_v1) { UNUSED; i->v1(y, a, n); }
INS(do_v2) { UNUSED; i->v2(y, a, b, n); }
INS(do_vs) { UNUSED; i->vs(y, a, i->s, n); }
INS(do_affine) { UNUSED; ane_vec_get()->affine(y, a, i->s, i->t, n); }
INS(do_libm) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = i->libm(a[j]); }
INS(do_fill) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = i->s; }
INS(do_copy) { UNUSED; memcpy(y, a, n * sizeof *y); }
INS(do_round) {                         /* a cast to a narrower float inside a chain */
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

INS(do_select) {                        /* bits, so that int32 and NaN pass through */
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
INS(do_f2i) {
    UNUSED;
    for (size_t j = 0; j < n; j++) {
        float v = a[j];
        puti(y, j, v != v ? 0 : v >= 0x1p31f ? INT32_MAX : v <= -0x1p31f ? INT32_MIN
                                                                         : (int32_t)v);
    }
}
INS(do_i2f) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = (float)geti(a, j); }
INS(do_f2b) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = a[j] != 0; }
INS(do_i2b) { UNUSED; for (size_t j = 0; j < n; j++) y[j] = geti(a, j) != 0; }

/* ---------------------------------------------------------------- op table */

typedef struct code {
    const char *name;
    ane_ins_fn *f, *g;                  /* floats; int32 */
    int vec;                            /* ane_vec_unary or _binary of do_v1, do_v2 */
    float (*libm)(float);
} code;

static const code codes[] = {
    {"abs", do_v1, do_abs_i, ANE_VEC_ABS, NULL},
    {"acos", do_libm, NULL, 0, acosf},
    {"add", do_v2, do_add_i, ANE_VEC_ADD, NULL},
    {"asin", do_libm, NULL, 0, asinf},
    {"atan", do_libm, NULL, 0, atanf},
    {"atanh", do_libm, NULL, 0, atanhf},
    {"ceil", do_libm, NULL, 0, ceilf},
    {"clamped_relu", do_clamped, NULL, 0, NULL},
    {"clip", do_clip, NULL, 0, NULL},
    {"cos", do_libm, NULL, 0, cosf},
    {"cosh", do_libm, NULL, 0, coshf},
    {"elu", do_elu, NULL, 0, NULL},
    {"equal", do_eq, do_eq_i, 0, NULL},
    {"erf", do_v1, NULL, ANE_VEC_ERF, NULL},
    {"exp", do_v1, NULL, ANE_VEC_EXP, NULL},
    {"exp2", do_libm, NULL, 0, exp2f},
    {"floor", do_libm, NULL, 0, floorf},
    {"floor_div", do_floor_div, do_floor_div_i, 0, NULL},
    {"gelu", do_v1, NULL, ANE_VEC_GELU, NULL},
    {"greater", do_gt, do_gt_i, 0, NULL},
    {"greater_equal", do_ge, do_ge_i, 0, NULL},
    {"inverse", do_v1, NULL, ANE_VEC_RECIP, NULL},
    {"leaky_relu", do_leaky, NULL, 0, NULL},
    {"less", do_lt, do_lt_i, 0, NULL},
    {"less_equal", do_le, do_le_i, 0, NULL},
    {"linear_activation", do_affine, NULL, 0, NULL},
    {"log", do_v1, NULL, ANE_VEC_LOG, NULL},
    {"logical_and", do_and, NULL, 0, NULL},
    {"logical_not", do_not, NULL, 0, NULL},
    {"logical_or", do_or, NULL, 0, NULL},
    {"logical_xor", do_xor, NULL, 0, NULL},
    {"maximum", do_v2, do_max_i, ANE_VEC_MAX, NULL},
    {"minimum", do_v2, do_min_i, ANE_VEC_MIN, NULL},
    {"mod", do_mod, do_mod_i, 0, NULL},
    {"mul", do_v2, do_mul_i, ANE_VEC_MUL, NULL},
    {"not_equal", do_ne, do_ne_i, 0, NULL},
    {"pow", do_pow, NULL, 0, NULL},
    {"real_div", do_v2, NULL, ANE_VEC_DIV, NULL},
    {"relu", do_v1, NULL, ANE_VEC_RELU, NULL},
    {"relu6", do_relu6, NULL, 0, NULL},
    {"round", do_libm, NULL, 0, rintf},
    {"rsqrt", do_v1, NULL, ANE_VEC_RSQRT, NULL},
    {"scaled_tanh", do_scaled_tanh, NULL, 0, NULL},
    {"sigmoid", do_v1, NULL, ANE_VEC_SIGMOID, NULL},
    {"sigmoid_hard", do_hard, NULL, 0, NULL},
    {"sign", do_sign, do_sign_i, 0, NULL},
    {"silu", do_v1, NULL, ANE_VEC_SILU, NULL},
    {"sin", do_libm, NULL, 0, sinf},
    {"sinh", do_libm, NULL, 0, sinhf},
    {"softplus", do_v1, NULL, ANE_VEC_SOFTPLUS, NULL},
    {"softsign", do_softsign, NULL, 0, NULL},
    {"sqrt", do_v1, NULL, ANE_VEC_SQRT, NULL},
    {"square", do_v1, do_square_i, ANE_VEC_SQUARE, NULL},
    {"sub", do_v2, do_sub_i, ANE_VEC_SUB, NULL},
    {"tan", do_libm, NULL, 0, tanf},
    {"tanh", do_v1, NULL, ANE_VEC_TANH, NULL},
    {"threshold", do_threshold, do_threshold_i, 0, NULL},
    {"thresholded_relu", do_thresholded, NULL, 0, NULL},
};

static const code *code_of(const char *name) {
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

/* ---------------------------------------------------------------- building */

typedef struct builder {
    ane_planner *pl;
    const ane_graph *g;
    const ane_group *grp;
    ane_expr *e;
    int cap_ins, cap_views;
    int *reg;                           /* by value id: virtual register + 1; 0: none */
    int n_virtual;
    const ane_type *space;
} builder;

static ane_ins *emit(builder *b, ane_ins_fn *fn, int a, int c2, int c3) {
    ane_expr *e = b->e;
    if (e->n_ins == b->cap_ins) return NULL;            /* sized before; cannot happen */
    ane_ins *i = &e->ins[e->n_ins++];
    *i = (ane_ins){.fn = fn, .a = a, .b = c2, .c = c3, .dst = b->n_virtual++, .load = -1};
    return i;
}

/* Virtual register of an operand: a value of the group, a constant scalar, or a load. */
static ane_status operand(builder *b, const ane_value *given, const ane_type *of, int *reg) {
    const ane_value *v = ane_value_through(given);
    if (!given->konst && b->reg[v->id]) {
        *reg = b->reg[v->id] - 1;
        return ANE_OK;
    }
    if (given->konst && ane_type_count(given->type) == 1 && given->konst->data) {
        ane_ins *i = emit(b, do_fill, -1, -1, -1);
        if (given->type->dtype == ANE_I32) {
            int32_t k = (int32_t)ane_const_i64(given->konst, 0);
            memcpy(&i->s, &k, sizeof k);
        } else if (given->type->dtype == ANE_BOOL) {
            i->s = ane_const_i64(given->konst, 0) != 0;
        } else {
            i->s = (float)ane_const_f64(given->konst, 0);
        }
        *reg = i->dst;
        return ANE_OK;
    }
    ane_view view, wide;
    ane_status st = ane_plan_operand(b->pl, given, &view);
    if (st) return st;
    if (!ane_view_broadcast(&view, of->rank, of->dims, &wide))
        return ane_fail(b->pl->err, ANE_ERR_SHAPE, "[compile] %s does not broadcast",
                        given->name);
    ane_view_drop_ones(&wide, of->dims, of->rank);
    ane_expr *e = b->e;
    int k = 0;
    while (k < e->n_views && !ane_view_same(&e->views[k], &wide)) k++;
    for (int j = 0; j < e->n_ins; j++)
        if (k < e->n_views && e->ins[j].load == k) {
            *reg = e->ins[j].dst;
            return ANE_OK;
        }
    if (k == e->n_views) e->views[e->n_views++] = wide;
    ane_ins *i = emit(b, NULL, -1, -1, -1);
    i->load = k;
    *reg = i->dst;
    return ANE_OK;
}

/* The constant of operand `v` as a scalar of a binary float op. */
static bool scalar_of(const ane_value *v, float *s) {
    if (!v->konst || ane_type_count(v->type) != 1 || !v->konst->data ||
        !ane_dtype_is_float(v->type->dtype))
        return false;
    *s = (float)ane_const_f64(v->konst, 0);
    return true;
}

/* x to a constant power by cheaper ways; all as accurate as powf or better. */
static const ane_vec_unary *cheap_power(float s) {
    static const ane_vec_unary square = ANE_VEC_SQUARE, rsqrt = ANE_VEC_RSQRT,
                               root = ANE_VEC_SQRT, recip = ANE_VEC_RECIP;
    if (s == 2.0f) return &square;
    if (s == -0.5f) return &rsqrt;
    if (s == 0.5f) return &root;
    if (s == -1.0f) return &recip;
    return NULL;
}

static ane_status cast(builder *b, const ane_op *op, int a) {
    ane_dtype from = ane_op_in(op, "x")->type->dtype, to = op->results[0]->type->dtype;
    ane_ins *i = NULL;
    bool ff = ane_dtype_is_float(from), tf = ane_dtype_is_float(to);
    if (ff && tf && to != ANE_F32 && to != from) {
        i = emit(b, do_round, a, -1, -1);
        i->kind = (int)to;
    } else if (ff && to == ANE_I32) i = emit(b, do_f2i, a, -1, -1);
    else if (from == ANE_BOOL && to == ANE_I32) i = emit(b, do_f2i, a, -1, -1);
    else if (from == ANE_I32 && tf) i = emit(b, do_i2f, a, -1, -1);
    else if (ff && to == ANE_BOOL) i = emit(b, do_f2b, a, -1, -1);
    else if (from == ANE_I32 && to == ANE_BOOL) i = emit(b, do_i2b, a, -1, -1);
    /* A stored value has a register of its own: one that is the input's memory could be
     * overwritten by another store. */
    if (!i && ane_value_escapes(b->g, op->results[0], b->grp)) i = emit(b, do_copy, a, -1, -1);
    b->reg[op->results[0]->id] = (i ? i->dst : a) + 1;
    return ANE_OK;
}

static ane_status lower(builder *b, const ane_op *op) {
    const char *name = op->row->name;
    const ane_vec *vec = ane_vec_get();
    const ane_type *of = op->results[0]->type;
    int r[3] = {-1, -1, -1};
    ane_ins *i = NULL;
    ane_status st = ANE_OK;
    if (!strcmp(name, "select")) {
        static const char *const args[] = {"cond", "a", "b"};
        for (int k = 0; k < 3 && !st; k++) st = operand(b, ane_op_in(op, args[k]), of, &r[k]);
        if (st) return st;
        i = emit(b, do_select, r[0], r[1], r[2]);
        b->reg[op->results[0]->id] = i->dst + 1;
        return ANE_OK;
    }
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    if (!strcmp(name, "cast") || !strcmp(name, "identity")) {
        st = operand(b, x, of, &r[0]);
        return st ? st : cast(b, op, r[0]);
    }
    const code *c = code_of(name);
    ANE_ASSERT(c);
    bool ints = x->type->dtype == ANE_I32;
    ane_ins_fn *fn = ints ? c->g : c->f;
    ANE_ASSERT(fn);
    float s;
    if (y && fn == do_v2 && scalar_of(y, &s)) {
        st = operand(b, x, of, &r[0]);
        if (st) return st;
        i = emit(b, do_vs, r[0], -1, -1);
        i->vs = vec->scalar[c->vec];
        i->s = s;
    } else if (y && fn == do_v2 && scalar_of(x, &s)) {
        st = operand(b, y, of, &r[0]);
        if (st) return st;
        i = emit(b, do_vs, r[0], -1, -1);
        i->vs = vec->rscalar[c->vec];
        i->s = s;
    } else if (y && fn == do_pow && scalar_of(y, &s) && cheap_power(s)) {
        st = operand(b, x, of, &r[0]);
        if (st) return st;
        i = emit(b, do_v1, r[0], -1, -1);
        i->v1 = vec->unary[*cheap_power(s)];
    } else {
        st = operand(b, x, of, &r[0]);
        if (!st && y) st = operand(b, y, of, &r[1]);
        if (st) return st;
        double eps = ane_op_f64(op, "epsilon", 0);
        if (eps != 0 && (c->vec == ANE_VEC_RSQRT || c->vec == ANE_VEC_RECIP ||
                         c->vec == ANE_VEC_LOG)) {
            i = emit(b, do_vs, r[0], -1, -1);
            i->vs = vec->scalar[ANE_VEC_ADD];
            i->s = (float)eps;
            r[0] = i->dst;
        }
        i = emit(b, fn, r[0], r[1], -1);
        if (fn == do_v1) i->v1 = vec->unary[c->vec];
        if (fn == do_v2) i->v2 = vec->binary[c->vec];
        i->libm = c->libm;
        i->s = (float)ane_op_f64(op, "alpha", 0);
        i->t = (float)ane_op_f64(op, "beta", 0);
        i->k = (int32_t)ane_op_i64(op, "alpha", 0);
        if (!strcmp(name, "gelu")) {
            const char *mode = ane_op_str(op, "mode", "EXACT");
            if (!strcmp(mode, "TANH_APPROXIMATION")) i->v1 = vec->unary[ANE_VEC_GELU_TANH];
            if (!strcmp(mode, "SIGMOID_APPROXIMATION"))
                i->v1 = vec->unary[ANE_VEC_GELU_SIGMOID];
        }
    }
    b->reg[op->results[0]->id] = i->dst + 1;
    return ANE_OK;
}

/* Virtual to physical: a register is free after its last reader. Loads come where they are
 * first read, so few are live at once; values to be stored live to the end, since a store
 * may overwrite an input of the same view. */
static bool assign_registers(ane_expr *e, int n_virtual, ane_arena *arena) {
    int *last = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *last);
    int *phys = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *phys);
    bool *busy = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *busy);
    if (!last || !phys || !busy) return false;
    for (int i = 0; i < e->n_ins; i++) {
        const int in[3] = {e->ins[i].a, e->ins[i].b, e->ins[i].c};
        for (int k = 0; k < 3; k++)
            if (in[k] >= 0) last[in[k]] = i;
        if (last[e->ins[i].dst] < i) last[e->ins[i].dst] = i;
    }
    for (int k = 0; k < e->n_stores; k++) last[e->store[k]] = e->n_ins;
    if (e->result >= 0) last[e->result] = e->n_ins;
    for (int i = 0; i < e->n_ins; i++) {
        ane_ins *s = &e->ins[i];
        int virt = s->dst, *in[3] = {&s->a, &s->b, &s->c}, was[3];
        for (int k = 0; k < 3; k++) was[k] = *in[k];
        for (int k = 0; k < 3; k++)
            if (was[k] >= 0) *in[k] = phys[was[k]];
        /* The destination may be one of the operands that end here: exactly the same row. */
        for (int k = 0; k < 3; k++)
            if (was[k] >= 0 && last[was[k]] == i) busy[phys[was[k]]] = false;
        int p = 0;
        while (busy[p]) p++;
        busy[p] = last[virt] > i;
        phys[virt] = s->dst = p;
        if (p >= e->n_regs) e->n_regs = p + 1;
    }
    for (int k = 0; k < e->n_stores; k++) e->store[k] = phys[e->store[k]];
    if (e->result >= 0) e->result = phys[e->result];
    return true;
}

const char *ane_group_label(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    if (grp->n == 1) return g->ops[grp->ops[0]]->row->name;
    char text[128];
    size_t n = 0;
    for (int i = 0; i < grp->n && n < sizeof text - 24; i++) {
        const char *name = g->ops[grp->ops[i]]->row->name;
        size_t m = strlen(name);
        if (n + m + 2 >= sizeof text - 8) break;
        if (i) text[n++] = '+';
        memcpy(text + n, name, m);
        n += m;
    }
    const char *s = ane_arena_strndup(pl->plan->arena, text, n);
    return s ? s : "chain";
}

ane_status ane_expr_build(ane_planner *pl, const ane_graph *g, const ane_group *grp,
                          const ane_value *result, ane_expr **out) {
    ane_arena *arena = pl->plan->arena;
    builder b = {.pl = pl, .g = g, .grp = grp};
    int ops = grp->n;
    ane_expr *e = b.e = ane_arena_alloc(arena, sizeof *e);
    b.cap_ins = 6 * ops + 8;            /* select: three loads and itself; eps one more */
    b.cap_views = 4 * ops + 8;
    b.reg = ane_calloc(g->n_values, sizeof *b.reg);
    ane_status st = ANE_OK;
    if (!e || !b.reg) goto nomem;
    e->ins = ane_arena_alloc(arena, (size_t)b.cap_ins * sizeof *e->ins);
    e->views = ane_arena_alloc(arena, (size_t)b.cap_views * sizeof *e->views);
    e->store = ane_arena_alloc(arena, (size_t)(ops + 1) * sizeof *e->store);
    if (!e->ins || !e->views || !e->store) goto nomem;
    e->result = -1;
    b.space = result ? result->type : g->ops[grp->ops[grp->n - 1]]->results[0]->type;
    for (int d = 0; d < b.space->rank; d++)
        if (b.space->dims[d] != 1) e->shape[e->rank++] = b.space->dims[d];
    /* Outputs first: their places must not depend on what is loaded. */
    if (!result) {
        for (int i = 0; i < grp->n; i++) {
            const ane_value *v = g->ops[grp->ops[i]]->results[0];
            if (!ane_value_escapes(g, v, grp)) continue;
            ane_view *view = &e->views[e->n_views++];
            st = ane_plan_dest(pl, v, view);
            if (st) goto done;
            ane_view_drop_ones(view, v->type->dims, v->type->rank);
            e->n_stores++;
        }
    }
    for (int i = 0; i < grp->n && !st; i++)
        if (grp->ops[i] != grp->core) st = lower(&b, g->ops[grp->ops[i]]);
    if (!st && result) st = operand(&b, result, result->type, &e->result);
    if (st) goto done;
    int k = 0;
    for (int i = 0; i < grp->n && !result; i++) {
        const ane_value *v = g->ops[grp->ops[i]]->results[0];
        if (ane_value_escapes(g, v, grp)) e->store[k++] = b.reg[v->id] - 1;
    }
    for (int i = 0; i < e->n_ins; i++) e->flops += e->ins[i].fn != NULL;
    if (!assign_registers(e, b.n_virtual, arena)) goto nomem;
    *out = e;
    goto done;
nomem:
    st = ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
done:
    ane_free(b.reg);
    return st;
}

void ane_expr_arrange(ane_expr *e, bool sort) {
    if (!e->n_views || !e->rank) return;
    int perm[ANE_MAX_RANK];
    for (int d = 0; d < e->rank; d++) {
        int64_t s = e->views[0].strides[d];
        int at = d;
        for (; sort && at > 0; at--) {
            int64_t t = e->views[0].strides[perm[at - 1]];
            if ((t < 0 ? -t : t) >= (s < 0 ? -s : s)) break;
            perm[at] = perm[at - 1];
        }
        perm[at] = d;
    }
    ane_view *all[256];
    for (int k = 0; k < e->n_views; k++) {
        ane_view_permute(&e->views[k], perm, &e->views[k]);
        all[k] = &e->views[k];
    }
    e->rank = ane_views_merge(e->n_views, all);
    for (int d = 0; d < e->rank; d++) e->shape[d] = e->views[0].shape[d];
}

/* ---------------------------------------------------------------- one tile */

/* Rows of a view whose columns step by cs and whose rows step by rs; one row when both
 * together are dense. */
static void load_tile(float *y, const char *p, ane_dtype dtype, int64_t rs, int64_t cs,
                      size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++, p += rs, y += cols) {
        if (cs) {
            ane_row_load(y, p, dtype, cs, cols);
            continue;
        }
        float x;
        ane_row_load(&x, p, dtype, 0, 1);
        for (size_t c = 0; c < cols; c++) memcpy(&y[c], &x, sizeof x);
    }
}

const float *ane_expr_run(const ane_tile *t) {
    const ane_expr *e = t->e;
    size_t n = t->rows * t->cols;
    const float *reg[128];
    ANE_ASSERT(e->n_regs <= 128);
    for (int k = 0; k < e->n_ins; k++) {
        const ane_ins *i = &e->ins[k];
        float *own = t->regs + (size_t)i->dst * t->cap;
        if (i->fn) {
            i->fn(i, own, i->a < 0 ? NULL : reg[i->a], i->b < 0 ? NULL : reg[i->b],
                  i->c < 0 ? NULL : reg[i->c], n);
            reg[i->dst] = own;
            continue;
        }
        const ane_view *v = &e->views[i->load];
        const char *p = t->at[i->load];
        int64_t unit = (int64_t)ane_dtype_size(v->dtype);
        int64_t rs = t->row_dim < 0 ? 0 : v->strides[t->row_dim];
        int64_t cs = t->col_dim < 0 ? unit : v->strides[t->col_dim];
        bool dense = (cs == unit || t->cols == 1) &&
                     (t->rows == 1 || rs == (int64_t)t->cols * unit);
        if (dense && (v->dtype == ANE_F32 || v->dtype == ANE_I32) &&
            !((uintptr_t)p & (sizeof(float) - 1))) {
            reg[i->dst] = (const float *)(const void *)p;       /* no copy */
        } else {
            if (dense) ane_row_load(own, p, v->dtype, unit, n);
            else load_tile(own, p, v->dtype, rs, cs, t->rows, t->cols);
            reg[i->dst] = own;
        }
    }
    for (int k = 0; k < e->n_stores; k++) {
        const ane_view *v = &e->views[k];
        char *p = t->at[k];
        const float *x = reg[e->store[k]];
        int64_t unit = (int64_t)ane_dtype_size(v->dtype);
        int64_t rs = t->row_dim < 0 ? 0 : v->strides[t->row_dim];
        int64_t cs = t->col_dim < 0 ? unit : v->strides[t->col_dim];
        if ((cs == unit || t->cols == 1) && (t->rows == 1 || rs == (int64_t)t->cols * unit)) {
            ane_row_store(p, v->dtype, unit, x, n);
            continue;
        }
        for (size_t r = 0; r < t->rows; r++, p += rs, x += t->cols)
            ane_row_store(p, v->dtype, cs, x, t->cols);
    }
    return e->result < 0 ? NULL : reg[e->result];
}
