/* Depthwise convolution: rows of outputs, all channels of a few positions at a time. */
#include "conv_job.h"

#include "../base/sync.h"

/* Pointers to taps, then sums where they do not go to y itself: the store reads whole vectors,
 * up to one past the last row. */
static size_t row_lists(const ane_conv_job *j) {
    size_t taps = (size_t)(j->a[0].taps * j->a[1].taps * j->a[2].taps);
    return ane__up(4 * (taps + 1) * sizeof(float *), ANE_ALIGN);
}

size_t ane__conv_row_bytes(const ane_conv_job *j) {
    size_t sums = ((size_t)(j->a[2].out * j->g->groups) + 64) * sizeof(float);
    return row_lists(j) + (j->direct ? 0 : sums);
}

/* From position w of a row on: how many positions go together, and which taps [lo, hi) along
 * the row are inside the image. Four where every tap is for all of them. */
static int64_t span(const ane_conv_job *j, int64_t w, int64_t *lo, int64_t *hi) {
    const ane_conv_axis *a = &j->a[2];
    int64_t in = j->x.in[2], base = w * a->stride + a->off0 + j->x.shift[2];
    *lo = 0, *hi = a->taps;
    for (int64_t px = ane__least(4, a->out - w);; px = 1) {
        int64_t reach = base + (px - 1) * a->stride, last = (a->taps - 1) * a->off_step;
        int64_t low = last < 0 ? base + last : base, high = last < 0 ? reach : reach + last;
        if (low >= 0 && high < in) return px;
        if (px > 1) continue;
        for (; *lo < *hi; ++*lo) {
            int64_t q = base + *lo * a->off_step;
            if (q >= 0 && q < in) break;
        }
        for (; *hi > *lo; --*hi) {
            int64_t q = base + (*hi - 1) * a->off_step;
            if (q >= 0 && q < in) break;
        }
        return 1;
    }
}

/* One row of outputs of image n. */
typedef struct row {
    int64_t n, d, h;
    int64_t p;                          /* its first position */
    float *acc;                         /* sums where they do not go to y itself */
    void *lists;
} row;

/* The row of the image that taps (t0, t1) see; false: none. Elements of a row are floats, or
 * bytes where x is. */
static bool row_seen(const ane_conv_job *j, const row *r, int64_t t0, int64_t t1, int64_t *at) {
    const ane_conv_axis *a = j->a;
    const ane_rows *x = &j->x;
    int64_t d = r->d * a[0].stride + a[0].off0 + t0 * a[0].off_step + x->shift[0];
    int64_t h = r->h * a[1].stride + a[1].off0 + t1 * a[1].off_step + x->shift[1];
    *at = r->n * x->sn + d * x->s[0] + h * x->s[1];
    return d >= 0 && d < x->in[0] && h >= 0 && h < x->in[1];
}

static float *sums_at(const ane_conv_job *j, const row *r, int64_t w) {
    return j->direct ? (float *)(void *)ane__conv_place(j, r->n, 0, r->p + w)
                     : r->acc + (size_t)(w * j->g->groups);
}

/* Taps outside the image are left out of the sum. */
static void float_row(const ane_conv_job *j, const row *r, size_t ldy) {
    const ane_conv_axis *a = j->a;
    const ane_rows *x = &j->x;
    size_t channels = (size_t)j->g->groups, ldw = ane__up(channels, j->k->vw);
    size_t taps = (size_t)(a[0].taps * a[1].taps * a[2].taps), rows = 0;
    const float **seen = r->lists, **seen_w = seen + taps, **at = seen_w + taps, **at_w = at + taps;
    for (int64_t t0 = 0; t0 < a[0].taps; t0++)
        for (int64_t t1 = 0; t1 < a[1].taps; t1++) {
            int64_t from;
            if (!row_seen(j, r, t0, t1, &from)) continue;
            seen[rows] = x->base + from;
            seen_w[rows++] = j->w + (size_t)((t0 * a[1].taps + t1) * a[2].taps) * ldw;
        }
    ane_conv_dw dw = {.channels = channels, .step = (size_t)(a[2].stride * x->s[2]), .a = at,
                      .w = at_w, .ldy = ldy};
    for (int64_t w = 0, px, lo, hi; w < a[2].out; w += px) {
        px = span(j, w, &lo, &hi);
        dw.taps = 0;
        for (size_t q = 0; q < rows; q++)
            for (int64_t t = lo; t < hi; t++) {
                int64_t col = w * a[2].stride + a[2].off0 + t * a[2].off_step + x->shift[2];
                at[dw.taps] = seen[q] + col * x->s[2];
                at_w[dw.taps++] = seen_w[q] + (size_t)t * ldw;
            }
        dw.y = sums_at(j, r, w);
        ane__conv_set_post(j, &dw.post, r->n, 0, r->p + w);
        j->k->depthwise((size_t)px, &dw);
    }
}

