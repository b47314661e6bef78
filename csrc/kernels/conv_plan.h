/* Geometry that conv.c and pool.c share: operands brought into channels-last fp32 rows. */
#ifndef ANE_CONV_PLAN_H
#define ANE_CONV_PLAN_H

#include "kernels.h"

/* fp32 rows of channels: element (n, c, d, h, w) is base[n*sn + c + d*s[0] + ...]. */
typedef struct ane_rows {
    const float *base;
    int64_t sn, s[3];                   /* floats */
    int64_t in[3];
    int64_t shift[3];                   /* added to coordinates: padding that is there */
    void *owned;                        /* scratch to pop, or NULL */
} ane_rows;

/* x as rows; false: it must be staged. */
bool ane__rows_view(const ane_planes *x, int64_t channels, const int64_t *in, ane_rows *out);
/* How 8-bit channels become elements of 32 bits, rounded up to whole ones: pairs of int16
 * without their zero point, or quads of bytes that still have it, their top bit flipped where
 * the tile wants the other sign. */
typedef struct ane_bytes {
    int lanes;                          /* 2 or 4 */
    int zero, flip;                     /* flip: 0 or 0x80 */
} ane_bytes;

/* The byte that stands for zero: 0 in pairs. */
static inline uint8_t ane__bytes_zero(const ane_bytes *b) {
    return b->lanes == 4 ? (uint8_t)(b->zero ^ b->flip) : 0;
}

/* A copy in scratch with before[d] and after[d] zeros around the image. bytes: of 8-bit x. */
ane_status ane__rows_stage(const ane_kernels *k, const ane_planes *x, int64_t n,
                           int64_t channels, const int64_t *in, const int64_t *before,
                           const int64_t *after, const ane_bytes *bytes, ane_rows *out,
                           ane_error *err);
/* Bytes of that copy, and its shape in *out; false: beyond memory. */
bool ane__rows_stage_bytes(int64_t n, int64_t channels, const int64_t *in, const int64_t *before,
                           const int64_t *after, const ane_bytes *bytes, ane_rows *out,
                           size_t *size);
/* How many positions step evenly in memory, over innermost dims merged while they do. */
int64_t ane__even_run(const int64_t *out, const int64_t *strides);
bool ane__rows_writable(const ane_planes *y, int64_t channels);

#endif
