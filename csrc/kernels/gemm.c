/* Products: arguments are checked and become jobs, batches of them, and operands packed once.
 * gemm_run.c runs a job. */
#include "blas.h"
#include "gemm_job.h"

#include "../base/mem.h"
#include "../base/sync.h"

/* ------------------------------------------------------------------ arguments */

static bool is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

/* What a packed operand begins with, so that a run can refuse one made for another. */
typedef struct header {
    const ane_gemm_entry *e;
    uint64_t rows, k, batch, one;       /* one: bytes of one product's panels */
    uint32_t is_a, magic;
    char pad[ANE_ALIGN - 5 * 8 - 8];
} header;
#define MAGIC 0x4b434150u

static ane_status check(const ane_gemm_args *g, ane_error *err) {
    if (g->m < 0 || g->n < 0 || g->k < 0 || g->batch < 0)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[gemm] sizes must not be negative: m=%lld n=%lld k=%lld batch=%lld",
                        (long long)g->m, (long long)g->n, (long long)g->k,
                        (long long)g->batch);
    const ane_epilogue *ep = g->epilogue;
    if (!is_float(g->a.dtype) || !is_float(g->b.dtype) || !is_float(g->c.dtype) ||
        (ep && ep->bias && !is_float(ep->bias_dtype)) ||
        (ep && ep->residual && !is_float(ep->residual->dtype)))
        return ane_fail(err, ANE_ERR_DTYPE,
                        "[gemm] expected float16, bfloat16 or float32 operands, got %s x %s "
                        "-> %s", ane_dtype_name(g->a.dtype), ane_dtype_name(g->b.dtype),
                        ane_dtype_name(g->c.dtype));
    return ANE_OK;
}

/* Products whose batch is only more rows (or columns) of the same other operand. */
static void merge_batch(ane_gemm_args *g) {
    const ane_epilogue *ep = g->epilogue;
    if (g->batch < 2 || g->packed_a || g->packed_b) return;
    const ane_mat *r = ep ? ep->residual : NULL;
    if (!g->b_batch && g->a_batch == g->m * g->a.rs && g->c_batch == g->m * g->c.rs &&
        (!r || g->r_batch == g->m * r->rs) && (!ep || !ep->bias || !ep->bias_rs)) {
        g->m *= g->batch;
        g->batch = 1;
    } else if (!g->a_batch && g->b_batch == g->n * g->b.cs && g->c_batch == g->n * g->c.cs &&
               (!r || g->r_batch == g->n * r->cs) && (!ep || !ep->bias || !ep->bias_cs)) {
        g->n *= g->batch;
        g->batch = 1;
    }
}

/* C = A B as C^T = B^T A^T. */
static void transpose(job *j) {
    ane_mat t = j->a;
    j->a = j->b;
    j->b = t;
    ane_mat *each[] = {&j->a, &j->b, &j->c, &j->r};
    for (int i = 0; i < 4; i++) {
        int64_t s = each[i]->rs;
        each[i]->rs = each[i]->cs;
        each[i]->cs = s;
    }
    int64_t s = j->ep.bias_rs;
    j->ep.bias_rs = j->ep.bias_cs;
    j->ep.bias_cs = s;
    ready p = j->pa;
    j->pa = j->pb;
    j->pb = p;
    size_t d = j->m;
    j->m = j->n;
    j->n = d;
}

static int64_t span(int64_t stride) { return stride < 0 ? -stride : stride; }

/* Rows of the micro-kernel's tile may be few (it has a form for every m), its columns are
 * whole vectors: so a narrow result lies across, and otherwise C's contiguous direction
 * decides. Shape and strides only: a packed operand must meet the same answer later. */
static bool wants_transpose(const job *j) {
    if (j->n <= 8 && j->m > j->n) return true;
    if (j->m <= 8) return false;
    return span(j->c.cs) > span(j->c.rs);
}

/* The job of one product; true: A and B have changed places. */
static bool fill(job *j, const ane_kernels *limit, const ane_gemm_args *g) {
    *j = (job){.precision = g->precision, .m = (size_t)g->m, .n = (size_t)g->n,
               .k = (size_t)g->k, .a = g->a, .b = g->b, .c = g->c};
    j->table = ane_whole_for(limit);
    if (g->epilogue) {
        j->ep = *g->epilogue;
        if (j->ep.residual && j->ep.beta != 0) j->r = *j->ep.residual;
    } else {
        j->ep.alpha = 1;
    }
    bool swap = wants_transpose(j);
    if (swap) transpose(j);
    j->e = ane_gemm_entry_for(limit, j->a.dtype, j->b.dtype, j->precision);
    ane__gemm_panels(j);
    return swap;
}

