/* What the two halves of streaming attention share: the job, its panels, its masks.
 * Included by attention.c and attention_grad.c. */
#ifndef ANE_ATTENTION_BLOCK_H
#define ANE_ATTENTION_BLOCK_H

#include "kernels.h"

#include "../base/f16.h"
#include "../base/mem.h"
#include "../base/sync.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* Keys of one block: its scores (16 KB at 32 queries) stay in the first-level cache. */
#define KEYS 128
/* Queries of one block of the gradient, whose products sum over them. */
#define QUERIES 128
/* A score this much below its row's largest is a weight of 0 in fp32. */
#define NOTHING 104.0f

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t cut(size_t n, size_t unit) { return n ? (n - 1) / unit + 1 : 0; }
static inline size_t up(size_t n, size_t unit) { return cut(n, unit) * unit; }

/* Which head: query head r of the group of KV head g in batch b. */
typedef struct head {
    size_t b, g, r;
} head;

static inline char *at5(const ane_mat5 *x, head h, size_t t) {
    return (char *)x->data + (int64_t)h.b * x->s[0] + (int64_t)h.g * x->s[1] +
           (int64_t)h.r * x->s[2] + (int64_t)t * x->s[3];
}
static inline ane_mat5 from_channel(const ane_mat5 *x, size_t c) {
    ane_mat5 part = *x;
    part.data = (char *)x->data + (int64_t)c * x->s[4];
    return part;
}

typedef struct job {
    const ane_kernels *t;
    const ane_gemm_entry *e;            /* fp32 panels */
    const ane_attention_args *a;
    const ane_attention_grad_args *g;
    size_t batch, kv_heads, group, q_len, k_len, d, dv, mr, nr;
    size_t keys, queries;               /* of one block: whole panels */
    size_t first, count;                /* (batch, KV head) pairs packed now */
    float *packed;                      /* of all pairs packed now */
    float *sizes;                       /* of theirs: [K, V] */
    size_t k_floats, v_floats;
    atomic_int status;
} job;

ane_status ane__attention_job(job *j, const ane_kernels *table, const ane_attention_args *a,
                              ane_error *err);
/* attention_rows.c: few enough queries for keys and values to be read where they lie, and
 * the task per (batch, KV head) that does it. */
bool ane__attention_few(const job *j);
void ane__attention_rows(void *arg, size_t pair);
size_t ane__attention_row_bytes(const job *j);          /* what that task pushes */
ane_status ane__attention_done(const job *j, bool ran, ane_error *err);

static inline head head_of(const job *j, size_t pair, size_t r) {
    return (head){pair / j->kv_heads, pair % j->kv_heads, r};
}

/* ------------------------------------------------------------------ panels */

/* x[t0..t0+n) as panels of `width` positions over all its channels: [panel][channel][width] */
static inline void pack_rows(ane_pack_fn *pack, float *dst, size_t width, const ane_mat5 *x,
                             head h, size_t t0, size_t n, size_t dim) {
    pack(dst, dim * width * sizeof(float), at5(x, h, t0), x->dtype, x->s[3], x->s[4], n, dim);
}
/* The other way: panels of `width` channels over the positions: [panel][position][width] */
static inline void pack_cols(ane_pack_fn *pack, float *dst, size_t width, const ane_mat5 *x,
                             head h, size_t t0, size_t n, size_t dim) {
    pack(dst, n * width * sizeof(float), at5(x, h, t0), x->dtype, x->s[4], x->s[3], dim, n);
}

/* c[rows][ldc] (+)= A B over k; A has panels of mr rows, `a_step` floats apart; one panel of
 * B. */
static inline void tall(const job *j, size_t rows, size_t k, const float *a, size_t a_step,
                        const float *b, float *c, size_t ldc, bool add) {
    for (size_t i = 0; i < rows; i += j->mr)
        j->e->ukr(min_size(j->mr, rows - i), k, a + i / j->mr * a_step, b, c + i * ldc, ldc,
                  add);
}

/* Writes c[rows][ld] (row r, column q: channel r of position t0 + q) to x, rounded. */
static inline void put(const job *j, float *c, size_t ld, size_t rows, size_t cols,
                       const ane_mat5 *x, head h, size_t t0, bool channels_first) {
    ane_tile_out out = {.alpha = 1, .c = at5(x, h, t0), .c_dtype = x->dtype,
                        .c_rs = channels_first ? x->s[4] : x->s[3],
                        .c_cs = channels_first ? x->s[3] : x->s[4]};
    j->t->tile(&out, c, ld, rows, cols);
}

/* ------------------------------------------------------------------ masks */

/* An upper bound of every row's length in packed panels; NaN or inf where one is not
 * finite. */
static inline float longest_row(const job *j, const float *panels, size_t floats,
                                size_t panel) {
    float most = 0;
    for (size_t i = 0; i < floats; i += panel) {
        float s = j->t->vec->sumsq(panels + i, panel);
        if (!(s <= most)) most = s;     /* NaN too */
        if (most != most) break;
    }
    return sqrtf(most);
}

/* May keys outside of the spans be left out for queries of length q, keys of length k? */
static inline bool spans_hold(const job *j, float q, float k, float v) {
    const ane_attention_args *a = j->a;
    if (!a->span) return false;
    if (!a->mask) return true;
    float most = fabsf(a->scale) * q * k;
    if (!(most < INFINITY) || !(v < INFINITY)) return false;
    return a->hidden == -INFINITY || (a->plain && 2 * most + NOTHING <= -a->hidden);
}

static inline const ane_span *spans_of(const job *j, head h, size_t q0) {
    return j->a->span + (int64_t)h.r * j->a->span_group + q0;
}

/* Keys that some of queries q0..q0+n may see: whole blocks from the first one on. */
static inline ane_span reach(const job *j, head h, size_t q0, size_t n, bool spans) {
    ane_span all = {0, (int32_t)j->k_len};
    if (!spans) return all;
    const ane_span *s = spans_of(j, h, q0);
    ane_span r = {all.end, 0};
    for (size_t i = 0; i < n; i++) {
        if (s[i].first >= s[i].end) continue;
        if (s[i].first < r.first) r.first = s[i].first;
        if (s[i].end > r.end) r.end = s[i].end;
    }
    if (r.end == 0) return (ane_span){0, 0};
    r.first -= r.first % (int32_t)j->keys;
    return r;
}

/* Applies masks to s[keys][nr] (keys k0.., queries q0..q0+n) and returns the scale that is
 * still to be applied: with an explicit mask the scores are scaled here. room: keys * nr. */
float ane__attention_mask(const job *j, float *s, head h, size_t q0, size_t n, size_t k0,
                          size_t keys, bool spans, float *room);
/* ds = 0 where a bool mask is not `keep`. */
void ane__attention_zero(const job *j, float *ds, head h, size_t q0, size_t n, size_t k0,
                         size_t keys);

#endif
