/* The attention core and its derivative through the streaming kernel: operands wherever
 * they lie, heads and positions told apart again where the program had joined them, masks
 * read once to see what they hide: constant ones when planning, others at each run. */
#include "axes.h"
#include "ops.h"

#include "../../base/f16.h"
#include "../../kernels/attention.h"
#include "../../kernels/vec.h"

#include <math.h>
#include <string.h>

/* A mask's lowest value hides what it is on from here down. */
#define HIDES (-1000.0)

/* Operands: what the kernel reads, then what it writes; of the derivative from DOUT on. */
enum { Q, K, V, MASK, DOUT, OUT, DQ, DK, DV, N };

typedef struct attention {
    ane_attention_args args;            /* addresses are filled per run, in a copy */
    ane_attention_grad_args grad;
    ane_mat5 mask;
    bool derivative, has_mask, scanned; /* scanned: each run looks what its mask hides */
    int view[N];                        /* of the step; -1: none */
    int outer_rank;                     /* batch dims beyond the kernel's two */
    int64_t outer[ANE_MAX_RANK], step[ANE_MAX_RANK][N], calls;
} attention;

static bool look(ane_attention_args *a, const ane_mat5 *mask, ane_span *span);

/* A copy of what the kernel is given, to put addresses into. */
typedef struct call {
    ane_attention_args a;
    ane_attention_grad_args g;
    ane_mat5 mask, *mats[N];            /* mats: as views are numbered */
} call;

static void begin_call(const attention *p, call *c) {
    *c = (call){.a = p->args, .g = p->grad, .mask = p->mask,
                .mats = {&c->a.q, &c->a.k, &c->a.v, &c->mask, &c->g.dout, &c->a.out, &c->g.dq,
                         &c->g.dk, &c->g.dv}};
    c->a.mask = p->has_mask ? &c->mask : NULL;
    c->g.fwd = &c->a;
}

/* What a run looks up of its mask. */
static size_t span_bytes(const attention *p) {
    return p->scanned ? (size_t)(p->args.group * p->args.q_len) * sizeof(ane_span) : 0;
}

static ane_status run_attention(ane_exec *ex, const ane_step *s, ane_error *err) {
    const attention *p = s->data;
    call c;
    begin_call(p, &c);
    ane_span *span = NULL;
    if (p->scanned) {
        c.mask.data = ane_at(ex, &s->views[p->view[MASK]]);
        span = ane_scratch_push(span_bytes(p));
        if (!span) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
        if (!look(&c.a, &c.mask, span)) {
            ane_scratch_pop(span);
            return ane_run_check(err);
        }
    }
    ane_status st = ANE_OK;
    for (int64_t i = 0; i < p->calls && !st; i++) {
        int64_t off[N] = {0}, left = i;
        for (int d = p->outer_rank - 1; d >= 0; d--) {
            for (int k = 0; k < N; k++) off[k] += left % p->outer[d] * p->step[d][k];
            left /= p->outer[d];
        }
        for (int k = 0; k < N; k++)
            if (p->view[k] >= 0)
                c.mats[k]->data = (char *)ane_at(ex, &s->views[p->view[k]]) + off[k];
        if (p->view[OUT] >= 0) st = ane_attention(&c.a, err);
        if (!st && p->derivative) st = ane_attention_grad(&c.g, err);
        if (!st && i + 1 < p->calls) st = ane_run_check(err);
    }
    ane_scratch_pop(span);
    return st;
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const attention *p = s->data;
    call c;
    begin_call(p, &c);
    for (int k = 0; k < N; k++)
        if (p->view[k] >= 0) c.mats[k]->data = ane_at(ex, &s->views[p->view[k]]);
    if (p->scanned) ane_room_push(room, span_bytes(p));
    if (p->view[OUT] >= 0) ane_attention_room(&c.a, room);
    if (p->derivative) ane_attention_grad_room(&c.g, room);
    if (p->scanned) ane_room_pop(room, span_bytes(p));
}

