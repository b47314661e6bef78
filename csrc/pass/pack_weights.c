/* A function of many ports as one of a single packed input and a single output: the form
 * that engines take which refuse several inputs. Parameters lie side by side along the last
 * axis in their declared order, results below one another along channels; slices and
 * reshapes inside give every value the shape and the name that it had. */
#include "slot.h"

#include "../ir/target.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- layout */

typedef struct side {
    ane_slot *slots;
    int n;
    int64_t rows, columns;
} side;

static int64_t count(const ane_slot *s) {
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++) n *= s->dims[i];
    return n;
}

static ane_status list_side(ane_arena *arena, ane_value *const *v, int n, const char *what,
                            side *out, ane_error *err) {
    *out = (side){.slots = ane_arena_alloc(arena, (size_t)n * sizeof *out->slots), .n = n};
    if (!out->slots) return ane_fail(err, ANE_ERR_NOMEM, "[pack] out of memory");
    for (int i = 0; i < n; i++) {
        const ane_type *t = v[i]->type;
        char text[ANE_TYPE_TEXT];
        if (t->kind != ANE_T_TENSOR || !ane_dtype_size(t->dtype) || !ane_type_static(t) ||
            ane_type_count(t) < 1 || ane_type_count(t) > INT32_MAX)
            return ane_fail(err, ANE_ERR_UNSUPPORTED,
                            "[pack] %s %.80s is %s; only tensors of known, non-zero size pack",
                            what, v[i]->name, ane_type_text(t, text, sizeof text));
        if (n > 1 && t->dtype != v[0]->type->dtype)
            return ane_fail(err, ANE_ERR_UNSUPPORTED,
                            "[pack] %s %.80s is %s and %.80s is %s; one surface has one type",
                            what, v[0]->name, ane_dtype_mil_name(v[0]->type->dtype), v[i]->name,
                            ane_dtype_mil_name(t->dtype));
        ane_slot *s = &out->slots[i];
        *s = (ane_slot){.dtype = t->dtype, .rank = t->rank};
        s->name = ane_arena_strndup(arena, v[i]->name, strlen(v[i]->name));
        if (!s->name) return ane_fail(err, ANE_ERR_NOMEM, "[pack] out of memory");
        memcpy(s->dims, t->dims, sizeof s->dims);
    }
    return ANE_OK;
}

/* What speaks against a layout, most important first. */
typedef struct score {
    int64_t large, scattered, waste, side;
} score;

static bool better(const score *a, const score *b) {
    const int64_t x[] = {a->large, a->scattered, a->waste, a->side},
                  y[] = {b->large, b->scattered, b->waste, b->side};
    for (int i = 0; i < 4; i++)
        if (x[i] != y[i]) return x[i] < y[i];
    return false;
}

/* The layout that follows from the side's own dim: rows of inputs, columns of outputs. False:
 * it does not divide every output. */
static bool rate(side *s, bool inputs, int64_t own, score *out) {
    int64_t other = 0, waste = 0;
    *out = (score){0};
    for (int i = 0; i < s->n; i++) {
        int64_t n = count(&s->slots[i]);
        if (!inputs && n % own) return false;
        int64_t share = (n + own - 1) / own, columns = inputs ? share : own;
        out->scattered += !ane_slot_splits(s->slots[i].rank, s->slots[i].dims, columns);
        other += share;
        waste += share * own - n;
    }
    s->rows = inputs ? own : other;
    s->columns = inputs ? other : own;
    out->large = (s->rows > ANE_LIMIT_LARGE_DIM) + (s->columns > ANE_LIMIT_LARGE_DIM);
    out->waste = waste;
    out->side = own > other ? own : other;
    return true;
}

/* Rows are a product of some input's leading dims (its channels, most often), columns one of
 * some output's trailing dims. */
static void lay_out(side *s, bool inputs) {
    score best = {.large = INT64_MAX}, r;
    int64_t chosen = 1, at = 0;
    for (int i = 0; i < s->n; i++) {
        const ane_slot *slot = &s->slots[i];
        int64_t own = 1;
        for (int d = 0; d <= slot->rank; d++) {
            if (d) own *= slot->dims[inputs ? d - 1 : slot->rank - d];
            if (!rate(s, inputs, own, &r) || !better(&r, &best)) continue;
            best = r;
            chosen = own;
        }
    }
    (void)rate(s, inputs, chosen, &r);
    for (int i = 0; i < s->n; i++) {
        ane_slot *slot = &s->slots[i];
        int64_t share = (count(slot) + chosen - 1) / chosen;
        slot->rows = inputs ? chosen : share;
        slot->columns = inputs ? share : chosen;
        *(inputs ? &slot->column : &slot->row) = at;
        at += share;
    }
}

/* ---------------------------------------------------------------- the program around it */

typedef struct maker {
    const ane_function *from;
    ane_program *p;
    ane_block *to;
    int made;
    ane_error *err;
} maker;

