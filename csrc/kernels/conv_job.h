/* One convolution under way: what conv_pack.c (geometry, packed weights) and conv.c (tiles,
 * tasks) share. */
#ifndef ANE_CONV_JOB_H
#define ANE_CONV_JOB_H

#include "conv_plan.h"

#include "../base/mem.h"

#include <stdatomic.h>

/* One spatial dim of one phase: tap t reads input t_in*stride + off[t]. A forward
 * convolution is one phase; a transposed one has stride^dims of them: the outputs
 * first + t*step, each a forward convolution of stride 1 by the taps that reach it. */
typedef struct ane_conv_axis {
    int64_t out, stride, first, step;
    int64_t taps;
    int64_t tap0, tap_step;             /* tap t is the kernel's tap0 + t*tap_step */
    int64_t off0, off_step;             /* and reads at off0 + t*off_step */
} ane_conv_axis;

/* Blocks of k of one phase: `per` segments each, or, where one segment is longer than a
 * block, `parts` parts of one segment. Depends on the shape only. */
typedef struct ane_conv_split {
    size_t segs, len, per, parts, part, n;
} ane_conv_split;

typedef struct ane_conv_job {
    const ane_kernels *table;
    const ane_conv_kernels *k;
    const ane_conv_args *g;
    size_t cin, cout;                   /* of one group */
    bool ints;                          /* elements are integers: `bytes` says which */
    ane_bytes bytes;
    ane_conv_tile_fn *tile;
    const char *name;
    const int32_t *init;                /* what sums of quads begin with, by channel; NULL */
    bool depthwise, joined;             /* joined: the taps along w make one segment */
    ane_rows x;
    ane_conv_axis a[3];
    ane_conv_split ks;
    const float *w;                     /* of this phase */
    size_t w_group;                     /* floats of one group */
    size_t panels;
    const float *zeros;
    bool direct;                        /* tiles go to y itself */
    bool whole;
    int64_t ys[3], run;                 /* y's strides of this phase's positions (bytes) */
    int64_t es[3];                      /* and those of `eight` */
    int64_t positions, blocks, block;   /* of one image */
    size_t parts, part;                 /* of panels */
    atomic_bool failed;
} ane_conv_job;

/* Packed weights: this, then the floats of every phase. */
typedef struct ane_conv_packed {
    const ane_conv_kernels *k;
    uint64_t bytes;
    uint32_t joined, magic;
    ane_bytes as;                       /* of 8-bit operands */
    char pad[ANE_ALIGN - 8 - 8 - 8 - sizeof(ane_bytes)];
} ane_conv_packed;
#define ANE_CONV_MAGIC 0x564e4f43u

static inline size_t ane__least_size(size_t a, size_t b) { return a < b ? a : b; }
static inline int64_t ane__least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline size_t ane__up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
static inline size_t ane__cut(size_t n, size_t unit) { return n ? (n - 1) / unit + 1 : 0; }

ane_status ane__conv_check(const ane_conv_args *g, ane_error *err);
bool ane__conv_empty(const ane_conv_args *g);
/* Everything but x, and what a phase sets. */
void ane__conv_begin(ane_conv_job *j, const ane_kernels *limit, const ane_conv_args *g);
int64_t ane__conv_phases(const ane_conv_args *g);
void ane__conv_set_phase(ane_conv_job *j, int64_t p);
/* The zeros that any phase reads around the image. */
void ane__conv_halo(const ane_conv_args *g, int64_t *before, int64_t *after);
/* Of block b: its first segment, how many, and which floats of each. */
void ane__conv_block(const ane_conv_split *s, size_t b, size_t *seg, size_t *segs, size_t *skip,
                     size_t *len);
/* k in front of block b. */
size_t ane__conv_k_before(const ane_conv_split *s, size_t b);
/* Floats of this phase's packed weights, and of all phases'. */
size_t ane__conv_phase_floats(const ane_conv_job *j);
/* Of them in front of the weights: int32 that sums of quads begin with, what the zero point
 * of x takes from them. */
size_t ane__conv_init_floats(const ane_conv_job *j);
size_t ane__conv_packed_floats(ane_conv_job *j);

/* What a store does from image n's position `at`, channel `channel` on. */
void ane__conv_set_post(const ane_conv_job *j, ane_conv_post *p, int64_t n, size_t channel,
                        int64_t at);
/* y's address of position p, channel c; bytes between two positions that step by s. */
char *ane__conv_place(const ane_conv_job *j, int64_t n, size_t c, int64_t p);
int64_t ane__conv_position_step(const ane_conv_job *j, const int64_t *s);
/* A depthwise task, what it pushes, and the bytes of zeros it needs. Of a finished row from
 * position p on, whose sums are in acc or in y, what is left to do. */
void ane__conv_row(void *arg, size_t task);
size_t ane__conv_row_bytes(const ane_conv_job *j);
size_t ane__conv_row_zeros(const ane_conv_job *j);
void ane__conv_row_done(const ane_conv_job *j, int64_t n, int64_t p, float *acc);

#endif
