/* The gradient of streaming attention: per key-value head, block by block of queries. The
 * scores of one block, and what comes back to its weights, are kept for all keys: that is
 * linear in the sequence, and then nothing of the forward pass is needed or computed twice. */
#include "attention_block.h"

/* Scores of a block of queries: its queries are halved while they take more (floats). */
#define SCORES ((size_t)1 << 20)

/* Everything one (batch, KV head) needs; all of it linear in the sequence. */
typedef struct grad {
    float *k, *v, *kt;          /* keys, values by rows; keys by columns, block by block */
    float *dk, *dv;             /* [keys][dk_ld], sums over queries and heads */
    float *qb, *ob, *qn, *on;   /* queries and dout of a block: by rows, by columns */
    float *s, *dp;              /* [queries/nr][all keys][nr] */
    float *packed, *dq, *room;
    size_t dk_ld, dv_ld, kt_rows;
    float longest_k, longest_v;
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
        {&g->on, bq * g->dv_ld},       {&g->s, bq * j->k_len},
        {&g->dp, bq * j->k_len},       {&g->packed, bq * j->keys},
        {&g->dq, bq * g->kt_rows},     {&g->room, j->a->mask ? j->keys * j->nr : 0},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (base) *parts[i].part = base + at;
        at += up(parts[i].n, 16);
    }
    return at;
}

/* A block of queries q0..q0+n of a head, and what its panels see: panel i keys first[i] (of a
 * block's beginning) to end[i]. */
typedef struct sight {
    size_t q0, n, panels;
    size_t first[QUERIES], end[QUERIES];
    size_t all_first, all_end;
    bool spans;
} sight;

static void look(const job *j, head h, sight *see) {
    see->panels = cut(see->n, j->nr);
    see->all_first = j->k_len;
    see->all_end = 0;
    for (size_t i = 0; i < see->panels; i++) {
        size_t p = i * j->nr;
        ane_span r = reach(j, h, see->q0 + p, min_size(j->nr, see->n - p), see->spans);
        see->first[i] = (size_t)r.first;
        see->end[i] = (size_t)r.end;
        if (see->first[i] < see->all_first) see->all_first = see->first[i];
        if (see->end[i] > see->all_end) see->all_end = see->end[i];
    }
}

/* How many of a block's keys k0..k0+keys panel i sees: the first ones. */
static size_t seen_of(const sight *see, size_t i, size_t k0, size_t keys) {
    if (see->first[i] > k0 || see->end[i] <= k0) return 0;
    return min_size(keys, see->end[i] - k0);
}

/* Scores s[queries/nr][all keys][nr], of this block of keys, as panels of A: rows are keys,
 * the sum runs over queries. */
static void pack_scores(const job *j, float *s, const sight *see, size_t k0, size_t keys,
                        float *dst) {
    for (size_t i = 0; i < see->panels; i++) {
        float *from = s + (i * j->k_len + k0) * j->nr;
        size_t some = seen_of(see, i, k0, keys);
        memset(from + some * j->nr, 0, (keys - some) * j->nr * sizeof *from);
        j->e->pack_a(dst + i * j->nr * j->mr, j->queries * j->mr * sizeof(float), from, ANE_F32,
                     (int64_t)(j->nr * sizeof(float)), sizeof(float), keys, j->nr);
    }
}

/* acc[keys][ld] += scores' x: x is the block's queries (or dout) by columns. Only queries
 * that see a key are summed over. */
static void add_keys(const job *j, const float *packed, const sight *see, size_t k0,
                     size_t keys, const float *x, float *acc, size_t ld) {
    size_t nr = j->nr, mr = j->mr;
    for (size_t k = 0; k < keys; k += mr) {
        size_t a = 0, b = see->panels;
        while (a < b && seen_of(see, a, k0, keys) <= k) a++;
        while (b > a && seen_of(see, b - 1, k0, keys) <= k) b--;
        if (a == b) continue;
        for (size_t c = 0; c < ld; c += nr)
            j->e->ukr(min_size(mr, keys - k), (b - a) * nr,
                      packed + k * j->queries + a * nr * mr, x + (c * j->queries + a * nr * nr),
                      acc + k * ld + c, ld, true);
    }
}

