/* matmul, linear, einsum and attention in double. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* c[m, n] += a[m, k] * b[k, n], all dense. The sum over k runs in order for every element;
 * blocks only keep the touched rows of b and c in cache. */
enum { BLOCK_K = 64, BLOCK_N = 512 };
void ane__matmul_f64(double *c, const double *a, const double *b, int64_t m, int64_t k,
                     int64_t n) {
    for (int64_t j0 = 0; j0 < n; j0 += BLOCK_N) {
        int64_t jn = n - j0 < BLOCK_N ? n - j0 : BLOCK_N;
        for (int64_t p0 = 0; p0 < k; p0 += BLOCK_K) {
            int64_t pn = k - p0 < BLOCK_K ? k - p0 : BLOCK_K;
            for (int64_t i = 0; i < m; i++) {
                double *row = c + i * n + j0;
                for (int64_t p = p0; p < p0 + pn; p++) {
                    double v = a[i * k + p];
                    const double *br = b + p * n + j0;
                    for (int64_t j = 0; j < jn; j++) row[j] += v * br[j];
                }
            }
        }
    }
}

/* int32 wraps; every value of the operands is an exact integer. */
static void matmul_i32(double *c, const double *a, const double *b, int64_t m, int64_t k,
                       int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            uint64_t sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (uint64_t)(int64_t)a[i * k + p] * (uint64_t)(int64_t)b[p * n + j];
            c[i * n + j] = (double)(int32_t)(uint32_t)sum;
        }
}

/* Data of r with its last two dims swapped when asked; *scratch is to be freed. */
static const double *oriented(ane_eval *ev, const ane_rt *r, bool swap, double **scratch) {
    if (!swap) return r->data;
    int perm[ANE_MAX_RANK];
    for (int i = 0; i < r->rank; i++) perm[i] = i;
    perm[r->rank - 1] = r->rank - 2;
    perm[r->rank - 2] = r->rank - 1;
    *scratch = ane__scratch(ev, r->count);
    if (*scratch) ane__permute(*scratch, r->data, r->rank, r->shape, perm);
    return *scratch;
}

ane_status ane__eval_matmul(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *y = ane_eval_in(ev, "y");
    bool tx = x->rank > 1 && ane_eval_bool(ev, "transpose_x", false),
         ty = y->rank > 1 && ane_eval_bool(ev, "transpose_y", false);
    int64_t m = x->rank == 1 ? 1 : x->shape[x->rank - (tx ? 1 : 2)];
    int64_t k = x->rank == 1 ? x->shape[0] : x->shape[x->rank - (tx ? 2 : 1)];
    int64_t ky = y->rank == 1 ? y->shape[0] : y->shape[y->rank - (ty ? 1 : 2)];
    int64_t n = y->rank == 1 ? 1 : y->shape[y->rank - (ty ? 2 : 1)];
    if (k != ky)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the inner dimensions differ: %lld and %lld",
                             (long long)k, (long long)ky);
    ane_rt bx = *x, by = *y;
    bx.rank = x->rank > 2 ? x->rank - 2 : 0;
    by.rank = y->rank > 2 ? y->rank - 2 : 0;
    int rank = bx.rank > by.rank ? bx.rank : by.rank, full = rank;
    int64_t shape[ANE_MAX_RANK], sx[ANE_MAX_RANK], sy[ANE_MAX_RANK], at[ANE_MAX_RANK] = {0};
    ane_status st = ane__broadcast_shape(ev, &bx, &by, shape);
    if (st) return st;
    ane__broadcast_strides(&bx, rank, shape, sx);
    ane__broadcast_strides(&by, rank, shape, sy);
    int64_t batches = ane__count(rank, shape);
    if (x->rank > 1) shape[full++] = m;
    if (y->rank > 1) shape[full++] = n;
    ane_rt *out = ANE__OUT(0, full, shape);
    double *freex = NULL, *freey = NULL, *o = out->data;
    const double *px = oriented(ev, x, tx, &freex), *py = px ? oriented(ev, y, ty, &freey) : NULL;
    if (!py) {
        ane__eval_free(freex);
        return ev->status;
    }
    bool ints = !ane__is_float(out->dtype);
    int64_t ix = 0, iy = 0;
    for (int64_t b = 0; b < batches; b++, o += m * n) {
        if (ints) matmul_i32(o, px + ix * m * k, py + iy * k * n, m, k, n);
        else ane__matmul_f64(o, px + ix * m * k, py + iy * k * n, m, k, n);
        for (int i = rank - 1; i >= 0; i--) {
            ix += sx[i];
            iy += sy[i];
            if (++at[i] < shape[i]) break;
            ix -= sx[i] * shape[i];
            iy -= sy[i] * shape[i];
            at[i] = 0;
        }
    }
    ane__eval_free(freex);
    ane__eval_free(freey);
    return ANE_OK;
}

ane_status ane__eval_linear(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *w = ane_eval_in(ev, "weight"),
                 *bias = ane_eval_in(ev, "bias");
    int64_t shape[ANE_MAX_RANK], k = w->shape[1], n = w->shape[0];
    int64_t m = ane__count(x->rank - 1, x->shape);
    if (x->shape[x->rank - 1] != k)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'x' ends in %lld, 'weight' in %lld",
                             (long long)x->shape[x->rank - 1], (long long)k);
    memcpy(shape, x->shape, sizeof shape);
    shape[x->rank - 1] = n;
    ane_rt *out = ANE__OUT(0, x->rank, shape);
    double *scratch = NULL;
    const double *wt = oriented(ev, w, true, &scratch);
    if (!wt) return ev->status;
    if (ane__is_float(out->dtype)) {
        ane__matmul_f64(out->data, x->data, wt, m, k, n);
        for (int64_t i = 0; bias && i < out->count; i++)
            out->data[i] += bias->data[bias->count == 1 ? 0 : i % n];
    } else {
        matmul_i32(out->data, x->data, wt, m, k, n);
        for (int64_t i = 0; bias && i < out->count; i++)
            out->data[i] = ane__wrap(out->dtype, (int64_t)out->data[i] +
                                     (int64_t)bias->data[bias->count == 1 ? 0 : i % n]);
    }
    ane__eval_free(scratch);
    return ANE_OK;
}

