/* Integers that stand for real numbers: what a quantization may be, and the numbers it means.
 * real = scale * (stored - zero_point), with one scale or one per index of an axis. */
#include "tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Elements that are converted at a time, and elements of one job. */
#define BLOCK 256
#define JOB (16 * 1024)

static bool range_of(ane_dtype dtype, int64_t *lo, int64_t *hi) {
    switch (dtype) {
    case ANE_I8: *lo = INT8_MIN, *hi = INT8_MAX; return true;
    case ANE_U8: *lo = 0, *hi = UINT8_MAX; return true;
    case ANE_I16: *lo = INT16_MIN, *hi = INT16_MAX; return true;
    case ANE_U16: *lo = 0, *hi = UINT16_MAX; return true;
    case ANE_I32: *lo = INT32_MIN, *hi = INT32_MAX; return true;
    case ANE_U32: *lo = 0, *hi = UINT32_MAX; return true;
    default: return false;
    }
}

/* Every refusal has this form: the field, what it may be, what it is. */
static ane_status refuse(ane_error *err, const char *field, const char *expected,
                         const char *got, ...) __attribute__((format(printf, 4, 5)));
static ane_status refuse(ane_error *err, const char *field, const char *expected,
                         const char *got, ...) {
    char text[96];
    va_list args;
    va_start(args, got);
    vsnprintf(text, sizeof text, got, args);
    va_end(args);
    return ane_fail(err, ANE_ERR_INVALID, "[quantization] %s: expected %s, got %s", field,
                    expected, text);
}

static ane_status check_values(const ane_quantization *q, ane_error *err) {
    char field[48];
    if (q->axis < 0 && q->n != 1)
        return refuse(err, "axis", "the axis that several scales go along", "none for %zu scales",
                      q->n);
    for (size_t i = 0; i < q->n; i++)
        if (!(q->scale[i] > 0) || isinf(q->scale[i])) {
            snprintf(field, sizeof field, "scale[%zu]", i);
            return refuse(err, q->axis < 0 ? "scale" : field, "a finite fp32 number above 0",
                          "%g", (double)q->scale[i]);
        }
    return ANE_OK;
}

ane_status ane_quantization_check(const ane_quantization *q, const ane_tensor *t,
                                  ane_error *err) {
    char field[48], expected[96];
    int64_t lo, hi;
    ane_status st = check_values(q, err);
    if (st || !t) return st;
    if (!range_of(t->dtype, &lo, &hi))
        return refuse(err, "dtype", "an integer of 8, 16 or 32 bits", "%s",
                      ane_dtype_name(t->dtype));
    if (q->axis >= t->rank) {
        snprintf(expected, sizeof expected, "an axis of a tensor of rank %d", t->rank);
        return refuse(err, "axis", expected, "%d", q->axis);
    }
    if (q->axis >= 0 && (uint64_t)t->shape[q->axis] != q->n) {
        snprintf(expected, sizeof expected, "%" PRId64 " values, the length of axis %d",
                 t->shape[q->axis], q->axis);
        return refuse(err, "scale", expected, "%zu", q->n);
    }
    for (size_t i = 0; q->zero_point && i < q->n; i++)
        if (q->zero_point[i] < lo || q->zero_point[i] > hi) {
            snprintf(field, sizeof field, "zero_point[%zu]", i);
            snprintf(expected, sizeof expected, "a number of %s, %" PRId64 " to %" PRId64,
                     ane_dtype_name(t->dtype), lo, hi);
            return refuse(err, q->axis < 0 ? "zero_point" : field, expected, "%" PRId64,
                          q->zero_point[i]);
        }
    return ANE_OK;
}

/* ---------------------------------------------------------------- to real numbers */

typedef struct job {
    unsigned char *dst;
    const unsigned char *src;
    size_t du, su, n;                   /* element sizes, elements */
    size_t channels, inner;             /* element i is of channel i / inner % channels */
    const ane_quantization *q;
    ane__convert_fn *load, *store;      /* to and from what is computed in */
} job;

/* A difference of integers of 8 and 16 bits is exact in fp32, so that the product with an fp32
 * scale rounds once; and the product is exact in double, so that the store rounds once. */
