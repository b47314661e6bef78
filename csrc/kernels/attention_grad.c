/* The gradient of streaming attention: per key-value head, blocks of queries times blocks of
 * keys, the weights computed again from the forward pass's sums. */
#include "attention_block.h"

/* Everything one (batch, KV head) needs; all of it linear in the sequence. */
typedef struct grad {
    float *k, *v, *kt;          /* keys, values by rows; keys by columns, block by block */
    float *dk, *dv;             /* [keys][dk_ld], sums over queries and heads */
    float *qb, *ob, *qn, *on;   /* queries and dout of a block: by rows, by columns */
    float *s, *dp, *packed, *dq, *m, *log_l, *delta, *room;
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
        {&g->on, bq * g->dv_ld},       {&g->s, bq * j->keys},
        {&g->dp, bq * j->keys},        {&g->packed, bq * j->keys},
        {&g->dq, bq * g->kt_rows},     {&g->m, bq},
        {&g->log_l, bq},               {&g->delta, bq},
        {&g->room, j->a->mask ? j->keys * j->nr : 0},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (base) *parts[i].part = base + at;
        at += up(parts[i].n, 16);
    }
    return at;
}

/* What the panels of a block of queries see of a block of keys: panel i the first count[i]. */
typedef struct sight {
    size_t panels, keys;
    size_t count[QUERIES];
} sight;

static void look(const job *j, head h, size_t q0, size_t n, size_t k0, size_t keys, bool spans,
                 sight *see) {
    see->panels = cut(n, j->nr);
    see->keys = keys;
    for (size_t i = 0; i < see->panels; i++) {
        size_t p = i * j->nr;
        ane_span r = reach(j, h, q0 + p, min_size(j->nr, n - p), spans);
        size_t end = (size_t)r.end;
        see->count[i] = (size_t)r.first > k0 || end <= k0 ? 0 : min_size(keys, end - k0);
    }
}

/* Scores s[queries/nr][keys][nr] as panels of A: rows are keys, the sum runs over queries. */
static void pack_scores(const job *j, float *s, const sight *see, float *dst) {
    for (size_t i = 0; i < see->panels; i++) {
        float *from = s + i * see->keys * j->nr;
        memset(from + see->count[i] * j->nr, 0,
               (see->keys - see->count[i]) * j->nr * sizeof *from);
        j->e->pack_a(dst + i * j->nr * j->mr, j->queries * j->mr * sizeof(float), from, ANE_F32,
                     (int64_t)(j->nr * sizeof(float)), sizeof(float), see->keys, j->nr);
    }
}

/* acc[keys][ld] += scores' x: x is the block's queries (or dout) by columns. Only queries
 * that see a key are summed over. */
static void add_keys(const job *j, const float *packed, const sight *see, const float *x,
                     float *acc, size_t ld) {
    size_t nr = j->nr, mr = j->mr;
    for (size_t k = 0; k < see->keys; k += mr) {
        size_t a = 0, b = see->panels;
        while (a < b && see->count[a] <= k) a++;
        while (b > a && see->count[b - 1] <= k) b--;
        if (a == b) continue;
        for (size_t c = 0; c < ld; c += nr)
            j->e->ukr(min_size(mr, see->keys - k), (b - a) * nr,
                      packed + k * j->queries + a * nr * mr, x + (c * j->queries + a * nr * nr),
                      acc + k * ld + c, ld, true);
    }
}

/* Operands, sums and delta of queries q0..q0+n of one head; columns past n count as nothing. */
static void grad_queries(const job *j, const grad *g, head h, size_t q0, size_t n) {
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
        pack_rows(j->e->pack_b, g->qb + p * j->d, nr, &a->q, h, q0 + p, some, j->d);
        pack_rows(j->e->pack_b, g->ob + p * j->dv, nr, &j->g->dout, h, q0 + p, some, j->dv);
        /* delta = sum over channels of dout * out */
        for (size_t c = 0; c < j->dv; c += j->keys) {
            size_t dim = min_size(j->keys, j->dv - c);
            ane_mat5 part = from_channel(&a->out, c);
            pack_rows(j->e->pack_b, o, nr, &part, h, q0 + p, some, dim);
            for (size_t r = 0; r < dim; r++)
                vec->muladd(delta, g->ob + p * j->dv + (c + r) * nr, o + r * nr, nr);
        }
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
    const float *row = rows_of(j, h) + q0 * 2;
    for (size_t i = 0; i < bq; i++) {
        g->m[i] = i < n ? row[2 * i] : 0;
        g->log_l[i] = i < n ? row[2 * i + 1] : INFINITY;
    }
}

