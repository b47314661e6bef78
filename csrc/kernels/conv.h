/* Convolution of strided operands, forward and transposed, 1 to 3 spatial dims (missing ones
 * are 1), and pooling. No intrinsics here.
 *
 *     y[n, o, q] = after(before(scale[o] * sum x[n, i, q*stride + k*dilation - pad] * w[o, i, k]
 *                               + shift[o]) + residual[n, o, q])
 *
 * The inner layout is channels last: a tile is some positions by some output channels, and a
 * tap's operand is a run of channels of one pixel, read where it lies through a table of
 * pointers (no columns are ever gathered; a tap in the padding points at zeros). Operands of
 * another layout or type are brought into this one, with their padding, in scratch.
 *
 * Products and sums are fp32; those of 8-bit integers are exact in int32: values lose their
 * zero points while they are widened to int16, or stay bytes, and sums begin with what the
 * zero point takes from them. Sums are split into blocks of k that depend on the shape only,
 * and every output is made by one task: same bits for every thread count.
 */
#ifndef ANE_CONV_H
#define ANE_CONV_H

#include "gemm.h"

/* An element-wise function: limits (relu, relu6, clip; NaN stays) or one of ane_act. */
typedef struct ane_conv_act {
    ane_act act;                        /* RELU is written as limits */
    bool limits;
    float low, high;
} ane_conv_act;

/* Element (n, c, d, h, w) at data + n*sn + c*sc + d*s[0] + h*s[1] + w*s[2] (bytes). */
typedef struct ane_planes {
    void *data;
    ane_dtype dtype;
    int64_t sn, sc, s[3];
} ane_planes;

/* The result once more, as 8-bit integers: what ane_vec.quantize makes of it. */
typedef struct ane_conv_eight {
    ane_planes y;                       /* ANE_I8 or ANE_U8 */
    double scale;
    int zero;
} ane_conv_eight;

typedef struct ane_conv_args {
    bool transposed;
    int64_t n, groups, cin, cout;       /* channels of all groups */
    int64_t in[3], out[3], kernel[3], stride[3], dilation[3];
    int64_t pad[3];                     /* before; what lies behind follows from out */
    ane_planes x, y;
    const ane_conv_eight *eight;        /* NULL: none */
    bool only_eight;                    /* y is not wanted: of it, the type alone counts */
    /* conv: [cout, cin/groups, K]; transposed: [cin, cout/groups, K]. */
    const void *w;
    ane_dtype w_dtype;
    int64_t w_out, w_in, w_s[3];        /* bytes along output channels, input channels, K */
    int x_zero, w_zero;                 /* of 8-bit operands: both x and w, or neither */
    const float *scale, *shift;         /* [cout]; NULL: 1, 0 */
    ane_conv_act before, after;
    const ane_planes *residual;          /* NULL: none; channels contiguous. Not y itself. */
    const void *packed;                 /* from ane_conv_pack, or NULL */
} ane_conv_args;

/* y must not overlap any operand. */
ane_status ane_conv(const ane_conv_args *args, ane_error *err);
/* States what that takes; `packed` tells only whether it will be given. */
void ane_conv_room(const ane_conv_args *args, struct ane_room *room);
/* "conv_6x16__avx2", "depthwise__avx2": what would run these args. */
const char *ane_conv_name(const ane_conv_args *args);
/* The weights in the kernel's order: bytes, and the packing. */
size_t ane_conv_pack_bytes(const ane_conv_args *args);
ane_status ane_conv_pack(const ane_conv_args *args, void *dst, ane_error *err);
double ane_conv_flops(const ane_conv_args *args);

typedef enum ane_pool_kind { ANE_POOL_MAX, ANE_POOL_AVG, ANE_POOL_L2 } ane_pool_kind;

/* Windows of `kernel` at out * stride - pad. The average divides by the elements of the
 * window inside the padded input (its far edge is in + after), or, `exclude`, inside the
 * input itself; a window wholly behind the input gives 0 (max: -inf). */
typedef struct ane_pool_args {
    ane_pool_kind kind;
    bool exclude;
    int64_t n, channels;
    int64_t in[3], out[3], kernel[3], stride[3], pad[3], after[3];
    ane_planes x, y;
} ane_pool_args;

const char *ane_pool_name(void);
ane_status ane_pool(const ane_pool_args *args, ane_error *err);
void ane_pool_room(const ane_pool_args *args, struct ane_room *room);

#endif
