/* What a product needs besides its micro-kernel: packing of panels, the epilogue of a
 * finished tile, and matrix times vector. Written once over the vector type, included by
 * ukr_*.c after body_vec.h. */
#include "kernels.h"

/* ---------------------------------------------------------------- packing to fp32 panels */

static inline float load_one(const char *p, ane_dtype dtype) {
    float t[VW];
    if (dtype == ANE_F32) {
        memcpy(t, p, 4);
        return t[0];
    }
    v_storeu(t, dtype == ANE_F16 ? v_load16_n(p, 1) : v_loadb_n(p, 1));
    return t[0];
}

/* Panels of W from a source whose rows (A) or columns (B) are neighbours in memory. A few k
 * at a time over all panels: the source is read in whole cache lines, and rows a power of
 * two apart do not fight for the same few lines of the first-level cache. */
#define PACK_ACROSS(name, W, LD, LDN, size)                                               \
    static void name(char *d, size_t stride, const char *s, int64_t s_k, size_t count,    \
                     size_t k) {                                                          \
        for (size_t p0 = 0; p0 < k; p0 += 8) {                                            \
            size_t p1 = p0 + 8 < k ? p0 + 8 : k, i = 0;                                   \
            for (; i + W <= count; i += W) {                                              \
                float *to = (float *)(void *)(d + i / W * stride) + p0 * W;               \
                const char *from = s + i * size + (int64_t)p0 * s_k;                      \
                for (size_t p = p0; p < p1; p++, to += W, from += s_k) {                  \
                    __builtin_prefetch((const void *)((uintptr_t)from +                   \
                                                      8 * (uintptr_t)s_k));               \
                    UNROLL for (size_t j = 0; j + VW <= W; j += VW)                       \
                        v_storeu(to + j, LD(from + j * size));                            \
                    if (W % VW)                                                           \
                        v_store_n(to + W / VW * VW, LDN(from + W / VW * VW * size,        \
                                                        W % VW), W % VW);                 \
                }                                                                         \
            }                                                                             \
            if (i == count) continue;                                                     \
            for (size_t p = p0; p < p1; p++)                                              \
                for (size_t j = 0; j < W; j += VW) {                                      \
                    size_t have = count - i > j ? count - i - j : 0, room = W - j;        \
                    vf v = LDN(s + (i + (have ? j : 0)) * size + (int64_t)p * s_k,        \
                               have < VW ? have : VW);                                    \
                    v_store_n((float *)(void *)(d + i / W * stride) + p * W + j, v,       \
                              room < VW ? room : VW);                                     \
                }                                                                         \
        }                                                                                 \
    }

/* What is packed next: also past the end, where nothing is read. */
static inline void soon(const char *p, int64_t offset) {
    __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)offset));
}

/* The same where k is contiguous: blocks of VW rows (or what is left of a panel) by VW k are
 * transposed. */
#define PACK_ALONG(name, W, LD, LDN, size)                                                \
    static void name(char *d, size_t stride, const char *s, int64_t s_i, size_t count,    \
                     size_t k) {                                                          \
        for (size_t i = 0; i < count; i += W)                                             \
            UNROLL for (size_t j = 0; j < W; j += VW) {                                   \
                const size_t room = W - j < VW ? W - j : VW;                              \
                size_t have = count - i > j ? count - i - j : 0, p = 0;                   \
                if (have > room) have = room;                                             \
                const char *base = s + (int64_t)(i + (have ? j : 0)) * s_i;               \
                float *to = (float *)(void *)(d + i / W * stride) + j;                    \
                vf r[VW];                                                                 \
                if (have == room)                                                         \
                    for (; p + VW <= k; p += VW) {                                        \
                        UNROLL for (size_t l = 0; l < VW; l++)                            \
                            r[l] = l < room ? LD(base + (int64_t)l * s_i +                \
                                                 (int64_t)(p * size))                     \
                                            : v_set1(0);                                  \
                        if (p * size % 64 == 0)                                           \
                            for (size_t l = 0; l < room; l++)                             \
                                soon(base, (int64_t)(l + W) * s_i + (int64_t)(p * size)); \
                        v_transpose(r);                                                   \
                        UNROLL for (size_t l = 0; l < VW; l++) {                          \
                            if (room == VW) v_storeu(to + (p + l) * W, r[l]);             \
                            else v_store_n(to + (p + l) * W, r[l], room);                 \
                        }                                                                 \
                    }                                                                     \
                for (; p < k; p += VW) {                                                  \
                    size_t left = k - p < VW ? k - p : VW;                                \
                    for (size_t l = 0; l < VW; l++)                                       \
                        r[l] = l < have ? LDN(base + (int64_t)l * s_i +                   \
                                              (int64_t)(p * size), left)                  \
                                        : v_set1(0);                                      \
                    v_transpose(r);                                                       \
                    for (size_t l = 0; l < left; l++)                                     \
                        v_store_n(to + (p + l) * W, r[l], room);                          \
                }                                                                         \
            }                                                                             \
    }

