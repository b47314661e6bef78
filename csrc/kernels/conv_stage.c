/* Operands of convolution and pooling brought into channels-last fp32 rows. */
#include "conv_plan.h"

#include "../base/mem.h"
#include "../base/sync.h"

#include <stdatomic.h>
#include <string.h>

static bool even4(int64_t s) { return s % 4 == 0; }

bool ane__rows_writable(const ane_planes *y, int64_t channels) {
    return y->dtype == ANE_F32 && (y->sc == 4 || channels == 1) && even4(y->sn) &&
           even4(y->s[0]) && even4(y->s[1]) && even4(y->s[2]) && (uintptr_t)y->data % 4 == 0;
}

bool ane__rows_view(const ane_planes *x, int64_t channels, const int64_t *in, ane_rows *out) {
    if (!ane__rows_writable(x, channels)) return false;
    *out = (ane_rows){.base = x->data, .sn = x->sn / 4};
    for (int i = 0; i < 3; i++) {
        out->in[i] = in[i];
        out->s[i] = x->s[i] / 4;
    }
    return true;
}

typedef struct staging {
    const ane_kernels *k;
    const ane_planes *x;
    const ane_rows *to;
    int64_t channels, width;            /* width: floats of a pixel */
    const int64_t *in, *before;
    const ane_bytes *bytes;
} staging;

/* `n` pixels of 8-bit channels to quads of bytes. */
static void flip(float *dst, const staging *s, const char *src, int64_t n) {
    uint8_t bit = (uint8_t)s->bytes->flip;
    for (int64_t i = 0; i < n; i++, src += s->x->s[2], dst += s->width) {
        uint8_t *to = (uint8_t *)dst;
        const char *p = src;
        for (int64_t c = s->channels; c < s->width * 4; c++) to[c] = 0;
        if (s->x->sc == 1)
            for (int64_t c = 0; c < s->channels; c++) to[c] = ((const uint8_t *)p)[c] ^ bit;
        else
            for (int64_t c = 0; c < s->channels; c++, p += s->x->sc)
                to[c] = *(const uint8_t *)p ^ bit;
    }
}

/* `n` pixels of 8-bit channels to pairs of int16. */
static void widen(float *dst, const staging *s, const char *src, int64_t n) {
    bool sign = s->x->dtype == ANE_I8, dense = s->x->sc == 1 || s->channels == 1;
    size_t channels = (size_t)s->channels;
    int zero = s->bytes->zero;
    if (dense && !(channels & 1) && s->x->s[2] == s->channels) {
        s->k->vec->widen((int16_t *)(void *)dst, src, sign, zero, (size_t)n * channels);
        return;
    }
    for (int64_t i = 0; i < n; i++, src += s->x->s[2], dst += s->width) {
        int16_t *to = (int16_t *)(void *)dst;
        const char *p = src;
        if (channels & 1) to[channels] = 0;
        if (dense) {
            s->k->vec->widen(to, p, sign, zero, channels);
            continue;
        }
        for (size_t c = 0; c < channels; c++, p += s->x->sc)
            to[c] = (int16_t)((sign ? *(const int8_t *)p : *(const uint8_t *)p) - zero);
    }
}

/* One row of the padded image. */
static void stage_row(void *arg, size_t task) {
    const staging *s = arg;
    const ane_rows *to = s->to;
    int64_t h = (int64_t)task % to->in[1], d = (int64_t)task / to->in[1] % to->in[0];
    int64_t n = (int64_t)task / to->in[1] / to->in[0];
    float *row = (float *)(uintptr_t)to->base + n * to->sn + d * to->s[0] + h * to->s[1];
    d -= s->before[0], h -= s->before[1];
    size_t c = (size_t)s->width, w = (size_t)to->in[2];
    bool quads = s->bytes && s->bytes->lanes == 4;
    int none = s->bytes ? ane__bytes_zero(s->bytes) : 0;
    if (d < 0 || d >= s->in[0] || h < 0 || h >= s->in[1]) {
        memset(row, none, w * c * sizeof *row);
        return;
    }
    size_t left = (size_t)s->before[2], real = (size_t)s->in[2];
    memset(row, none, left * c * sizeof *row);
    const char *from = (const char *)s->x->data + n * s->x->sn + d * s->x->s[0] + h * s->x->s[1];
    if (quads) flip(row + left * c, s, from, s->in[2]);
    else if (s->bytes)
        widen(row + left * c, s, from, s->in[2]);
    else
        s->k->conv->rows_in(row + left * c, c, from, s->x->dtype, s->x->s[2], s->x->sc, real, c);
    memset(row + (left + real) * c, none, (w - left - real) * c * sizeof *row);
}

bool ane__rows_stage_bytes(int64_t n, int64_t channels, const int64_t *in, const int64_t *before,
                           const int64_t *after, const ane_bytes *as, ane_rows *out,
                           size_t *size) {
    int64_t width = as ? (channels + as->lanes - 1) / as->lanes : channels;
    int64_t dims[5] = {n, 0, 0, 0, width};
    *out = (ane_rows){.sn = 0};
    for (int i = 0; i < 3; i++) {
        dims[i + 1] = out->in[i] = in[i] + before[i] + after[i];
        out->shift[i] = before[i];
    }
    if (!ane_shape_bytes(5, dims, sizeof(float), size)) return false;
    out->s[2] = width;
    out->s[1] = out->s[2] * out->in[2];
    out->s[0] = out->s[1] * out->in[1];
    out->sn = out->s[0] * out->in[0];
    return true;
}

ane_status ane__rows_stage(const ane_kernels *k, const ane_planes *x, int64_t n,
                           int64_t channels, const int64_t *in, const int64_t *before,
                           const int64_t *after, const ane_bytes *as, ane_rows *out,
                           ane_error *err) {
    size_t bytes;
    if (!ane__rows_stage_bytes(n, channels, in, before, after, as, out, &bytes))
        return ane_fail(err, ANE_ERR_NOMEM, "[conv] the padded operand is larger than memory");
    out->owned = ane_scratch_push(bytes);
    if (!out->owned)
        return ane_fail(err, ANE_ERR_NOMEM, "[conv] no memory for %zu bytes of a padded operand",
                        bytes);
    out->base = out->owned;
    staging s = {k, x, out, channels, out->s[2], in, before, as};
    if (ane_parallel_for((size_t)(n * out->in[0] * out->in[1]), stage_row, &s)) return ANE_OK;
    ane_scratch_pop(out->owned);
    return ane_fail(err, ANE_ERR_CANCELLED, "[conv] cancelled");
}

int64_t ane__even_run(const int64_t *out, const int64_t *strides) {
    int64_t run = 1, step = 0;
    for (int i = 2; i >= 0; i--) {
        if (out[i] == 1) continue;
        if (run > 1 && strides[i] != step * run) break;
        if (run == 1) step = strides[i];
        run *= out[i];
    }
    return run;
}
