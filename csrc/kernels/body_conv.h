/* Micro-kernels of convolution and pooling over channels-last rows: see conv.h. Written once
 * over the vector type, included by ukr_*.c after body_gemm.h with CONV_MR (positions of a
 * tile) and CONV_NV (vectors of output channels) set. */
#include "conv_tile.h"

static inline vf conv_limit(vf v, const ane_conv_act *a) {
    return v_min(v_set1(a->high), v_max(v_set1(a->low), v));       /* NaN passes */
}

/* act(v) where act is no limit. */
static inline vf conv_act(vf v, const ane_conv_act *a) {
    return a->limits ? conv_limit(v, a) : act_any(v, a->act);
}

/* before, residual and after in place over m rows of n sums. */
static void conv_finish(const ane_conv_post *p, float *c, size_t ld, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++) {
        const char *res = p->res ? p->res + (int64_t)i * p->res_s : NULL;
        int64_t size = p->res_dtype == ANE_F32 ? 4 : 2;
        for (size_t j = 0; j < n; j += VW) {
            size_t left = n - j < VW ? n - j : VW;
            float *to = c + i * ld + j;
            vf v = left == VW ? v_loadu(to) : v_load_n(to, left);
            v = conv_act(v, &p->before);
            if (res) v = v_add(v, load_any(res + (int64_t)j * size, p->res_dtype, left));
            v = conv_act(v, &p->after);
            if (left == VW) v_storeu(to, v);
            else v_store_n(to, v, left);
        }
    }
}

#include "conv_post.h"

#define CONV_SPREAD(p) v_set1(*(p))
#define CONV_DOT(s, a, w) v_fma(a, w, s)

static inline __attribute__((always_inline)) void conv_rows(const size_t m, const size_t nv,
                                                            const ane_conv_tile *t) {
    size_t tail = t->n - (nv - 1) * VW;
    const float *const *rows = t->a;
    const char *ahead = t->ahead;
    for (const ane_conv_spot *spot = t->spots, *end = spot + t->count; spot < end; spot++) {
        vf s[CONV_MR][CONV_NV];
        EACH s[i][j] = v_set1(0);
        CONV_FETCH(t, spot + t->soon, m)
        CONV_TAPS(t, rows, ahead, m, nv, s, vf, v_loadu, CONV_SPREAD, CONV_DOT)
        float *c = spot->c + t->at;
        if (t->add) {
            EACH s[i][j] = v_add(LOAD(c + i * t->ldc, j), s[i][j]);
        }
        if (t->post) { CONV_POST(s, t->post, spot->res + t->at * sizeof(float), m, nv, tail) }
        CONV_STORE(s, c, t->ldc, m, nv, tail)
    }
}

#define CONV_CASE(m, nv) case (nv) * 16 + (m): conv_rows(m, nv, t); break;
static void conv_tile(size_t m, const ane_conv_tile *t) {
    switch ((t->n + VW - 1) / VW * 16 + m) {
        CONV_CASES
    default: break;
    }
}

/* ---------------------------------------------------------------- depthwise */

/* Finished sums of m positions by nv vectors from channel c on. */
static inline __attribute__((always_inline)) void dw_put(const size_t m, const size_t nv,
                                                         vf s[4][2], const ane_conv_post *post,
                                                         float *y, size_t ldy, size_t c,
                                                         size_t tail) {
    ane_conv_post p = *post;
    if (p.scale) p.scale += c;
    if (p.shift) p.shift += c;
    if (p.res) p.res += c * sizeof(float);
    CONV_POST(s, &p, p.res, m, nv, tail)
    y += c;
    EACH {
        if (LANES(j) == VW) v_storeu(y + i * ldy + j * VW, s[i][j]);
        else v_store_n(y + i * ldy + j * VW, s[i][j], tail);
    }
}

/* px positions `step` floats apart by nv vectors of channels; taps in order. */
static inline __attribute__((always_inline)) void dw_block(const size_t m, const size_t nv,
                                                           const ane_conv_dw *d, size_t c,
                                                           size_t tail) {
    vf s[4][2];
    EACH s[i][j] = v_set1(0);
    for (size_t t = 0; t < d->taps; t++) {
        const float *a = d->a[t] + c, *w = d->w[t] + c;
        vf k[2];
        UNROLL for (size_t j = 0; j < nv; j++) k[j] = v_loadu(w + j * VW);
        EACH s[i][j] = v_fma(LOAD(a + i * d->step, j), k[j], s[i][j]);
    }
    dw_put(m, nv, s, &d->post, d->y, d->ldy, c, tail);
}

