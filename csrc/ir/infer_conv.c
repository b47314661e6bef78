/* Shapes of convolution and pooling, and the window geometry that their evaluation uses. */
#include "window.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static ane_status fail(ane_infer *in, ane_eval *ev, ane_status st, const char *fmt, ...)
    ANE_PRINTF(4, 5);
static ane_status fail(ane_infer *in, ane_eval *ev, ane_status st, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return in ? ane_infer_fail(in, st, "%s", text) : ane_eval_fail(ev, st, "%s", text);
}

/* n values of an optional constant vector, each at least `least` and below 2^31. */
static ane_status vector(ane_infer *in, ane_eval *ev, const ane_op *op, const char *name,
                         int n, int64_t least, int64_t fallback, int64_t *out) {
    for (int i = 0; i < n; i++) out[i] = fallback;
    if (ane_op_param_index(op->row, name) < 0 || !ane__given(op, name)) return ANE_OK;
    int got = ane_op_ints(op, name, out, n);
    if (got != n)
        return fail(in, ev, ANE_ERR_SHAPE, "'%s' must have %d elements, got %d", name, n, got);
    for (int i = 0; i < n; i++)
        if (out[i] < least || out[i] > INT32_MAX)
            return fail(in, ev, ANE_ERR_INVALID, "%s[%d] is %lld", name, i, (long long)out[i]);
    return ANE_OK;
}

static ane_status options(ane_infer *in, ane_eval *ev, const ane_op *op, ane_window *w,
                          const char **type, int64_t *pad) {
    static const char *const types[] = {"valid", "same", "custom", "same_lower"};
    int opset = in ? in->opset : 18, k = 0;
    *type = ane_op_str(op, "pad_type", "valid");
    while (k < 4 && strcmp(types[k], *type)) k++;
    if (k == 4 || (k == 3 && opset < 16))
        return fail(in, ev, ANE_ERR_INVALID, "'pad_type' must be valid, same, custom%s, got "
                    "\"%.40s\"", opset < 16 ? "" : " or same_lower", *type);
    ane_status st = vector(in, ev, op, "strides", w->n, 1, 1, w->stride);
    if (!st) st = vector(in, ev, op, "dilations", w->n, 1, 1, w->dilation);
    for (int i = 0; i < 2 * w->n; i++) pad[i] = 0;
    if (!st && k == 2) st = vector(in, ev, op, "pad", 2 * w->n, 0, 0, pad);
    for (int i = 0; !st && i < w->n; i++)
        if (w->kernel[i] < 1 || w->kernel[i] > INT32_MAX)
            st = fail(in, ev, ANE_ERR_SHAPE, "the kernel's dimension %d is %lld", i,
                      (long long)w->kernel[i]);
    return st;
}

