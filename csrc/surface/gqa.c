/* Grouped-query attention: KV heads repeated for their query heads, and the adjoint sum.
 * Query head h uses KV head h / ratio everywhere in anetorch. */
#include "tensor.h"

#include <string.h>

typedef struct job {
    float *out;
    const float *in;
    size_t kv_heads, ratio, head;       /* head: elements of one head */
    size_t parts, part;                 /* a head cut into parts of `part` elements */
} job;

static ane_status prepare(const char *who, float *out, const float *in, size_t heads,
                          size_t kv_heads, size_t head_dim, size_t seq, bool reduce, job *j,
                          ane_error *err) {
    if (!heads || !kv_heads || heads % kv_heads)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[%s] %zu query heads are not a multiple of %zu KV heads", who, heads,
                        kv_heads);
    size_t head, q, kv;
    if (!ane_mul_size(head_dim, seq, &head) || !ane_mul_size(head, heads, &q) ||
        !ane_mul_size(head, kv_heads, &kv) || q > (size_t)INT64_MAX / sizeof(float))
        return ane_fail(err, ANE_ERR_SHAPE, "[%s] %zu heads of %zu x %zu overflow", who, heads,
                        head_dim, seq);
    uintptr_t o = (uintptr_t)out, i = (uintptr_t)in;
    size_t no = (reduce ? kv : q) * sizeof(float), ni = (reduce ? q : kv) * sizeof(float);
    if (head && o < i + ni && i < o + no)
        return ane_fail(err, ANE_ERR_INVALID, "[%s] out overlaps in", who);
    *j = (job){out, in, kv_heads, heads / kv_heads, head, 1, head};
    if (q * sizeof(float) >= ANE__THREAD_FROM) {
        j->part = (size_t)16 << 10;
        j->parts = (head + j->part - 1) / j->part;
    }
    return ANE_OK;
}

static void tile_part(void *arg, size_t index) {
    const job *j = arg;
    size_t kv = index / j->parts, at = index % j->parts * j->part;
    size_t n = j->head - at < j->part ? j->head - at : j->part;
    const float *src = j->in + kv * j->head + at;
    for (size_t r = 0; r < j->ratio; r++)
        memcpy(j->out + (kv * j->ratio + r) * j->head + at, src, n * sizeof *src);
}

/* Query heads are added in increasing order: ((h0 + h1) + h2) + ... */
static void reduce_part(void *arg, size_t index) {
    const job *j = arg;
    size_t kv = index / j->parts, at = index % j->parts * j->part;
    size_t n = j->head - at < j->part ? j->head - at : j->part;
    float *dst = j->out + kv * j->head + at;
    const float *src = j->in + kv * j->ratio * j->head + at;
    memcpy(dst, src, n * sizeof *dst);
    for (size_t r = 1; r < j->ratio; r++) {
        src += j->head;
        for (size_t k = 0; k < n; k++) dst[k] += src[k];
    }
}

ane_status ane_gqa_tile(float *out, const float *in, size_t heads, size_t kv_heads,
                        size_t head_dim, size_t seq, ane_error *err) {
    job j;
    ane_status st = prepare("gqa_tile", out, in, heads, kv_heads, head_dim, seq, false, &j,
                            err);
    if (!st && j.head) ane_parallel_for(kv_heads * j.parts, tile_part, &j);
    return st;
}

ane_status ane_gqa_reduce(float *out, const float *in, size_t heads, size_t kv_heads,
                          size_t head_dim, size_t seq, ane_error *err) {
    job j;
    ane_status st = prepare("gqa_reduce", out, in, heads, kv_heads, head_dim, seq, true, &j,
                            err);
    if (!st && j.head) ane_parallel_for(kv_heads * j.parts, reduce_part, &j);
    return st;
}