#define DEQUANTIZE(name, real)                                                           \
    static void name(void *arg, size_t i) {                                              \
        const job *j = arg;                                                              \
        real x[BLOCK];                                                                   \
        size_t at = i * JOB, end = at + JOB < j->n ? at + JOB : j->n;                    \
        size_t channel = at / j->inner % j->channels, left = j->inner - at % j->inner;   \
        for (size_t n; at < end; at += n) {                                              \
            n = end - at < BLOCK ? end - at : BLOCK;                                     \
            j->load(x, j->src + at * j->su, n);                                          \
            for (size_t k = 0, last; k < n; k = last) {                                  \
                real scale = j->q->scale[channel], zero = (real)zero_of(j->q, channel);     \
                last = n - k < left ? n : k + left;                                      \
                for (size_t e = k; e < last; e++) x[e] = (x[e] - zero) * scale;          \
                left -= last - k;                                                        \
                if (left) continue;                                                      \
                left = j->inner;                                                         \
                channel = channel + 1 == j->channels ? 0 : channel + 1;                  \
            }                                                                            \
            j->store(j->dst + at * j->du, x, n);                                         \
        }                                                                                \
    }

static int64_t zero_of(const ane_quantization *q, size_t channel) {
    return q->zero_point ? q->zero_point[channel] : 0;
}

DEQUANTIZE(in_float, float)
DEQUANTIZE(in_double, double)

static void keep(void *dst, const void *src, size_t n) { memcpy(dst, src, n * sizeof(float)); }

ane_status ane_tensor_dequantize(const ane_tensor *dst, const ane_tensor *src,
                                 const ane_quantization *q, ane_error *err) {
    ane_status st = ane_tensor_check(dst, err);
    if (!st) st = ane_tensor_check(src, err);
    if (!st) st = ane_quantization_check(q, src, err);
    if (st) return st;
    bool fits = dst->rank == src->rank && ane_tensor_contiguous(dst) && !dst->surface->readonly;
    for (int i = 0; fits && i < src->rank; i++) fits = dst->shape[i] == src->shape[i];
    if (!fits)
        return ane_fail(err, ANE_ERR_SHAPE, "[dequantize] the destination must be a writable "
                        "row-major tensor of the source's shape");
    if (dst->dtype != ANE_F16 && dst->dtype != ANE_F32 && dst->dtype != ANE_F64 &&
        dst->dtype != ANE_BF16)
        return ane_fail(err, ANE_ERR_DTYPE, "[dequantize] expected a float type, got %s",
                        ane_dtype_name(dst->dtype));
    if (ane_tensor_overlap(dst, src))
        return ane_fail(err, ANE_ERR_INVALID, "[dequantize] source and destination overlap");
    if ((st = ane_tensor_readable(src, err))) return st;
    if (!ane_tensor_count(src)) return ANE_OK;
    ane_tensor packed = {0};
    if (!ane_tensor_contiguous(src)) {
        st = ane_tensor_create_like(ANE_MEM_HEAP, src, NULL, &packed, err);
        if (st) return st;
        src = &packed;
    }
    job j = {.dst = ane_tensor_data(dst), .src = ane_tensor_data(src),
             .du = ane_dtype_size(dst->dtype), .su = ane_dtype_size(src->dtype),
             .n = (size_t)ane_tensor_count(src), .channels = 1, .q = q};
    bool narrow = j.su <= 2 && dst->dtype == ANE_F32;
    j.load = ane__convert(narrow ? ANE_F32 : ANE_F64, src->dtype);
    j.store = narrow ? keep : ane__convert(dst->dtype, ANE_F64);
    j.inner = j.n;
    if (q->axis >= 0) {
        j.channels = (size_t)src->shape[q->axis];
        j.inner = 1;
        for (int i = q->axis + 1; i < src->rank; i++) j.inner *= (size_t)src->shape[i];
    }
    bool done = ane_parallel_for((j.n + JOB - 1) / JOB, narrow ? in_float : in_double, &j);
    ane_surface_release(packed.surface);
    if (!done) {
        ane_surface_touch(dst->surface, 0, SIZE_MAX);
        return ane_fail(err, ANE_ERR_CANCELLED, "[dequantize] cancelled");
    }
    ane_tensor_written(dst);
    return ANE_OK;
}
