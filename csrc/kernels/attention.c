/* Streaming attention on the product's own micro-kernel. Scores are computed transposed, key
 * by key with one panel of queries side by side: that is the very layout of a packed B panel,
 * so the exponentials go into the next product where they lie, and softmax runs down columns
 * without touching neighbours. */
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
/* Packed keys and values of as many heads at once. */
#define PACKED_BYTES ((size_t)32 << 20)

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t cut(size_t n, size_t unit) { return n ? (n - 1) / unit + 1 : 0; }
static size_t up(size_t n, size_t unit) { return cut(n, unit) * unit; }

static char *at4(const ane_mat4 *x, size_t b, size_t h, size_t t) {
    return (char *)x->data + (int64_t)b * x->s[0] + (int64_t)h * x->s[1] +
           (int64_t)t * x->s[2];
}

typedef struct job {
    const ane_kernels *t;
    const ane_gemm_entry *e;            /* fp32 panels */
    const ane_attention_args *a;
    const ane_attention_grad_args *g;
    size_t batch, heads, kv_heads, group, q_len, k_len, d, dv, mr, nr;
    size_t keys, queries;               /* of one block: whole panels */
    size_t first, count;                /* (batch, KV head) pairs packed now */
    float *packed;                      /* of all pairs packed now */
    size_t k_floats, v_floats;
    atomic_int status;
} job;

/* ------------------------------------------------------------------ panels */

/* x[t0..t0+n) as panels of `width` positions over all its channels: [panel][channel][width] */
static void pack_rows(ane_pack_fn *pack, float *dst, size_t width, const ane_mat4 *x, size_t b,
                      size_t h, size_t t0, size_t n, size_t dim) {
    pack(dst, dim * width * sizeof(float), at4(x, b, h, t0), x->dtype, x->s[2], x->s[3], n,
         dim);
}
/* The other way: panels of `width` channels over the positions: [panel][position][width] */
static void pack_cols(ane_pack_fn *pack, float *dst, size_t width, const ane_mat4 *x, size_t b,
                      size_t h, size_t t0, size_t n, size_t dim) {
    pack(dst, n * width * sizeof(float), at4(x, b, h, t0), x->dtype, x->s[3], x->s[2], dim, n);
}

/* c[rows][ldc] (+)= A B over k; A has panels of mr rows, `a_step` floats apart; one panel of
 * B. */
static void tall(const job *j, size_t rows, size_t k, const float *a, size_t a_step,
                 const float *b, float *c, size_t ldc, bool add) {
    for (size_t i = 0; i < rows; i += j->mr)
        j->e->ukr(min_size(j->mr, rows - i), k, a + i / j->mr * a_step, b, c + i * ldc, ldc,
                  add);
}

/* ------------------------------------------------------------------ scores and masks */

/* How many keys query t may see. */
static size_t visible(const job *j, size_t t) {
    if (!j->a->causal) return j->k_len;
    int64_t n = (int64_t)t + 1 + (int64_t)j->k_len - (int64_t)j->q_len;
    return n < 0 ? 0 : min_size((size_t)n, j->k_len);
}

static float mask_at(const ane_mat4 *m, const char *p, bool *keep) {
    float f;
    uint16_t h;
    if (m->dtype == ANE_BOOL) {
        *keep = *p != 0;
        return 0;
    }
    if (m->dtype == ANE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&h, p, sizeof h);
    return m->dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_f32_from_bf16(h);
}

/* Applies masks to s[keys][nr] (keys k0.., queries q0..q0+n) and returns the scale that is
 * still to be applied: with an explicit mask the scores are scaled here. */
static float mask_scores(const job *j, float *s, size_t b, size_t h, size_t q0, size_t n,
                         size_t k0, size_t keys) {
    const ane_mat4 *m = j->a->mask;
    float scale = j->a->scale, off = -INFINITY;
    if (m || scale == 0) {
        for (size_t i = 0; i < keys; i++)
            for (size_t q = 0; q < n; q++) {
                bool keep = true;
                float add = m ? mask_at(m, at4(m, b, h, q0 + q) + (int64_t)(k0 + i) * m->s[3],
                                        &keep) : 0;
                float *x = s + i * j->nr + q;
                *x = keep ? *x * scale + add : off;
            }
        scale = 1;
    } else if (scale < 0) {
        off = INFINITY;
    }
    if (j->a->causal)
        for (size_t q = 0; q < n; q++)
            for (size_t i = visible(j, q0 + q); i < k0 + keys; i++)
                if (i >= k0) s[(i - k0) * j->nr + q] = off;
    return scale;
}

