/* Convolutions: implicit products over channels-last images, depthwise ones directly, and
 * 1x1 ones of channels-first images as a matrix product; what follows is in the store. */
#include "ops.h"
#include "view.h"

#include "../../base/env.h"
#include "../../base/f16.h"
#include "../../ir/window.h"
#include "../../kernels/conv.h"

#include <math.h>
#include <string.h>

/* Views of a step. */
enum { Y, Y8, X, W, R, BIAS, VIEWS, RESULTS = X };

typedef struct conv {
    ane_conv_args args;                 /* addresses are filled per run, in a copy */
    ane_planes residual;
    ane_conv_eight eight;               /* where view Y8 is there */
    bool has_residual, varying;         /* varying: the bias is not constant */
    float *scale, *shift;
    bool product;
    ane_gemm_args gemm;
    ane_epilogue epi;
    ane_mat gemm_residual;
    ane_packed *packed;                 /* NULL: the weights are not constant */
} conv;

/* The geometry of op in three dims; `in`, `kernel` and the rest. */
static void window_of(const ane_op *op, ane_window *w) {
    const ane_type *x = ane_op_in(op, "x")->type, *k = ane_op_in(op, "weight")->type;
    *w = (ane_window){.n = x->rank - 2};
    memcpy(w->in, x->dims + 2, sizeof *w->in * (size_t)w->n);
    memcpy(w->kernel, k->dims + 2, sizeof *w->kernel * (size_t)w->n);
    ane_status st = strcmp(op->row->name, "conv") ? ane__window_transpose(NULL, NULL, op, w)
                                                  : ane__window_forward(NULL, NULL, op, w);
    ANE_ASSERT(!st);                    /* inference has passed it */
    ane__window_three(w);
}

bool ane_conv_is_product(const ane_op *op) {
    if (strcmp(op->row->name, "conv") || !ane_kernel_on(ANE_FAMILY_product)) return false;
    ane_window w;
    window_of(op, &w);
    for (int d = 0; d < 3; d++)
        if (w.kernel[d] != 1 || w.stride[d] != 1 || w.out[d] != w.in[d]) return false;
    return ane_op_i64(op, "groups", 1) == 1;
}

ane_planes ane_planes_of(const ane_view *v) {
    ane_planes p = {.dtype = v->dtype, .sn = v->strides[0], .sc = v->strides[1]};
    for (int d = v->rank - 1, i = 2; d >= 2; d--, i--) p.s[i] = v->strides[d];
    return p;
}

/* ---------------------------------------------------------------- running */

static ane_status pack_conv(const void *args, void *dst, ane_error *err) {
    return ane_conv_pack(args, dst, err);
}
static ane_status pack_gemm(const void *args, void *dst, ane_error *err) {
    return ane_gemm_pack(args, 0, dst, err);
}

static ane_status prepare_conv(const ane_exec *ex, const ane_step *s, ane_error *err) {
    const conv *c = s->data;
    if (!c->packed) return ANE_OK;
    if (c->product) {
        ane_gemm_args g = c->gemm;
        g.a.data = ane_at(ex, &s->views[W]);
        return ane_packed_make(c->packed, pack_gemm, &g, err);
    }
    ane_conv_args g = c->args;
    g.w = ane_at(ex, &s->views[W]);
    return ane_packed_make(c->packed, pack_conv, &g, err);
}

/* The three are copies of the step's own. */
static void product_args(const ane_exec *ex, const ane_step *s, ane_gemm_args *g,
                         ane_epilogue *epi, ane_mat *residual) {
    const conv *c = s->data;
    g->a.data = ane_at(ex, &s->views[W]);
    g->b.data = ane_at(ex, &s->views[X]);
    g->c.data = ane_at(ex, &s->views[Y]);
    if (epi->bias_rs)
        epi->bias = s->views[BIAS].buf >= 0 ? (void *)ane_at(ex, &s->views[BIAS]) : (void *)c->shift;
    if (c->has_residual) {
        residual->data = ane_at(ex, &s->views[R]);
        epi->residual = residual;
    }
    g->epilogue = epi;
}

