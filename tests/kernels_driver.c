/* Every kernel table of a build against double precision and against the scalar table, in C
 * alone: for the builds that Python cannot load here (AArch64 under qemu, emulated AVX-512
 * extensions) and for sanitizers. tests/run_kernels.sh builds and runs it. */
#include "../csrc/base/f16.h"
#include "../csrc/base/mem.h"
#include "../csrc/base/sync.h"
#include "../csrc/kernels/convert.h"
#include "../csrc/kernels/kernels.h"

#include "guarded.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_long checks, failures;
#define CHECK(cond, ...)                                                                  \
    do {                                                                                  \
        atomic_fetch_add_explicit(&checks, 1, memory_order_relaxed);                      \
        if (!(cond) && atomic_fetch_add(&failures, 1) < 20) {                                                 \
            printf("FAILED %s:%d: ", __FILE__, __LINE__);                                 \
            printf(__VA_ARGS__);                                                          \
            printf("\n");                                                                 \
        }                                                                                 \
    } while (0)

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
static double uniform(void) { return (double)(next() >> 11) * 0x1p-53; }
static double normal(void) {
    return sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform());
}

/* ------------------------------------------------------------------ conversion, vectors */

static void conversions(const ane_kernels *t) {
    enum { N = 65536 };
    static uint16_t half[N], back[N];
    static float up[N], wide[N];
    for (int i = 0; i < N; i++) half[i] = (uint16_t)i;
    ane_convert_with(t, up, ANE_F32, half, ANE_F16, N);
    for (int i = 0; i < N; i++)
        CHECK(ane_f32_bits(up[i]) == ane_f32_bits(ane_f32_from_f16((uint16_t)i)),
              "%s: half %04x up", t->name, (unsigned)i);
    ane_convert_with(t, up, ANE_F32, half, ANE_BF16, N);
    for (int i = 0; i < N; i++)
        CHECK(ane_f32_bits(up[i]) == (uint32_t)i << 16, "%s: bf16 %04x up", t->name,
              (unsigned)i);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < N; i++) {
            /* Random bits, and around every rounding boundary. */
            uint32_t u = (uint32_t)next();
            if (round & 1) u = (u & 0xffffe000u) + 0x0fffu + (u & 3u);
            if (round & 2) u = (u & 0xffff0000u) + 0x7fffu + (u & 3u);
            wide[i] = ane_bits_f32(u);
        }
        ane_convert_with(t, back, ANE_F16, wide, ANE_F32, N);
        for (int i = 0; i < N; i++)
            CHECK(back[i] == ane_f16_from_f32(wide[i]), "%s: %08x down", t->name,
                  ane_f32_bits(wide[i]));
        ane_convert_with(t, back, ANE_BF16, wide, ANE_F32, N);
        for (int i = 0; i < N; i++)
            CHECK(back[i] == ane_bf16_from_f32(wide[i]), "%s: %08x to bf16", t->name,
                  ane_f32_bits(wide[i]));
    }
}

static double ulps(float x, float y) {
    if (isnan(x) && isnan(y)) return 0;
    if (x == y) return 0;
    if (!isfinite(x) || !isfinite(y)) return INFINITY;
    float big = fabsf(x) > fabsf(y) ? fabsf(x) : fabsf(y);
    double ulp = nextafterf(big, INFINITY) - big;
    return fabs((double)x - (double)y) / ulp;
}

/* steps against the table's own load, rows and store: every pair of functions, each kind of
 * operand and dtype, whole blocks and what is left of one. */
static void chains(const ane_kernels *t) {
    enum { N = 1100 };
    static const ane_dtype types[] = {ANE_F32, ANE_F16, ANE_BF16};
    static float x[N], row[N], a[N], b[N];
    static _Alignas(64) char in[N * 4], other[N * 4], got[N * 4], want[N * 4];
    const ane_vec *v = t->vec;
    for (int i = 0; i < N; i++) {
        x[i] = (float)normal();
        row[i] = (float)normal();
    }
    const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN};
    memcpy(x + 60, special, sizeof special);
    memcpy(row + 300, special, sizeof special);
    for (int c = 0; c < 9 * ANE_VEC_BINARY_COUNT * ANE_VEC_BINARY_COUNT * ANE_STEP_KINDS; c++) {
        ane_dtype from = types[c % 3], to = types[c / 3 % 3];
        int one = c / 9 % ANE_VEC_BINARY_COUNT, rest = c / 9 / ANE_VEC_BINARY_COUNT;
        int two = rest % ANE_VEC_BINARY_COUNT, kind = rest / ANE_VEC_BINARY_COUNT;
        size_t n = c % 7 ? 1 + (size_t)c * 37 % N : (size_t)(c % 5) * 128;
        float s = c % 11 ? 0.75f : special[c % 5];
        ane_dtype held = kind == ANE_STEP_16 || kind == ANE_STEP_R16  ? ANE_F16
                         : kind == ANE_STEP_B || kind == ANE_STEP_RB ? ANE_BF16
                                                                      : ANE_F32;
        v->store(in, from, x, n);
        v->store(other, held, row, n);
        ane_vec_step steps[3] = {{ANE_STEP(one, ANE_STEP_S), s, NULL},
                                 {ANE_STEP(two, kind), -1.25f, other},
                                 {ANE_STEP_UNARY(ANE_VEC_RELU), 0, NULL}};
        memset(got, 0x5a, sizeof got);
        memset(want, 0x5a, sizeof want);
        v->steps(got, to, c % 2, in, from, steps, 3, n);
        v->load(a, in, from, n);
        v->load(b, other, held, n);
        v->scalar[one](a, a, s, n);
        if (kind == ANE_STEP_S) v->scalar[two](a, a, -1.25f, n);
        else if (kind == ANE_STEP_RS) v->rscalar[two](a, a, -1.25f, n);
        else if (kind < ANE_STEP_RS) v->binary[two](a, a, b, n);
        else v->binary[two](a, b, a, n);
        v->unary[ANE_VEC_RELU](a, a, n);
        v->store(want, to, a, n);
        size_t size = ane_dtype_size(to);
        for (size_t i = 0; i < sizeof got / size; i++) {
            float g = 0, w = 0;
            v->load(&g, got + i * size, to, 1);
            v->load(&w, want + i * size, to, 1);
            CHECK(!memcmp(got + i * size, want + i * size, size) || (g != g && w != w),
                  "%s steps case %d at %zu of %zu: %a, rows %a", t->name, c, i, n, (double)g,
                  (double)w);
        }
    }
}

