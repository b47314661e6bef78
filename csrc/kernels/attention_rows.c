/* Attention of a few queries, decoding above all: keys and values are read where they lie, as
 * matrices times vectors, since packing them would cost more than it gives. */
#include "attention_block.h"

/* Queries of all heads that share keys. */
#define FEW 8

static bool is_dense(const ane_mat5 *x, int dim) {
    return x->s[dim] == (int64_t)ane_dtype_size(x->dtype);
}

bool ane__attention_few(const job *j) {
    const ane_mat5 *k = &j->a->k, *v = &j->a->v;
    return j->q_len * j->group <= FEW && (is_dense(k, 3) || is_dense(k, 4)) &&
           (is_dense(v, 3) || is_dense(v, 4));
}

static float load(const char *p, ane_dtype dtype) {
    uint16_t h;
    float f;
    if (dtype == ANE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&h, p, sizeof h);
    return dtype == ANE_F16 ? ane_f32_from_f16(h) : ane_f32_from_bf16(h);
}

static void mask_row(const job *j, float *s, head h, size_t t, size_t n, float *room) {
    const ane_attention_args *a = j->a;
    const ane_mat5 *m = a->mask;
    if (!m) {
        j->t->vec->scalar[ANE_VEC_MUL](s, s, a->scale, n);
        return;
    }
    const char *p = at5(m, h, t);
    if (m->dtype == ANE_BOOL) {
        for (size_t i = 0; i < n; i++, p += m->s[4])
            s[i] = (*p != 0) == a->keep ? s[i] * a->scale : a->fill;
        return;
    }
    if (is_dense(m, 4)) j->t->vec->load(room, p, m->dtype, n);
    else
        for (size_t i = 0; i < n; i++) room[i] = load(p + (int64_t)i * m->s[4], m->dtype);
    j->t->attn_mask(s, room, n, a->scale, a->mask_scale);
}

static size_t row_floats(const job *j) {
    return up(j->d, 16) + up(j->dv, 16) + 2 * up(j->k_len, 16);
}

static void row(const job *j, head h, size_t t, float *work) {
    const ane_attention_args *a = j->a;
    float *q = work, *o = q + up(j->d, 16), *s = o + up(j->dv, 16), *room = s + up(j->k_len, 16);
    head shared = {h.b, h.g, 0};
    size_t first = 0, n = j->k_len;
    if (a->span && !a->mask) {          /* a mask is applied as it is: it costs little here */
        ane_span see = a->span[(int64_t)h.r * a->span_group + (int64_t)t];
        first = (size_t)see.first;
        n = see.end > see.first ? (size_t)(see.end - see.first) : 0;
    }
    for (size_t c = 0; c < j->d; c++)
        q[c] = load(at5(&a->q, h, t) + (int64_t)c * a->q.s[4], a->q.dtype);
    const char *k = at5(&a->k, shared, first), *v = at5(&a->v, shared, first);
    if (is_dense(&a->k, 4)) j->t->gemv_rows(s, k, a->k.dtype, a->k.s[3], q, n, j->d);
    else j->t->gemv_cols(s, k, a->k.dtype, a->k.s[4], q, j->d, n);
    mask_row(j, s, h, t, n, room);
    if (n) j->t->vec->softmax(s, s, n);
    if (is_dense(&a->v, 4)) j->t->gemv_cols(o, v, a->v.dtype, a->v.s[3], s, n, j->dv);
    else j->t->gemv_rows(o, v, a->v.dtype, a->v.s[4], s, j->dv, n);
    for (size_t c = 0; c < j->dv && !n; c++) o[c] = NAN;
    put(j, o, up(j->dv, 16), 1, j->dv, &a->out, h, t, false);
}

size_t ane__attention_row_bytes(const job *j) { return row_floats(j) * sizeof(float); }

void ane__attention_rows(void *arg, size_t pair) {
    job *j = arg;
    float *work = ane_scratch_push(ane__attention_row_bytes(j));
    if (!work) {
        atomic_store(&j->status, (int)ANE_ERR_NOMEM);
        return;
    }
    for (size_t r = 0; r < j->group; r++)
        for (size_t t = 0; t < j->q_len; t++) row(j, head_of(j, pair, r), t, work);
    ane_scratch_pop(work);
}
