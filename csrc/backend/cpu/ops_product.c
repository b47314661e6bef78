/* Matrix products: matmul and linear through ane_gemm, transposes as strides, what follows
 * element by element in the store. */
#include "ops.h"
#include "view.h"

#include "../../kernels/gemm.h"

#include <string.h>

typedef struct product {
    ane_gemm_args args;                 /* addresses are filled per run, in a copy */
    ane_epilogue epi;
    ane_mat residual;
    bool has_epilogue, has_residual, has_bias;
    int outer_rank;                     /* batch dims that one call cannot step through */
    int64_t outer[ANE_MAX_RANK], so[4][ANE_MAX_RANK];   /* c, a, b, residual */
    int64_t calls;
    ane_packed *packed[2];              /* constant A and B; NULL: not kept packed */
    int keep[2];                        /* bound A and B; -1: packed at each run */
} product;

/* Views of a step. */
enum { C, A, B, R, BIAS, VIEWS };

static ane_status pack_a(const void *args, void *dst, ane_error *err) {
    return ane_gemm_pack(args, 0, dst, err);
}
static ane_status pack_b(const void *args, void *dst, ane_error *err) {
    return ane_gemm_pack(args, 1, dst, err);
}

static ane_status prepare_product(const ane_exec *ex, const ane_step *s, ane_error *err) {
    const product *p = s->data;
    ane_gemm_args args = p->args;
    ane_status st = ANE_OK;
    for (int i = 0; i < 2 && !st; i++) {
        if (!p->packed[i]) continue;
        (i ? &args.b : &args.a)->data = ane_at(ex, &s->views[i ? B : A]);
        st = ane_packed_make(p->packed[i], i ? pack_b : pack_a, &args, err);
    }
    return st;
}

static ane_status run_product(ane_exec *ex, const ane_step *s, ane_error *err) {
    const product *p = s->data;
    ane_gemm_args args = p->args;
    ane_epilogue epi = p->epi;
    ane_mat residual = p->residual;
    char *at[4] = {ane_at(ex, &s->views[C]), ane_at(ex, &s->views[A]),
                   ane_at(ex, &s->views[B]), p->has_residual ? ane_at(ex, &s->views[R]) : NULL};
    if (p->has_bias) epi.bias = ane_at(ex, &s->views[BIAS]);
    if (p->has_residual) epi.residual = &residual;
    if (p->has_epilogue) args.epilogue = &epi;
    for (int64_t i = 0; i < p->calls; i++) {
        int64_t off[4] = {0}, left = i;
        for (int d = p->outer_rank - 1; d >= 0; d--) {
            int64_t k = left % p->outer[d];
            left /= p->outer[d];
            for (int v = 0; v < 4; v++) off[v] += k * p->so[v][d];
        }
        args.c.data = at[C] + off[C];
        args.a.data = at[A] + off[A];
        args.b.data = at[B] + off[B];
        if (p->has_residual) residual.data = at[R] + off[R];
        for (int k = 0; k < 2; k++) {
            const void **ready = k ? &args.packed_b : &args.packed_a;
            *ready = ane_kept_use(ex, p->keep[k], k ? pack_b : pack_a, &args);
            if (!p->packed[k]) continue;
            ane_status st = ane_packed_make(p->packed[k], k ? pack_b : pack_a, &args, err);
            if (st) return st;
            *ready = ane_packed_data(p->packed[k]);
        }
        ane_status st = ane_gemm(&args, NULL, err);
        if (!st && i + 1 < p->calls) st = ane_run_check(err);
        if (st) return st;
    }
    return ANE_OK;
}

/* The operand as [batch..., rows, cols]: rank-1 operands get their dim, transpose flags
 * swap strides. */
static void as_matrix(ane_view *v, bool left, bool transpose) {
    if (v->rank == 1) {
        int at = left ? 1 : 0;          /* x: [1, K]; y: [K, 1] */
        v->shape[at] = v->shape[0];
        v->strides[at] = v->strides[0];
        v->shape[1 - at] = 1;
        v->strides[1 - at] = 0;
        v->rank = 2;
    } else if (transpose) {
        int n = v->rank;
        int64_t t = v->shape[n - 1];
        v->shape[n - 1] = v->shape[n - 2];
        v->shape[n - 2] = t;
        t = v->strides[n - 1];
        v->strides[n - 1] = v->strides[n - 2];
        v->strides[n - 2] = t;
    }
}