/* 8-bit rows against double, exactly: quotients at, and one place beside, the middle of two
 * integers; infinities and NaN; scales whose inverse is no float. Nothing past n is written. */
static void eights(const ane_kernels *t) {
    enum { N = 700 };
    static const double scales[] = {0.0171, 0x1p-6, 1e-31, 3e30, 0.1, 7, 1.4e-45};
    static float x[N];
    static uint8_t y[N + 1], back[N + 1];
    static float f[N + 1];
    static int16_t w[N + 1];
    if (!t->vec) return;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (int sign = 0; sign < 2; sign++)
            for (int zero = sign ? -128 : 0; zero < (sign ? 128 : 256); zero += 51) {
                size_t n = N - (size_t)(zero & 63);
                int low = sign ? -128 : 0, high = low + 255;
                for (size_t i = 0; i < n; i++) {
                    double q = (double)((int)(uniform() * 600) - 300) + (i % 3 ? 0.5 : uniform());
                    x[i] = (float)(q * scales[s]);
                    if (i % 5 == 1) x[i] = nextafterf(x[i], INFINITY);
                    if (i % 5 == 2) x[i] = nextafterf(x[i], -INFINITY);
                }
                const float special[] = {INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 3e38f};
                memcpy(x + 40, special, sizeof special);
                memset(y, 77, sizeof y);
                t->vec->quantize(y, sign, x, scales[s], zero, n);
                CHECK(y[n] == 77, "%s quantize wrote past %zu", t->name, n);
                for (size_t i = 0; i < n; i++) {
                    double v = nearbyint((double)x[i] / scales[s]) + zero;
                    int want = v != v ? 0 : v < low ? low : v > high ? high : (int)v;
                    CHECK(y[i] == (uint8_t)want, "%s quantize(%a / %g) + %d: %d, not %d", t->name,
                          (double)x[i], scales[s], zero, y[i], want);
                }
                for (size_t i = 0; i <= n; i++) back[i] = (uint8_t)(i * 37);
                f[n] = 77;
                w[n] = 77;
                t->vec->dequantize(f, back, sign, (float)scales[s], zero, n);
                t->vec->widen(w, back, sign, zero, n);
                CHECK(f[n] == 77 && w[n] == 77, "%s 8-bit row wrote past %zu", t->name, n);
                for (size_t i = 0; i < n; i++) {
                    int v = (sign ? (int8_t)back[i] : back[i]) - zero;
                    CHECK(f[i] == (float)((double)(float)scales[s] * v) && w[i] == v,
                          "%s 8-bit %d: %a, %d", t->name, v, (double)f[i], w[i]);
                }
            }
}

/* Rows that end at the end of memory, of every length up to a few vectors and so of every
 * alignment, past the caches or not: what the same rows give elsewhere, and nothing outside. */