/* Taps outside the image read bytes of the zero point: they come in pairs. */
static void byte_row(const ane_conv_job *j, const row *r, size_t ldy) {
    const ane_conv_axis *a = j->a;
    const ane_rows *x = &j->x;
    const uint8_t *image = (const uint8_t *)x->base, *none = (const uint8_t *)j->zeros;
    size_t channels = (size_t)j->g->groups, taps = j->ks.segs * j->ks.len;
    const uint8_t **at = r->lists;
    ane_conv_dw8 dw = {.channels = channels, .step = (size_t)(a[2].stride * x->s[2]), .a = at,
                       .pairs = ane__cut(taps, 2), .sign = j->g->x.dtype == ANE_I8, .w = j->w,
                       .ldw = ane__conv_init_floats(j), .init = j->init, .ldy = ldy};
    at[2 * dw.pairs - 1] = none;        /* of an odd number, beside weights of zero */
    for (int64_t w = 0, px, lo, hi; w < a[2].out; w += px) {
        px = span(j, w, &lo, &hi);
        const uint8_t **to = at;
        for (int64_t t0 = 0; t0 < a[0].taps; t0++)
            for (int64_t t1 = 0; t1 < a[1].taps; t1++) {
                int64_t from, col = w * a[2].stride + a[2].off0 + x->shift[2];
                bool seen = row_seen(j, r, t0, t1, &from);
                for (int64_t t = 0; t < a[2].taps; t++, col += a[2].off_step)
                    *to++ = seen && t >= lo && t < hi ? image + from + col * x->s[2] : none;
            }
        dw.y = sums_at(j, r, w);
        ane__conv_set_post(j, &dw.post, r->n, 0, r->p + w);
        j->table->dw8((size_t)px, &dw);
    }
}

void ane__conv_row(void *arg, size_t task) {
    ane_conv_job *j = arg;
    const ane_conv_axis *a = j->a;
    char *scratch = ane_scratch_push(ane__conv_row_bytes(j));
    if (!scratch) {
        atomic_store(&j->failed, true);
        return;
    }
    row r = {.lists = scratch, .acc = (float *)(void *)(scratch + row_lists(j))};
    size_t ldy = j->direct ? (size_t)(ane__conv_position_step(j, j->ys) / 4) : (size_t)j->g->groups;
    int64_t first = (int64_t)task * j->block, end = ane__least(first + j->block, j->blocks);
    for (int64_t i = first; i < end; i++) {
        r.h = i % a[1].out, r.d = i / a[1].out % a[0].out, r.n = i / a[1].out / a[0].out;
        r.p = (r.d * a[1].out + r.h) * a[2].out;
        if (j->ints) byte_row(j, &r, ldy);
        else float_row(j, &r, ldy);
        ane__conv_row_done(j, r.n, r.p, r.acc);
    }
    ane_scratch_pop(scratch);
}

/* Bytes that stand for a row outside the image: as far as four positions of one look. */
size_t ane__conv_row_zeros(const ane_conv_job *j) {
    return (size_t)(3 * j->a[2].stride * j->x.s[2] + j->g->groups);
}