/* Operands of queries q0..q0+n of one head; columns past n are zero. */
static void grad_queries(const job *j, const grad *g, head h, size_t q0, size_t n) {
    const ane_attention_args *a = j->a;
    size_t nr = j->nr, bq = j->queries;
    memset(g->dq, 0, bq * g->kt_rows * sizeof(float));
    for (size_t p = 0; p < n; p += nr) {
        size_t some = min_size(nr, n - p);
        pack_rows(j->e->pack_b, g->qb + p * j->d, nr, &a->q, h, q0 + p, some, j->d);
        pack_rows(j->e->pack_b, g->ob + p * j->dv, nr, &j->g->dout, h, q0 + p, some, j->dv);
    }
    memset(g->qn, 0, bq * g->dk_ld * sizeof(float));
    memset(g->on, 0, bq * g->dv_ld * sizeof(float));
    for (size_t c = 0; c < j->d && j->g->dk.data; c += nr) {
        ane_mat5 part = from_channel(&a->q, c);
        pack_cols(j->e->pack_b, g->qn + c * bq, nr, &part, h, q0, n, min_size(nr, j->d - c));
    }
    for (size_t c = 0; c < j->dv && j->g->dv.data; c += nr) {
        ane_mat5 part = from_channel(&j->g->dout, c);
        pack_cols(j->e->pack_b, g->on + c * bq, nr, &part, h, q0, n, min_size(nr, j->dv - c));
    }
}

/* s = weights, dp = their scores' gradient, for a block of queries and all keys. */
static void grad_scores(const job *j, const grad *g, head h, const sight *see) {
    size_t nr = j->nr;
    float scale = j->a->scale;
    for (size_t k0 = see->all_first; k0 < see->all_end; k0 += j->keys)
        for (size_t i = 0; i < see->panels; i++) {
            size_t p = i * nr, some = seen_of(see, i, k0, j->keys);
            size_t at = (i * j->k_len + k0) * nr;
            if (!some) continue;
            tall(j, some, j->d, g->k + k0 * j->d, j->d * j->mr, g->qb + p * j->d, g->s + at, nr,
                 false);
            tall(j, some, j->dv, g->v + k0 * j->dv, j->dv * j->mr, g->ob + p * j->dv, g->dp + at,
                 nr, false);
            scale = ane__attention_mask(j, g->s + at, h, see->q0 + p, min_size(nr, see->n - p),
                                        k0, some, see->spans, g->room);
        }
    for (size_t i = 0; i < see->panels; i++) {
        size_t at = (i * j->k_len + see->first[i]) * nr, keys = see->end[i] - see->first[i];
        if (see->end[i] <= see->first[i]) continue;
        j->t->attn_backward(g->s + at, g->dp + at, keys, nr, scale, j->g->dscale);
        if (j->g->masked && !see->spans && j->a->mask && j->a->mask->dtype == ANE_BOOL)
            ane__attention_zero(j, g->dp + at, h, see->q0 + i * nr, min_size(nr, see->n - i * nr),
                                see->first[i], keys);
    }
}

static void grad_head(const job *j, const grad *g, head h) {
    size_t nr = j->nr;
    sight see;
    for (see.q0 = 0; see.q0 < j->q_len; see.q0 += j->queries) {
        see.n = min_size(j->queries, j->q_len - see.q0);
        size_t rows = up(see.n, nr);
        grad_queries(j, g, h, see.q0, see.n);
        see.spans = spans_hold(j, longest_row(j, g->qb, rows * j->d, nr * j->d), g->longest_k,
                               g->longest_v) &&
                    longest_row(j, g->ob, rows * j->dv, nr * j->dv) < INFINITY;
        look(j, h, &see);
        grad_scores(j, g, h, &see);
        for (size_t k0 = see.all_first; k0 < see.all_end; k0 += j->keys) {
            size_t keys = min_size(j->keys, see.all_end - k0);
            size_t stored = min_size(j->keys, j->k_len - k0);
            for (size_t i = 0; i < see.panels && j->g->dq.data; i++) {
                size_t some = seen_of(&see, i, k0, keys);
                if (some)
                    tall(j, j->d, some, g->kt + k0 * g->kt_rows, stored * j->mr,
                         g->dp + (i * j->k_len + k0) * nr, g->dq + i * nr * g->kt_rows, nr, true);
            }
            if (j->g->dv.data) {
                pack_scores(j, g->s, &see, k0, keys, g->packed);
                add_keys(j, g->packed, &see, k0, keys, g->on, g->dv + k0 * g->dv_ld, g->dv_ld);
            }
            if (j->g->dk.data) {
                pack_scores(j, g->dp, &see, k0, keys, g->packed);
                add_keys(j, g->packed, &see, k0, keys, g->qn, g->dk + k0 * g->dk_ld, g->dk_ld);
            }
            if (ane_poll_check()) return;
        }
        for (size_t p = 0; p < see.n && j->g->dq.data; p += nr)
            put(j, g->dq + p * g->kt_rows, nr, j->d, min_size(nr, see.n - p), &j->g->dq, h,
                see.q0 + p, true);
    }
}