/* [B, C, H, W1] by [B, W1, H, W2]: a product for every (b, h). Rank 3 has no B. */
ane_status ane__eval_einsum(ane_eval *ev) {
    const ane_rt *x = ane_eval_in_at(ev, "values", 0), *y = ane_eval_in_at(ev, "values", 1);
    int r = x->rank, off = r - 3;
    const int64_t *sx = x->shape + off, *sy = y->shape + off;
    int64_t bx = r == 4 ? x->shape[0] : 1, by = r == 4 ? y->shape[0] : 1;
    int64_t batch = bx == 1 ? by : bx, c = sx[0], k = sx[2], n = sy[2];
    int64_t h = sx[1] == 1 ? sy[1] : sx[1], shape[4];
    if (k != sy[0] || (bx != by && bx != 1 && by != 1) ||
        (sx[1] != sy[1] && sx[1] != 1 && sy[1] != 1))
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the operands' shapes do not fit");
    shape[0] = batch;
    shape[off] = c;
    shape[off + 1] = h;
    shape[off + 2] = n;
    ane_rt *out = ANE__OUT(0, r, shape);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t q = 0; q < h; q++) {
            const double *px = x->data + (bx == 1 ? 0 : b) * c * sx[1] * k +
                               (sx[1] == 1 ? 0 : q) * k;
            const double *py = y->data + (by == 1 ? 0 : b) * k * sy[1] * n +
                               (sy[1] == 1 ? 0 : q) * n;
            for (int64_t i = 0; i < c; i++) {
                double *o = out->data + ((b * c + i) * h + q) * n;
                for (int64_t p = 0; p < k; p++) {
                    double v = px[i * sx[1] * k + p];
                    const double *row = py + p * sy[1] * n;
                    for (int64_t j = 0; j < n; j++) o[j] += v * row[j];
                }
            }
        }
    return ANE_OK;
}

ane_status ane__eval_scaled_dot_product_attention(ane_eval *ev) {
    const ane_rt *q = ane_eval_in(ev, "query"), *k = ane_eval_in(ev, "key"),
                 *v = ane_eval_in(ev, "value"), *mask = ane_eval_in(ev, "attn_mask");
    int r = q->rank;
    int64_t l = q->shape[r - 2], e = q->shape[r - 1], s = k->shape[r - 2],
            ev_dim = v->shape[r - 1], batch = ane__count(r - 2, q->shape);
    int64_t shape[ANE_MAX_RANK], scores[ANE_MAX_RANK], ms[ANE_MAX_RANK];
    bool ok = k->shape[r - 1] == e && v->shape[r - 2] == s;
    for (int i = 0; i < r - 2; i++)
        ok = ok && k->shape[i] == q->shape[i] && v->shape[i] == q->shape[i];
    memcpy(shape, q->shape, sizeof shape);
    memcpy(scores, q->shape, sizeof scores);
    shape[r - 1] = ev_dim;
    scores[r - 1] = s;
    for (int i = 0; mask && ok && i < mask->rank; i++) {
        int64_t d = scores[r - mask->rank + i];
        ok = mask->shape[i] == d || mask->shape[i] == 1;
    }
    if (!ok) return ane_eval_fail(ev, ANE_ERR_SHAPE, "the operands' shapes do not fit");
    ane_rt *out = ANE__OUT(0, r, shape);
    if (mask) ane__broadcast_strides(mask, r, scores, ms);
    double *kt = ane__scratch(ev, e * s), *w = kt ? ane__scratch(ev, l * s) : NULL;
    if (!w) {
        ane__eval_free(kt);
        return ev->status;
    }
    double scale = 1 / sqrt((double)e);
    int64_t at[ANE_MAX_RANK] = {0}, moff = 0;
    for (int64_t b = 0; b < batch; b++) {
        const double *pk = k->data + b * s * e;
        for (int64_t i = 0; i < s; i++)
            for (int64_t j = 0; j < e; j++) kt[j * s + i] = pk[i * e + j];
        memset(w, 0, (size_t)(l * s) * sizeof *w);
        ane__matmul_f64(w, q->data + b * l * e, kt, l, e, s);
        for (int64_t i = 0; i < l; i++) {
            double *row = w + i * s;
            for (int64_t j = 0; j < s; j++) {
                row[j] *= scale;
                if (!mask) continue;
                double m = mask->data[moff + i * ms[r - 2] + j * ms[r - 1]];
                row[j] += mask->dtype == ANE_BOOL ? (m != 0 ? 0 : -INFINITY) : m;
            }
            ane__softmax_row(row, row, s, 1);
        }
        ane__matmul_f64(out->data + b * l * ev_dim, w, v->data + b * s * ev_dim, l, s, ev_dim);
        for (int i = r - 3; mask && i >= 0; i--) {
            moff += ms[i];
            if (++at[i] < scores[i]) break;
            moff -= ms[i] * scores[i];
            at[i] = 0;
        }
    }
    ane__eval_free(kt);
    ane__eval_free(w);
    return ANE_OK;
}