/* ---------------------------------------------------------------- masks */

static double mask_at(ane_dtype dtype, const char *p) {
    uint16_t h;
    float f;
    if (dtype == ANE_BOOL) return *p != 0;
    if (dtype == ANE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&h, p, sizeof h);
    return dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_f32_from_bf16(h);
}

typedef struct scan {
    const char *data;
    ane_dtype dtype;
    int64_t unit;
    int64_t keys, step;                 /* bytes from key to key */
    char low[4];                        /* the value that hides, as stored */
    bool plain;                         /* so far: all others add nothing */
} scan;

/* The span of one row; false: it hides everything. */
static bool scan_row(scan *s, const char *row, ane_span *span) {
    size_t unit = (size_t)s->unit;
    int64_t first = 0, end = s->keys;
    while (first < end && !memcmp(row + first * s->step, s->low, unit)) first++;
    while (end > first && !memcmp(row + (end - 1) * s->step, s->low, unit)) end--;
    *span = (ane_span){(int32_t)first, (int32_t)end};
    static const char zero[4] = {0};
    for (int64_t i = first; i < end && s->plain; i++) {
        const char *p = row + i * s->step;
        if (s->dtype == ANE_BOOL) s->plain = memcmp(p, s->low, unit) != 0;
        else s->plain = !memcmp(p, zero, unit) || mask_at(s->dtype, p) == 0;
    }
    return first < end;
}

/* What a constant mask, equal for every batch, hides: spans of keys for each query. Leaves
 * args alone where there is nothing to gain. */
static ane_status find_spans(ane_planner *pl, const ane_attention_core *g, attention *p,
                             const ane_axes *mask, int64_t *seen) {
    ane_attention_args *a = &p->args;
    const ane_buf *buf = &pl->plan->bufs[mask->buf];
    const int64_t *st = p->mask.s;
    *seen = a->group * a->q_len * a->k_len;
    bool same = buf->kind == ANE_BUF_CONST && st[0] == 0 && st[1] == 0;
    for (int d = 0; d < p->outer_rank; d++) same = same && p->step[d][MASK] == 0;
    if (!same || a->k_len > INT32_MAX) return ANE_OK;
    scan s = {.data = (const char *)buf->data + mask->offset, .dtype = mask->dtype,
              .unit = (int64_t)ane_dtype_size(mask->dtype), .keys = a->k_len, .step = st[4],
              .plain = true};
    int64_t rows = st[3] ? a->q_len : 1, heads = st[2] ? a->group : 1;
    if (mask->dtype == ANE_BOOL) {
        s.low[0] = !g->keep;
        a->hidden = a->fill;
    } else {
        /* The lowest value there is. */
        double low = 0;
        for (int64_t r = 0; r < heads; r++)
            for (int64_t t = 0; t < rows; t++)
                for (int64_t i = 0; i < (s.step ? s.keys : 1); i++) {
                    const char *at = s.data + r * st[2] + t * st[3] + i * s.step;
                    if (low < 0 && !memcmp(at, s.low, (size_t)s.unit)) continue;
                    double x = mask_at(s.dtype, at);
                    if (x != x) return ANE_OK;
                    if (x >= low) continue;
                    low = x;
                    memcpy(s.low, at, (size_t)s.unit);
                }
        if (low == 0) memset(s.low, 0xff, sizeof s.low);        /* a NaN: hides nothing */
        a->hidden = low == 0 ? -INFINITY : (float)(low * g->mask_scale);
    }
    if (!(a->hidden <= HIDES)) return ANE_OK;
    ane_span *span = ane_arena_alloc(pl->plan->arena, (size_t)(heads * a->q_len) * sizeof *span);
    if (!span) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    int64_t visible = 0;
    for (int64_t r = 0; r < heads; r++)
        for (int64_t t = 0; t < a->q_len; t++) {
            ane_span *to = &span[r * a->q_len + t];
            if (t && rows == 1) *to = to[-1];
            else if (!scan_row(&s, s.data + r * st[2] + t * st[3], to)) return ANE_OK;
            visible += to->end - to->first;
        }
    /* Mostly the repeated causal triangle of a group's heads. */
    bool alike = true;
    for (int64_t r = 1; r < heads && alike; r++)
        alike = !memcmp(span, span + r * a->q_len, (size_t)a->q_len * sizeof *span);
    visible *= heads == 1 ? a->group : 1;
    if (visible == *seen && !s.plain) return ANE_OK;
    a->span = span;
    a->span_group = alike ? 0 : a->q_len;
    a->plain = s.plain;
    *seen = visible;
    return ANE_OK;
}

