/* Packing of 16-bit operands for kernels that multiply them as they are: panels of W with kr
 * consecutive k together, [k / kr][W][kr]. `get` turns one element of the source into the
 * stored 16 bits. Plain C, the general way: pack16_neon.h takes whole blocks. */
#ifndef ANE_PACK16_H
#define ANE_PACK16_H

#include "kernels.h"

#include "../base/f16.h"

static inline uint16_t pack16_same(const char *p, ane_dtype dtype) {
    uint16_t h;
    (void)dtype;
    memcpy(&h, p, sizeof h);
    return h;
}
static inline uint16_t pack16_bf16(const char *p, ane_dtype dtype) {
    uint16_t h;
    float f;
    if (dtype == ANE_F32) {
        memcpy(&f, p, sizeof f);
        return ane_bf16_from_f32(f);
    }
    memcpy(&h, p, sizeof h);
    return dtype == ANE_BF16 ? h : ane_bf16_from_f32(ane_f32_from_f16(h));
}

static inline __attribute__((always_inline)) void
pack16(uint16_t (*get)(const char *, ane_dtype), const size_t w, const size_t kr, void *dst,
       size_t stride, const void *src, ane_dtype dtype, int64_t s_i, int64_t s_k, size_t count,
       size_t k) {
    size_t padded = (k + kr - 1) / kr * kr;
    for (size_t i = 0; i < (count + w - 1) / w * w; i++) {
        uint16_t *to = (uint16_t *)(void *)((char *)dst + i / w * stride) + i % w * kr;
        const char *from = (const char *)src + (int64_t)(i < count ? i : 0) * s_i;
        for (size_t p = 0; p < padded; p++)
            to[p / kr * w * kr + p % kr] =
                i < count && p < k ? get(from + (int64_t)p * s_k, dtype) : (uint16_t)0;
    }
}

#endif