static ane_status use_packed(job *j, const void *packed, bool is_a, size_t p,
                             ane_error *err) {
    const header *h = packed;
    const panels *x = is_a ? &j->ap : &j->bp;
    size_t rows = is_a ? j->m : j->n;
    bool fits = h->magic == MAGIC && h->e == j->e && h->rows == rows && h->k == j->k &&
                h->is_a == is_a && h->one == panels_bytes(x);
    /* Another shape class (one row instead of many) may want another layout. */
    if (!fits && (is_a ? j->a.data : j->b.data)) return ANE_OK;
    if (!fits)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[gemm] the packed operand was made for another product or kernel "
                        "(now %zu x %zu for %s); pack it again", rows, j->k, j->e->name);
    const char *data = (const char *)(h + 1) + (h->batch > 1 ? p * h->one : 0);
    (is_a ? &j->pa : &j->pb)->data = data;
    return ANE_OK;
}

typedef struct batch {
    const ane_kernels *limit;
    const ane_gemm_args *g;
    atomic_int status;
} batch;

static ane_status run_product(const batch *x, size_t p, bool serial, void *given,
                              ane_error *err) {
    const ane_gemm_args *g = x->g;
    ane_gemm_args one = *g;
    ane_epilogue ep;
    ane_mat r;
    int64_t i = (int64_t)p;
    if (one.a.data) one.a.data = (char *)one.a.data + i * g->a_batch;
    if (one.b.data) one.b.data = (char *)one.b.data + i * g->b_batch;
    one.c.data = (char *)one.c.data + i * g->c_batch;
    if (g->epilogue && g->epilogue->residual) {
        ep = *g->epilogue;
        r = *ep.residual;
        r.data = (char *)r.data + i * g->r_batch;
        ep.residual = &r;
        one.epilogue = &ep;
    }
    job j;
    bool swap = fill(&j, x->limit, &one);
    const void *pa = swap ? g->packed_b : g->packed_a, *pb = swap ? g->packed_a : g->packed_b;
    ane_status st = ANE_OK;
    if (pa) st = use_packed(&j, pa, true, p, err);
    if (!st && pb) st = use_packed(&j, pb, false, p, err);
    if (st) return st;
    return ane__gemm_run(&j, serial, given, err);
}

static void batch_task(void *arg, size_t p) {
    batch *x = arg;
    ane_status st = run_product(x, p, true, NULL, NULL);
    if (st) atomic_store(&x->status, (int)st);
}

/* Many products, or small ones: one thread each. Few large ones: all threads on each in turn. */
static bool one_thread_each(const job *j, size_t products, int threads) {
    return ane__gemm_is_small(j) || (products >= (size_t)threads * 2 &&
                                     ane__gemm_task_scratch(j) <= SHARED_BYTES / 4);
}

/* So little that a second thread is not worth waking. */
static bool few_each(const job *j, size_t products) {
    return ane__gemm_work(j) < SERIAL_WORK / products;
}

ane_status ane_gemm_with(const ane_kernels *limit, const ane_gemm_args *args, void *scratch,
                         ane_error *err) {
    ane_status st = check(args, err);
    if (st || !args->m || !args->n || !args->batch) return st;
    ane_gemm_args g = *args;
    merge_batch(&g);
    if (!limit && ane_blas_takes(&g)) return ane_blas_gemm(&g, err);
    batch x = {.limit = limit, .g = &g};
    if (g.batch > 1) {
        job j;
        fill(&j, limit, &g);
        size_t n = (size_t)g.batch;
        if (one_thread_each(&j, n, ane_num_threads())) {
            if (few_each(&j, n)) {
                for (size_t p = 0; p < n && !st; p++) st = run_product(&x, p, true, NULL, err);
                return st;
            }
            if (!ane_parallel_for(n, batch_task, &x))
                return ane_fail(err, ANE_ERR_CANCELLED, "[gemm] cancelled");
            st = (ane_status)atomic_load(&x.status);
            return st ? ane_fail(err, st, "[gemm] a product of the batch failed: %s",
                                 ane_status_text(st)) : ANE_OK;
        }
    }
    for (int64_t p = 0; p < g.batch && !st; p++)
        st = run_product(&x, (size_t)p, false, scratch, err);
    return st;
}