/* A name that neither function has. */
static const char *fresh(maker *m, const char *stem, char buf[80]) {
    do {
        snprintf(buf, 80, "%.40s_%d", stem, m->made++);
    } while (ane_function_value(m->from, buf, strlen(buf)) ||
             (m->to && ane_function_value(m->to->function, buf, strlen(buf))));
    return buf;
}

static ane_value *ints(maker *m, const int64_t *v, int n) {
    int32_t data[ANE_MAX_RANK];
    char name[80];
    int64_t dim = n;
    for (int i = 0; i < n; i++) data[i] = (int32_t)v[i];
    const ane_type *t = ane_type_tensor(m->p, ANE_I32, 1, &dim);
    const ane_const *c = t ? ane_const_tensor(m->p, t, data, (size_t)n * sizeof *data, m->err) : NULL;
    ane_value *out = NULL;
    if (!c || ane_const_create(m->to, fresh(m, "pack", name), c, false, &out, m->err)) return NULL;
    return out;
}

static ane_value *scalar(maker *m, ane_dtype dtype, const void *data) {
    char name[80];
    const ane_type *t = ane_type_tensor(m->p, dtype, 0, NULL);
    const ane_const *c = t ? ane_const_tensor(m->p, t, data, ane_dtype_size(dtype), m->err) : NULL;
    ane_value *out = NULL;
    if (!c || ane_const_create(m->to, fresh(m, "pack", name), c, false, &out, m->err)) return NULL;
    return out;
}

/* op(x, a = v, b = w); v NULL fails: its maker has set the error. */
static ane_status emit(maker *m, const char *op, const char *result, ane_value *x, const char *a,
                       ane_value *v, const char *b, ane_value *w, ane_value **out) {
    char name[80];
    if (!v || (b && !w)) return m->err->status ? m->err->status
                                               : ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    ane_arg_desc args[3] = {{.name = "x", .n = 1, .v = &x}, {.name = a, .n = 1, .v = &v},
                            {.name = b, .n = 1, .v = &w}};
    const char *names[1] = {result ? result : fresh(m, "pack", name)};
    ane_op_desc d = {.op = op, .args = args, .n_args = b ? 3 : 2, .n_results = 1,
                     .result_names = names};
    ane_op *made = NULL;
    ane_status st = ane_op_create(m->to, NULL, &d, &made, m->err);
    if (!st) *out = made->results[0];
    return st;
}

static ane_status slice(maker *m, ane_value *x, const char *name, const int64_t *begin,
                        const int64_t *size, int n, ane_value **out) {
    ane_value *b = ints(m, begin, n), *s = b ? ints(m, size, n) : NULL;
    return emit(m, "slice_by_size", name, x, "begin", b, "size", s, out);
}

static ane_status reshape(maker *m, ane_value *x, const char *name, const int64_t *dims, int n,
                          ane_value **out) {
    static const int64_t first = 0, one = 1;
    if (n) return emit(m, "reshape", name, x, "shape", ints(m, dims, n), NULL, NULL, out);
    ane_status st = reshape(m, x, NULL, &one, 1, &x);
    return st ? st : emit(m, "squeeze", name, x, "axes", ints(m, &first, 1), NULL, NULL, out);
}

static ane_status unpack(maker *m, ane_value *packed, const ane_slot *s, ane_value **out) {
    int64_t begin[4] = {0, s->row, 0, s->column}, size[4] = {1, s->rows, 1, s->columns};
    int64_t n = count(s), flat = s->rows * s->columns, zero = 0;
    bool whole = s->rank == 4 && !memcmp(size, s->dims, sizeof size);
    ane_status st = slice(m, packed, whole ? s->name : NULL, begin, size, 4, out);
    if (!st && n != flat) {
        st = reshape(m, *out, NULL, &flat, 1, out);
        if (!st) st = slice(m, *out, NULL, &zero, &n, 1, out);
    }
    return st || whole ? st : reshape(m, *out, s->name, s->dims, s->rank, out);
}

static ane_status join(maker *m, const side *s, const char *name) {
    ane_value **v = ane_arena_alloc(m->p->arena, (size_t)s->n * sizeof *v), *packed;
    static const int32_t channels = 1;
    static const bool no = false;
    if (!v) return ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    memcpy(v, m->to->outputs, (size_t)s->n * sizeof *v);
    for (int i = 0; i < s->n; i++) {
        int64_t dims[4] = {1, s->slots[i].rows, 1, s->columns}, axes[4] = {0, 1, 2, 3};
        ane_status st = s->slots[i].rank ? reshape(m, v[i], NULL, dims, 4, &v[i])
                                         : emit(m, "expand_dims", NULL, v[i], "axes",
                                                ints(m, axes, 4), NULL, NULL, &v[i]);
        if (st) return st;
    }
    ane_value *axis = scalar(m, ANE_I32, &channels), *interleave = scalar(m, ANE_BOOL, &no);
    if (!axis || !interleave)
        return m->err->status ? m->err->status : ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    ane_arg_desc args[] = {{.name = "values", .n = s->n, .tuple = true, .v = v},
                           {.name = "axis", .n = 1, .v = &axis},
                           {.name = "interleave", .n = 1, .v = &interleave}};
    ane_op_desc d = {.op = "concat", .args = args, .n_args = 3, .n_results = 1,
                     .result_names = &name};
    ane_op *made = NULL;
    ane_status st = ane_op_create(m->to, NULL, &d, &made, m->err);
    if (st) return st;
    packed = made->results[0];
    return ane_block_set_outputs(m->to, &packed, 1, m->err);
}