static void ends(const ane_kernels *t) {
    enum { N = 600 };
    static const ane_dtype types[] = {ANE_F32, ANE_F16, ANE_BF16};
    const ane_vec *v = t->vec;
    char *last[3], *roomy[3];
    for (int i = 0; i < 3; i++) {
        last[i] = guarded(N * 4);
        roomy[i] = calloc(N * 4 + 256, 1);
    }
    for (size_t n = 0; n < 300; n += n < 140 ? 1 : 37)
        for (int c = 0; c < 18; c++) {
            ane_dtype from = types[c % 3], to = types[c / 3 % 3];
            size_t in = ane_dtype_size(from), out = ane_dtype_size(to);
            bool stream = c >= 9;
            char *x = last[0] + N * 4 - n * in, *r = last[1] + N * 4 - n * in;
            char *y = last[2] + N * 4 - n * out;
            for (size_t i = 0; i < n; i++) {
                float f = (float)normal(), g = (float)normal();
                v->store(x + i * in, from, &f, 1);
                v->store(r + i * in, from, &g, 1);
            }
            memcpy(roomy[0], x, n * in);
            memcpy(roomy[1], r, n * in);
#define SAME(what)                                                                        \
    CHECK(!memcmp(y, roomy[2], n * out) && y[-1] == 0x5a,                                  \
          "%s %s of %zu, %s to %s%s", t->name, what, n, ane_dtype_name(from),             \
          ane_dtype_name(to), stream ? ", streamed" : "")
            memset(last[2], 0x5a, N * 4);
            t->convert(y, to, x, from, n, stream);
            t->convert(roomy[2], to, roomy[0], from, n, false);
            SAME("conversion");
            int kind = from == ANE_F32 ? ANE_STEP_32 : from == ANE_F16 ? ANE_STEP_16 : ANE_STEP_B;
            ane_vec_step s[2] = {{ANE_STEP(ANE_VEC_MUL, kind), 0, r},
                                 {ANE_STEP_UNARY(ANE_VEC_RELU), 0, NULL}};
            memset(last[2], 0x5a, N * 4);
            v->steps(y, to, stream, x, from, s, 2, n);
            s[0].row = roomy[1];
            v->steps(roomy[2], to, false, roomy[0], from, s, 2, n);
            SAME("steps");
            /* And from an aligned start, where streaming is done. */
            memset(last[2], 0x5a, N * 4);
            v->steps(last[2] + 64 - (uintptr_t)last[2] % 64, to, stream, x, from, s, 2, n);
            CHECK(!memcmp(last[2] + 64 - (uintptr_t)last[2] % 64, roomy[2], n * out),
                  "%s steps of %zu, aligned", t->name, n);
            if (c) continue;                            /* from here on rows of floats */
            const float *fx = (const float *)(void *)x, *fr = (const float *)(void *)r;
            const float *gx = (const float *)(void *)roomy[0], *gr = (const float *)(void *)roomy[1];
            float *fy = (float *)(void *)y, *gy = (float *)(void *)roomy[2];
#define ROW(what, ours, theirs)                                                           \
    memset(last[2], 0x5a, N * 4);                                                         \
    ours;                                                                                 \
    theirs;                                                                               \
    SAME(what)
            for (int op = 0; op < ANE_VEC_UNARY_COUNT; op++) {
                ROW("unary", v->unary[op](fy, fx, n), v->unary[op](gy, gx, n));
            }
            for (int op = 0; op < ANE_VEC_BINARY_COUNT; op++) {
                ROW("binary", v->binary[op](fy, fx, fr, n), v->binary[op](gy, gx, gr, n));
                ROW("scalar", v->scalar[op](fy, fx, 3, n), v->scalar[op](gy, gx, 3, n));
            }
            ROW("affine", v->affine(fy, fx, 2, 1, n), v->affine(gy, gx, 2, 1, n));
            memcpy(gy, y, n * 4);
            v->axpy(fy, 3, fx, n);
            v->axpy(gy, 3, gx, n);
            v->muladd(fy, fx, fr, n);
            v->muladd(gy, gx, gr, n);
            SAME("axpy, muladd");
            ROW("softmax", n ? v->softmax(fy, fx, n) : (void)0,
                n ? v->softmax(gy, gx, n) : (void)0);
            CHECK(v->sum(fx, n) == v->sum(gx, n) && v->sumsq(fx, n) == v->sumsq(gx, n) &&
                      v->max(fx, n) == v->max(gx, n) && v->min(fx, n) == v->min(gx, n) &&
                      v->dot(fx, fr, n) == v->dot(gx, gr, n) &&
                      v->sumsq_about(fx, 1, n) == v->sumsq_about(gx, 1, n),
                  "%s sums of %zu", t->name, n);
            char *q = last[1] + N * 4 - n;
            for (int sign = 0; sign < 2; sign++) {
                v->quantize(q, sign, fx, 0.02, 3, n);
                v->quantize(roomy[1], sign, gx, 0.02, 3, n);
                CHECK(!memcmp(q, roomy[1], n), "%s quantize of %zu", t->name, n);
                ROW("dequantize", v->dequantize(fy, q, sign, 0.02f, 3, n),
                    v->dequantize(gy, roomy[1], sign, 0.02f, 3, n));
                int16_t *w = (int16_t *)(void *)(last[2] + N * 4 - n * 2);
                v->widen(w, q, sign, 3, n);
                v->widen((int16_t *)(void *)roomy[2], roomy[1], sign, 3, n);
                CHECK(!memcmp(w, roomy[2], n * 2), "%s widen of %zu", t->name, n);
            }
#undef ROW
#undef SAME
        }
    for (int i = 0; i < 3; i++) guarded_free(last[i]), free(roomy[i]);
}