/* Writes c[rows][ld] (row r, column q: channel r of position t0 + q) to x, rounded. */
static void put(const job *j, float *c, size_t ld, size_t rows, size_t cols, const ane_mat4 *x,
                size_t b, size_t h, size_t t0, bool channels_first) {
    ane_tile_out out = {.alpha = 1, .c = at4(x, b, h, t0), .c_dtype = x->dtype,
                        .c_rs = channels_first ? x->s[3] : x->s[2],
                        .c_cs = channels_first ? x->s[2] : x->s[3]};
    j->t->tile(&out, c, ld, rows, cols);
}

/* ------------------------------------------------------------------ forward */

static void pack_task(void *arg, size_t i) {
    job *j = arg;
    size_t pair = j->first + i / 2, b = pair / j->kv_heads, h = pair % j->kv_heads;
    float *dst = j->packed + i / 2 * (j->k_floats + j->v_floats);
    if (i % 2 == 0) {
        pack_rows(j->e->pack_a, dst, j->mr, &j->a->k, b, h, 0, j->k_len, j->d);
        return;
    }
    /* Values block by block of keys, so that a block's panels lie together. */
    dst += j->k_floats;
    size_t panels = up(j->dv, j->mr);
    for (size_t k0 = 0; k0 < j->k_len; k0 += j->keys)
        pack_cols(j->e->pack_a, dst + k0 * panels, j->mr, &j->a->v, b, h, k0,
                  min_size(j->keys, j->k_len - k0), j->dv);
}

/* One panel of queries of one head. */
static void forward_block(const job *j, size_t b, size_t h, size_t q0, const float *k,
                          const float *v, float *work) {
    size_t nr = j->nr, n = min_size(nr, j->q_len - q0), panels = up(j->dv, j->mr);
    float *q = work, *s = q + j->d * nr, *o = s + j->keys * nr, *m = o + panels * nr;
    float *l = m + nr, *fix = l + nr;
    pack_rows(j->e->pack_b, q, nr, &j->a->q, b, h, q0, n, j->d);
    for (size_t i = 0; i < nr; i++) m[i] = -INFINITY, l[i] = 0;
    memset(o, 0, panels * nr * sizeof *o);
    size_t end = visible(j, q0 + n - 1);
    for (size_t k0 = 0; k0 < end; k0 += j->keys) {
        size_t keys = min_size(j->keys, end - k0), stored = min_size(j->keys, j->k_len - k0);
        tall(j, keys, j->d, k + k0 * j->d, j->d * j->mr, q, s, nr, false);
        float scale = mask_scores(j, s, b, h, q0, n, k0, keys);
        j->t->attn_forward(s, keys, nr, scale, m, l, fix);
        if (k0) j->t->attn_rescale(o, j->dv, nr, fix);
        tall(j, j->dv, keys, v + k0 * panels, stored * j->mr, s, o, nr, true);
    }
    for (size_t i = 0; i < nr; i++) fix[i] = 1 / l[i];
    if (end)
        j->t->attn_rescale(o, j->dv, nr, fix);
    else
        for (size_t i = 0; i < panels * nr; i++) o[i] = NAN;
    if (j->a->lse) {
        float *lse = j->a->lse + (b * j->heads + h) * j->q_len + q0;
        for (size_t i = 0; i < n; i++) lse[i] = m[i] + logf(l[i]);
    }
    put(j, o, nr, j->dv, n, &j->a->out, b, h, q0, true);
}

static void forward_task(void *arg, size_t i) {
    job *j = arg;
    size_t blocks = cut(j->q_len, j->nr);
    /* Long rows first: the last tasks of a causal core are then the short ones. */
    size_t per = j->count * j->group, q0 = (blocks - 1 - i / per) * j->nr;
    size_t at = i % per, pair = j->first + at / j->group;
    size_t b = pair / j->kv_heads, h = pair % j->kv_heads * j->group + at % j->group;
    const float *k = j->packed + at / j->group * (j->k_floats + j->v_floats);
    size_t panels = up(j->dv, j->mr);
    float *work = ane_scratch_push((j->d * j->nr + j->keys * j->nr + panels * j->nr +
                                    3 * j->nr) * sizeof(float));
    if (work) forward_block(j, b, h, q0, k, k + j->k_floats, work);
    else atomic_store(&j->status, (int)ANE_ERR_NOMEM);
    ane_scratch_pop(work);
}

/* ------------------------------------------------------------------ arguments */

static bool is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