static ane_status run_product(ane_exec *ex, const ane_step *s, ane_error *err) {
    const conv *c = s->data;
    ane_gemm_args g = c->gemm;
    ane_epilogue epi = c->epi;
    ane_mat residual = c->gemm_residual;
    product_args(ex, s, &g, &epi, &residual);
    g.packed_a = ane_packed_data(c->packed);
    return ane_gemm(&g, NULL, err);
}

static ane_status run_conv(ane_exec *ex, const ane_step *s, ane_error *err) {
    const conv *c = s->data;
    ane_status st = prepare_conv(ex, s, err);
    if (st) return st;
    if (c->product) return run_product(ex, s, err);
    ane_conv_args g = c->args;
    ane_planes residual = c->residual;
    float *shift = NULL;
    g.x.data = ane_at(ex, &s->views[X]);
    if (!g.only_eight) g.y.data = ane_at(ex, &s->views[Y]);
    ane_conv_eight eight = c->eight;
    if (g.eight) {
        eight.y.data = ane_at(ex, &s->views[Y8]);
        g.eight = &eight;
    }
    g.w = ane_at(ex, &s->views[W]);
    g.packed = ane_packed_data(c->packed);
    g.scale = c->scale;
    g.shift = c->shift;
    if (c->has_residual) {
        residual.data = ane_at(ex, &s->views[R]);
        g.residual = &residual;
    }
    if (c->varying) {
        const ane_view *b = &s->views[BIAS];
        size_t n = (size_t)g.cout;
        shift = ane_scratch_push(n * sizeof *shift);
        if (!shift) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
        for (size_t i = 0; i < n; i++) {
            const char *p = (char *)ane_at(ex, b) + (int64_t)i * b->strides[0];
            float v;
            if (b->dtype == ANE_F32) memcpy(&v, p, sizeof v);
            else {
                uint16_t h;
                memcpy(&h, p, sizeof h);
                v = b->dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_bits_f32((uint32_t)h << 16);
            }
            if (c->scale) v *= c->scale[i];
            shift[i] = c->shift ? v + c->shift[i] : v;
        }
        g.shift = shift;
    }
    st = ane_conv(&g, err);
    ane_scratch_pop(shift);
    return st;
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const conv *c = s->data;
    if (c->product) {
        ane_gemm_args p = c->gemm;
        ane_epilogue epi = c->epi;
        ane_mat residual = c->gemm_residual;
        product_args(ex, s, &p, &epi, &residual);
        p.packed_a = c->packed;
        ane_gemm_room(&p, room);
        return;
    }
    ane_conv_args g = c->args;
    ane_planes residual = c->residual;
    size_t shift = c->varying ? (size_t)g.cout * sizeof(float) : 0;
    g.packed = c->packed;
    if (c->has_residual) {
        residual.data = ane_at(ex, &s->views[R]);
        g.residual = &residual;
    }
    if (shift) ane_room_push(room, shift);
    ane_conv_room(&g, room);
    if (shift) ane_room_pop(room, shift);
}

/* ---------------------------------------------------------------- planning */

static bool act_of(const ane_op *op, ane_conv_act *a) {
    static const struct { const char *name; ane_act act; } acts[] = {
        {"sigmoid", ANE_ACT_SIGMOID}, {"silu", ANE_ACT_SILU}, {"tanh", ANE_ACT_TANH},
        {"gelu", ANE_ACT_GELU}};
    *a = (ane_conv_act){.act = ANE_ACT_NONE};
    if (!op) return true;
    const char *name = op->row->name;
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        if (!strcmp(name, acts[i].name)) {
            a->act = acts[i].act;
            return true;
        }
    a->limits = true;
    a->high = INFINITY;
    if (!strcmp(name, "relu6")) a->high = 6;
    if (!strcmp(name, "clip")) {
        a->low = (float)ane_op_f64(op, "alpha", 0);
        a->high = (float)ane_op_f64(op, "beta", 0);
    }
    return true;
}

static double nth(const ane_const *c, int64_t i, double missing) {
    return c ? ane_const_f64(c, ane_type_count(c->type) == 1 ? 0 : i) : missing;
}