static ane_status build(maker *m, ane_packing *layout, side *in, side *out) {
    const ane_function *f = m->from;
    char name[80];
    int n = layout->input ? 1 : f->n_params;
    ane_param_desc *params = ane_arena_alloc(m->p->arena, (size_t)n * sizeof *params);
    ane_value **args = ane_arena_alloc(m->p->arena, (size_t)f->n_params * sizeof *args);
    if (!params || !args) return ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    for (int i = 0; i < n; i++) {
        const ane_type *t = f->params[i]->type;
        int64_t dims[4] = {1, in->rows, 1, in->columns};
        params[i].name = layout->input ? layout->input : f->params[i]->name;
        params[i].type = layout->input ? ane_type_tensor(m->p, t->dtype, 4, dims)
                                       : ane_type_tensor(m->p, t->dtype, t->rank, t->dims);
        if (!params[i].type) return ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    }
    ane_function *g = NULL;
    ane_status st = ane_function_create(m->p, f->name, f->opset_tag, params, n, &g, m->err);
    if (st) return st;
    m->to = g->body;
    for (int i = 0; i < f->n_params && !st; i++) {
        if (layout->input) st = unpack(m, g->params[0], &in->slots[i], &args[i]);
        else args[i] = g->params[i];
    }
    if (!st) st = ane_function_inline(f, g->body, args, m->err);
    if (st || out->n < 2) return st;
    m->made = 0;
    fresh(m, "packed_out", name);
    layout->output = ane_arena_strndup(m->p->arena, name, strlen(name));
    if (!layout->output) return ane_fail(m->err, ANE_ERR_NOMEM, "[pack] out of memory");
    return join(m, out, layout->output);
}

static ane_status pick(const ane_program *p, const char *name, const ane_function **out,
                       ane_error *err) {
    const ane_function *f = ane_program_function(p, name ? name : "main");
    if (!f && !name && p->functions && !p->functions->next) f = p->functions;
    if (!f)
        return ane_fail(err, ANE_ERR_NOT_FOUND, "[pack] the program has no function \"%.80s\"",
                        name ? name : "main");
    *out = f;
    return ANE_OK;
}

ane_status ane_program_pack(const ane_program *p, const char *function, ane_program **out,
                            const ane_packing **packing, ane_error *err) {
    ane_error local;
    if (!err) err = &local;
    ane_error_clear(err);
    const ane_function *f = NULL;
    maker m = {.err = err};
    side in, outs;
    char name[80];
    ane_status st = pick(p, function, &f, err);
    if (st) return st;
    m.from = f;
    if (f->n_params < 2 && f->body->n_outputs < 2)
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[pack] %s has one input and one output already",
                        f->name);
    st = ane_program_create(p->version, &m.p, err);
    if (st) return st;
    for (int i = 0; i < p->n_attrs && !st; i++) {
        const ane_const *c = ane_const_copy(m.p, p->attrs[i].value, err);
        st = c ? ane_graph_set_attr(m.p, 0, p->attrs[i].name, c, err) : ANE_ERR_NOMEM;
    }
    if (st) goto done;
    ane_packing *layout = ane_arena_alloc(m.p->arena, sizeof *layout);
    if (!layout) st = ane_fail(err, ANE_ERR_NOMEM, "[pack] out of memory");
    if (!st) st = list_side(m.p->arena, f->params, f->n_params, "input", &in, err);
    if (!st) st = list_side(m.p->arena, f->body->outputs, f->body->n_outputs, "output", &outs, err);
    if (st) goto done;
    lay_out(&in, true);
    lay_out(&outs, false);
    *layout = (ane_packing){.n_in = (size_t)in.n, .n_out = (size_t)outs.n, .in = in.slots,
                            .out = outs.slots, .in_rows = in.rows, .in_columns = in.columns,
                            .out_rows = outs.rows, .out_columns = outs.columns};
    if (in.n > 1) {
        fresh(&m, "packed_in", name);
        layout->input = ane_arena_strndup(m.p->arena, name, strlen(name));
        if (!layout->input) st = ane_fail(err, ANE_ERR_NOMEM, "[pack] out of memory");
    }
    m.made = 0;
    if (!st) st = build(&m, layout, &in, &outs);
done:
    if (st) {
        ane_program_release(m.p);
        return st;
    }
    *out = m.p;
    *packing = layout;
    return ANE_OK;
}