/* Pads the batch dims of v to those of the result and broadcasts them. */
static void batch_like(ane_view *v, int rank, const int64_t *shape) {
    ane_view r = *v;
    int pad = rank - v->rank;
    for (int d = 0; d < rank; d++) {
        int k = d - pad;
        r.shape[d] = k >= 0 && d >= rank - 2 ? v->shape[k] : shape[d];
        r.strides[d] = k >= 0 && (d >= rank - 2 || v->shape[k] != 1) ? v->strides[k] : 0;
    }
    r.rank = rank;
    *v = r;
}

static ane_act act_of(const char *name) {
    if (!name) return ANE_ACT_NONE;
    return !strcmp(name, "relu") ? ANE_ACT_RELU : !strcmp(name, "sigmoid") ? ANE_ACT_SIGMOID
           : !strcmp(name, "silu") ? ANE_ACT_SILU : !strcmp(name, "tanh") ? ANE_ACT_TANH
                                                                         : ANE_ACT_GELU;
}

/* A value over the result's shape, seen as [batch..., M, N]; both differ in ones only. */
static ane_status over_result(ane_planner *pl, const ane_value *v, const ane_type *out,
                              const ane_view *c, ane_view *r) {
    ane_view view, wide;
    ane_status st = ane_plan_operand(pl, v, &view);
    if (st) return st;
    if (!ane_view_broadcast(&view, out->rank, out->dims, &wide) ||
        !ane_view_reshape(&wide, c->rank, c->shape, r))
        return ane_fail(pl->err, ANE_ERR_SHAPE, "[compile] %s does not fit a product", v->name);
    return ANE_OK;
}

/* Merges batch dims into one where all operands step alike; the rest become outer loops. */
static void split_batch(product *p, ane_view *const v[4], int n_batch) {
    int64_t shape[ANE_MAX_RANK], s[4][ANE_MAX_RANK];
    int m = 0;
    for (int d = 0; d < n_batch; d++) {
        int64_t len = v[C]->shape[d];
        if (len == 1) continue;
        bool join = m > 0;
        for (int k = 0; k < 4 && join; k++)
            join = !v[k] || s[k][m - 1] == v[k]->strides[d] * len;
        if (!join) shape[m] = 1;
        for (int k = 0; k < 4; k++) s[k][join ? m - 1 : m] = v[k] ? v[k]->strides[d] : 0;
        shape[join ? m - 1 : m] *= len;
        m += !join;
    }
    p->args.batch = m ? shape[m - 1] : 1;
    p->args.c_batch = m ? s[C][m - 1] : 0;
    p->args.a_batch = m ? s[A][m - 1] : 0;
    p->args.b_batch = m ? s[B][m - 1] : 0;
    p->args.r_batch = m ? s[R][m - 1] : 0;
    p->calls = 1;
    for (int d = 0; d + 1 < m; d++) {
        p->outer[p->outer_rank] = shape[d];
        for (int k = 0; k < 4; k++) p->so[k][p->outer_rank] = s[k][d];
        p->outer_rank++;
        p->calls *= shape[d];
    }
}

/* x W^T with one W for all rows: leading dims of x become rows where they step alike. */
static void fold_rows(ane_view *const v[4]) {
    while (v[C]->rank > 2) {
        int n = v[C]->rank;
        if (v[B]->strides[n - 3] != 0 && v[B]->shape[n - 3] != 1) return;
        for (int k = 0; k < 4; k++) {
            if (!v[k] || k == B) continue;
            if (v[k]->shape[n - 3] != 1 && v[k]->shape[n - 2] != 1 &&
                v[k]->strides[n - 3] != v[k]->strides[n - 2] * v[k]->shape[n - 2])
                return;
        }
        for (int k = 0; k < 4; k++) {
            if (!v[k]) continue;
            if (k != B) {
                if (v[k]->shape[n - 2] == 1) v[k]->strides[n - 2] = v[k]->strides[n - 3];
                v[k]->shape[n - 2] *= v[k]->shape[n - 3];
            }
            for (int d = n - 3; d + 1 < n; d++) {
                v[k]->shape[d] = v[k]->shape[d + 1];
                v[k]->strides[d] = v[k]->strides[d + 1];
            }
            v[k]->rank--;
        }
    }
}

