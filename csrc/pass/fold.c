/* Constants: ops all of whose operands are known are evaluated once, at compile time. This
 * is where compressed weights (constexpr_*) are unpacked. */
#include "group.h"
#include "pass.h"

#include "../base/f16.h"

#include <string.h>

#define FOLD_MAX (1 << 20)              /* elements; beyond it a constant costs more memory
                                           than computing it costs time */

static bool foldable(const ane_op *op, unsigned target) {
    if (!op->row->eval || op->n_blocks || !op->n_results) return false;
    if (!strncmp(op->row->name, "random_", 7)) return false;
    bool constexpr = !strncmp(op->row->name, "constexpr_", 10);
    for (int i = 0; i < op->n_results; i++) {
        const ane_type *t = op->results[i]->type;
        if (op->results[i]->konst) return false;
        if (t->kind != ANE_T_TENSOR || !ane_dtype_size(t->dtype) || !ane_type_static(t))
            return false;
        if (!constexpr && ane_type_count(t) > FOLD_MAX) return false;
        /* A target's arithmetic is not the evaluator's; stored weights are only unpacked. */
        if (!constexpr && target && ane_dtype_is_float(t->dtype)) return false;
    }
    for (int p = 0; p < op->row->n_params; p++)
        for (int i = 0; i < op->args[p].n; i++) {
            const ane_const *c = op->args[p].v[i]->konst;
            if (!c || (c->type->kind == ANE_T_TENSOR && !c->data && ane_type_count(c->type)))
                return false;
        }
    return true;
}

#define PUT(T, expr)                                                                       \
    for (int64_t i = 0; i < r->count; i++) {                                               \
        double x = r->data[i];                                                             \
        T y = (T)(expr);                                                                   \
        memcpy((char *)to + (size_t)i * sizeof y, &y, sizeof y);                           \
    }                                                                                      \
    break

/* r is rounded already: every value is one of its dtype. */
static void pack(const ane_rt *r, void *to) {
    switch (r->dtype) {
    case ANE_F16: PUT(uint16_t, ane_f16_from_f64(x));
    case ANE_BF16: PUT(uint16_t, ane_bf16_from_f64(x));
    case ANE_F32: PUT(float, x);
    case ANE_F64: PUT(double, x);
    case ANE_BOOL: PUT(uint8_t, x != 0);
    case ANE_I8: PUT(int8_t, x);
    case ANE_U8: PUT(uint8_t, x);
    case ANE_I16: PUT(int16_t, x);
    case ANE_U16: PUT(uint16_t, x);
    case ANE_I32: PUT(int32_t, x);
    case ANE_U32: PUT(uint32_t, x);
    case ANE_I64: PUT(int64_t, x);
    case ANE_U64: PUT(uint64_t, x);
    default: break;
    }
}

static ane_status keep(ane_program *p, ane_value *v, const ane_rt *r, ane_error *err) {
    ane_surface *s = NULL;
    size_t bytes;
    if (!r || r->count != ane_type_count(v->type) || !ane_type_bytes(v->type, &bytes))
        return ane_fail(err, ANE_ERR_RUNTIME, "%s: folding gave another shape", v->name);
    ane_status st = ane_surface_create(ANE_MEM_HEAP, bytes, v->name, &s, err);
    if (st) return st;
    pack(r, ane_surface_base(s));
    v->konst = ane_const_view(p, v->type, s, 0, bytes, err);
    ane_surface_release(s);
    return v->konst ? ANE_OK : ANE_ERR_NOMEM;
}

static ane_status fold(ane_program *p, const ane_op *op, ane_error *err) {
    int n_params = op->row->n_params, total = 0, k = 0;
    for (int i = 0; i < n_params; i++) total += op->args[i].n;
    ane_rt **flat = ane_calloc((size_t)total + 1, sizeof *flat);
    ane_rt ***in = ane_calloc((size_t)n_params + 1, sizeof *in);
    ane_rt **out = ane_calloc((size_t)op->n_results, sizeof *out);
    ane_status st = ANE_OK;
    uint64_t rng = 0;
    if (!flat || !in || !out) st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    for (int i = 0; i < n_params && !st; i++) {
        in[i] = flat + k;
        for (int j = 0; j < op->args[i].n && !st; j++, k++) {
            flat[k] = ane_rt_from_const(op->args[i].v[j]->konst, err);
            if (!flat[k]) st = err->status;
        }
    }
    if (!st) st = ane_op_eval(op, (ane_rt *const *const *)in, out, false, &rng, err);
    for (int i = 0; i < op->n_results && !st; i++) st = keep(p, op->results[i], out[i], err);
    for (int i = 0; flat && i < total; i++) ane_rt_release(flat[i]);
    for (int i = 0; out && i < op->n_results; i++) ane_rt_release(out[i]);
    ane_free(flat);
    ane_free(in);
    ane_free(out);
    return st;
}

ane_status ane_pass_fold(ane_function *f, unsigned target, ane_error *err) {
    for (ane_op *op = f->body->first; op; op = op->next) {
        if (!foldable(op, target)) continue;
        ane_status st = fold(f->program, op, err);
        if (st == ANE_ERR_NOMEM) return st;
        /* An evaluation that fails (an index out of range) fails when it is run. */
        ane_error_clear(err);
    }
    return ANE_OK;
}