ane_status ane__window_forward(ane_infer *in, ane_eval *ev, const ane_op *op,
                               ane_window *w) {
    const char *type;
    int64_t pad[6];
    ane_status st = options(in, ev, op, w, &type, pad);
    if (st) return st;
    bool ceil_mode = ane_op_param_index(op->row, "ceil_mode") >= 0 &&
                     ane_op_bool(op, "ceil_mode", false);
    bool same = !strncmp(type, "same", 4), lower = !strcmp(type, "same_lower");
    if (ceil_mode && (same || w->n > 2))
        return fail(in, ev, ANE_ERR_INVALID, "ceil_mode needs 1 or 2 spatial dimensions and a "
                    "'pad_type' that is not same");
    for (int i = 0; i < w->n; i++) {
        int64_t d = w->in[i], s = w->stride[i], reach = ane__window_reach(w, i);
        int64_t *p = w->pad[i];
        p[0] = pad[2 * i];
        p[1] = pad[2 * i + 1];
        if (ceil_mode && p[0] != p[1])
            return fail(in, ev, ANE_ERR_INVALID, "ceil_mode needs equal pads on both sides, got "
                        "%lld and %lld", (long long)p[0], (long long)p[1]);
        w->out[i] = ANE_DIM_ANY;
        if (d < 0) continue;
        if (d > INT64_MAX / 4)
            return fail(in, ev, ANE_ERR_SHAPE, "a spatial dimension of %lld", (long long)d);
        if (same) {
            w->out[i] = d / s + (d % s != 0);
            int64_t total = (w->out[i] - 1) * s + reach - d;
            if (total < 0 || !w->out[i]) total = 0;
            p[0] = lower ? total - total / 2 : total / 2;
            p[1] = total - p[0];
        } else {
            int64_t room = d + p[0] + p[1] - reach;
            w->out[i] = room < 0 ? 0 : (room + (ceil_mode ? s - 1 : 0)) / s + 1;
            /* In ceil mode no window may begin in the padding after the input. */
            if (ceil_mode && p[0] && (w->out[i] - 1) * s >= d + p[0]) w->out[i]--;
        }
        if (w->out[i] < 1)
            return fail(in, ev, ANE_ERR_SHAPE, "spatial dimension %d is %lld: a window of %lld "
                        "does not fit (pads %lld and %lld)", i, (long long)d, (long long)reach,
                        (long long)p[0], (long long)p[1]);
    }
    return ANE_OK;
}

ane_status ane__window_transpose(ane_infer *in, ane_eval *ev, const ane_op *op,
                                 ane_window *w) {
    const char *type;
    int64_t pad[6], shape[5];
    ane_status st = options(in, ev, op, w, &type, pad);
    if (st) return st;
    bool given = ane__given(op, "output_shape"), same = !strncmp(type, "same", 4),
         lower = !strcmp(type, "same_lower");
    if (given && ane_op_ints(op, "output_shape", shape, 5) != w->n + 2)
        return fail(in, ev, ANE_ERR_SHAPE, "'output_shape' must have %d elements", w->n + 2);
    for (int i = 0; i < w->n; i++) {
        int64_t d = w->in[i], s = w->stride[i], reach = ane__window_reach(w, i), full;
        w->pad[i][0] = pad[2 * i];
        w->pad[i][1] = pad[2 * i + 1];
        w->out[i] = given ? shape[i + 2] : ANE_DIM_ANY;
        if (d < 0) continue;
        if (__builtin_mul_overflow(d, s, &full) || full > INT64_MAX / 4)
            return fail(in, ev, ANE_ERR_SHAPE, "a dimension of %lld times %lld is too large",
                        (long long)d, (long long)s);
        full += reach - s;
        if (!given) w->out[i] = same ? d * s : full - pad[2 * i] - pad[2 * i + 1];
        if (same) {
            int64_t total = full > w->out[i] ? full - w->out[i] : 0;
            w->pad[i][0] = lower ? total - total / 2 : total / 2;
            w->pad[i][1] = total - w->pad[i][0];
        }
        if (w->out[i] < 1)
            return fail(in, ev, ANE_ERR_SHAPE, "spatial dimension %d of the result would be "
                        "%lld", i, (long long)w->out[i]);
    }
    return ANE_OK;
}

void ane__window_three(ane_window *w) {
    while (w->n < 3) {
        memmove(w->in + 1, w->in, 2 * sizeof *w->in);
        memmove(w->kernel + 1, w->kernel, 2 * sizeof *w->kernel);
        memmove(w->stride + 1, w->stride, 2 * sizeof *w->stride);
        memmove(w->dilation + 1, w->dilation, 2 * sizeof *w->dilation);
        memmove(w->out + 1, w->out, 2 * sizeof *w->out);
        memmove(w->pad + 1, w->pad, 2 * sizeof *w->pad);
        w->in[0] = w->kernel[0] = w->stride[0] = w->dilation[0] = w->out[0] = 1;
        w->pad[0][0] = w->pad[0][1] = 0;
        w->n++;
    }
}

/* ---------------------------------------------------------------- convolution */