#define PACK_WITH(name, W, across, along)                                                 \
    static void name(void *dst, size_t stride, const void *src, ane_dtype dtype,          \
                     int64_t s_i, int64_t s_k, size_t count, size_t k) {                  \
        char *d = dst;                                                                    \
        int64_t size = dtype == ANE_F32 ? 4 : 2;                                          \
        if (s_i == size || count == 1) {                                                  \
            if (dtype == ANE_F32) across##_32(d, stride, src, s_k, count, k);             \
            else if (dtype == ANE_F16) across##_16(d, stride, src, s_k, count, k);        \
            else across##_b(d, stride, src, s_k, count, k);                               \
        } else if (s_k == size) {                                                         \
            if (dtype == ANE_F32) along##_32(d, stride, src, s_i, count, k);              \
            else if (dtype == ANE_F16) along##_16(d, stride, src, s_i, count, k);         \
            else along##_b(d, stride, src, s_i, count, k);                                \
        } else {                                                                          \
            for (size_t i = 0; i < (count + W - 1) / W * W; i++) {                        \
                float *to = (float *)(void *)(d + i / W * stride) + i % W;                \
                const char *from = (const char *)src + (int64_t)i * s_i;                  \
                for (size_t p = 0; p < k; p++)                                            \
                    to[p * W] = i < count ? load_one(from + (int64_t)p * s_k, dtype)      \
                                          : 0.0f;                                         \
            }                                                                             \
        }                                                                                 \
    }

