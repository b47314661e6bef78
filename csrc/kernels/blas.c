/* ane_gemm through a foreign cblas_sgemm. Operands that are not fp32 are widened (exact);
 * results go straight to C where it is fp32 and nothing follows, else through an image of
 * some rows and the table's own epilogue. */
#include "blas.h"

#include "kernels.h"

#include "../base/env.h"
#include "../base/mem.h"
#include "../base/sync.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#ifdef __APPLE__
#define DEFAULT_LIBRARY "/System/Library/Frameworks/Accelerate.framework/Accelerate"
#else
#define DEFAULT_LIBRARY ""
#endif

/* Below this many multiplications a call costs more than it saves. */
#define LEAST_WORK ((int64_t)1 << 21)
#define LEAST_SIDE 32
/* Widened rows of A, and of the image of C, at a time; the whole of B. */
#define CHUNK_BYTES ((size_t)8 << 20)
#define RIGHT_BYTES ((size_t)128 << 20)
#define ROWS_PER_TASK 16

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
typedef void sgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                      const float *a, int lda, const float *b, int ldb, float beta, float *c,
                      int ldc);

static ane_once once = ANE_ONCE_INIT;
static sgemm_fn *sgemm;
static const char *name;

static void load(void) {
    const char *path = ane_env(ANE_ENV_BLAS);
    bool chosen = *path != 0;
    if (!strcmp(path, "off") || !strcmp(path, "0")) return;
    if (!chosen) path = DEFAULT_LIBRARY;
    if (!*path) return;
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);        /* never closed */
    void *p = lib ? dlsym(lib, "cblas_sgemm") : NULL;
    if (!p) {
        const char *why = dlerror();
        ane__log("ANETORCH_BLAS: cannot use cblas_sgemm of %s: %s", path,
                 why ? why : "no reason");
        return;
    }
    memcpy(&sgemm, &p, sizeof sgemm);
    name = chosen ? "cblas_sgemm" : "accelerate_sgemm";
}

const char *ane_blas_kernel(void) {
    pthread_once(&once, load);
    return name;
}

/* ------------------------------------------------------------------ one product */

static int64_t size_of(ane_dtype d) { return (int64_t)ane_dtype_size(d); }

/* One dim has neighbours, the other a stride that is no overlap and fits BLAS's int. */
static bool regular(const ane_mat *x, int64_t rows, int64_t cols) {
    int64_t size = size_of(x->dtype);
    int64_t ld = x->cs == size ? x->rs : x->cs, least = x->cs == size ? cols : rows;
    return (x->cs == size || x->rs == size) && ld % size == 0 && ld / size >= least &&
           ld / size <= INT_MAX;
}

static bool wide_enough(const ane_gemm_args *g) {
    return g->m >= LEAST_SIDE && g->n >= LEAST_SIDE && g->k >= LEAST_SIDE && g->m <= INT_MAX &&
           g->n <= INT_MAX && g->k <= INT_MAX && g->m * g->n >= LEAST_WORK / g->k;
}

bool ane_blas_takes(const ane_gemm_args *g) {
    if (!ane_blas_kernel() || g->packed_a || g->packed_b || !wide_enough(g)) return false;
    const ane_mat *right = g->c.cs == size_of(g->c.dtype) ? &g->b : &g->a;
    int64_t columns = right == &g->b ? g->n : g->m;
    size_t bytes;
    if (right->dtype != ANE_F32 &&
        (!ane_mul_size((size_t)g->k * sizeof(float), (size_t)columns, &bytes) ||
         bytes > RIGHT_BYTES))
        return false;
    return regular(&g->a, g->m, g->k) && regular(&g->b, g->k, g->n);
}

/* The operand as BLAS sees it: rows x cols, or its transpose. */
typedef struct side {
    const float *data;
    int trans, ld;
} side;

typedef struct widening {
    const ane_kernels *table;
    const ane_mat *src;
    float *dst;
    size_t lines, length;       /* contiguous runs of the source */
    int64_t step;
} widening;

static void widen_task(void *arg, size_t t) {
    const widening *w = arg;
    size_t i0 = t * ROWS_PER_TASK, i1 = i0 + ROWS_PER_TASK < w->lines ? i0 + ROWS_PER_TASK : w->lines;
    for (size_t i = i0; i < i1; i++)
        w->table->convert(w->dst + i * w->length, ANE_F32,
                          (const char *)w->src->data + (int64_t)i * w->step, w->src->dtype,
                          w->length, false);
}