static void vectors(const ane_kernels *t, const ane_kernels *ref) {
    enum { N = 5000 };
    static float x[N], y[N], z[N], b[N];
    static const char *const names[] = {
#define X(N, n) #n,
        ANE_VEC_UNARY_MAP(X)
#undef X
    };
    if (!t->vec) return;
    for (int i = 0; i < N; i++) {
        x[i] = (float)(normal() * exp(6 * uniform() - 4));
        b[i] = (float)normal();
    }
    const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-42f, 3e38f, 88.7f, -104};
    memcpy(x, special, sizeof special);
    for (int op = 0; op < ANE_VEC_UNARY_COUNT; op++)
        for (size_t n = 1; n <= N; n = n * 3 + 1) {
            t->vec->unary[op](y, x, n);
            ref->vec->unary[op](z, x, n);
            double most = op == ANE_VEC_GELU || op == ANE_VEC_GELU_TANH ||
                          op == ANE_VEC_GELU_SIGMOID ? 500 : 12;
            for (size_t i = 0; i < n; i++)
                CHECK(ulps(y[i], z[i]) <= most || fabsf(y[i] - z[i]) < 1e-37f,
                      "%s %s(%a): %a, scalar %a", t->name, names[op], (double)x[i],
                      (double)y[i], (double)z[i]);
        }
    for (int op = 0; op < ANE_VEC_BINARY_COUNT; op++) {
        t->vec->binary[op](y, x, b, N - 3);
        ref->vec->binary[op](z, x, b, N - 3);
        for (int i = 0; i < N - 3; i++)
            CHECK(ulps(y[i], z[i]) == 0, "%s binary %d at %d", t->name, op, i);
    }
    chains(t);
    eights(t);
    ends(t);
    for (size_t n = 0; n < 300; n += 7) {
        float *v = x + 16;
        CHECK(t->vec->sum(v, n) == ref->vec->sum(v, n), "%s sum of %zu", t->name, n);
        CHECK(t->vec->max(v, n) == ref->vec->max(v, n), "%s max of %zu", t->name, n);
        CHECK(t->vec->min(v, n) == ref->vec->min(v, n), "%s min of %zu", t->name, n);
        double s = 0, m = 0;
        for (size_t i = 0; i < n; i++) {
            s += (double)v[i] * (double)b[i];
            m += fabs((double)v[i] * (double)b[i]);
        }
        CHECK(fabs((double)t->vec->dot(v, b, n) - s) <= ((double)n / 64 + 8) * 0x1p-24 * m,
              "%s dot of %zu", t->name, n);
    }
}

/* ------------------------------------------------------------------ products */

static double value(const void *data, ane_dtype dtype, size_t i) {
    if (dtype == ANE_F32) return (double)((const float *)data)[i];
    uint16_t h = ((const uint16_t *)data)[i];
    return (double)(dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_f32_from_bf16(h));
}
static void put(void *data, ane_dtype dtype, size_t i, double x) {
    if (dtype == ANE_F32) ((float *)data)[i] = (float)x;
    else ((uint16_t *)data)[i] = dtype == ANE_F16 ? ane_f16_from_f64(x) : ane_bf16_from_f64(x);
}

/* Frobenius error relative to the result's norm; every element inside its bound. */
static double product(const ane_kernels *t, size_t m, size_t n, size_t k, ane_dtype ta,
                      ane_dtype tb, bool a_cols, bool b_cols, ane_precision tier,
                      double scale) {
    void *a = guarded(m * k * ane_dtype_size(ta)), *b = guarded(k * n * ane_dtype_size(tb));
    float *c = guarded((m * n + 32) * 4);
    for (size_t i = 0; i < m * k; i++) put(a, ta, i, normal() * scale);
    for (size_t i = 0; i < k * n; i++) put(b, tb, i, normal() * scale);
    for (size_t i = 0; i < m * n + 32; i++) c[i] = 12345;
    int64_t sa = (int64_t)ane_dtype_size(ta), sb = (int64_t)ane_dtype_size(tb);
    int64_t sm = (int64_t)m, sn = (int64_t)n, sk = (int64_t)k;
    ane_gemm_args g = {
        .m = sm, .n = sn, .k = sk, .batch = 1, .precision = tier,
        .a = {a, ta, a_cols ? sa : sk * sa, a_cols ? sm * sa : sa},
        .b = {b, tb, b_cols ? sb : sn * sb, b_cols ? sk * sb : sb},
        .c = {c + 16, ANE_F32, sn * 4, 4},
    };
    ane_error err = {0};
    CHECK(!ane_gemm_with(t, &g, NULL, &err), "%s: %s", t->name, err.message);
    const ane_gemm_entry *e = ane_gemm_entry_for(t, ta, tb, tier);
    bool half = e->keeps == ANE_PRECISION_HIGH, bf = e->keeps == ANE_PRECISION_MEDIUM;
    double up = 0, down = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double ref = 0, s = 0;
            for (size_t p = 0; p < k; p++) {
                double v = value(a, ta, a_cols ? p * m + i : i * k + p) *
                           value(b, tb, b_cols ? j * k + p : p * n + j);
                ref += v;
                s += fabs(v);
            }
            double got = (double)c[16 + i * n + j], chain = half && k > 64 ? 64 : (double)k;
            double bound = (chain + 1) * (half ? 0x1p-11 : 0x1p-24) * s +
                           ((double)k / chain + 1) * 0x1p-24 * s + 0x1p-24 * fabs(ref) + 0x1p-25;
            if (half) bound += 0x1p-11 * s;         /* two chains are added in fp16 */
            if (bf) bound += 0x1p-7 * 1.01 * s + (double)k * 0x1p-126;
            CHECK(fabs(got - ref) <= bound || (isnan(got) && isnan(ref)) || got == ref,
                  "%s %s %zux%zux%zu at %zu %zu: %g, expected %g, error/bound %g", t->name,
                  e->name, m, n, k, i, j, got, ref, fabs(got - ref) / bound);
            up += (got - ref) * (got - ref);
            down += ref * ref;
        }
    for (int i = 0; i < 16; i++)
        CHECK(c[i] == 12345 && c[16 + m * n + (size_t)i] == 12345, "%s: guard", t->name);
    guarded_free(a);
    guarded_free(b);
    guarded_free(c);
    return down > 0 ? sqrt(up / down) : 0;
}