static ane_mat mat_of(const ane_view *v) {
    return (ane_mat){.dtype = v->dtype, .rs = v->strides[v->rank - 2],
                     .cs = v->strides[v->rank - 1]};
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const product *p = s->data;
    ane_gemm_args args = p->args;
    ane_epilogue epi = p->epi;
    ane_mat residual = p->residual;
    args.a.data = ane_at(ex, &s->views[A]);
    args.b.data = ane_at(ex, &s->views[B]);
    args.c.data = ane_at(ex, &s->views[C]);
    args.packed_a = p->packed[0];
    args.packed_b = p->packed[1];
    if (p->has_bias) epi.bias = ane_at(ex, &s->views[BIAS]);
    if (p->has_residual) {
        residual.data = ane_at(ex, &s->views[R]);
        epi.residual = &residual;
    }
    if (p->has_epilogue) args.epilogue = &epi;
    ane_gemm_room(&args, room);
    if (p->keep[0] < 0 && p->keep[1] < 0) return;
    if (p->keep[0] >= 0) args.packed_a = p;     /* or so, while it is kept */
    if (p->keep[1] >= 0) args.packed_b = p;
    ane_gemm_room(&args, room);
}

/* A large operand beside one of few rows: packing it takes as long as the product itself, or
 * longer. With many rows it does not show; and panels that are wider than what they are made of
 * take longer to fetch from memory, where a model's weights come from. */
#define FEW_ROWS 32
#define LARGE ((int64_t)1 << 15)
static bool pays(const ane_gemm_args *g, int which, size_t bytes) {
    int64_t rows = which ? g->m : g->n, size = which ? g->n : g->m;
    if (!ane_kernel_on(ANE_FAMILY_keep) || size <= rows || size < LARGE / g->k) return false;
    bool wider = bytes / (size_t)size > ane_dtype_size((which ? g->b : g->a).dtype) * (size_t)g->k * 3 / 2;
    return rows <= FEW_ROWS && !wider;
}

