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
    const char *res;                    /* of position 0 and channel 0; or NULL. Of tiles: any */
    ane_dtype res_dtype;
    int64_t res_s;                      /* bytes between positions */
    bool whole;
} ane_conv_post;

/* Where a tile's position 0 is: its sums, and its residual. */
typedef struct ane_conv_spot {
    float *c;
    const char *res;
} ane_conv_spot;

/* c[i][j] (+)= sum over segments s and k < len of a[s][i][skip + k] * b[s][k][j]: `count` tiles
 * of m <= mr positions by n <= nr channels, one after the other. b's rows are nr long. post
 * NULL: bare sums. */
typedef struct ane_conv_tile {
    size_t count;
    const float *const *a;              /* [count][segs][mr] */
    size_t skip, segs, len;
    const float *b;
    const ane_conv_spot *spots;         /* [count + soon] */
    size_t at;                          /* floats from a spot to the first channel */
    size_t ldc, n;
    bool add;
    const int32_t *init;                /* what integer sums begin with, by channel; or NULL */
    const ane_conv_post *post;
    /* Fetched meanwhile: from `ahead` a step per k, and the lines that the tile `soon` after
     * this one stores to and takes its residual from. */
    const char *ahead;
    size_t ahead_step, soon;
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

/* The same of bytes, whose sums are int32: taps in pairs. w's rows are pairs of int16 by
 * channel. */
typedef struct ane_conv_dw8 {
    size_t pairs, channels, step;       /* step: bytes */
    const uint8_t *const *a;            /* [2 * pairs] */
    bool sign;                          /* of a's bytes */
    const float *w;
    size_t ldw;
    const int32_t *init;                /* what sums begin with, by channel; room as w's rows */
    float *y;
    size_t ldy;
    ane_conv_post post;
} ane_conv_dw8;

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