/* The ops between the sums and the activation as one scale and one shift per channel. */
static ane_status affine_of(ane_planner *pl, const ane_conv_fused *f, const ane_op *op,
                            const ane_quantized *q, conv *c, int64_t n) {
    const ane_value *bias = ane_op_in(op, "bias");
    bool fixed = bias && bias->konst && !pl->opts->target;      /* a target may narrow it */
    if (fixed && !bias->konst->data)
        return ane_fail(pl->err, ANE_ERR_INVALID, "[compile] constant %s has no data: weight "
                        "file %s was not found", bias->name,
                        bias->konst->blob_path ? bias->konst->blob_path : "?");
    bool scaled = q->x != NULL, shifted = fixed;
    for (int i = 0; i < f->n_affine; i++) {
        scaled |= strcmp(f->affine[i]->row->name, "add") != 0;
        shifted |= strcmp(f->affine[i]->row->name, "mul") != 0;
    }
    size_t bytes = (size_t)n * sizeof(float);
    if (scaled && !(c->scale = ane_arena_alloc(pl->plan->arena, bytes))) goto nomem;
    if (shifted && !(c->shift = ane_arena_alloc(pl->plan->arena, bytes))) goto nomem;
    for (int64_t i = 0; i < n && (scaled || shifted); i++) {
        double scale = q->x ? q->x_scale * nth(q->w_scale, i, 1) : 1, shift = fixed ? nth(bias->konst, i, 0) : 0;
        for (int k = 0; k < f->n_affine; k++) {
            const ane_op *a = f->affine[k];
            if (!strcmp(a->row->name, "batch_norm")) {
                double s, t;
                ane_batch_norm_of(a, i, &s, &t);
                scale *= s;
                shift = shift * s + t;
                continue;
            }
            const ane_value *x = ane_op_in(a, "x"), *y = ane_op_in(a, "y");
            double v = nth(x->konst ? x->konst : y->konst, i, 0);
            if (!strcmp(a->row->name, "mul")) {
                scale *= v;
                shift *= v;
            } else {
                shift += v;
            }
        }
        if (scaled) c->scale[i] = (float)scale;
        if (shifted) c->shift[i] = (float)shift;
    }
    c->varying = bias && !fixed;
    return ANE_OK;
nomem:
    return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
}

/* [channels, positions] of one image; false: its positions do not step evenly. */
static bool as_matrix(const ane_view *v, ane_mat *m) {
    int64_t step = 0, count = 1;
    for (int d = v->rank - 1; d >= 2; d--) {
        if (v->shape[d] == 1) continue;
        if (count > 1 && v->strides[d] != step * count) return false;
        if (count == 1) step = v->strides[d];
        count *= v->shape[d];
    }
    *m = (ane_mat){.dtype = v->dtype, .rs = v->strides[1], .cs = step};
    return true;
}

/* A 1x1 convolution as w x + bias, where the store can do what follows. */
static bool as_product(ane_planner *pl, const ane_op *op, const ane_conv_fused *f,
                       const ane_view *v, conv *c) {
    ane_gemm_args *g = &c->gemm;
    const ane_view *x = &v[X], *w = &v[W], *y = &v[Y];
    int64_t unit = (int64_t)ane_dtype_size(x->dtype), positions = 1;
    if (!ane_conv_is_product(op) || f->n_affine || f->after || f->eight) return false;
    for (int d = 2; d < x->rank; d++) positions *= x->shape[d];
    if (x->strides[1] == unit && x->shape[1] > 1 && positions > 1) return false;
    static const struct { const char *name; ane_act act; } acts[] = {
        {"relu", ANE_ACT_RELU}, {"sigmoid", ANE_ACT_SIGMOID}, {"silu", ANE_ACT_SILU},
        {"tanh", ANE_ACT_TANH}, {"gelu", ANE_ACT_GELU}};
    c->epi = (ane_epilogue){.alpha = 1, .beta = 1};
    for (size_t i = 0; f->before && i < sizeof acts / sizeof *acts; i++)
        if (!strcmp(f->before->row->name, acts[i].name)) c->epi.act = acts[i].act;
    if (f->before && c->epi.act == ANE_ACT_NONE) return false;
    *g = (ane_gemm_args){.m = w->shape[0], .n = positions, .k = w->shape[1],
                         .precision = pl->opts->precision, .batch = x->shape[0],
                         .b_batch = x->strides[0], .c_batch = y->strides[0]};
    g->a = (ane_mat){.dtype = w->dtype, .rs = w->strides[0], .cs = w->strides[1]};
    if (!as_matrix(x, &g->b) || !as_matrix(y, &g->c)) return false;
    if (f->residual) {
        if (!as_matrix(&v[R], &c->gemm_residual)) return false;
        g->r_batch = v[R].strides[0];
    }
    if (c->varying) {
        c->epi.bias_dtype = v[BIAS].dtype;
        c->epi.bias_rs = v[BIAS].strides[0];
    } else if (c->shift) {
        c->epi.bias_dtype = ANE_F32;
        c->epi.bias_rs = 4;
    }
    return c->product = true;
}

