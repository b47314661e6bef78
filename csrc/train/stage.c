/* Staging: fp32 masters into the fp16, bf16 or fp32 blocks that kernels read, and the
 * choice of the room's loops. */
#include "train.h"

#include "../base/sync.h"

#include <string.h>

#define BLOCK ((size_t)64 * ANE_TRAIN_TILE)

const ane_train_loops *ane_train_table(void) { return &ane_train_loops__scalar; }

typedef struct copy {
    const float *src;
    char *dst;
    ane_dtype dtype;
    size_t n;
    const ane_train_loops *t;
} copy;

static void block(void *arg, size_t i) {
    const copy *c = arg;
    size_t lo = i * BLOCK, n = c->n - lo > BLOCK ? BLOCK : c->n - lo;
    if (c->dtype == ANE_F16) c->t->to_f16((uint16_t *)(void *)c->dst + lo, c->src + lo, n);
    else if (c->dtype == ANE_BF16)
        c->t->to_bf16((uint16_t *)(void *)c->dst + lo, c->src + lo, n);
    else memcpy(c->dst + 4 * lo, c->src + lo, 4 * n);
}

ane_status ane_stage(void *dst, ane_dtype dtype, const float *src, size_t n,
                     ane_error *err) {
    if (dtype != ANE_F16 && dtype != ANE_BF16 && dtype != ANE_F32)
        return ane_fail(err, ANE_ERR_DTYPE,
                        "[stage] the copy is %s, expected float16, bfloat16 or float32",
                        ane_dtype_name(dtype));
    if (n > PTRDIFF_MAX / 4)
        return ane_fail(err, ANE_ERR_SHAPE, "[stage] %zu elements overflow a size", n);
    size_t bytes = n * ane_dtype_size(dtype);
    uintptr_t d = (uintptr_t)dst, s = (uintptr_t)src;
    if (n && (d < s ? s - d < bytes : d - s < 4 * n))
        return ane_fail(err, ANE_ERR_INVALID, "[stage] source and copy share memory");
    copy c = {.src = src, .dst = dst, .dtype = dtype, .n = n, .t = ane_train_table()};
    ane_parallel_for((n + BLOCK - 1) / BLOCK, block, &c);
    return ANE_OK;
}
