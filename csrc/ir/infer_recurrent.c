/* Shapes of lstm, gru and rnn. x is [s, b, I]; results are the sequence (or its last step)
 * and the final states. */
#include "ops_fn.h"

#include <strings.h>

static ane_status activations(ane_infer *in) {
    static const char *const known[] = {"sigmoid", "tanh", "relu", "linear", "scaled_tanh",
                                        "hard_sigmoid", "sigmoid_hard"};
    static const char *const names[] = {"recurrent_activation", "cell_activation", "activation"};
    for (int i = 0; i < 3; i++) {
        if (ane_op_param_index(in->op->row, names[i]) < 0) continue;
        const char *s = ane_op_str(in->op, names[i], "tanh");
        int k = 0;
        while (k < 7 && strcasecmp(s, known[k])) k++;
        if (k == 7)
            return ane_infer_fail(in, ANE_ERR_INVALID, "'%s' must be sigmoid, tanh, relu, "
                                  "linear, scaled_tanh or hard_sigmoid, got \"%.40s\"", names[i],
                                  s);
    }
    return ANE_OK;
}

/* [rows, cols], either -1 for any. */
static ane_status matrix(ane_infer *in, const char *name, int64_t rows, int64_t cols) {
    const ane_type *t = ane__in_type(in, name);
    char text[ANE_TYPE_TEXT], want[ANE_DIMS_TEXT];
    int64_t dims[2] = {rows, cols};
    if (!t || (t->rank == 2 && ane__dim_fits(t->dims[0], rows) && ane__dim_fits(t->dims[1], cols)))
        return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must be %s, got %s", name,
                          ane__dims_text(2, dims, want, sizeof want),
                          ane_type_text(t, text, sizeof text));
}

static ane_status recurrent(ane_infer *in, int gates) {
    static const char *const both[] = {"forward", "reverse", "bidirectional", NULL};
    static const char *const one[] = {"forward", "reverse", NULL};
    const ane_type *x = ane__in_type(in, "x"), *hh = ane__in_type(in, "weight_hh");
    ane_status st = ane__want_rank(in, "x", 3, 3);
    if (!st) st = ane__want_rank(in, "weight_hh", 2, 2);
    if (!st) st = ane__want_one_of(in, "direction", gates == 4 ? both : one);
    if (!st) st = activations(in);
    if (st) return st;
    bool twice = ane_op_str(in->op, "direction", "forward")[0] == 'b';
    int64_t s = x->dims[0], b = x->dims[1], h = hh->dims[1], rows, all;
    st = ane__dim_mul(in, h, gates, &rows);
    if (!st) st = ane__dim_mul(in, h, twice ? 2 : 1, &all);
    if (!st) st = matrix(in, "weight_hh", rows, h);
    if (!st) st = matrix(in, "weight_ih", rows, x->dims[2]);
    if (!st) st = matrix(in, "initial_h", b, all);
    if (!st) st = ane__want_vector(in, "bias", rows);
    if (!st && gates == 4) {
        st = matrix(in, "initial_c", b, all);
        if (!st) st = ane__want_vector(in, "peephole", 3 * h);
        if (!st) st = ane__want_scalar(in, "clip");
        if (!st && twice && !(ane__given(in->op, "weight_ih_back") &&
                              ane__given(in->op, "weight_hh_back")))
            st = ane_infer_fail(in, ANE_ERR_INVALID, "a bidirectional lstm needs "
                                "'weight_ih_back' and 'weight_hh_back'");
        if (!st) st = matrix(in, "weight_ih_back", rows, x->dims[2]);
        if (!st) st = matrix(in, "weight_hh_back", rows, h);
        if (!st) st = ane__want_vector(in, "bias_back", rows);
        if (!st) st = ane__want_vector(in, "peephole_back", 3 * h);
    }
    if (!st && ane_op_param_index(in->op->row, "input_bias") >= 0)
        st = ane__want_vector(in, "input_bias", rows);
    if (st) return st;
    int64_t seq[3] = {ane_op_bool(in->op, "output_sequence", false) ? s : 1, b, all};
    st = ane_infer_set(in, 0, x->dtype, 3, seq);
    if (!st) st = ane_infer_set(in, 1, x->dtype, 2, seq + 1);
    if (!st && gates == 4) st = ane_infer_set(in, 2, x->dtype, 2, seq + 1);
    return st;
}

ane_status ane__infer_lstm(ane_infer *in) { return recurrent(in, 4); }
ane_status ane__infer_gru(ane_infer *in) { return recurrent(in, 3); }
ane_status ane__infer_rnn(ane_infer *in) { return recurrent(in, 1); }