static ane_status fill(job *j, const ane_kernels *table, const ane_attention_args *a,
                       ane_error *err) {
    *j = (job){.a = a};
    if (a->batch < 0 || a->heads < 1 || a->kv_heads < 1 || a->heads % a->kv_heads ||
        a->q_len < 0 || a->k_len < 0 || a->qk_dim < 0 || a->v_dim < 0)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[attention] expected heads to be a multiple of kv_heads and no "
                        "negative size; got batch %lld, heads %lld, kv_heads %lld, queries "
                        "%lld, keys %lld, dims %lld and %lld",
                        (long long)a->batch, (long long)a->heads, (long long)a->kv_heads,
                        (long long)a->q_len, (long long)a->k_len, (long long)a->qk_dim,
                        (long long)a->v_dim);
    if (!is_float(a->q.dtype) || !is_float(a->k.dtype) || !is_float(a->v.dtype) ||
        !is_float(a->out.dtype) ||
        (a->mask && !is_float(a->mask->dtype) && a->mask->dtype != ANE_BOOL))
        return ane_fail(err, ANE_ERR_DTYPE,
                        "[attention] expected float16, bfloat16 or float32 operands (a mask "
                        "may be bool), got %s, %s, %s", ane_dtype_name(a->q.dtype),
                        ane_dtype_name(a->k.dtype), ane_dtype_name(a->v.dtype));
    j->t = table && table->vec ? table : ane_kernels_get();
    j->e = ane_gemm_entry_for(j->t, ANE_F32, ANE_F32, ANE_PRECISION_HIGHEST);
    j->batch = (size_t)a->batch;
    j->heads = (size_t)a->heads;
    j->kv_heads = (size_t)a->kv_heads;
    j->group = j->heads / j->kv_heads;
    j->q_len = (size_t)a->q_len;
    j->k_len = (size_t)a->k_len;
    j->d = (size_t)a->qk_dim;
    j->dv = (size_t)a->v_dim;
    j->mr = j->e->mr;
    j->nr = j->e->nr;
    j->keys = KEYS / j->mr * j->mr;
    j->queries = QUERIES / j->nr * j->nr;
    return ANE_OK;
}

static ane_status done(const job *j, bool ran, ane_error *err) {
    if (!ran) return ane_fail(err, ANE_ERR_CANCELLED, "[attention] cancelled");
    if (atomic_load(&j->status))
        return ane_fail(err, ANE_ERR_NOMEM, "[attention] no memory for a thread's blocks");
    return ANE_OK;
}

ane_status ane_attention_with(const ane_kernels *table, const ane_attention_args *args,
                              ane_error *err) {
    job j;
    ane_status st = fill(&j, table, args, err);
    size_t pairs = j.batch * j.kv_heads, bytes;
    if (st || !pairs || !j.q_len) return st;
    j.k_floats = up(up(j.k_len, j.mr) * j.d, 16);
    j.v_floats = up(up(j.dv, j.mr) * j.k_len, 16);
    bytes = (j.k_floats + j.v_floats) * sizeof(float);
    size_t step = min_size(pairs, bytes && bytes < PACKED_BYTES ? PACKED_BYTES / bytes : 1);
    j.packed = ane_scratch_push(step * bytes);
    if (!j.packed)
        return ane_fail(err, ANE_ERR_NOMEM, "[attention] no memory for %zu bytes of panels",
                        step * bytes);
    bool ran = true;
    for (j.first = 0; j.first < pairs && ran; j.first += step) {
        j.count = min_size(step, pairs - j.first);
        ran = ane_parallel_for(j.count * 2, pack_task, &j) &&
              ane_parallel_for(j.count * j.group * cut(j.q_len, j.nr), forward_task, &j);
    }
    ane_scratch_pop(j.packed);
    return done(&j, ran, err);
}

ane_status ane_attention(const ane_attention_args *args, ane_error *err) {
    return ane_attention_with(NULL, args, err);
}

/* ------------------------------------------------------------------ gradient */

/* Everything one (batch, KV head) needs; all of it linear in the sequence. */
typedef struct grad {
    float *k, *v, *kt;          /* keys, values by rows; keys by columns, block by block */
    float *dk, *dv;             /* [keys][dk_ld], sums over queries and heads */
    float *qb, *ob, *qn, *on;   /* queries and dout of a block: by rows, by columns */
    float *s, *dp, *packed, *dq, *lse, *delta;
    size_t dk_ld, dv_ld, kt_rows;
} grad;