/* ---------------------------------------------------------------- masks of a run */

/* A mask that is an input, or computed, is read once before the scores: a causal one of 4,096
 * positions in a few milliseconds, where the half that it hides takes hundreds. */
#define LOOK_FROM 32                    /* queries */

typedef struct looking {
    const char *data;
    ane_dtype dtype;
    size_t unit;
    int64_t keys, rows, group_step, row_step;
    uint64_t low;                       /* the value that hides, as often as it fits */
    ane_span *span;
    atomic_bool none, dressed;          /* a row hides all; something visible is not plain */
} looking;

/* Elements from `at` in steps of `by` (1 or -1) that are `low`, at most n. */
static int64_t run_of_low(const looking *l, const char *row, int64_t at, int by, int64_t n) {
    int64_t got = 0, wide = (int64_t)(sizeof l->low / l->unit);
    uint64_t x;
    for (; got + wide <= n; got += wide) {
        int64_t i = by > 0 ? at + got : at - got - wide + 1;
        memcpy(&x, row + (size_t)i * l->unit, sizeof x);
        if (x != l->low) break;
    }
    while (got < n && !memcmp(row + (size_t)(at + by * got) * l->unit, &l->low, l->unit)) got++;
    return got;
}

static bool adds_nothing(const looking *l, const char *row, int64_t first, int64_t end) {
    uint64_t sign = l->dtype == ANE_F32 ? 0x8000000080000000u : 0x8000800080008000u, x;
    int64_t i = first, wide = (int64_t)(sizeof x / l->unit);
    if (l->dtype == ANE_BOOL) {
        for (; i < end; i++)
            if ((row[i] != 0) == ((char)l->low != 0)) return false;
        return true;
    }
    for (; i + wide <= end; i += wide) {
        memcpy(&x, row + (size_t)i * l->unit, sizeof x);
        if (x & ~sign) return false;
    }
    for (; i < end; i++)
        if (mask_at(l->dtype, row + (size_t)i * l->unit) != 0) return false;
    return true;
}

static void look_row(void *arg, size_t t) {
    looking *l = arg;
    const char *row = l->data + (int64_t)t / l->rows * l->group_step + (int64_t)t % l->rows * l->row_step;
    int64_t first = run_of_low(l, row, 0, 1, l->keys);
    int64_t end = l->keys - run_of_low(l, row, l->keys - 1, -1, l->keys - first);
    l->span[t] = (ane_span){(int32_t)first, (int32_t)end};
    if (first == l->keys) atomic_store_explicit(&l->none, true, memory_order_relaxed);
    else if (!atomic_load_explicit(&l->dressed, memory_order_relaxed) &&
             !adds_nothing(l, row, first, end))
        atomic_store_explicit(&l->dressed, true, memory_order_relaxed);
}

/* Spans of this run's mask into args, where it hides anything. The value that hides is the one
 * that the first query has for the last key: a causal mask's. False: cancelled. */