ane_status ane_plan_product(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    const ane_op *op = g->ops[grp->core];
    const ane_product *pr = &grp->product;
    bool linear = !strcmp(op->row->name, "linear");
    ane_view c, a, b, r, bias, whole;
    ane_status st = ane_plan_operand(pl, ane_op_in(op, "x"), &a);
    if (!st) st = ane_plan_operand(pl, ane_op_in(op, linear ? "weight" : "y"), &b);
    if (st) return st;
    as_matrix(&a, true, !linear && ane_op_bool(op, "transpose_x", false));
    as_matrix(&b, false, linear || ane_op_bool(op, "transpose_y", false));
    /* The result with the dims that rank-1 operands lost. */
    int rank = a.rank > b.rank ? a.rank : b.rank;
    int64_t shape[ANE_MAX_RANK] = {0};
    for (int d = 0; d < rank - 2; d++) {
        int64_t da = d - (rank - a.rank) < 0 ? 1 : a.shape[d - (rank - a.rank)];
        int64_t db = d - (rank - b.rank) < 0 ? 1 : b.shape[d - (rank - b.rank)];
        shape[d] = da == 1 ? db : da;
    }
    shape[rank - 2] = a.shape[a.rank - 2];
    shape[rank - 1] = b.shape[b.rank - 1];
    int64_t k = a.shape[a.rank - 1], count = 1;
    for (int d = 0; d < rank; d++) count *= shape[d];
    st = ane_plan_dest(pl, pr->out, &whole);
    if (st) return st;
    /* A place with odd strides (a slice of a bound surface) may refuse: copy after. */
    bool detour = !ane_view_reshape(&whole, rank, shape, &c);
    ane_view room = whole;
    if (detour) {
        st = ane_plan_temp(pl, &whole, &room);
        if (st) return st;
        ANE_ASSERT(ane_view_reshape(&room, rank, shape, &c));
    }
    if (!count) return ANE_OK;
    batch_like(&a, rank, shape);
    batch_like(&b, rank, shape);
    if (pr->residual) st = over_result(pl, pr->residual, pr->out->type, &c, &r);
    if (!st && pr->bias) {
        if (linear && pr->bias == ane_op_in(op, "bias")) {
            ane_view row;
            st = ane_plan_operand(pl, pr->bias, &row);
            if (!st && !ane_view_broadcast(&row, c.rank, c.shape, &bias))
                st = ane_fail(pl->err, ANE_ERR_SHAPE, "[compile] bias does not fit");
        } else {
            st = over_result(pl, pr->bias, pr->out->type, &c, &bias);
        }
    }
    if (st) return st;

    ane_step *s = ane_plan_step(pl, run_product, pr->out->def, 1, VIEWS - 1);
    product *p = ane_arena_alloc(pl->plan->arena, sizeof *p);
    if (!s || !p) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    s->views[C] = c;
    s->views[A] = a;
    s->views[B] = b;
    if (pr->residual) s->views[R] = r;
    if (pr->bias) s->views[BIAS] = bias;
    ane_view *v[4] = {&c, &a, &b, pr->residual ? &r : NULL};
    bool column_bias = pr->bias && bias.strides[rank - 2] != 0 && rank > 2;
    if (!column_bias) fold_rows(v);
    p->args = (ane_gemm_args){.m = c.shape[c.rank - 2], .n = c.shape[c.rank - 1], .k = k,
                              .a = mat_of(&a), .b = mat_of(&b), .c = mat_of(&c),
                              .precision = pl->opts->precision};
    p->epi = (ane_epilogue){.alpha = (float)pr->alpha, .act = act_of(pr->act),
                            .beta = (float)pr->beta};
    if (pr->residual) {
        p->residual = mat_of(&r);
        p->has_residual = true;
    }
    if (pr->bias) {
        p->epi.bias_dtype = bias.dtype;
        p->epi.bias_rs = column_bias || rank == 2 ? bias.strides[bias.rank - 2] : 0;
        p->epi.bias_cs = bias.strides[bias.rank - 1];
        p->has_bias = true;
    }
    p->has_epilogue = pr->alpha != 1 || pr->act || pr->residual || pr->bias;
    split_batch(p, v, c.rank - 2);

    ane_gemm_args probe = p->args;
    ane_epilogue epi = p->epi;
    if (p->has_epilogue) probe.epilogue = &epi;
    /* One row or column is not packed at all; batches are merged, which packing forbids. */
    p->keep[0] = p->keep[1] = -1;
    bool keeps = p->calls == 1 && p->args.batch == 1 && p->args.m > 1 && p->args.n > 1 && k > 0;
    for (int i = 0; i < 2 && keeps; i++) {
        if (pl->plan->bufs[(i ? b : a).buf].kind != ANE_BUF_CONST) {
            size_t kept = ane_gemm_pack_bytes(&probe, i);
            if (!pays(&p->args, i, kept)) continue;
            p->keep[i] = ane_plan_keep(pl, i ? &b : &a, kept);
            if (p->keep[i] >= 0 && !s->keeps++) s->first_keep = p->keep[i];
            continue;
        }
        size_t bytes = ane_gemm_pack_bytes(&probe, i);
        if (bytes && !(p->packed[i] = ane_plan_packed(pl, bytes)))
            return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        if (bytes) p->packed[i]->name = pl->plan->bufs[(i ? b : a).buf].name;
        s->packs |= bytes > 0;
    }
    s->prepare = prepare_product;
    s->room = room_of;
    s->data = p;
    s->label = ane_group_label(pl, g, grp);
    s->kernel = ane_gemm_name(&probe);
    s->flops = 2.0 * (double)count * (double)k;
    s->in_place = true;                 /* the residual only; see plan.c */
    s->in_place_only = R;
    return detour ? ane_plan_copy(pl, &whole, &room) : ANE_OK;
}