/* Rows [0, rows) of x; `room` holds them where they have to be widened. False: stopped. */
static bool see(const ane_mat *x, size_t rows, size_t cols, float *room, side *out) {
    bool along = x->cs == size_of(x->dtype);
    out->trans = along ? NO_TRANS : TRANS;
    if (x->dtype == ANE_F32) {
        out->data = x->data;
        out->ld = (int)((along ? x->rs : x->cs) / (int64_t)sizeof(float));
        return true;
    }
    widening w = {ane_kernels_get(), x, room, along ? rows : cols, along ? cols : rows,
                  along ? x->rs : x->cs};
    out->data = room;
    out->ld = (int)w.length;
    return ane_parallel_for((w.lines - 1) / ROWS_PER_TASK + 1, widen_task, &w);
}

typedef struct finishing {
    const ane_gemm_args *g;     /* of these rows */
    float *image;
    size_t ld, rows;
} finishing;

static void finish_task(void *arg, size_t t) {
    const finishing *f = arg;
    const ane_gemm_args *g = f->g;
    const ane_epilogue *ep = g->epilogue;
    size_t i = t * ROWS_PER_TASK, n = f->rows - i < ROWS_PER_TASK ? f->rows - i : ROWS_PER_TASK;
    int64_t row = (int64_t)i;
    ane_tile_out out = {.alpha = 1, .c = (char *)g->c.data + row * g->c.rs,
                        .c_dtype = g->c.dtype, .c_rs = g->c.rs, .c_cs = g->c.cs};
    if (ep) {
        out.alpha = ep->alpha;
        out.act = ep->act;
        if (ep->bias) {
            out.bias = (const char *)ep->bias + row * ep->bias_rs;
            out.bias_dtype = ep->bias_dtype;
            out.bias_rs = ep->bias_rs;
            out.bias_cs = ep->bias_cs;
        }
        if (ep->residual && ep->beta != 0) {
            out.beta = ep->beta;
            out.res = (const char *)ep->residual->data + row * ep->residual->rs;
            out.res_dtype = ep->residual->dtype;
            out.res_rs = ep->residual->rs;
            out.res_cs = ep->residual->cs;
        }
    }
    ane_kernels_get()->tile(&out, f->image + i * f->ld, f->ld, n, (size_t)g->n);
}

/* C itself takes the sums: nothing follows, or they are added to it. */
static bool direct(const ane_gemm_args *g, float *beta) {
    const ane_epilogue *ep = g->epilogue;
    if (g->c.dtype != ANE_F32 || !regular(&g->c, g->m, g->n) || g->c.cs != 4) return false;
    *beta = 0;
    if (!ep) return true;
    if (ep->bias || ep->act != ANE_ACT_NONE || ep->alpha != 1) return false;
    const ane_mat *r = ep->beta != 0 ? ep->residual : NULL;
    if (!r) return true;
    *beta = ep->beta;
    return r->data == g->c.data && r->dtype == ANE_F32 && r->rs == g->c.rs && r->cs == g->c.cs;
}

/* Floats beside the operands: of B, of `step` rows of A, of as many of C. */
typedef struct widened {
    size_t right, left, image, step, ld;
    bool straight;
    float beta;
} widened;

static widened widened_of(const ane_gemm_args *g) {
    widened w = {0};
    size_t n = (size_t)g->n, k = (size_t)g->k, wide = g->a.dtype == ANE_F32 ? 0 : k;
    w.ld = (n + 15) / 16 * 16;
    w.straight = direct(g, &w.beta);
    size_t line = (wide + (w.straight ? 0 : w.ld)) * sizeof(float);
    w.step = line ? CHUNK_BYTES / line : (size_t)g->m;
    w.step = w.step < ROWS_PER_TASK ? ROWS_PER_TASK : w.step / ROWS_PER_TASK * ROWS_PER_TASK;
    if (!line || w.step > (size_t)g->m) w.step = (size_t)g->m;
    w.right = g->b.dtype == ANE_F32 ? 0 : (k * n + 15) / 16 * 16;
    w.left = (w.step * wide + 15) / 16 * 16;
    w.image = w.straight ? 0 : w.step * w.ld;
    return w;
}

