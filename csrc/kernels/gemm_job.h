/* One product as the macro-kernel sees it: gemm.c makes jobs of arguments, gemm_run.c runs
 * them. */
#ifndef ANE_GEMM_JOB_H
#define ANE_GEMM_JOB_H

#include "kernels.h"

#include <stdatomic.h>

/* Products below this many multiplications are not worth waking a thread for. */
#define SERIAL_WORK ((size_t)1 << 16)
/* One operand packed for everybody is at most this large; a larger one is cut. */
#define SHARED_BYTES ((size_t)8 << 20)
/* Up to this many threads each pack the shared operand for themselves: writing panels that
 * another core has just read costs more than packing them once more. */
#define WORKERS 4

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
static inline size_t cut(size_t n, size_t unit) { return n ? (n - 1) / unit + 1 : 0; }
static inline const char *at(const ane_mat *x, size_t i, size_t j) {
    return (const char *)x->data + (int64_t)i * x->rs + (int64_t)j * x->cs;
}

/* ------------------------------------------------------------------ blocks over k */

typedef struct ksplit {
    size_t n, size, last;       /* blocks, k of all but the last, k of the last */
} ksplit;

/* Depends on k alone: see ANE_GEMM_KC. */
static inline ksplit split_k(size_t k) {
    ksplit s = {.n = cut(k, ANE_GEMM_KC)};
    if (s.n < 1) s.n = 1;
    s.size = up(cut(k, s.n), 8);
    if (s.size) s.n = cut(k, s.size);
    else s.n = 1, s.size = 8;
    s.last = k - (s.n - 1) * s.size;
    return s;
}
static inline size_t k_of(ksplit s, size_t p) { return p + 1 < s.n ? s.size : s.last; }

/* A packed operand: for each block of k all its panels. */
typedef struct panels {
    size_t width, count, kr, unit;
    ksplit ks;
} panels;

static inline size_t panel_bytes(const panels *x, size_t p) {
    return up(k_of(x->ks, p), x->kr) * x->width * x->unit;
}
static inline size_t panel_offset(const panels *x, size_t p, size_t i) {
    return p * x->count * x->ks.size * x->width * x->unit + i * panel_bytes(x, p);
}
static inline size_t panels_bytes(const panels *x) {
    return panel_offset(x, x->ks.n - 1, 0) + x->count * panel_bytes(x, x->ks.n - 1);
}

/* Panels that are there already. */
typedef struct ready {
    const char *data;           /* NULL: the task packs its own */
    size_t skip;                /* bytes of panels before the first that is there */
} ready;

/* ------------------------------------------------------------------ one product */

typedef struct job {
    const ane_kernels *table;           /* epilogue, matrix times vector */
    const ane_gemm_entry *e;
    ane_precision precision;
    size_t m, n, k;
    ane_mat a, b, c, r;                 /* r.data NULL: no residual */
    ane_epilogue ep;
    ready pa, pb;
    panels ap, bp;
    size_t tasks_m, tasks_n;            /* blocks of C: all of nearly the same size */
    size_t p0, p1;                      /* blocks of k to run now */
    float *image;                       /* C in fp32 between parts of k, or NULL */
    size_t workers, each_bytes;         /* threads that pack for themselves (0: none) */
    bool each_a;                        /* which operand */
    const char *each[WORKERS];          /* NULL: not yet */
    atomic_bool failed;
} job;

/* Panels of A and B, from e and the sizes. */
void ane__gemm_panels(job *j);
/* Packs one operand, blocks p0..p1 of k, on all threads; false: cancelled. */
bool ane__gemm_pack_all(const job *j, bool is_a, char *dst);
/* Matrix times vector, which takes no panels. */
bool ane__gemm_is_vector(const job *j);
/* Not worth a second thread. */
bool ane__gemm_is_small(const job *j);
size_t ane__gemm_work(const job *j);            /* multiplications; SIZE_MAX: too many */
/* Scratch of the whole product as one task. */
size_t ane__gemm_task_scratch(const job *j);
/* What ane__gemm_run takes as `given`, at most, for any number of threads. */
size_t ane__gemm_scratch(const job *j);
/* alone: on this thread only. given: scratch, or NULL. */
ane_status ane__gemm_run(job *j, bool alone, void *given, ane_error *err);
/* States what that takes without `given`. pa, pb: set where they will be packed before. */
void ane__gemm_room(const job *j, struct ane_room *room);
/* Bytes that one task pushes which runs the whole product alone. */
size_t ane__gemm_alone_bytes(const job *j);

#endif
