/* Surface I/O in the channel-first layout [1, C, 1, S]: fp32 in and out of a flat fp16 view,
 * element (c, s) at c*S + s, offsets in channels. Everything is expressed as tensor copies,
 * so strides, threads and conversions have one implementation. */
#include "tensor.h"

#include <string.h>

/* The flat fp16 elements of t. */
static ane_status flat(const char *who, const ane_tensor *t, size_t *count, ane_error *err) {
    ane_status st = ane_tensor_check(t, err);
    if (st) return st;
    if (t->dtype != ANE_F16)
        return ane_fail(err, ANE_ERR_DTYPE, "[%s] expected a float16 tensor, got %s", who,
                        ane_dtype_name(t->dtype));
    if (!ane_tensor_contiguous(t))
        return ane_fail(err, ANE_ERR_INVALID, "[%s] the tensor must be contiguous", who);
    *count = (size_t)ane_tensor_count(t);
    return ANE_OK;
}

/* Rows x columns elements from `first`, pitch elements apart, inside t's flat elements. */
static ane_status region(const char *who, const ane_tensor *t, size_t first, size_t rows,
                         size_t columns, size_t pitch, ane_tensor *out, ane_error *err) {
    size_t count = 0, span = 0, end = 0;
    ane_status st = flat(who, t, &count, err);
    if (st) return st;
    bool fits = columns <= pitch && pitch <= (size_t)INT64_MAX / 2 &&
                ane_mul_size(rows ? rows - 1 : 0, pitch, &span) &&
                ane_add_size(span, rows ? columns : 0, &span) &&
                ane_add_size(first, span, &end);
    if (!fits || end > count)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[%s] %zu channels of %zu elements (pitch %zu) from element %zu do not "
                        "fit the tensor's %zu elements",
                        who, rows, columns, pitch, first, count);
    *out = (ane_tensor){.surface = t->surface,
                        .offset = t->offset + first * 2,
                        .dtype = ANE_F16,
                        .rank = 2,
                        .shape = {(int64_t)rows, (int64_t)columns},
                        .strides = {(int64_t)pitch * 2, 2}};
    return ANE_OK;
}

/* An fp32 host block as a view of a surface on the caller's stack: it lives for one copy. */
static void host(ane_surface *s, ane_tensor *t, const float *p, size_t rows, size_t columns,
                 bool readonly) {
    static unsigned char nothing;
    memset(s, 0, sizeof *s);
    s->memory = ANE_MEM_EXTERNAL;
    s->base = p ? (unsigned char *)p : &nothing;
    s->bytes = s->capacity = rows * columns * sizeof *p;    /* region() checked the product */
    s->readonly = readonly;
    *t = (ane_tensor){.surface = s,
                      .dtype = ANE_F32,
                      .rank = 2,
                      .shape = {(int64_t)rows, (int64_t)columns},
                      .strides = {(int64_t)columns * 4, 4}};
}

static ane_status channel_offset(const char *who, size_t channel, size_t s, size_t *first,
                                 ane_error *err) {
    if (ane_mul_size(channel, s, first)) return ANE_OK;
    return ane_fail(err, ANE_ERR_SHAPE, "[%s] channel %zu of %zu elements overflows", who,
                    channel, s);
}

/* dst[...] = src[...] between locks. */
static ane_status locked_copy(const ane_tensor *dst, const ane_tensor *src, ane_error *err) {
    bool dst_host = dst->surface->memory == ANE_MEM_EXTERNAL && !dst->surface->identity;
    ane_surface *s = dst_host ? src->surface : dst->surface;
    ane_access access = dst_host ? ANE_READ : ANE_WRITE;
    ane_status st = ane_surface_lock(s, access, err);
    if (st) return st;
    st = ane_tensor_copy(dst, src, err);
    ane_status un = ane_surface_unlock(s, access, st ? NULL : err);
    return st ? st : un;
}

