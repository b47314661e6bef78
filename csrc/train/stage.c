/* Staging: fp32 masters into the fp16, bf16 or fp32 blocks that kernels read, and the
 * choice of the room's loops. */
#include "train.h"

#include "../kernels/convert.h"
#include "../kernels/kernels.h"

#include <stdatomic.h>
#include <string.h>

static const ane_train_loops *const tables[] = {
    &ane_train_loops__scalar,
#if defined(ANE_BUILT_AVX2) && (defined(__x86_64__) || defined(__i386__))
    &ane_train_loops__avx2,
#endif
#if defined(ANE_BUILT_AVX512) && (defined(__x86_64__) || defined(__i386__))
    &ane_train_loops__avx512,
#endif
};

static _Atomic(const ane_train_loops *) forced;

void ane_train_force(const ane_train_loops *t) { atomic_store(&forced, t); }

const ane_train_loops *ane_train_at(size_t i) {
    return i < sizeof tables / sizeof *tables ? tables[i] : NULL;
}

/* kernels/select.c has asked the CPU and ANETORCH_ISA: take the loops of the widest of its
 * tables that this room has loops for. */
const ane_train_loops *ane_train_table(void) {
    const ane_train_loops *f = atomic_load(&forced), *best = tables[0];
    if (f) return f;
    const char *limit = ane_kernels_get()->name;
    for (size_t k = 0; k < ane_kernels_count(); k++) {
        const char *name = ane_kernels_at(k)->name;
        for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
            if (!strcmp(tables[i]->name, name)) best = tables[i];
        if (!strcmp(name, limit)) break;
    }
    return best;
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
    if (n) ane_convert(dst, dtype, src, ANE_F32, n);
    return ANE_OK;
}