static ane_status run_one(const ane_gemm_args *all, ane_error *err) {
    ane_gemm_args g = *all;
    widened w = widened_of(&g);
    size_t n = (size_t)g.n, k = (size_t)g.k, ld = w.ld, step = w.step, right = w.right, left = w.left;
    float beta = w.beta, *room = NULL;
    bool straight = w.straight, stopped = false;
    if (right + left + w.image) {
        room = ane_scratch_push((right + left + w.image) * sizeof(float));
        if (!room)
            return ane_fail(err, ANE_ERR_NOMEM, "[gemm] no memory for %zu bytes of operands",
                            (right + left + w.image) * sizeof(float));
    }
    side a, b;
    stopped = !see(&g.b, k, n, room, &b);
    ane_epilogue ep;
    ane_mat res;
    for (size_t i = 0; i < (size_t)all->m && !stopped; i += step) {
        size_t rows = (size_t)all->m - i < step ? (size_t)all->m - i : step;
        int64_t at = (int64_t)i;
        g.a.data = (char *)all->a.data + at * g.a.rs;
        g.c.data = (char *)all->c.data + at * g.c.rs;
        if (all->epilogue) {
            ep = *all->epilogue;
            if (ep.bias) ep.bias = (const char *)ep.bias + at * ep.bias_rs;
            if (ep.residual) {
                res = *ep.residual;
                res.data = (char *)res.data + at * res.rs;
                ep.residual = &res;
            }
            g.epilogue = &ep;
        }
        stopped = !see(&g.a, rows, k, room + right, &a);
        if (stopped) break;
        float *c = straight ? g.c.data : room + right + left;
        sgemm(ROW_MAJOR, a.trans, b.trans, (int)rows, (int)n, (int)k, 1.0f, a.data, a.ld, b.data,
              b.ld, straight ? beta : 0.0f, c, straight ? (int)(g.c.rs / 4) : (int)ld);
        finishing f = {&g, c, ld, rows};
        if (straight) stopped = ane_poll_check();
        else stopped = !ane_parallel_for((rows - 1) / ROWS_PER_TASK + 1, finish_task, &f);
    }
    ane_scratch_pop(room);
    return stopped ? ane_fail(err, ANE_ERR_CANCELLED, "[gemm] cancelled") : ANE_OK;
}

static void swap(int64_t *x, int64_t *y) {
    int64_t t = *x;
    *x = *y;
    *y = t;
}

/* Product p of the batch with C in rows. */
typedef struct one {
    ane_gemm_args g;
    ane_epilogue ep;
    ane_mat res;
} one;

static void one_of(const ane_gemm_args *args, int64_t p, one *o) {
    ane_gemm_args *g = &o->g;
    *g = *args;
    g->a.data = (char *)g->a.data + p * g->a_batch;
    g->b.data = (char *)g->b.data + p * g->b_batch;
    g->c.data = (char *)g->c.data + p * g->c_batch;
    if (g->epilogue) {
        o->ep = *g->epilogue;
        if (o->ep.residual) {
            o->res = *o->ep.residual;
            o->res.data = (char *)o->res.data + p * g->r_batch;
            o->ep.residual = &o->res;
        }
        g->epilogue = &o->ep;
    }
    if (g->c.cs == size_of(g->c.dtype)) return;
    /* C in columns: C' = B' A'. */
    ane_mat t = g->a;
    g->a = g->b;
    g->b = t;
    swap(&g->m, &g->n);
    swap(&g->a.rs, &g->a.cs);
    swap(&g->b.rs, &g->b.cs);
    swap(&g->c.rs, &g->c.cs);
    if (g->epilogue) {
        swap(&o->ep.bias_rs, &o->ep.bias_cs);
        if (o->ep.residual) swap(&o->res.rs, &o->res.cs);
    }
}

ane_status ane_blas_gemm(const ane_gemm_args *args, ane_error *err) {
    ane_status st = ANE_OK;
    for (int64_t p = 0; p < args->batch && !st; p++) {
        one o;
        one_of(args, p, &o);
        st = run_one(&o.g, err);
    }
    return st;
}

void ane_blas_room(const ane_gemm_args *args, ane_room *room) {
    one o;
    one_of(args, 0, &o);
    widened w = widened_of(&o.g);
    size_t bytes = (w.right + w.left + w.image) * sizeof(float);
    if (!bytes) return;
    ane_room_push(room, bytes);         /* the loops push nothing */
    ane_room_pop(room, bytes);
}