ane_status ane_io_write(const ane_tensor *t, size_t channel, const float *x, size_t channels,
                        size_t s, ane_error *err) {
    ane_tensor to, from;
    ane_surface memory;
    size_t first;
    ane_status st = channel_offset("io_write", channel, s, &first, err);
    if (!st) st = region("io_write", t, first, channels, s, s, &to, err);
    if (st) return st;
    host(&memory, &from, x, channels, s, true);
    return locked_copy(&to, &from, err);
}

ane_status ane_io_read(const ane_tensor *t, size_t channel, float *out, size_t channels,
                       size_t s, ane_error *err) {
    ane_tensor to, from;
    ane_surface memory;
    size_t first;
    ane_status st = channel_offset("io_read", channel, s, &first, err);
    if (!st) st = region("io_read", t, first, channels, s, s, &from, err);
    if (st) return st;
    host(&memory, &to, out, channels, s, false);
    return locked_copy(&to, &from, err);
}

ane_status ane_io_copy(const ane_tensor *dst, size_t dst_channel, const ane_tensor *src,
                       size_t src_channel, size_t channels, size_t s, ane_error *err) {
    ane_tensor to, from;
    size_t at, of;
    ane_status st = channel_offset("io_copy", dst_channel, s, &at, err);
    if (!st) st = channel_offset("io_copy", src_channel, s, &of, err);
    if (!st) st = region("io_copy", dst, at, channels, s, s, &to, err);
    if (!st) st = region("io_copy", src, of, channels, s, s, &from, err);
    if (st) return st;
    if (to.surface->readonly)
        return ane_fail(err, ANE_ERR_INVALID, "[io_copy] the destination is read-only");
    /* Locks are counts, or the platform's shared ones: taken one after the other by identity,
     * so that opposite copies in two threads cannot wait for each other. */
    ane_surface *a = to.surface, *b = from.surface;
    ane_access first = ANE_WRITE, second = ANE_READ;
    if (b->identity < a->identity) {
        a = from.surface, b = to.surface;
        first = ANE_READ, second = ANE_WRITE;
    }
    st = ane_surface_lock(a, first, err);
    if (st) return st;
    st = ane_surface_lock(b, second, err);
    if (!st) {
        if (ane_tensor_overlap(&to, &from)) {
            /* Both are contiguous runs of one surface: moved as bytes, in the right order. */
            st = ane_tensor_readable(&from, err);
            if (!st) {
                memmove(ane_tensor_data(&to), ane_tensor_data(&from), channels * s * 2);
                ane_tensor_written(&to);
            }
        } else {
            st = ane_tensor_copy(&to, &from, err);
        }
        (void)ane_surface_unlock(b, second, NULL);
    }
    (void)ane_surface_unlock(a, first, NULL);
    return st;
}

ane_status ane_io_write_dyn(const ane_tensor *t, const float *act, size_t ic, size_t s,
                            const float *w, size_t oc, ane_error *err) {
    ane_tensor whole, to_act, to_w, from;
    ane_surface memory;
    size_t pitch;
    if (!ane_add_size(s, oc, &pitch))
        return ane_fail(err, ANE_ERR_SHAPE, "[io_write_dyn] %zu + %zu columns overflow", s, oc);
    ane_status st = region("io_write_dyn", t, 0, ic, pitch, pitch, &whole, err);
    if (!st) st = region("io_write_dyn", t, 0, ic, s, pitch, &to_act, err);
    if (!st) st = region("io_write_dyn", t, s, ic, oc, pitch, &to_w, err);
    if (st) return st;
    host(&memory, &from, act, ic, s, true);
    st = locked_copy(&to_act, &from, err);
    if (st) return st;
    host(&memory, &from, w, ic, oc, true);
    st = locked_copy(&to_w, &from, err);
    if (!st) ane_tensor_written(&whole);        /* both halves: no byte is left out */
    return st;
}

ane_status ane_io_read_dyn(const ane_tensor *t, float *out, size_t oc, size_t s,
                           ane_error *err) {
    return ane_io_read(t, 0, out, oc, s, err);
}