#define PACK_LOOPS(name, W)                                                               \
    PACK_ACROSS(name##_across_32, W, v_loadu, v_load_n, 4)                                \
    PACK_ACROSS(name##_across_16, W, v_load16, v_load16_n, 2)                             \
    PACK_ACROSS(name##_across_b, W, v_loadb, v_loadb_n, 2)                                \
    PACK_ALONG(name##_along_32, W, v_loadu, v_load_n, 4)                                  \
    PACK_ALONG(name##_along_16, W, v_load16, v_load16_n, 2)                               \
    PACK_ALONG(name##_along_b, W, v_loadb, v_loadb_n, 2)

#define PACK(name, W)                                                                     \
    PACK_LOOPS(name, W)                                                                   \
    PACK_WITH(name, W, name##_across, name##_along)

/* ---------------------------------------------------------------- epilogue */

static inline vf load_any(const char *p, ane_dtype dtype, size_t n) {
    if (dtype == ANE_F32) return n == VW ? v_loadu(p) : v_load_n(p, n);
    if (dtype == ANE_F16) return n == VW ? v_load16(p) : v_load16_n(p, n);
    return n == VW ? v_loadb(p) : v_loadb_n(p, n);
}
static inline void store_any(char *p, ane_dtype dtype, vf v, size_t n) {
    if (dtype == ANE_F32) n == VW ? v_storeu(p, v) : v_store_n(p, v, n);
    else if (dtype == ANE_F16) n == VW ? v_store16(p, v) : v_store16_n(p, v, n);
    else n == VW ? v_storeb(p, v) : v_storeb_n(p, v, n);
}
/* n elements cs bytes apart. */
static inline vf gather_any(const char *p, ane_dtype dtype, int64_t cs, size_t n) {
    float t[VW];
    if (cs == (dtype == ANE_F32 ? 4 : 2)) return load_any(p, dtype, n);
    if (cs == 0) return v_set1(load_one(p, dtype));
    for (size_t j = 0; j < VW; j++)
        t[j] = j < n ? load_one(p + (int64_t)j * cs, dtype) : 0.0f;
    return v_loadu(t);
}
static inline vf act_any(vf v, ane_act act) {
    switch (act) {
    case ANE_ACT_NONE: break;
    case ANE_ACT_RELU: return f_relu(v);
    case ANE_ACT_SIGMOID: return f_sigmoid(v);
    case ANE_ACT_SILU: return f_silu(v);
    case ANE_ACT_TANH: return f_tanh(v);
    case ANE_ACT_GELU: return f_gelu(v);
    }
    return v;
}

static void tile_out(const ane_tile_out *o, float *tile, size_t ld, size_t m, size_t n) {
    int64_t size = o->c_dtype == ANE_F32 ? 4 : 2;
    bool plain = !o->bias && !o->res && o->act == ANE_ACT_NONE && o->alpha == 1;
    bool rows = o->c_cs == size || n == 1;
    vf alpha = v_set1(o->alpha), beta = v_set1(o->beta);
    if (plain && rows && n % VW == 0) {
#define STORE(ST)                                                                         \
    for (size_t i = 0; i < m; i++)                                                        \
        for (size_t j = 0; j < n; j += VW)                                                \
            ST(o->c + (int64_t)i * o->c_rs + (int64_t)j * size, v_loadu(tile + i * ld + j));
        if (o->c_dtype == ANE_F32) { STORE(v_storeu) }
        else if (o->c_dtype == ANE_F16) { STORE(v_store16) }
        else { STORE(v_storeb) }
#undef STORE
        return;
    }
    for (size_t i = 0; i < m; i++) {
        float *t = tile + i * ld;
        char *c = o->c + (int64_t)i * o->c_rs;
        const char *bias = o->bias ? o->bias + (int64_t)i * o->bias_rs : NULL;
        const char *res = o->res ? o->res + (int64_t)i * o->res_rs : NULL;
        for (size_t j = 0; j < n; j += VW) {
            size_t left = n - j < VW ? n - j : VW;
            vf v = v_loadu(t + j);
            if (!plain) {
                if (o->alpha != 1) v = v_mul(v, alpha);
                if (bias)
                    v = v_add(v, gather_any(bias + (int64_t)j * o->bias_cs, o->bias_dtype,
                                            o->bias_cs, left));
                v = act_any(v, o->act);
                if (res)
                    v = v_fma(beta, gather_any(res + (int64_t)j * o->res_cs, o->res_dtype,
                                               o->res_cs, left), v);
            }
            if (rows) store_any(c + (int64_t)j * size, o->c_dtype, v, left);
            else v_storeu(t + j, v);
        }
    }
    if (rows) return;
    /* C is stored the other way round, or with gaps: the tile's columns, VW at a time. */
    for (size_t j = 0; j < n; j += VW)
        for (size_t i = 0; i < m; i += VW) {
            size_t left = m - i < VW ? m - i : VW, cols = n - j < VW ? n - j : VW;
            vf r[VW];
            UNROLL for (size_t l = 0; l < VW; l++)
                r[l] = l < left ? v_loadu(tile + (i + l) * ld + j) : v_set1(0);
            v_transpose(r);
            for (size_t l = 0; l < cols; l++) {
                char *c = o->c + (int64_t)(j + l) * o->c_cs + (int64_t)i * o->c_rs;
                if (o->c_rs == size) {
                    store_any(c, o->c_dtype, r[l], left);
                    continue;
                }
                float one[VW];
                v_storeu(one, r[l]);
                for (size_t q = 0; q < left; q++) {
                    float first[VW] = {one[q]};
                    store_any(c + (int64_t)q * o->c_rs, o->c_dtype, v_loadu(first), 1);
                }
            }
        }
}

/* ---------------------------------------------------------------- matrix times vector */

/* Four rows at a time, so that x is read once for them; 64/VW chains each would not fit
 * the registers, so each row has CHAINS/4 of them. */
static void gemv_rows(float *y, const void *w, ane_dtype dtype, int64_t s_r, const float *x,
                      size_t rows, size_t cols) {
    enum { RC = 16 / VW ? 16 / VW : 1 };
    const char *base = w;
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    /* Weights come from memory: what is needed next is asked for some rows ahead. */
    uintptr_t ahead = 4 * (uintptr_t)s_r;
    for (size_t r = 0; r < rows; r += 4) {
        size_t have = rows - r < 4 ? rows - r : 4;
        const char *p[4];
        for (size_t i = 0; i < 4; i++)
            p[i] = base + (int64_t)(r + (i < have ? i : 0)) * s_r;
        vf acc[4][RC];
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int l = 0; l < RC; l++) acc[i][l] = v_set1(0);
        size_t c = 0;
#define ROWS(LD)                                                                          \
    for (; c + 16 <= cols; c += 16) {                                                     \
        UNROLL for (int i = 0; i < 4; i++)                                                \
            __builtin_prefetch((const void *)((uintptr_t)p[i] + ahead +                   \
                                              c * (size_t)size));                         \
        UNROLL for (int l = 0; l < RC; l++) {                                             \
            size_t at = c + (size_t)l * VW;                                               \
            vf v = v_loadu(x + at);                                                       \
            UNROLL for (int i = 0; i < 4; i++)                                            \
                acc[i][l] = v_fma(LD(p[i] + (int64_t)at * size), v, acc[i][l]);           \
        }                                                                                 \
    }
        if (dtype == ANE_F32) { ROWS(v_loadu) }
        else if (dtype == ANE_F16) { ROWS(v_load16) }
        else { ROWS(v_loadb) }
        UNROLL for (int l = 0; l < RC; l++) {
            if (c < cols) {
                size_t left = cols - c < VW ? cols - c : VW;
                vf v = v_load_n(x + c, left);
                UNROLL for (int i = 0; i < 4; i++)
                    acc[i][l] = v_fma(load_any(p[i] + (int64_t)c * size, dtype, left), v,
                                      acc[i][l]);
                c += left;
            }
        }
        UNROLL for (int i = 0; i < 4; i++) {
            float s[16];
            UNROLL for (int l = 0; l < RC; l++) v_storeu(s + l * VW, acc[i][l]);
            for (int h = 8; h; h /= 2)
                for (int l = 0; l < h; l++) s[l] += s[l + h];
            if ((size_t)i < have) y[r + (size_t)i] = s[0];
        }
    }
}

static void gemv_cols(float *y, const void *w, ane_dtype dtype, int64_t s_r, const float *x,
                      size_t rows, size_t cols) {
    enum { CC = 64 / VW < 8 ? 64 / VW : 8 };    /* vectors in registers */
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    size_t c = 0;
    for (; c + CC * VW <= cols; c += CC * VW) {
        const char *p = (const char *)w + (int64_t)c * size;
        vf acc[CC];
        UNROLL for (int l = 0; l < CC; l++) acc[l] = v_set1(0);
#define COLS(LD)                                                                          \
    for (size_t r = 0; r < rows; r++, p += s_r) {                                         \
        vf v = v_set1(x[r]);                                                              \
        UNROLL for (int l = 0; l < CC; l++)                                               \
            acc[l] = v_fma(LD(p + l * VW * size), v, acc[l]);                             \
    }
        if (dtype == ANE_F32) { COLS(v_loadu) }
        else if (dtype == ANE_F16) { COLS(v_load16) }
        else { COLS(v_loadb) }
        UNROLL for (int l = 0; l < CC; l++) v_storeu(y + c + (size_t)l * VW, acc[l]);
    }
    for (; c < cols; c += VW) {
        size_t left = cols - c < VW ? cols - c : VW;
        const char *p = (const char *)w + (int64_t)c * size;
        vf acc = v_set1(0);
        for (size_t r = 0; r < rows; r++, p += s_r)
            acc = v_fma(load_any(p, dtype, left), v_set1(x[r]), acc);
        v_store_n(y + c, acc, left);
    }
}

/* ---------------------------------------------------------------- the peak */

/* As many independent chains as the product's micro-kernel holds. */
static float peak(size_t loops) {
    vf acc[PEAK_CHAINS], x = v_set1(0.5f);
    float t[VW];
    UNROLL for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = v_set1((float)i);
    for (size_t l = 0; l < loops; l++) {
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = v_fma(acc[i], x, x);
    }
    UNROLL for (int i = 1; i < PEAK_CHAINS; i++) acc[0] = v_add(acc[0], acc[i]);
    v_storeu(t, acc[0]);
    return t[0];
}