static bool look(ane_attention_args *a, const ane_mat5 *mask, ane_span *span) {
    int64_t heads = mask->s[2] ? a->group : 1;
    looking l = {.data = mask->data, .dtype = mask->dtype, .unit = ane_dtype_size(mask->dtype),
                 .keys = a->k_len, .rows = a->q_len, .group_step = mask->s[2],
                 .row_step = mask->s[3], .span = span};
    const char *corner = l.data + (size_t)(l.keys - 1) * l.unit;
    for (size_t i = 0; i < sizeof l.low; i += l.unit) memcpy((char *)&l.low + i, corner, l.unit);
    if (l.dtype == ANE_BOOL) {
        if ((*corner != 0) == a->keep) return true;
        a->hidden = a->fill;
    } else {
        a->hidden = (float)(mask_at(l.dtype, corner) * (double)a->mask_scale);
    }
    if (!(a->hidden <= HIDES)) return true;
    if (!ane_parallel_for((size_t)(heads * l.rows), look_row, &l)) return false;
    if (atomic_load(&l.none)) return true;
    a->span = span;
    a->span_group = heads == 1 ? 0 : a->q_len;
    a->plain = !atomic_load(&l.dressed);
    return true;
}

/* Can each run's mask be looked at? One for all batches, rows along memory. */
static bool can_look(const ane_planner *pl, const attention *p, const ane_axes *mask) {
    const ane_attention_args *a = &p->args;
    const int64_t *st = p->mask.s;
    bool can = pl->plan->bufs[mask->buf].kind != ANE_BUF_CONST && st[0] == 0 && st[1] == 0 &&
               st[3] != 0 && st[4] == (int64_t)ane_dtype_size(mask->dtype) &&
               a->q_len >= LOOK_FROM && a->k_len <= INT32_MAX && ane_kernel_on(ANE_FAMILY_spans);
    for (int d = 0; d < p->outer_rank; d++) can = can && p->step[d][MASK] == 0;
    return can;
}

/* ---------------------------------------------------------------- places */

typedef struct places {
    ane_axes x[N];
    bool on[N];
    ane_axes_dest dest[4];              /* OUT, DQ, DK, DV */
} places;

/* x as [batch dims of the scores, rows, columns]. */
static bool as_matrix(ane_axes *x, bool t, const ane_type *scores, int64_t rows, int64_t cols) {
    int64_t shape[ANE_MAX_RANK];
    memcpy(shape, scores->dims, sizeof shape);
    if (t) ane_axes_swap(x);
    /* More unit dims than the scores have: they are dims of no factor. */
    while (x->rank > scores->rank) {
        int d = 0;
        while (d < x->rank - 2 && x->first[d + 1] > x->first[d]) d++;
        if (d == x->rank - 2) return false;
        for (; d < x->rank; d++) x->first[d] = x->first[d + 1];
        x->rank--;
    }
    shape[scores->rank - 2] = rows;
    shape[scores->rank - 1] = cols;
    return ane_axes_broadcast(x, scores->rank, shape, x);
}

static int64_t rows_of(const ane_attention_core *g, int k) {
    return k == K || k == V || k == DK || k == DV ? g->keys : g->queries;
}
static int64_t cols_of(const ane_attention_core *g, int k) {
    return k == MASK ? g->keys : k == V || k == DOUT || k == OUT || k == DV ? g->v_dim : g->qk_dim;
}

static const ane_side *side_of(const ane_attention_core *g, int k) {
    const ane_side *const sides[N] = {&g->q, &g->k, &g->v, &g->mask, &g->dout, &g->out, &g->dq,
                                      &g->dk, &g->dv};
    return sides[k];
}

/* Batch dims may be other dims of the same product: results carry their own. */
static bool fit(const ane_attention_core *g, places *w, int k) {
    ane_axes *x = &w->x[k];
    const ane_side *s = side_of(g, k);
    if (k == MASK &&
        !ane_axes_broadcast(x, g->mask_over->rank, g->mask_over->dims, x))
        return false;
    return as_matrix(x, s->t, g->scores, rows_of(g, k), cols_of(g, k));
}

