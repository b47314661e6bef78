/* pack16 with vectors: whole blocks of eight rows by eight k where either is contiguous; edges
 * and other strides go the general way. */
#ifndef ANE_PACK16_NEON_H
#define ANE_PACK16_NEON_H

#include "pack16.h"
#include "simd_neon.h"

/* Eight neighbours as they are stored in panels. */
typedef uint16x8_t pack16_load(const char *p, ane_dtype dtype);

static inline uint16x8_t load8_same(const char *p, ane_dtype dtype) {
    (void)dtype;
    return vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)p));
}
static inline uint16x8_t load8_bf16(const char *p, ane_dtype dtype) {
    if (dtype == ANE_BF16) return load8_same(p, dtype);
    if (dtype == ANE_F32) return vcombine_u16(v_narrow(v_loadu(p)), v_narrow(v_loadu(p + 16)));
    return vcombine_u16(v_narrow(v_load16(p)), v_narrow(v_load16(p + 8)));
}

static inline uint16x8_t from_u32(uint32x4_t x) { return vreinterpretq_u16_u32(x); }
static inline uint32x4_t low_pairs(uint16x8_t a, uint16x8_t b) {
    return vreinterpretq_u32_u16(vzip1q_u16(a, b));
}
static inline uint32x4_t high_pairs(uint16x8_t a, uint16x8_t b) {
    return vreinterpretq_u32_u16(vzip2q_u16(a, b));
}

/* q[i][0..3]: row i's four dwords. to: dword d of all four rows at to + d*step. */
static inline void turn_dwords(uint16_t *to, size_t step, const uint32x4_t q[4]) {
    uint32x4_t a = vzip1q_u32(q[0], q[2]), b = vzip1q_u32(q[1], q[3]);
    uint32x4_t c = vzip2q_u32(q[0], q[2]), d = vzip2q_u32(q[1], q[3]);
    vst1q_u16(to, from_u32(vzip1q_u32(a, b)));
    vst1q_u16(to + step, from_u32(vzip2q_u32(a, b)));
    vst1q_u16(to + 2 * step, from_u32(vzip1q_u32(c, d)));
    vst1q_u16(to + 3 * step, from_u32(vzip2q_u32(c, d)));
}

/* Rows r of eight k each: [k / kr][w][kr] at `to`. */
static inline __attribute__((always_inline)) void turn(uint16_t *to, const size_t w,
                                                       const size_t kr, const uint16x8_t r[8]) {
    if (kr == 2) {
        UNROLL for (int h = 0; h < 2; h++) {
            uint32x4_t q[4];
            UNROLL for (int i = 0; i < 4; i++) q[i] = vreinterpretq_u32_u16(r[4 * h + i]);
            turn_dwords(to + 8 * h, 2 * w, q);
        }
        return;
    }
    /* Pairs of rows first, then their dwords; even and odd k of eight rows side by side. */
    uint32x4_t q[4], s[4];
    UNROLL for (int i = 0; i < 4; i++) {
        q[i] = low_pairs(r[2 * i], r[2 * i + 1]);
        s[i] = high_pairs(r[2 * i], r[2 * i + 1]);
    }
    turn_dwords(to, w, q);
    turn_dwords(to + 4 * w, w, s);
}

static inline __attribute__((always_inline)) void
pack16_fast(pack16_load *load, uint16_t (*get)(const char *, ane_dtype), const size_t w,
            const size_t kr, void *dst, size_t stride, const void *src, ane_dtype dtype,
            int64_t s_i, int64_t s_k, size_t count, size_t k) {
    const int64_t size = dtype == ANE_F32 ? 4 : 2;
    const bool across = s_i == size, along = s_k == size;
    const size_t whole = across || along ? count / w : 0;
    const size_t done = across ? k / kr * kr : k / 8 * 8;
    const char *s = src;
    for (size_t i = 0; i < whole * w; i += 8) {
        uint16_t *to = (uint16_t *)(void *)((char *)dst + i / w * stride) + i % w * kr;
        const char *from = s + (int64_t)i * s_i;
        for (size_t p = 0; across && p < done; p += kr) {
            uint16x8_t x = load(from + (int64_t)p * s_k, dtype);
            if (kr == 1) {
                vst1q_u16(to + p * w, x);
                continue;
            }
            uint16x8_t y = load(from + (int64_t)(p + 1) * s_k, dtype);
            vst1q_u16(to + p * w, from_u32(low_pairs(x, y)));
            vst1q_u16(to + p * w + 8, from_u32(high_pairs(x, y)));
        }
        for (size_t p = 0; !across && p < done; p += 8) {
            uint16x8_t r[8];
            UNROLL for (int l = 0; l < 8; l++)
                r[l] = load(from + l * s_i + (int64_t)p * size, dtype);
            turn(to + p * w, w, kr, r);
        }
    }
    if (whole * w < count)
        pack16(get, w, kr, (char *)dst + whole * stride, stride, s + (int64_t)(whole * w) * s_i,
               dtype, s_i, s_k, count - whole * w, k);
    if (whole && done < k)
        pack16(get, w, kr, (char *)dst + done * w * 2, stride, s + (int64_t)done * s_k, dtype,
               s_i, s_k, whole * w, k - done);
}

#define PACK16_NEON(name, kind, w, kr)                                                    \
    static void name(void *dst, size_t stride, const void *src, ane_dtype dtype,          \
                     int64_t s_i, int64_t s_k, size_t count, size_t k) {                  \
        pack16_fast(load8_##kind, pack16_##kind, w, kr, dst, stride, src, dtype, s_i,     \
                    s_k, count, k);                                                       \
    }

#endif