/* All channels of px positions, two vectors at a time. */
#define DW_ALL(block, px, d)                                                              \
    size_t c = 0;                                                                         \
    for (; c + 2 * VW <= (d)->channels; c += 2 * VW) {                                    \
        if (px == 4) block(4, 2, d, c, VW);                                               \
        else if (px == 1) block(1, 2, d, c, VW);                                          \
        else if (px == 2) block(2, 2, d, c, VW);                                          \
        else block(3, 2, d, c, VW);                                                       \
    }                                                                                     \
    for (; c < (d)->channels; c += VW) {                                                  \
        size_t left = (d)->channels - c < VW ? (d)->channels - c : VW;                    \
        if (px == 4) block(4, 1, d, c, left);                                             \
        else if (px == 1) block(1, 1, d, c, left);                                        \
        else if (px == 2) block(2, 1, d, c, left);                                        \
        else block(3, 1, d, c, left);                                                     \
    }                                                                                     \
    if (!(d)->post.whole) conv_finish(&(d)->post, (d)->y, (d)->ldy, px, (d)->channels);

static void conv_depthwise(size_t px, const ane_conv_dw *d) { DW_ALL(dw_block, px, d) }

/* ---------------------------------------------------------------- pooling */

/* One position: y[c] over `taps` rows of channels; the sum (of squares) times scale. */
static void conv_pool(ane_pool_kind kind, const float *const *a, size_t taps, float scale,
                      float *y, size_t channels) {
    for (size_t c = 0; c < channels; c += VW) {
        size_t left = channels - c < VW ? channels - c : VW;
        vf s = v_set1(kind == ANE_POOL_MAX ? -INFINITY : 0.0f);
        for (size_t t = 0; t < taps; t++) {
            vf v = left == VW ? v_loadu(a[t] + c) : v_load_n(a[t] + c, left);
            if (kind == ANE_POOL_MAX) s = f_max(s, v);
            else if (kind == ANE_POOL_AVG) s = v_add(s, v);
            else s = v_fma(v, v, s);
        }
        if (kind == ANE_POOL_AVG) s = v_mul(s, v_set1(scale));
        if (kind == ANE_POOL_L2) s = v_sqrt(s);
        if (left == VW) v_storeu(y + c, s);
        else v_store_n(y + c, s, left);
    }
}

/* ---------------------------------------------------------------- layout */

/* `rows` runs of channels to fp32: element (i, c) at src + i*s_i + c*s_c. Positions are
 * neighbours in memory (s_i is the size) or channels are, or neither. */
static void conv_rows_in(float *dst, size_t ld, const char *src, ane_dtype dtype, int64_t s_i,
                         int64_t s_c, size_t rows, size_t channels) {
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    if (s_c == size || channels == 1) {
        if (channels == 1 && s_i == size && ld == 1) {
            vec_convert(dst, ANE_F32, src, dtype, rows, false);
            return;
        }
        for (size_t i = 0; i < rows; i++)
            vec_convert(dst + i * ld, ANE_F32, src + (int64_t)i * s_i, dtype, channels, false);
        return;
    }
    size_t i = 0, whole = channels / VW * VW;
    if (s_i == size && !whole && ld == channels)
        /* Few channels: a whole vector per position, whose tail the next one overwrites. */
        for (; i + 2 * VW <= rows; i += VW) {
            vf r[VW];
            UNROLL for (size_t l = 0; l < VW; l++)
                r[l] = l < channels ? load_any(src + (int64_t)i * s_i + (int64_t)l * s_c, dtype, VW)
                                    : v_set1(0);
            v_transpose(r);
            UNROLL for (size_t l = 0; l < VW; l++) v_storeu(dst + (i + l) * ld, r[l]);
        }
    if (s_i == size)
        for (; i + VW <= rows; i += VW) {
            for (size_t c = 0; c < whole; c += VW) {
                vf r[VW];
                UNROLL for (size_t l = 0; l < VW; l++)
                    r[l] = load_any(src + (int64_t)i * s_i + (int64_t)(c + l) * s_c, dtype, VW);
                v_transpose(r);
                UNROLL for (size_t l = 0; l < VW; l++) v_storeu(dst + (i + l) * ld + c, r[l]);
            }
            for (size_t c = whole; c < channels; c++) {
                float t[VW];
                v_storeu(t, load_any(src + (int64_t)i * s_i + (int64_t)c * s_c, dtype, VW));
                for (size_t l = 0; l < VW; l++) dst[(i + l) * ld + c] = t[l];
            }
        }
    for (; i < rows; i++)
        for (size_t c = 0; c < channels; c++)
            dst[i * ld + c] = load_one(src + (int64_t)i * s_i + (int64_t)c * s_c, dtype);
}

static const ane_conv_kernels conv_table = {
    .mr = CONV_MR, .nr = CONV_NR, .vw = VW, .tile = conv_tile, .finish = conv_finish,
    .depthwise = conv_depthwise, .pool = conv_pool, .rows_in = conv_rows_in,
    .name = "conv_" CONV_NAME "__" ISA_NAME, .dw_name = "depthwise__" ISA_NAME, .pool_name = "pool__" ISA_NAME,
};