static ane_status place(ane_planner *pl, const ane_attention_core *g, places *w, bool dense) {
    for (int k = 0; k < N; k++) {
        const ane_side *s = side_of(g, k);
        if (!s->v) continue;
        w->on[k] = true;
        ane_status st;
        if (k >= OUT) {
            ane_axes_dest *d = &w->dest[k - OUT];
            if (!d->v) st = ane_plan_axes_dest(pl, s->v, g->last[k - OUT], d);
            else st = ane_plan_axes_detour(pl, d);
            w->x[k] = d->at;
        } else {
            st = ane_plan_axes(pl, s->v, &w->x[k]);
            if (!st && dense) st = ane_plan_axes_dense(pl, &w->x[k], &w->x[k]);
        }
        if (st) return st;
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- the step */

static bool align(const places *w, int rank, bool cols, const bool *which, ane_axis *out) {
    const ane_axes *x[N];
    int first[N], last[N];
    for (int k = 0; k < N; k++) {
        x[k] = w->on[k] && which[k] ? &w->x[k] : NULL;
        first[k] = rank - (cols ? 1 : 2);
        last[k] = first[k] + 1;
    }
    return ane_axes_align(N, x, first, last, out);
}

/* Which dim of which operand each kernel dim is; false: some operand steps in a way the
 * kernel cannot. */
static bool assign(const ane_attention_core *g, const places *w, attention *p) {
    static const bool queries[N] = {[Q] = true, [MASK] = true, [DOUT] = true, [OUT] = true,
                                    [DQ] = true};
    static const bool keys[N] = {[K] = true, [V] = true, [DK] = true, [DV] = true};
    static const bool qk[N] = {[Q] = true, [K] = true, [DQ] = true, [DK] = true};
    static const bool vo[N] = {[V] = true, [DOUT] = true, [OUT] = true, [DV] = true};
    static const bool mask[N] = {[MASK] = true};
    int rank = g->scores->rank, first[N], last[N];
    const ane_axes *all[N];
    ane_axis batch, t, s, m, c, d;
    for (int k = 0; k < N; k++) {
        all[k] = w->on[k] ? &w->x[k] : NULL;
        first[k] = 0;
        last[k] = rank - 2;
    }
    if (!ane_axes_align(N, all, first, last, &batch) || !align(w, rank, false, queries, &t) ||
        !align(w, rank, false, keys, &s) || !align(w, rank, true, mask, &m) ||
        !align(w, rank, true, qk, &c) || !align(w, rank, true, vo, &d) || t.n > 2 || s.n > 1 ||
        m.n > 1 || c.n > 1 || d.n > 1)
        return false;
    int64_t stride[N][5] = {{0}};
    int n = batch.n;
    p->args.group = p->args.kv_heads = p->args.batch = 1;
    p->args.q_len = t.n ? t.size[t.n - 1] : 1;
    for (int k = 0; k < N; k++) {
        const ane_axis *row = keys[k] ? &s : &t, *col = k == MASK ? &m : vo[k] ? &d : &c;
        if (row->n) stride[k][3] = row->stride[row->n - 1][k];
        if (col->n) stride[k][4] = col->stride[0][k];
        if (t.n == 2 && !keys[k]) stride[k][2] = t.stride[0][k];
    }
    if (t.n == 2) {
        p->args.group = t.size[0];
    } else if (n && !w->on[DK] && !w->on[DV] && batch.stride[n - 1][K] == 0 &&
               batch.stride[n - 1][V] == 0) {
        p->args.group = batch.size[--n];
        for (int k = 0; k < N; k++) stride[k][2] = batch.stride[n][k];
    }
    if (n) {
        p->args.kv_heads = batch.size[--n];
        for (int k = 0; k < N; k++) stride[k][1] = batch.stride[n][k];
    }
    if (n) {
        p->args.batch = batch.size[--n];
        for (int k = 0; k < N; k++) stride[k][0] = batch.stride[n][k];
    }
    p->calls = 1;
    p->outer_rank = n;
    for (int i = 0; i < n; i++) {
        p->outer[i] = batch.size[i];
        p->calls *= batch.size[i];
        memcpy(p->step[i], batch.stride[i], sizeof p->step[i]);
    }
    ane_mat5 *const mats[N] = {&p->args.q, &p->args.k, &p->args.v, &p->mask, &p->grad.dout,
                               &p->args.out, &p->grad.dq, &p->grad.dk, &p->grad.dv};
    for (int k = 0; k < N; k++) {
        if (!w->on[k]) continue;
        *mats[k] = (ane_mat5){.dtype = w->x[k].dtype};
        memcpy(mats[k]->s, stride[k], sizeof stride[k]);
    }
    return true;
}

ane_status ane_plan_attention(ane_planner *pl, const ane_graph *gr, const ane_group *grp) {
    const ane_attention_core *g = grp->attention;
    attention *p = ane_arena_alloc(pl->plan->arena, sizeof *p);
    if (!p) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    p->derivative = g->dq.v || g->dk.v || g->dv.v;
    p->has_mask = g->mask.v != NULL;
    p->args = (ane_attention_args){.k_len = g->keys, .qk_dim = g->qk_dim, .v_dim = g->v_dim,
                                   .scale = (float)g->scale, .fill = (float)g->fill,
                                   .mask_scale = (float)g->mask_scale, .keep = g->keep};
    places w = {0};
    bool fits = false;
    for (int attempt = 0; attempt < 2 && !fits; attempt++) {
        ane_status st = place(pl, g, &w, attempt == 1);
        if (st) return st;
        fits = true;
        for (int k = 0; k < N && fits; k++) fits = !w.on[k] || fit(g, &w, k);
        fits = fits && assign(g, &w, p);
    }
    if (!fits)
        return ane_fail(pl->err, ANE_ERR_RUNTIME, "[compile] attention's operands do not fit");
    p->grad.dscale = (float)g->dscale;
    p->grad.masked = g->masked;
    int64_t seen = p->args.group * p->args.q_len * p->args.k_len;
    if (p->has_mask) {
        ane_status st = find_spans(pl, g, p, &w.x[MASK], &seen);
        if (st) return st;
        p->scanned = can_look(pl, p, &w.x[MASK]);
    }
    ane_view views[N];
    int n_out = 0, n_in = 0;
    for (int k = 0; k < N; k++) p->view[k] = -1;
    for (int k = OUT; k < N; k++)
        if (w.on[k]) {
            ane_axes_as_view(&w.x[k], &views[n_out]);
            p->view[k] = n_out++;
        }
    for (int k = 0; k < OUT; k++)
        if (w.on[k]) {
            ane_axes_as_view(&w.x[k], &views[n_out + n_in]);
            p->view[k] = n_out + n_in++;
        }
    ane_step *s = ane_plan_step(pl, run_attention, gr->ops[grp->core], n_out, n_in);
    if (!s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, views, (size_t)(n_out + n_in) * sizeof *views);
    s->data = p;
    s->room = room_of;
    s->label = ane_group_label(pl, gr, grp);
    s->kernel = ane_arena_printf(pl->plan->arena, "attention%s%s__%s",
                                 p->derivative ? "_grad" : "", p->args.span ? "_masked" : p->scanned ? "_scanned" : "",
                                 ane_vec_get()->name);
    if (!s->kernel) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    double work = 2.0 * (double)(p->calls * p->args.batch * p->args.kv_heads) * (double)seen;
    bool fwd = !p->derivative || w.on[OUT];
    s->flops = work * (double)(fwd * (g->qk_dim + g->v_dim) +
                               p->derivative * (g->qk_dim + g->v_dim) +
                               w.on[DQ] * g->qk_dim + w.on[DK] * g->qk_dim + w.on[DV] * g->v_dim);
    for (int k = OUT; k < N; k++) {
        if (!w.on[k]) continue;
        ane_status st = ane_plan_axes_finish(pl, &w.dest[k - OUT]);
        if (st) return st;
    }
    return ANE_OK;
}