static ane_status conv(ane_infer *in, bool transpose) {
    const ane_type *x = ane__in_type(in, "x"), *k = ane__in_type(in, "weight");
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    ane_status st = ane__want_rank(in, "x", 3, 5);
    if (!st) st = ane__want_rank(in, "weight", x->rank, x->rank);
    if (st) return st;
    int64_t groups = ane_op_i64(in->op, "groups", 1), cin = x->dims[1], cout, dims[5];
    if (groups < 1)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'groups' is %lld", (long long)groups);
    /* conv: [Cout, Cin/groups, K..]; conv_transpose: [Cin, Cout/groups, K..]. */
    int64_t per_group = k->dims[1], first = k->dims[0];
    bool ok = transpose ? ane__dim_fits(first, cin) : cin < 0 || per_group < 0 ||
                              (cin % groups == 0 && cin / groups == per_group);
    ok = ok && (transpose ? cin < 0 || cin % groups == 0 : first < 0 || first % groups == 0);
    if (!ok)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'weight' must be %s with %lld groups, got %s "
                              "for x %s", transpose ? "[Cin, Cout/groups, K..]"
                                                    : "[Cout, Cin/groups, K..]",
                              (long long)groups, ane_type_text(k, a, sizeof a),
                              ane_type_text(x, b, sizeof b));
    if (transpose) st = ane__dim_mul(in, per_group, groups, &cout);
    else cout = first;
    if (!st) st = ane__want_vector(in, "bias", cout);
    if (st) return st;
    ane_window w = {.n = x->rank - 2};
    for (int i = 0; i < w.n; i++) {
        w.in[i] = x->dims[i + 2];
        w.kernel[i] = k->dims[i + 2];
    }
    st = transpose ? ane__window_transpose(in, NULL, in->op, &w)
                   : ane__window_forward(in, NULL, in->op, &w);
    if (st) return st;
    for (int i = 0; i < w.n && !transpose; i++)
        if (w.dilation[i] != 1 && !ane_value_is_constant(ane_op_in(in->op, "weight")))
            return ane_infer_fail(in, ANE_ERR_INVALID, "a 'weight' that is not constant needs "
                                  "dilations of 1, got %lld", (long long)w.dilation[i]);
    int64_t shape[5];
    if (transpose && ane_op_ints(in->op, "output_shape", shape, 5) == x->rank &&
        (!ane__dim_fits(shape[0], x->dims[0]) || !ane__dim_fits(shape[1], cout)))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'output_shape' must begin with the batch %lld "
                              "and %lld channels, got %lld and %lld", (long long)x->dims[0],
                              (long long)cout, (long long)shape[0], (long long)shape[1]);
    dims[0] = x->dims[0];
    dims[1] = cout;
    memcpy(dims + 2, w.out, sizeof w.out);
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_conv(ane_infer *in) { return conv(in, false); }
ane_status ane__infer_conv_transpose(ane_infer *in) { return conv(in, true); }

ane_status ane__infer_conv_quantized(ane_infer *in) {
    return ane_infer_fail(in, ANE_ERR_UNSUPPORTED, "is experimental in Core ML and not "
                          "supported; use conv with a constexpr_affine_dequantize weight");
}

/* ---------------------------------------------------------------- pooling */

ane_status ane__infer_pool(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    bool l2 = !strcmp(in->op->row->name, "l2_pool");
    ane_status st = ane__want_rank(in, "x", 3, l2 ? 4 : 5);
    if (st) return st;
    ane_window w = {.n = x->rank - 2};
    int64_t dims[5];
    memcpy(w.in, x->dims + 2, sizeof *w.in * (size_t)w.n);
    st = vector(in, NULL, in->op, "kernel_sizes", w.n, 1, 1, w.kernel);
    if (!st) st = ane__window_forward(in, NULL, in->op, &w);
    if (st) return st;
    memcpy(dims, x->dims, sizeof dims);
    memcpy(dims + 2, w.out, sizeof *w.out * (size_t)w.n);
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}