static void products(const ane_kernels *t) {
    static const size_t shapes[][3] = {
        {1, 1, 1}, {3, 5, 7}, {12, 32, 16}, {13, 33, 17}, {8, 12, 9}, {25, 25, 130},
        {9, 70, 257}, {40, 50, 600}, {1, 90, 33}, {90, 1, 33}, {70, 7, 64},
    };
    static const ane_dtype types[] = {ANE_F16, ANE_F32, ANE_BF16};
    int turn = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int layout = 0; layout < 4; layout++, turn++) {
            const size_t *s = shapes[i];
            ane_precision tier = (ane_precision)(turn % 3);
            product(t, s[0], s[1], s[2], ANE_F16, ANE_F16, layout & 1, layout & 2, tier, 1);
            product(t, s[0], s[1], s[2], types[turn / 4 % 3], types[turn / 2 % 3], layout & 1,
                    layout & 2, tier, 1);
        }
    double high = product(t, 60, 64, 2048, ANE_F16, ANE_F16, false, false,
                          ANE_PRECISION_HIGH, 1);
    double medium = product(t, 60, 64, 2048, ANE_F32, ANE_F32, false, false,
                            ANE_PRECISION_MEDIUM, 1);
    printf("  relative Frobenius error, k = 2048: high %.2e (%s), medium %.2e (%s)\n", high,
           ane_gemm_entry_for(t, ANE_F16, ANE_F16, ANE_PRECISION_HIGH)->name, medium,
           ane_gemm_entry_for(t, ANE_F32, ANE_F32, ANE_PRECISION_MEDIUM)->name);
    CHECK(high <= 1.5e-3, "%s: high is off by %g", t->name, high);
    CHECK(medium <= 2.6e-3, "%s: medium is off by %g", t->name, medium);
    /* Sums that leave fp16's range: redone in fp32, so still inside the bound of fp32. */
    double big = product(t, 30, 40, 200, ANE_F16, ANE_F16, false, true, ANE_PRECISION_HIGH,
                         300);
    CHECK(big <= 1.5e-3, "%s: overflowing chunks are off by %g", t->name, big);
}

/* Up to four threads each pack one operand for themselves, more of them pack it together;
 * which operand, the shape decides. */
static void same_bits(const ane_kernels *t, const ane_kernels *ref, int m, int n) {
    enum { MOST = 61, K = 1100 };
    static uint16_t a[MOST * K], b[K * MOST];
    static float c[MOST * MOST], d[MOST * MOST];
    size_t bytes = (size_t)(m * n) * sizeof *c;
    for (int i = 0; i < m * K; i++) a[i] = ane_f16_from_f64(normal());
    for (int i = 0; i < K * n; i++) b[i] = ane_f16_from_f64(normal());
    ane_gemm_args g = {.m = m, .n = n, .k = K, .batch = 1,
                       .a = {a, ANE_F16, K * 2, 2}, .b = {b, ANE_F16, n * 2, 2},
                       .c = {c, ANE_F32, n * 4, 4}};
    for (int tier = 0; tier < 3; tier++) {
        g.precision = (ane_precision)tier;
        for (int threads = 1; threads <= 6; threads++) {
            ane_set_num_threads(threads, NULL);
            g.c.data = threads == 1 ? c : d;
            CHECK(!ane_gemm_with(t, &g, NULL, NULL), "%s", t->name);
            if (threads > 1)
                CHECK(!memcmp(c, d, bytes), "%s: %d threads, other bits", t->name, threads);
        }
        g.c.data = d;
        ane_gemm_with(ref, &g, NULL, NULL);
        if (tier == 0) CHECK(!memcmp(c, d, bytes), "%s: not the scalar table's bits", t->name);
    }
}

/* Attention in exactly sized blocks, so that a sanitizer sees one element too far; with one
 * key per query its result is that key's value, its gradient with respect to scores zero. */