static void grad_task(void *arg, size_t pair) {
    job *j = arg;
    grad g;
    head h = head_of(j, pair, 0);
    float *work = ane_scratch_push(lay(j, &g, NULL) * sizeof(float));
    if (!work) {
        atomic_store(&j->status, (int)ANE_ERR_NOMEM);
        return;
    }
    lay(j, &g, work);
    size_t rows = up(j->k_len, j->mr);
    memset(g.dk, 0, rows * g.dk_ld * sizeof(float));
    memset(g.dv, 0, rows * g.dv_ld * sizeof(float));
    pack_rows(j->e->pack_a, g.k, j->mr, &j->a->k, h, 0, j->k_len, j->d);
    pack_rows(j->e->pack_a, g.v, j->mr, &j->a->v, h, 0, j->k_len, j->dv);
    g.longest_k = longest_row(j, g.k, rows * j->d, j->mr * j->d);
    g.longest_v = longest_row(j, g.v, rows * j->dv, j->mr * j->dv);
    for (size_t k0 = 0; k0 < j->k_len; k0 += j->keys)
        pack_cols(j->e->pack_a, g.kt + k0 * g.kt_rows, j->mr, &j->a->k, h, k0,
                  min_size(j->keys, j->k_len - k0), j->d);
    for (h.r = 0; h.r < j->group; h.r++) grad_head(j, &g, h);
    h.r = 0;
    if (j->g->dk.data) put(j, g.dk, g.dk_ld, j->k_len, j->d, &j->g->dk, h, 0, false);
    if (j->g->dv.data) put(j, g.dv, g.dv_ld, j->k_len, j->dv, &j->g->dv, h, 0, false);
    ane_scratch_pop(work);
}

static bool is_gradient(const ane_mat5 *x) {
    return !x->data || x->dtype == ANE_F16 || x->dtype == ANE_BF16 || x->dtype == ANE_F32;
}

/* As many queries in a block as their scores over all keys allow. */
static void fewer_queries(job *j) {
    while (j->queries > j->nr && j->queries * j->k_len > SCORES)
        j->queries = up(j->queries / 2, j->nr);
}

void ane_attention_grad_room(const ane_attention_grad_args *args, ane_room *room) {
    job j;
    grad g;
    if (ane__attention_job(&j, NULL, args->fwd, NULL)) return;
    j.g = args;
    fewer_queries(&j);
    ane_room_loop(room, j.batch * j.kv_heads, lay(&j, &g, NULL) * sizeof(float), 0);
}

ane_status ane_attention_grad_with(const ane_kernels *table,
                                   const ane_attention_grad_args *args, ane_error *err) {
    job j;
    ane_status st = ane__attention_job(&j, table, args->fwd, err);
    size_t pairs = j.batch * j.kv_heads;
    if (st || !pairs) return st;
    if (!args->dout.data || !is_gradient(&args->dout) || !is_gradient(&args->dq) ||
        !is_gradient(&args->dk) || !is_gradient(&args->dv))
        return ane_fail(err, ANE_ERR_DTYPE, "[attention_grad] expected float16, bfloat16 or "
                        "float32 gradients");
    j.g = args;
    fewer_queries(&j);
    return ane__attention_done(&j, ane_parallel_for(pairs, grad_task, &j), err);
}

ane_status ane_attention_grad(const ane_attention_grad_args *args, ane_error *err) {
    return ane_attention_grad_with(NULL, args, err);
}