/* A residual's channels must be neighbours. */
static ane_status residual_of(ane_planner *pl, const ane_value *value, ane_view *r) {
    ane_status st = ane_plan_operand(pl, value, r);
    if (st || r->strides[1] == (int64_t)ane_dtype_size(r->dtype) || r->shape[1] == 1) return st;
    ane_view last;
    st = ane_plan_temp(pl, r, &last);
    if (st) return st;
    ane_view_channels_last(&last);
    st = ane_plan_copy(pl, &last, r);
    *r = last;
    return st;
}

/* Rows of a matrix as the positions of an image of 1x1 windows. */
static void window_of_matrix(const ane_view *v, ane_window *w) {
    *w = (ane_window){.n = 3};
    for (int d = 0; d < 3; d++) {
        w->in[d] = w->out[d] = d == 2 ? v[X].shape[3] : 1;
        w->kernel[d] = w->stride[d] = w->dilation[d] = 1;
    }
}

/* [rows, n] seen as [1, n, 1, rows]. */
static void image_of(ane_view *m) {
    int64_t rows = m->shape[0], n = m->shape[1], rs = m->strides[0], cs = m->strides[1];
    m->rank = 4;
    m->shape[0] = m->shape[2] = 1;
    m->strides[0] = m->strides[2] = 0;
    m->shape[1] = n;
    m->strides[1] = cs;
    m->shape[3] = rows;
    m->strides[3] = rs;
}

/* x [..., k], w and y [..., n] of a linear or matmul as images; *room: where y is made, like
 * y's own place or instead of it. */
static ane_status as_image(ane_planner *pl, const ane_op *op, ane_view *v, ane_view *room) {
    int64_t k = v[X].shape[v[X].rank - 1], n = v[Y].shape[v[Y].rank - 1];
    int64_t to[2][2] = {{n ? ane_view_count(&v[Y]) / n : 0, n}, {0, k}};
    to[1][0] = to[0][0];
    ane_status st = ANE_OK;
    if (!ane_view_count(&v[Y])) return ANE_OK;
    for (int side = 0; side < 2 && !st; side++) {
        int i = side ? X : Y;
        ane_view m, from = v[i], dense;
        if (!ane_view_reshape(&from, 2, to[side], &m)) {
            st = ane_plan_temp(pl, &from, &dense);
            if (!st && i == X) st = ane_plan_copy(pl, &dense, &from);
            if (!st && i == Y) *room = dense;
            if (!st) ANE_ASSERT(ane_view_reshape(&dense, 2, to[side], &m));
        }
        image_of(&m);
        v[i] = m;
    }
    ane_view *w = &v[W];
    bool turned = strcmp(op->row->name, "linear") && !ane_op_bool(op, "transpose_y", false);
    int64_t shape = w->shape[0], stride = w->strides[0];
    if (turned) {
        w->shape[0] = w->shape[1];
        w->strides[0] = w->strides[1];
        w->shape[1] = shape;
        w->strides[1] = stride;
    }
    w->rank = 4;
    w->shape[2] = w->shape[3] = 1;
    w->strides[2] = w->strides[3] = 0;
    return st;
}

