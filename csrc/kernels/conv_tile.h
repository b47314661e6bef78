/* What conv.c asks of an instruction set's file: tiles over channels-last fp32 rows. */
#ifndef ANE_CONV_TILE_H
#define ANE_CONV_TILE_H

/* Counts of loops become constant where functions are inlined; clang also tries before that. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

#include "conv.h"

/* What becomes of finished sums. `whole`: the micro-kernel does it all in registers (both
 * functions are limits or none, the residual is fp32); else it only scales and shifts, and
 * ane_conv_kernels.finish does the rest. scale and shift are at the tile's first channel. */
typedef struct ane_conv_post {
    const float *scale, *shift;
    ane_conv_act before, after;
    const char *res;                    /* of the tile's position 0 and channel 0; or NULL */
    ane_dtype res_dtype;
    int64_t res_s;                      /* bytes between positions */
    bool whole;
} ane_conv_post;

/* c[i][j] (+)= sum over segments s and k < len of a[s][i][skip + k] * b[s][k][j]: one tile
 * of m <= mr positions by n <= nr channels. b's rows are nr long. post NULL: bare sums. */
typedef struct ane_conv_tile {
    const float *const *a;              /* [segs][mr] */
    size_t skip, segs, len;
    const float *b;
    float *c;
    size_t ldc, n;
    bool add;
    const int32_t *init;                /* what integer sums begin with, by channel; or NULL */
    const ane_conv_post *post;
    /* Fetched meanwhile: from `ahead` a step per k, and the lines that the tile after this
     * one stores to and takes its residual from. */
    const char *ahead;
    size_t ahead_step;
    const float *next_c;
    const char *next_res;
} ane_conv_tile;

/* y[i][c] = sum over taps of a[t][i*step + c] * w[t][c]: px <= 4 positions. w's rows have
 * room for whole vectors. */
typedef struct ane_conv_dw {
    size_t taps, channels, step;
    const float *const *a, *const *w;   /* [taps] */
    float *y;
    size_t ldy;
    ane_conv_post post;
} ane_conv_dw;

typedef void ane_conv_tile_fn(size_t m, const ane_conv_tile *t);

typedef struct ane_conv_kernels {
    const char *name, *dw_name, *pool_name;
    size_t mr, nr, vw;
    ane_conv_tile_fn *tile;
    void (*finish)(const ane_conv_post *p, float *c, size_t ld, size_t m, size_t n);
    void (*depthwise)(size_t px, const ane_conv_dw *d);
    void (*pool)(ane_pool_kind kind, const float *const *a, size_t taps, float scale, float *y,
                 size_t channels);
    /* Rows of channels to fp32, `ld` floats apart. */
    void (*rows_in)(float *dst, size_t ld, const char *src, ane_dtype dtype, int64_t s_i,
                    int64_t s_c, size_t rows, size_t channels);
} ane_conv_kernels;

#endif