static void attentions(const ane_kernels *t) {
    static const int64_t cases[][6] = {     /* heads, KV heads, queries, keys, dims */
        {1, 1, 1, 1, 1, 1}, {4, 2, 35, 131, 13, 40}, {2, 1, 150, 150, 16, 7}, {3, 3, 9, 129, 33, 12},
        {4, 1, 2, 131, 13, 40},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t *x = cases[i];
        int64_t heads[] = {x[0], x[1], x[1], x[0], x[0], x[0], x[1], x[1]};
        int64_t lens[] = {x[2], x[3], x[3], x[2], x[2], x[2], x[3], x[3]};
        int64_t dims[] = {x[4], x[4], x[5], x[5], x[5], x[4], x[4], x[5]};
        ane_mat5 m[8];
        ane_span span[150];
        for (int64_t q = 0; q < x[2]; q++) {
            int64_t end = q + 1 + x[3] - x[2];
            span[q] = (ane_span){0, (int32_t)(end < 0 ? 0 : end)};
        }
        for (int o = 0; o < 8; o++) {
            size_t n = (size_t)(heads[o] * lens[o] * dims[o]);
            bool wide = o >= 3;
            m[o] = (ane_mat5){guarded(n * (wide ? 4 : 2)), wide ? ANE_F32 : ANE_F16,
                              {0, 0, 0, 0, wide ? 4 : 2}};
            m[o].s[3] = dims[o] * m[o].s[4];
            m[o].s[2] = lens[o] * m[o].s[3];
            m[o].s[1] = m[o].s[2] * heads[o] / x[1];
            for (size_t e = 0; e < n; e++) put(m[o].data, m[o].dtype, e, normal());
        }
        for (int causal = 0; causal < 2; causal++) {
            ane_attention_args a = {
                .batch = 1, .kv_heads = x[1], .group = x[0] / x[1], .q_len = x[2], .k_len = x[3],
                .qk_dim = x[4], .v_dim = x[5], .q = m[0], .k = m[1], .v = m[2], .out = m[3],
                .scale = 0.3f, .span = causal ? span : NULL,
            };
            ane_attention_grad_args g = {.fwd = &a, .dscale = 0.3f, .dout = m[4], .dq = m[5],
                                         .dk = m[6], .dv = m[7]};
            CHECK(!ane_attention_with(t, &a, NULL), "%s attention %zu", t->name, i);
            CHECK(!ane_attention_grad_with(t, &g, NULL), "%s gradient %zu", t->name, i);
            for (int o = 3; o < 8; o++)
                for (int64_t e = 0; e < heads[o] * lens[o] * dims[o]; e++)
                    CHECK(isfinite(((float *)m[o].data)[e]), "%s attention %zu, array %d at %lld",
                          t->name, i, o, (long long)e);
            if (x[3] == 1)
                CHECK(value(m[3].data, ANE_F32, 0) == value(m[2].data, ANE_F16, 0) &&
                      value(m[5].data, ANE_F32, 0) == 0, "%s: one key", t->name);
        }
        for (int o = 0; o < 8; o++) guarded_free(m[o].data);
    }
}

/* Convolutions in exactly sized blocks: forward and transposed, grouped, depthwise, padded;
 * channels first and last; against double precision, and the same bits for any threads. */