ane_status ane_plan_conv(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    const ane_op *op = g->ops[grp->core];
    const ane_conv_fused *f = &grp->conv;
    const ane_value *bias = ane_op_in(op, "bias");
    ane_view v[VIEWS];
    for (int i = 0; i < VIEWS; i++) v[i].buf = -1;
    conv *c = ane_arena_alloc(pl->plan->arena, sizeof *c);
    if (!c) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_quantized q;
    ane_view whole, room;
    bool quantized = ane_op_is_quantized(g, op, &q), matrix = !ane_op_is_conv(op);
    ane_status st = ane_plan_operand(pl, quantized ? q.x : ane_op_in(op, "x"), &v[X]);
    if (!st) st = ane_plan_operand(pl, quantized ? q.w : ane_op_in(op, "weight"), &v[W]);
    if (!st && bias && (!bias->konst || pl->opts->target)) st = ane_plan_operand(pl, bias, &v[BIAS]);
    if (!st && f->only_eight) {
        /* No memory: its type alone counts. */
        ane_view_of_type(f->out->type, -1, &v[Y]);
        for (int d = 0; d < v[Y].rank; d++) v[Y].strides[d] = 0;
    } else if (!st) {
        st = ane_plan_dest(pl, f->out, &v[Y]);
    }
    if (!st && f->eight) st = ane_plan_dest(pl, f->eight->results[0], &v[Y8]);
    whole = room = v[Y];
    if (!st && matrix) st = as_image(pl, op, v, &room);
    if (!st && f->residual) st = ane_plan_operand(pl, f->residual, &v[R]);
    if (!st) st = affine_of(pl, f, op, &q, c, v[Y].shape[1]);
    if (st || !ane_view_count(&v[Y])) return st;
    c->has_residual = f->residual != NULL;
    if (quantized || !as_product(pl, op, f, v, c)) {
        ane_window w;
        if (matrix) window_of_matrix(v, &w);
        else window_of(op, &w);
        ane_conv_args *a = &c->args;
        *a = (ane_conv_args){.transposed = !strcmp(op->row->name, "conv_transpose"),
                             .n = v[X].shape[0], .groups = ane_op_i64(op, "groups", 1),
                             .cin = v[X].shape[1], .cout = v[Y].shape[1],
                             .w_dtype = v[W].dtype, .x_zero = q.x_zero, .w_zero = q.w_zero};
        a->w_out = v[W].strides[a->transposed ? 1 : 0];
        a->w_in = v[W].strides[a->transposed ? 0 : 1];
        for (int d = v[W].rank - 1, i = 2; d >= 2; d--, i--) a->w_s[i] = v[W].strides[d];
        for (int d = 0; d < 3; d++) {
            a->in[d] = w.in[d];
            a->out[d] = w.out[d];
            a->kernel[d] = w.kernel[d];
            a->stride[d] = w.stride[d];
            a->dilation[d] = w.dilation[d];
            a->pad[d] = w.pad[d][0];
        }
        a->x = ane_planes_of(&v[X]);
        a->y = ane_planes_of(&v[Y]);
        if (f->eight) {
            a->eight = &c->eight;       /* a copy that has the address, when it runs */
            a->only_eight = f->only_eight;
            c->eight.y = ane_planes_of(&v[Y8]);
            (void)ane_op_quantizes(f->eight, &c->eight.scale, &c->eight.zero);
        }
        (void)act_of(f->before, &a->before);
        (void)act_of(f->after, &a->after);
        if (f->residual) {
            st = residual_of(pl, f->residual, &v[R]);
            if (st) return st;
            c->residual = ane_planes_of(&v[R]);
        }
    }
    if (pl->plan->bufs[v[W].buf].kind == ANE_BUF_CONST) {
        size_t bytes = c->product ? (c->gemm.m > 1 && c->gemm.n > 1 && c->gemm.k > 0
                                         ? ane_gemm_pack_bytes(&c->gemm, 0) : 0)
                                  : ane_conv_pack_bytes(&c->args);
        if (bytes && !(c->packed = ane_plan_packed(pl, bytes)))
            return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    }
    ane_step *s = ane_plan_step(pl, run_conv, f->out->def, RESULTS, VIEWS - RESULTS);
    if (!s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, v, sizeof v);
    s->prepare = prepare_conv;
    s->packs = c->packed != NULL;
    s->room = room_of;
    s->data = c;
    s->label = ane_group_label(pl, g, grp);
    s->kernel = c->product ? ane_gemm_name(&c->gemm) : ane_conv_name(&c->args);
    s->flops = c->product ? 2.0 * (double)c->gemm.m * (double)c->gemm.n * (double)c->gemm.k *
                                (double)c->gemm.batch
                          : ane_conv_flops(&c->args);
    return ane_view_same(&whole, &room) ? ANE_OK : ane_plan_copy(pl, &whole, &room);
}