/* Lays the parts out in one block; NULL: returns the floats needed. */
static size_t lay(const job *j, grad *g, float *base) {
    size_t at = 0, rows = up(j->k_len, j->mr), bq = j->queries;
    g->dk_ld = up(j->d, j->nr);
    g->dv_ld = up(j->dv, j->nr);
    g->kt_rows = up(j->d, j->mr);
    struct {
        float **part;
        size_t n;
    } parts[] = {
        {&g->k, rows * j->d},          {&g->v, rows * j->dv},
        {&g->kt, g->kt_rows * j->k_len}, {&g->dk, rows * g->dk_ld},
        {&g->dv, rows * g->dv_ld},     {&g->qb, bq * j->d},
        {&g->ob, bq * j->dv},          {&g->qn, bq * g->dk_ld},
        {&g->on, bq * g->dv_ld},       {&g->s, bq * j->keys},
        {&g->dp, bq * j->keys},        {&g->packed, bq * j->keys},
        {&g->dq, bq * g->kt_rows},     {&g->lse, bq},
        {&g->delta, bq},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (base) *parts[i].part = base + at;
        at += up(parts[i].n, 16);
    }
    return at;
}

/* Scores s[queries/nr][keys][nr] as panels of A: rows are keys, the sum runs over queries. */
static void pack_scores(const job *j, const float *s, size_t keys, float *dst) {
    for (size_t p = 0; p < j->queries; p += j->nr)
        j->e->pack_a(dst + p * j->mr, j->queries * j->mr * sizeof(float), s + p * keys, ANE_F32,
                     (int64_t)(j->nr * sizeof(float)), sizeof(float), keys, j->nr);
}

/* acc[keys][ld] += scores' x: x is the block's queries (or dout) by columns. */
static void add_keys(const job *j, const float *packed, size_t keys, const float *x, float *acc,
                     size_t ld) {
    for (size_t c = 0; c < ld; c += j->nr)
        tall(j, keys, j->queries, packed, j->queries * j->mr, x + c * j->queries, acc + c, ld,
             true);
}

/* Operands, lse and delta of queries q0..q0+n of one head; columns past n count as nothing. */
static void grad_queries(const job *j, const grad *g, size_t b, size_t h, size_t q0, size_t n) {
    const ane_attention_args *a = j->a;
    const ane_vec *vec = j->t->vec;
    size_t nr = j->nr, bq = j->queries;
    memset(g->qb, 0, bq * j->d * sizeof(float));
    memset(g->ob, 0, bq * j->dv * sizeof(float));
    memset(g->dq, 0, bq * g->kt_rows * sizeof(float));
    memset(g->delta, 0, bq * sizeof(float));
    for (size_t p = 0; p < n; p += nr) {
        size_t some = min_size(nr, n - p);
        float *o = g->s, *delta = g->delta + p;
        pack_rows(j->e->pack_b, g->qb + p * j->d, nr, &a->q, b, h, q0 + p, some, j->d);
        pack_rows(j->e->pack_b, g->ob + p * j->dv, nr, &j->g->dout, b, h, q0 + p, some, j->dv);
        /* delta = sum over channels of dout * out */
        for (size_t c = 0; c < j->dv; c += j->keys) {
            size_t dim = min_size(j->keys, j->dv - c);
            ane_mat4 part = a->out;
            part.data = (char *)part.data + (int64_t)c * part.s[3];
            pack_rows(j->e->pack_b, o, nr, &part, b, h, q0 + p, some, dim);
            for (size_t r = 0; r < dim; r++)
                vec->muladd(delta, g->ob + p * j->dv + (c + r) * nr, o + r * nr, nr);
        }
    }
    memset(g->qn, 0, bq * g->dk_ld * sizeof(float));
    memset(g->on, 0, bq * g->dv_ld * sizeof(float));
    for (size_t c = 0; c < j->d; c += nr) {
        ane_mat4 part = a->q;
        part.data = (char *)part.data + (int64_t)c * part.s[3];
        pack_cols(j->e->pack_b, g->qn + c * bq, nr, &part, b, h, q0, n, min_size(nr, j->d - c));
    }
    for (size_t c = 0; c < j->dv; c += nr) {
        ane_mat4 part = j->g->dout;
        part.data = (char *)part.data + (int64_t)c * part.s[3];
        pack_cols(j->e->pack_b, g->on + c * bq, nr, &part, b, h, q0, n, min_size(nr, j->dv - c));
    }
    const float *lse = a->lse + (b * j->heads + h) * j->q_len + q0;
    for (size_t i = 0; i < bq; i++) g->lse[i] = i < n ? lse[i] : INFINITY;
}

