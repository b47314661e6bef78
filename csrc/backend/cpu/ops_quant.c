/* quantize and dequantize of strided tensors, one scale or one per place of an axis; exactly
 * what the reference evaluation gives. */
#include "expr.h"
#include "ops.h"
#include "view.h"

#include "../../kernels/vec.h"

#include <math.h>
#include <string.h>

#define TASK 8192                       /* elements of one task, at least */
#define PIECE 512                       /* of a row at a time */

enum { Y, X, VIEWS };

typedef struct quant {
    bool down;                          /* quantize */
    int rank, axis;                     /* axis: dim that scale and zero run along; -1 */
    int64_t shape[ANE_MAX_RANK], xs[ANE_MAX_RANK], ys[ANE_MAX_RANK];
    const double *scale, *zero;
    ane_dtype x, y;
    int64_t cols, rows, pieces, per;    /* a row is cut into pieces; a task has `per` of them */
} quant;

typedef struct quant_run {
    const quant *q;
    char *y;
    const char *x;
} quant_run;

static int64_t nearest(double v, double zero, double low, double high) {
    v = rint(v) + zero;
    if (v != v) return 0;
    return (int64_t)(v < low ? low : v > high ? high : v);
}

/* n elements with one scale, or (along) one scale each. */
static void piece(const quant *q, char *y, const char *x, int64_t n, int64_t at, bool along) {
    int last = q->rank - 1;
    int64_t xs = q->xs[last], ys = q->ys[last];
    float f[PIECE];
    const ane_vec *vec = ane_vec_get();
    if (q->down) {
        double low = q->y == ANE_I8 ? -128 : 0, high = low + 255;
        ane_row_load(f, x, q->x, xs, (size_t)n);
        if (!along && ys == 1) {
            vec->quantize(y, q->y == ANE_I8, f, q->scale[at], (int)q->zero[at], (size_t)n);
            return;
        }
        for (int64_t i = 0; i < n; i++, y += ys) {
            int64_t k = along ? at + i : at;
            *y = (char)nearest((double)f[i] / q->scale[k], q->zero[k], low, high);
        }
        return;
    }
    float single = (float)q->scale[at];
    if (!along && xs == 1 && (double)single == q->scale[at]) {
        vec->dequantize(f, x, q->x == ANE_I8, single, (int)q->zero[at], (size_t)n);
        ane_row_store(y, q->y, ys, f, (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++, x += xs) {
        int64_t k = along ? at + i : at;
        int v = q->x == ANE_I8 ? *(const int8_t *)x : *(const uint8_t *)x;
        f[i] = (float)(q->scale[k] * ((double)v - q->zero[k]));
    }
    ane_row_store(y, q->y, ys, f, (size_t)n);
}

static void quant_task(void *arg, size_t task) {
    const quant_run *run = arg;
    const quant *q = run->q;
    int last = q->rank - 1;
    int64_t first = (int64_t)task * q->per, end = first + q->per;
    for (int64_t r = first; r < end && r < q->rows * q->pieces; r++) {
        char *y = run->y;
        const char *x = run->x;
        int64_t left = r / q->pieces, at = 0;
        for (int d = last - 1; d >= 0; d--) {
            int64_t k = left % q->shape[d];
            left /= q->shape[d];
            y += k * q->ys[d];
            x += k * q->xs[d];
            if (d == q->axis) at = k;
        }
        int64_t from = r % q->pieces * TASK, to = from + TASK < q->cols ? from + TASK : q->cols;
        for (int64_t c = from; c < to; c += PIECE) {
            int64_t n = to - c < PIECE ? to - c : PIECE;
            piece(q, y + c * q->ys[last], x + c * q->xs[last], n, q->axis == last ? c : at,
                  q->axis == last);
        }
    }
}

static ane_status run_quant(ane_exec *ex, const ane_step *s, ane_error *err) {
    const quant *q = s->data;
    quant_run run = {q, ane_at(ex, &s->views[Y]), ane_at(ex, &s->views[X])};
    if (ane_parallel_for((size_t)((q->rows * q->pieces - 1) / q->per + 1), quant_task, &run)) return ANE_OK;
    return ane_run_check(err);
}

ane_status ane_plan_quant(ane_planner *pl, const ane_op *op, bool *done) {
    bool down = !strcmp(op->row->name, "quantize");
    *done = false;
    if ((!down && strcmp(op->row->name, "dequantize")) || !ane_kernel_on(ANE_FAMILY_int8) ||
        pl->opts->target)
        return ANE_OK;
    const ane_value *x = ane_op_in(op, "input"), *z = ane_op_in(op, "zero_point");
    const ane_type *from = x->type, *to = op->results[0]->type;
    const ane_const *scale = ane_op_const(op, "scale"), *zero = ane_op_const(op, "zero_point");
    const ane_type *bytes = down ? to : from, *floats = down ? from : to;
    if (!ane_type_static(from) || !scale || !scale->data || (z && !zero) ||
        (bytes->dtype != ANE_I8 && bytes->dtype != ANE_U8) || !ane_dtype_is_float(floats->dtype))
        return ANE_OK;
    int64_t n = ane_type_count(scale->type), nz = zero ? ane_type_count(zero->type) : 1;
    if (nz > n) n = nz;
    int64_t axis = n > 1 ? ane_op_i64(op, "axis", 0) : -1;
    if (n > 1 && axis < 0) axis += from->rank;
    *done = true;
    ane_view v[VIEWS];
    ane_status st = ane_plan_operand(pl, x, &v[X]);
    if (!st) st = ane_plan_dest(pl, op->results[0], &v[Y]);
    if (st || !ane_type_count(from)) return st;
    quant *q = ane_arena_alloc(pl->plan->arena, sizeof *q);
    double *values = ane_arena_alloc(pl->plan->arena, 2 * (size_t)n * sizeof *values);
    ane_step *s = ane_plan_step(pl, run_quant, op, 1, VIEWS - 1);
    if (!q || !values || !s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, v, sizeof v);
    *q = (quant){.down = down, .axis = -1, .scale = values, .zero = values + n,
                 .x = from->dtype, .y = to->dtype};
    for (int64_t i = 0; i < n; i++) {
        values[i] = ane_const_f64(scale, ane_type_count(scale->type) == 1 ? 0 : i);
        values[n + i] = zero ? ane_const_f64(zero, nz == 1 ? 0 : i) : 0;
    }
    /* Largest steps of the result outermost. */
    for (int d = 0; d < from->rank; d++) {
        int at = q->rank++;
        for (; at > 0 && q->ys[at - 1] < v[Y].strides[d]; at--) {
            q->shape[at] = q->shape[at - 1];
            q->xs[at] = q->xs[at - 1];
            q->ys[at] = q->ys[at - 1];
            q->axis += q->axis == at - 1;
        }
        q->shape[at] = from->dims[d];
        q->xs[at] = v[X].strides[d];
        q->ys[at] = v[Y].strides[d];
        if (d == axis) q->axis = at;
    }
    if (!q->rank) q->shape[q->rank++] = 1;
    /* Dims that follow each other in both make one long row. */
    for (int d = q->rank - 1; d > 0; d--) {
        if (q->axis == d || q->axis == d - 1 || q->xs[d - 1] != q->xs[d] * q->shape[d] ||
            q->ys[d - 1] != q->ys[d] * q->shape[d])
            continue;
        q->shape[d - 1] *= q->shape[d];
        q->xs[d - 1] = q->xs[d];
        q->ys[d - 1] = q->ys[d];
        for (int k = d; k + 1 < q->rank; k++) {
            q->shape[k] = q->shape[k + 1];
            q->xs[k] = q->xs[k + 1];
            q->ys[k] = q->ys[k + 1];
        }
        q->rank--;
        q->axis -= q->axis > d;
    }
    q->cols = q->shape[q->rank - 1];
    q->rows = ane_type_count(from) / q->cols;
    q->pieces = (q->cols - 1) / TASK + 1;
    q->per = q->cols < TASK ? TASK / q->cols + 1 : 1;
    s->data = q;
    s->kernel = "quant";
    s->flops = 2.0 * (double)ane_type_count(from);
    return ANE_OK;
}