static void convolutions(const ane_kernels *t) {
    static const int cases[][10] = {    /* cin, cout, groups, in h, w, kernel h, w, stride,
                                           dilation, pad */
        {3, 17, 1, 13, 11, 3, 5, 2, 1, 1}, {37, 33, 1, 5, 7, 1, 1, 1, 1, 0},
        {20, 13, 1, 6, 6, 3, 3, 1, 2, 2},  {19, 19, 19, 9, 8, 3, 3, 1, 1, 1},
        {40, 40, 40, 7, 10, 3, 3, 2, 1, 1}, {12, 9, 3, 6, 5, 2, 2, 1, 1, 0},
        {1050, 9, 1, 2, 3, 2, 2, 1, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int mode = 0; mode < 8; mode++) {
            const int *c = cases[i];
            bool back = mode & 1, last = mode & 2, half = mode & 4;
            int64_t small[2], big[2] = {c[3], c[4]}, ker[2] = {c[5], c[6]};
            for (int d = 0; d < 2; d++)
                small[d] = (big[d] + 2 * c[9] - (ker[d] - 1) * c[8] - 1) / c[7] + 1;
            int64_t ci = back ? c[1] : c[0], co = back ? c[0] : c[1], g = c[2];
            int64_t *in = back ? small : big, *out = back ? big : small;
            int64_t per = c[0] / g, nw = (int64_t)c[1] * per * ker[0] * ker[1];
            size_t nx = (size_t)(ci * in[0] * in[1]), ny = (size_t)(co * out[0] * out[1]);
            ane_dtype type = half ? ANE_F16 : ANE_F32;
            int64_t size = half ? 2 : 4;
            char *x = guarded(nx * (size_t)size), *y = guarded(ny * (size_t)size);
            char *w = guarded((size_t)nw * 4), *again = malloc(ny * (size_t)size);
            float *shift = guarded((size_t)co * sizeof *shift);
            for (size_t e = 0; e < nx; e++) put(x, type, e, normal());
            for (int64_t e = 0; e < nw; e++) put(w, ANE_F32, (size_t)e, normal());
            for (int64_t e = 0; e < co; e++) shift[e] = (float)normal();
            ane_conv_args a = {
                .transposed = back, .n = 1, .groups = g, .cin = ci, .cout = co,
                .in = {1, in[0], in[1]}, .out = {1, out[0], out[1]}, .kernel = {1, ker[0], ker[1]},
                .stride = {1, c[7], c[7]}, .dilation = {1, c[8], c[8]}, .pad = {0, c[9], c[9]},
                .x = {x, type, 0, last ? size : in[0] * in[1] * size,
                      {0, last ? in[1] * ci * size : in[1] * size, last ? ci * size : size}},
                .y = {y, type, 0, last ? size : out[0] * out[1] * size,
                      {0, last ? out[1] * co * size : out[1] * size, last ? co * size : size}},
                .w = w, .w_dtype = ANE_F32, .w_s = {0, ker[1] * 4, 4}, .shift = shift,
                .after = {.limits = true, .low = -2, .high = INFINITY},
            };
            int64_t along = ker[0] * ker[1] * 4;
            a.w_out = back ? along : per * along;
            a.w_in = back ? per * along : along;
            for (int threads = 1; threads <= 3; threads += 2) {
                ane_set_num_threads(threads, NULL);
                CHECK(!ane_conv_with(t, &a, NULL), "%s convolution %zu", t->name, i);
                if (threads == 1) memcpy(again, y, ny * (size_t)size);
                else CHECK(!memcmp(again, y, ny * (size_t)size), "%s: other bits", t->name);
            }
            double *ref = calloc(ny, sizeof *ref), *sum = calloc(ny, sizeof *sum);
            for (int64_t o = 0; o < c[1]; o++)          /* of the forward convolution */
                for (int64_t q = 0; q < per; q++)
                    for (int64_t h = 0; h < small[0]; h++)
                        for (int64_t v = 0; v < small[1]; v++)
                            for (int64_t k = 0; k < ker[0] * ker[1]; k++) {
                                int64_t r = h * c[7] + k / ker[1] * c[8] - c[9];
                                int64_t s = v * c[7] + k % ker[1] * c[8] - c[9];
                                if (r < 0 || r >= big[0] || s < 0 || s >= big[1]) continue;
                                int64_t chan = o / (c[1] / g) * per + q;
                                int64_t b = (chan * big[0] + r) * big[1] + s;
                                int64_t m = (o * small[0] + h) * small[1] + v;
                                int64_t from = back ? m : b, to = back ? b : m;
                                int64_t fc = from / (in[0] * in[1]), fp = from % (in[0] * in[1]);
                                double p = value(x, type, (size_t)(last ? fp * ci + fc : from)) *
                                           value(w, ANE_F32, (size_t)((o * per + q) * ker[0] * ker[1] + k));
                                ref[to] += p;
                                sum[to] += fabs(p);
                            }
            for (int64_t e = 0; e < (int64_t)ny; e++) {
                int64_t ch = e / (out[0] * out[1]), pos = e % (out[0] * out[1]);
                double want = ref[e] + (double)shift[ch];
                double k = (double)(ci / g * ker[0] * ker[1]);
                double bound = (k + 2) * 0x1p-24 * sum[e] + 0x1p-23 * (fabs(want) + fabs((double)shift[ch]));
                if (want < -2) want = -2;
                if (half) bound += 0x1p-11 * fabs(want) + 0x1p-25;
                double got = value(y, type, (size_t)(last ? pos * co + ch : e));
                CHECK(fabs(got - want) <= bound, "%s convolution %zu mode %d at %lld: %g, not %g",
                      t->name, i, mode, (long long)e, got, want);
            }
            guarded_free(x), guarded_free(y), guarded_free(w), guarded_free(shift);
            free(again), free(ref), free(sum);
        }
    ane_set_num_threads(2, NULL);
}

/* 8-bit products: exact sums, rounded once. Extremes first, where saturation would show; of
 * both signs, with and without zero points; in one block of k and in several; taps along a row
 * and across rows; channels first and last. */
static void bytes(const ane_kernels *t) {
    enum { CO = 35, W = 19 };
    static const struct {
        ane_dtype x, w;
        int x_zero, w_zero;
    } kinds[] = {
        {ANE_I8, ANE_U8, 127, 0}, {ANE_I8, ANE_U8, 127, 3}, {ANE_I8, ANE_I8, -128, 0},
        {ANE_U8, ANE_I8, 255, 0}, {ANE_U8, ANE_U8, 7, 128}, {ANE_I8, ANE_U8, 5, 128},
        {ANE_U8, ANE_I8, 0, 0},   {ANE_U8, ANE_I8, 9, -4},
    };
    for (size_t turn = 0; turn < sizeof kinds / sizeof *kinds * 6; turn++) {
        size_t kind = turn / 6;
        int round = (int)(turn % 3), ci = turn % 6 < 3 ? 37 : 701, n = turn % 6 < 3 ? W : 3;
        bool xs = kinds[kind].x == ANE_I8, ws = kinds[kind].w == ANE_I8, down = round == 2;
        uint8_t *x = guarded((size_t)(ci * n)), *w = guarded((size_t)(CO * ci * 3));
        float *y = guarded((size_t)(CO * n) * sizeof *y);
        for (int i = 0; i < ci * n; i++)
            x[i] = (uint8_t)(round ? next() : (uint64_t)(xs ? 128 : 0));
        for (int i = 0; i < CO * ci * 3; i++)
            w[i] = (uint8_t)(round ? next() : (uint64_t)(ws ? 128 : 255));
        int64_t xc = round == 1 ? 1 : n, xw = round == 1 ? ci : 1;
        int64_t yc = round == 2 ? 4 : n * 4, yw = round == 2 ? CO * 4 : 4;
        ane_conv_args a = {
            .n = 1, .groups = 1, .cin = ci, .cout = CO,
            .in = {1, down ? n : 1, down ? 1 : n}, .out = {1, down ? n : 1, down ? 1 : n},
            .kernel = {1, down ? 3 : 1, down ? 1 : 3}, .stride = {1, 1, 1},
            .dilation = {1, 1, 1}, .pad = {0, down, !down},
            .x = {x, kinds[kind].x, 0, xc, {0, down ? xw : 0, down ? 0 : xw}},
            .y = {y, ANE_F32, 0, yc, {0, down ? yw : 0, down ? 0 : yw}},
            .w = w, .w_dtype = kinds[kind].w, .w_out = ci * 3, .w_in = 3,
            .w_s = {0, down, !down}, .x_zero = kinds[kind].x_zero,
            .w_zero = kinds[kind].w_zero,
        };
        CHECK(!ane_conv_with(t, &a, NULL), "%s: 8-bit convolution", t->name);
        for (int o = 0; o < CO; o++)
            for (int p = 0; p < n; p++) {
                int64_t sum = 0;
                for (int c = 0; c < ci; c++)
                    for (int k = 0; k < 3; k++) {
                        int q = p + k - 1;
                        if (q < 0 || q >= n) continue;
                        uint8_t v = x[round == 1 ? q * ci + c : c * n + q];
                        uint8_t u = w[(o * ci + c) * 3 + k];
                        sum += (int64_t)((xs ? (int8_t)v : v) - a.x_zero) *
                               ((ws ? (int8_t)u : u) - a.w_zero);
                    }
                float got = y[round == 2 ? p * CO + o : o * n + p];
                CHECK(got == (float)sum, "%s: 8-bit sum %zu: %d, %d is %g, not %lld", t->name,
                      turn, o, p, (double)got, (long long)sum);
            }
        guarded_free(x), guarded_free(w), guarded_free(y);
    }
}

/* ------------------------------------------------------------------ the pool */

static void count(void *arg, size_t i) { ((int *)arg)[i]++; }
static void nest(void *arg, size_t i) {
    int *runs = arg;
    ane_parallel_for(8, count, runs + i * 8);
}
static void *crowd(void *arg) {
    (void)arg;
    static _Thread_local int runs[800];
    for (int round = 0; round < 50; round++) {
        memset(runs, 0, sizeof runs);
        if (round % 2) ane_parallel_for(100, nest, runs);
        else ane_parallel_for(800, count, runs);
        for (int i = 0; i < 800; i++) CHECK(runs[i] == 1, "task %d ran %d times", i, runs[i]);
    }
    return NULL;
}

static int stop_now(void *arg) { return *(int *)arg; }

static void pool(void) {
    pthread_t t[4];
    ane_set_num_threads(4, NULL);
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, crowd, NULL);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    int runs[1000] = {0}, yes = 1;
    ane_poll p = {.fn = stop_now, .arg = &yes};
    ane_poll *before = ane_poll_swap(&p);
    CHECK(!ane_parallel_for(1000, count, runs), "a stopped loop says it ran");
    ane_poll_swap(before);
    CHECK(ane_parallel_for(1000, count, runs), "a loop without a poll stopped");
    void *a = ane_scratch_push(1000), *b = ane_scratch_push(100000);
    memset(a, 1, 1000);
    memset(b, 2, 100000);
    ane_scratch_pop(b);
    ane_scratch_pop(a);
}

/* Of the tables named, or of all. */
int main(int argc, char **argv) {
    const ane_kernels *scalar = ane_kernels_at(0);
    const char *name, *what;
    for (size_t i = 0; (name = ane_isa_name(i, &what)); i++) printf("%s: %s\n", name, what);
    pool();
    for (size_t i = 0; i < ane_kernels_count(); i++) {
        const ane_kernels *t = ane_kernels_at(i);
        int named = argc;
        while (named > 1 && strcmp(argv[named - 1], t->name)) named--;
        if (argc > 1 && named == 1) continue;
        printf("%s\n", t->name);
        fflush(stdout);
        ane_set_num_threads(2, NULL);
        if (t->vec || t->qtile || t->quad) bytes(t);
        attentions(t);
        convolutions(t);
        conversions(t);
        if (t->vec) vectors(t, scalar);
        products(t);
        same_bits(t, scalar, 61, 45);
        same_bits(t, scalar, 45, 61);
    }
    printf("%ld checks, %ld failed\n", atomic_load(&checks), atomic_load(&failures));
    return failures != 0;
}