static void grad_head(const job *j, const grad *g, head h) {
    size_t nr = j->nr, bq = j->queries;
    for (size_t q0 = 0; q0 < j->q_len; q0 += bq) {
        size_t n = min_size(bq, j->q_len - q0);
        grad_queries(j, g, h, q0, n);
        bool spans = spans_hold(j, longest_row(j, g->qb, bq * j->d, nr * j->d), g->longest_k,
                                g->longest_v) &&
                     longest_row(j, g->ob, bq * j->dv, nr * j->dv) < INFINITY;
        ane_span seen = reach(j, h, q0, n, spans);
        size_t end = (size_t)seen.end;
        for (size_t k0 = (size_t)seen.first; k0 < end; k0 += j->keys) {
            size_t keys = min_size(j->keys, end - k0);
            size_t stored = min_size(j->keys, j->k_len - k0);
            sight see;
            look(j, h, q0, n, k0, keys, spans, &see);
            for (size_t i = 0; i < see.panels; i++) {
                size_t p = i * nr, some = see.count[i];
                float *s = g->s + p * keys, *dp = g->dp + p * keys;
                if (!some) continue;
                tall(j, some, j->d, g->k + k0 * j->d, j->d * j->mr, g->qb + p * j->d, s, nr,
                     false);
                tall(j, some, j->dv, g->v + k0 * j->dv, j->dv * j->mr, g->ob + p * j->dv, dp,
                     nr, false);
                float scale = ane__attention_mask(j, s, h, q0 + p, min_size(nr, n - p), k0, some,
                                                  spans, g->room);
                j->t->attn_backward(s, dp, some, nr, scale, j->g->dscale, g->m + p,
                                    g->log_l + p, g->delta + p);
                if (j->g->masked && !spans && j->a->mask && j->a->mask->dtype == ANE_BOOL)
                    ane__attention_zero(j, dp, h, q0 + p, min_size(nr, n - p), k0, some);
                if (j->g->dq.data)
                    tall(j, j->d, some, g->kt + k0 * g->kt_rows, stored * j->mr, dp,
                         g->dq + p * g->kt_rows, nr, true);
            }
            if (j->g->dv.data) {
                pack_scores(j, g->s, &see, g->packed);
                add_keys(j, g->packed, &see, g->on, g->dv + k0 * g->dv_ld, g->dv_ld);
            }
            if (j->g->dk.data) {
                pack_scores(j, g->dp, &see, g->packed);
                add_keys(j, g->packed, &see, g->qn, g->dk + k0 * g->dk_ld, g->dk_ld);
            }
            if (ane_poll_check()) return;
        }
        for (size_t p = 0; p < n && j->g->dq.data; p += nr)
            put(j, g->dq + p * g->kt_rows, nr, j->d, min_size(nr, n - p), &j->g->dq, h,
                q0 + p, true);
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

ane_status ane_attention_grad_with(const ane_kernels *table,
                                   const ane_attention_grad_args *args, ane_error *err) {
    job j;
    ane_attention_args fwd = *args->fwd;
    ane_status st = ane__attention_job(&j, table, &fwd, err);
    size_t pairs = j.batch * j.kv_heads;
    if (st || !pairs) return st;
    if (!args->dout.data || !is_gradient(&args->dout) || !is_gradient(&args->dq) ||
        !is_gradient(&args->dk) || !is_gradient(&args->dv))
        return ane_fail(err, ANE_ERR_DTYPE, "[attention_grad] expected float16, bfloat16 or "
                        "float32 gradients");
    void *mine = NULL;
    if (!fwd.rows) {
        mine = ane_scratch_push(pairs * j.group * j.q_len * 2 * sizeof(float));
        if (!mine) return ane_fail(err, ANE_ERR_NOMEM, "[attention_grad] no memory");
        fwd.rows = mine;
        st = ane_attention_with(table, &fwd, err);
    }
    j.g = args;
    if (!st) st = ane__attention_done(&j, ane_parallel_for(pairs, grad_task, &j), err);
    ane_scratch_pop(mine);
    return st;
}

ane_status ane_attention_grad(const ane_attention_grad_args *args, ane_error *err) {
    return ane_attention_grad_with(NULL, args, err);
}
