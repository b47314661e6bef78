/* Geometry that convolution and pooling share: where windows of a padded input lie. */
#ifndef ANE_WINDOW_H
#define ANE_WINDOW_H

#include "ops_fn.h"

/* 1 to 3 spatial dims. `pad` counts elements before and after; out is -1 where in is
 * unknown. */
typedef struct ane_window {
    int n;
    int64_t in[3], kernel[3], stride[3], dilation[3], out[3];
    int64_t pad[3][2];
} ane_window;

/* Reads strides, dilations, pad_type, pad and ceil_mode (those the op has) and computes pad
 * and out. n, in and kernel are set. Fails through `in`, or through `ev` in an evaluator. */
ane_status ane__window_forward(ane_infer *in, ane_eval *ev, const ane_op *op, ane_window *w);
/* The same for conv_transpose: `in` is the small side. With output_shape, out is it. */
ane_status ane__window_transpose(ane_infer *in, ane_eval *ev, const ane_op *op,
                                 ane_window *w);
/* Adds leading dims of 1 up to three. */
void ane__window_three(ane_window *w);
/* Elements from a window's first tap to its last. */
static inline int64_t ane__window_reach(const ane_window *w, int i) {
    return (w->kernel[i] - 1) * w->dilation[i] + 1;
}

#endif