ane_status ane_gemm(const ane_gemm_args *args, void *scratch, ane_error *err) {
    return ane_gemm_with(NULL, args, scratch, err);
}

/* The job that our own kernels do for these arguments, in *j, operands that are packed already
 * with them; how many products it stands for, 0: none. */
static size_t described(const ane_gemm_args *args, job *j) {
    ane_gemm_args g = *args;
    merge_batch(&g);
    if (ane_blas_takes(&g)) return 0;
    bool swap = fill(j, NULL, &g);
    j->pa.data = swap ? g.packed_b : g.packed_a;
    j->pb.data = swap ? g.packed_a : g.packed_b;
    return (size_t)g.batch;
}

static bool is_empty(const ane_gemm_args *args) {
    return check(args, NULL) || !args->m || !args->n || !args->batch;
}

size_t ane_gemm_scratch(const ane_gemm_args *args) {
    job j;
    return !is_empty(args) && described(args, &j) ? ane__gemm_scratch(&j) : 0;
}

void ane_gemm_room(const ane_gemm_args *args, ane_room *room) {
    job j;
    if (is_empty(args)) return;
    size_t products = described(args, &j);
    if (!products) {
        ane_gemm_args g = *args;
        merge_batch(&g);
        ane_blas_room(&g, room);
        return;
    }
    job bare = j;                       /* a batch is divided before packed operands are looked at */
    bare.pa.data = bare.pb.data = NULL;
    if (products > 1 && one_thread_each(&bare, products, room->threads))
        ane_room_loop(room, few_each(&bare, products) ? 1 : products, ane__gemm_alone_bytes(&j), 0);
    else
        ane__gemm_room(&j, room);
}

const char *ane_gemm_name(const ane_gemm_args *args) {
    if (check(args, NULL)) return "none";
    ane_gemm_args g = *args;
    merge_batch(&g);
    if (ane_blas_takes(&g)) return ane_blas_kernel();
    job j;
    fill(&j, NULL, &g);
    if (!ane__gemm_is_vector(&j)) return j.e->name;
    return j.b.cs == (int64_t)ane_dtype_size(j.b.dtype) ? "gemv_cols" : "gemv_rows";
}

/* ------------------------------------------------------------------ packing once */

size_t ane_gemm_pack_bytes_with(const ane_kernels *limit, const ane_gemm_args *args,
                                int which) {
    if (check(args, NULL) || (!limit && ane_blas_takes(args))) return 0;
    job j;
    bool swap = fill(&j, limit, args);
    const panels *x = (which == 0) != swap ? &j.ap : &j.bp;
    int64_t stride = which ? args->b_batch : args->a_batch;
    size_t n = args->batch > 1 && stride ? (size_t)args->batch : 1, bytes;
    if (!ane_mul_size(panels_bytes(x), n, &bytes)) return 0;
    return bytes + sizeof(header);
}

size_t ane_gemm_pack_bytes(const ane_gemm_args *args, int which) {
    return ane_gemm_pack_bytes_with(NULL, args, which);
}

ane_status ane_gemm_pack_with(const ane_kernels *limit, const ane_gemm_args *args, int which,
                              void *dst, ane_error *err) {
    ane_status st = check(args, err);
    if (st) return st;
    int64_t stride = which ? args->b_batch : args->a_batch;
    size_t n = args->batch > 1 && stride ? (size_t)args->batch : 1;
    header *h = dst;
    for (size_t p = 0; p < n; p++) {
        ane_gemm_args one = *args;
        one.a.data = (char *)one.a.data + (which ? 0 : (int64_t)p * stride);
        one.b.data = (char *)one.b.data + (which ? (int64_t)p * stride : 0);
        job j;
        bool swap = fill(&j, limit, &one), is_a = (which == 0) != swap;
        const panels *x = is_a ? &j.ap : &j.bp;
        if (p == 0)
            *h = (header){.e = j.e, .rows = is_a ? j.m : j.n, .k = j.k, .batch = n,
                          .one = panels_bytes(x), .is_a = is_a, .magic = MAGIC};
        if (!ane__gemm_pack_all(&j, is_a, (char *)(h + 1) + p * h->one))
            return ane_fail(err, ANE_ERR_CANCELLED, "[gemm] cancelled while packing");
    }
    return ANE_OK;
}

ane_status ane_gemm_pack(const ane_gemm_args *args, int which, void *dst, ane_error *err) {
    return ane_gemm_pack_with(NULL, args, which, dst, err);
}