static void grad_head(const job *j, const grad *g, size_t b, size_t h) {
    size_t nr = j->nr, bq = j->queries;
    for (size_t q0 = 0; q0 < j->q_len; q0 += bq) {
        size_t n = min_size(bq, j->q_len - q0), end = visible(j, q0 + n - 1);
        grad_queries(j, g, b, h, q0, n);
        for (size_t k0 = 0; k0 < end; k0 += j->keys) {
            size_t keys = min_size(j->keys, end - k0);
            size_t stored = min_size(j->keys, j->k_len - k0);
            for (size_t p = 0; p < bq; p += nr) {
                float *s = g->s + p * keys, *dp = g->dp + p * keys;
                tall(j, keys, j->d, g->k + k0 * j->d, j->d * j->mr, g->qb + p * j->d, s, nr,
                     false);
                tall(j, keys, j->dv, g->v + k0 * j->dv, j->dv * j->mr, g->ob + p * j->dv, dp,
                     nr, false);
                size_t some = p < n ? min_size(nr, n - p) : 0;
                float left = mask_scores(j, s, b, h, q0 + p, some, k0, keys);
                j->t->attn_backward(s, dp, keys, nr, left, g->lse + p, g->delta + p);
                if (left != j->a->scale)        /* the mask took the scale with it */
                    j->t->vec->scalar[ANE_VEC_MUL](dp, dp, j->a->scale, keys * nr);
                tall(j, j->d, keys, g->kt + k0 * g->kt_rows, stored * j->mr, dp,
                     g->dq + p * g->kt_rows, nr, true);
            }
            pack_scores(j, g->s, keys, g->packed);
            add_keys(j, g->packed, keys, g->on, g->dv + k0 * g->dv_ld, g->dv_ld);
            pack_scores(j, g->dp, keys, g->packed);
            add_keys(j, g->packed, keys, g->qn, g->dk + k0 * g->dk_ld, g->dk_ld);
        }
        for (size_t p = 0; p < n; p += nr)
            put(j, g->dq + p * g->kt_rows, nr, j->d, min_size(nr, n - p), &j->g->dq, b, h,
                q0 + p, true);
    }
}

static void grad_task(void *arg, size_t pair) {
    job *j = arg;
    grad g;
    size_t b = pair / j->kv_heads, h = pair % j->kv_heads;
    float *work = ane_scratch_push(lay(j, &g, NULL) * sizeof(float));
    if (!work) {
        atomic_store(&j->status, (int)ANE_ERR_NOMEM);
        return;
    }
    lay(j, &g, work);
    size_t rows = up(j->k_len, j->mr);
    memset(g.dk, 0, rows * g.dk_ld * sizeof(float));
    memset(g.dv, 0, rows * g.dv_ld * sizeof(float));
    pack_rows(j->e->pack_a, g.k, j->mr, &j->a->k, b, h, 0, j->k_len, j->d);
    pack_rows(j->e->pack_a, g.v, j->mr, &j->a->v, b, h, 0, j->k_len, j->dv);
    for (size_t k0 = 0; k0 < j->k_len; k0 += j->keys)
        pack_cols(j->e->pack_a, g.kt + k0 * g.kt_rows, j->mr, &j->a->k, b, h, k0,
                  min_size(j->keys, j->k_len - k0), j->d);
    for (size_t i = 0; i < j->group; i++) grad_head(j, &g, b, h * j->group + i);
    put(j, g.dk, g.dk_ld, j->k_len, j->d, &j->g->dk, b, h, 0, false);
    put(j, g.dv, g.dv_ld, j->k_len, j->dv, &j->g->dv, b, h, 0, false);
    ane_scratch_pop(work);
}

ane_status ane_attention_grad_with(const ane_kernels *table,
                                   const ane_attention_grad_args *args, ane_error *err) {
    job j;
    ane_attention_args fwd = *args->fwd;
    ane_status st = fill(&j, table, &fwd, err);
    size_t pairs = j.batch * j.kv_heads;
    if (st || !pairs) return st;
    if (!is_float(args->dout.dtype) || !is_float(args->dq.dtype) ||
        !is_float(args->dk.dtype) || !is_float(args->dv.dtype))
        return ane_fail(err, ANE_ERR_DTYPE, "[attention_grad] expected float16, bfloat16 or "
                        "float32 gradients");
    void *mine = NULL;
    if (!fwd.lse) {
        mine = ane_scratch_push(j.batch * j.heads * j.q_len * sizeof(float));
        if (!mine) return ane_fail(err, ANE_ERR_NOMEM, "[attention_grad] no memory");
        fwd.lse = mine;
        st = ane_attention_with(table, &fwd, err);
    }
    j.g = args;
    if (!st) st = done(&j, ane_parallel_for(pairs, grad_task, &j), err);
    ane_scratch_pop(mine);
    return st;
}

ane_status ane_attention_grad(const ane_attention_grad_args *args, ane_error *err) {
    return ane_attention_grad_with(NULL, args, err);
}
