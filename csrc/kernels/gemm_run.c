/* The macro-kernel: which operand is packed whole, by each of a few threads or once for many,
 * which one each task packs for itself, blocks over k, edges and the store; matrix times
 * vector. */
#include "gemm_job.h"

#include "../base/mem.h"
#include "../base/sync.h"

#include <string.h>

/* Longer sums than this of a shared operand are run in parts of k, each part's panels small
 * enough to stay in the caches, onto an fp32 image of C. */
#define PART_BYTES ((size_t)4 << 20)
#define IMAGE_BYTES ((size_t)64 << 20)
/* Rows of a task's own block: its packed panels stay in the second-level cache. */
#define BLOCK_ROWS 96
#define TASKS_PER_THREAD 6
#define GEMV_BLOCK 256

void ane__gemm_panels(job *j) {
    ksplit ks = split_k(j->k);
    j->ap = (panels){j->e->mr, cut(j->m, j->e->mr), j->e->kr, j->e->unit, ks};
    j->bp = (panels){j->e->nr, cut(j->n, j->e->nr), j->e->kr, j->e->unit, ks};
    j->p1 = ks.n;
}

static void finish(const job *j, float *tile, size_t ld, size_t i, size_t jj, size_t m,
                   size_t n) {
    const ane_epilogue *ep = &j->ep;
    ane_tile_out out = {
        .alpha = ep->alpha, .beta = ep->beta, .act = ep->act, .c = (char *)at(&j->c, i, jj),
        .c_dtype = j->c.dtype, .c_rs = j->c.rs, .c_cs = j->c.cs,
    };
    if (ep->bias) {
        out.bias = (const char *)ep->bias + (int64_t)i * ep->bias_rs + (int64_t)jj * ep->bias_cs;
        out.bias_dtype = ep->bias_dtype;
        out.bias_rs = ep->bias_rs;
        out.bias_cs = ep->bias_cs;
    }
    if (j->r.data) {
        out.res = at(&j->r, i, jj);
        out.res_dtype = j->r.dtype;
        out.res_rs = j->r.rs;
        out.res_cs = j->r.cs;
    }
    j->table->tile(&out, tile, ld, m, n);
}

static bool plain(const job *j) {
    return !j->ep.bias && !j->r.data && j->ep.act == ANE_ACT_NONE && j->ep.alpha == 1;
}

/* C += A B on C itself: the micro-kernel's own addition does it. */
static bool accumulates(const job *j) {
    return !j->ep.bias && j->ep.act == ANE_ACT_NONE && j->ep.alpha == 1 && j->ep.beta == 1 &&
           j->r.data == j->c.data && j->r.dtype == j->c.dtype && j->r.rs == j->c.rs &&
           j->r.cs == j->c.cs;
}

/* Whether the micro-kernel may write C itself. */
static bool direct(const job *j) {
    return (plain(j) || (accumulates(j) && j->ap.ks.n == 1)) && j->c.dtype == ANE_F32 &&
           j->c.cs == 4 && j->c.rs >= 0 && j->c.rs % 4 == 0 &&
           (uintptr_t)j->c.data % 4 == 0;
}

/* Panels [i0, i1) of block p of k. */
static void pack_panels(const job *j, bool is_a, size_t p, size_t i0, size_t i1, void *dst) {
    const panels *x = is_a ? &j->ap : &j->bp;
    const ane_mat *src = is_a ? &j->a : &j->b;
    size_t first = i0 * x->width, rows = is_a ? j->m : j->n, k0 = p * x->ks.size;
    ane_pack_fn *pack = is_a ? j->e->pack_a : j->e->pack_b;
    const char *from = is_a ? at(src, first, k0) : at(src, k0, first);
    pack(dst, panel_bytes(x, p), from, src->dtype, is_a ? src->rs : src->cs,
         is_a ? src->cs : src->rs, min_size(i1 * x->width, rows) - first, k_of(x->ks, p));
}

/* Cache lines of an operand that a block will pack next, asked for a few at a time while
 * products of the block before it run: the hardware does not guess short rows. */
typedef struct ahead {
    const char *line;
    int64_t next;               /* from one row (or k, where rows are neighbours) to the next */
    size_t per, left, in;       /* lines of a row; rows left; lines of this row asked for */
    size_t some;                /* lines at a time */
} ahead;

static void look_ahead(ahead *x) {
    for (size_t i = 0; i < x->some && x->left; i++) {
        __builtin_prefetch(x->line + x->in * ANE_ALIGN, 0, 2);
        if (++x->in < x->per) continue;
        x->in = 0;
        x->left--;
        x->line += x->next;
    }
}

/* Panels [i0, i1) of block p of k of A (or B), over `calls` calls. */
static ahead ahead_of(const job *j, bool is_a, size_t p, size_t i0, size_t i1, size_t calls) {
    const panels *x = is_a ? &j->ap : &j->bp;
    const ane_mat *src = is_a ? &j->a : &j->b;
    size_t total = is_a ? j->m : j->n, first = i0 * x->width, k0 = p * x->ks.size;
    size_t rows = min_size(i1 * x->width, total) - first, k = k_of(x->ks, p);
    int64_t s_i = is_a ? src->rs : src->cs, s_k = is_a ? src->cs : src->rs;
    int64_t size = (int64_t)ane_dtype_size(src->dtype);
    bool along = s_k == size;
    if (!src->data || (!along && s_i != size)) return (ahead){0};
    ahead y = {.line = is_a ? at(src, first, k0) : at(src, k0, first),
               .next = along ? s_i : s_k, .left = along ? rows : k,
               .per = cut((along ? k : rows) * (size_t)size, ANE_ALIGN)};
    y.some = cut(y.per * y.left, calls);
    return y;
}

/* One block of C: all k, its own panels packed on the way. */
static void run_block(const job *j, ready a, ready b, size_t i0, size_t i1, size_t j0,
                      size_t j1, char *scratch) {
    const ane_gemm_entry *e = j->e;
    size_t mr = e->mr, nr = e->nr, rows = i1 - i0, cols = j1 - j0, ld = cols * nr;
    bool in_place = !j->image && direct(j), onto = in_place && j->r.data;
    bool split = j->image || j->ap.ks.n > 1;
    char *own_a = scratch, *own_b = own_a;
    if (!a.data) own_b += up(rows * panel_bytes(&j->ap, 0), ANE_ALIGN);
    float *acc = (float *)(void *)own_b;
    if (!b.data) acc = (float *)(void *)(own_b + up(cols * panel_bytes(&j->bp, 0), ANE_ALIGN));
    if (j->image) {
        ld = j->bp.count * nr;
        acc = j->image + i0 * mr * ld + j0 * nr;
    }
    for (size_t p = j->p0; p < j->p1; p++) {
        size_t k = up(k_of(j->ap.ks, p), e->kr);
        size_t a_bytes = panel_bytes(&j->ap, p), b_bytes = panel_bytes(&j->bp, p);
        const char *pa = own_a, *pb = own_b;
        if (a.data) pa = a.data + (panel_offset(&j->ap, p, i0) - a.skip);
        else pack_panels(j, true, p, i0, i1, own_a);
        if (b.data) pb = b.data + (panel_offset(&j->bp, p, j0) - b.skip);
        else pack_panels(j, false, p, j0, j1, own_b);
        bool last = p + 1 == j->ap.ks.n;
        ahead own = {0};
        if (!a.data != !b.data) {
            /* The same of the next block of k, or of the block that comes after this one. */
            bool is_a = !a.data, more = p + 1 < j->p1;
            size_t from = is_a ? i0 : j0, to = is_a ? i1 : j1, size = to - from;
            if (!more) from = to, to = min_size(to + size, is_a ? j->ap.count : j->bp.count);
            if (from < to)
                own = ahead_of(j, is_a, more ? p + 1 : j->p0, from, to, rows * cols);
        }
        for (size_t jj = 0; jj < cols; jj++) {
            size_t col = (j0 + jj) * nr, n = min_size(nr, j->n - col);
            for (size_t ii = 0; ii < rows; ii++) {
                size_t row = (i0 + ii) * mr, m = min_size(mr, j->m - row);
                const char *ap = pa + ii * a_bytes, *bp = pb + jj * b_bytes;
                look_ahead(&own);
                if (in_place && n == nr) {
                    e->ukr(m, k, ap, bp, (float *)(void *)at(&j->c, row, col),
                           (size_t)j->c.rs / 4, onto || p > 0);
                    continue;
                }
                float *tile = split ? acc + ii * mr * ld + jj * nr : acc;
                size_t tile_ld = split ? ld : nr;
                e->ukr(m, k, ap, bp, tile, tile_ld, p > 0);
                if (last && !split) finish(j, tile, tile_ld, row, col, m, n);
            }
            /* All rows in one call. */
            if (last && split && !(in_place && n == nr))
                finish(j, acc + jj * nr, ld, i0 * mr, col,
                       min_size(i1 * mr, j->m) - i0 * mr, n);
        }
    }
}

/* Blocks p0..p1 of the operand that every worker packs for itself, with its first task. */
static bool pack_each(job *j, ready *out) {
    const panels *x = j->each_a ? &j->ap : &j->bp;
    const char **mine = &j->each[ane_worker_index()];
    out->skip = panel_offset(x, j->p0, 0);
    if (!*mine) {
        char *dst = ane_scratch_keep(j->each_bytes);
        if (!dst) return false;
        for (size_t p = j->p0; p < j->p1; p++)
            pack_panels(j, j->each_a, p, 0, x->count,
                        dst + (panel_offset(x, p, 0) - out->skip));
        *mine = dst;
    }
    out->data = *mine;
    return true;
}

static size_t block_scratch(const job *j, ready a, ready b, size_t rows, size_t cols) {
    size_t bytes = 0;
    if (!a.data) bytes += up(rows * panel_bytes(&j->ap, 0), ANE_ALIGN);
    if (!b.data) bytes += up(cols * panel_bytes(&j->bp, 0), ANE_ALIGN);
    size_t tiles = j->image ? 0 : j->ap.ks.n > 1 ? rows * cols : 1;
    return bytes + tiles * j->e->mr * j->e->nr * sizeof(float);
}

static void run_task(void *arg, size_t t) {
    job *j = arg;
    ready a = j->pa, b = j->pb;
    if ((size_t)ane_worker_index() < j->workers && !pack_each(j, j->each_a ? &a : &b)) {
        atomic_store(&j->failed, true);
        return;
    }
    size_t i = t / j->tasks_n, q = t % j->tasks_n;
    size_t i0 = j->ap.count * i / j->tasks_m, i1 = j->ap.count * (i + 1) / j->tasks_m;
    size_t j0 = j->bp.count * q / j->tasks_n, j1 = j->bp.count * (q + 1) / j->tasks_n;
    void *scratch = ane_scratch_push(block_scratch(j, a, b, i1 - i0, j1 - j0));
    if (scratch) run_block(j, a, b, i0, i1, j0, j1, scratch);
    else atomic_store(&j->failed, true);
    ane_scratch_pop(scratch);
}

typedef struct packing {
    const job *j;
    bool is_a;
    char *dst;
    size_t group, groups;       /* panels of one task; tasks per block of k */
} packing;

static void pack_task(void *arg, size_t t) {
    const packing *x = arg;
    const panels *p = x->is_a ? &x->j->ap : &x->j->bp;
    size_t block = x->j->p0 + t / x->groups, i0 = t % x->groups * x->group;
    size_t i1 = min_size(i0 + x->group, p->count);
    pack_panels(x->j, x->is_a, block, i0, i1, x->dst + (panel_offset(p, block, i0) - panel_offset(p, x->j->p0, 0)));
}

/* Blocks p0..p1 of k. */
bool ane__gemm_pack_all(const job *j, bool is_a, char *dst) {
    const panels *p = is_a ? &j->ap : &j->bp;
    size_t blocks = j->p1 - j->p0;
    /* At least two tasks per thread, but as many panels in one as that allows. */
    size_t group = cut(p->count * blocks, (size_t)ane_num_threads() * 2);
    group = min_size(group < 1 ? 1 : group, min_size(p->count, 16));
    packing x = {j, is_a, dst, group, cut(p->count, group)};
    return ane_parallel_for(x.groups * blocks, pack_task, &x);
}

/* ------------------------------------------------------------------ matrix times vector */

typedef struct vecjob {
    const job *j;
    const float *x;             /* the row of A as fp32 */
    bool along;                 /* k is contiguous in B */
} vecjob;

static void gemv_task(void *arg, size_t t) {
    const vecjob *v = arg;
    const job *j = v->j;
    float y[GEMV_BLOCK];
    size_t j0 = t * GEMV_BLOCK, n = min_size(GEMV_BLOCK, j->n - j0);
    const char *w = at(&j->b, 0, j0);
    if (v->along) j->table->gemv_rows(y, w, j->b.dtype, j->b.cs, v->x, n, j->k);
    else j->table->gemv_cols(y, w, j->b.dtype, j->b.rs, v->x, j->k, n);
    finish(j, y, GEMV_BLOCK, 0, j0, 1, n);
}

bool ane__gemm_is_vector(const job *j) {
    int64_t size = (int64_t)ane_dtype_size(j->b.dtype);
    return j->m == 1 && j->b.data && j->a.data && (j->b.rs == size || j->b.cs == size) &&
           j->k > 0;
}

static ane_status run_gemv(const job *j, ane_error *err) {
    float *x = ane_scratch_push(j->k * sizeof(float));
    if (!x) return ane_fail(err, ANE_ERR_NOMEM, "[gemm] no memory for %zu floats", j->k);
    int64_t size = (int64_t)ane_dtype_size(j->a.dtype);
    if (j->a.cs == size) j->table->vec->load(x, j->a.data, j->a.dtype, j->k);
    else
        for (size_t p = 0; p < j->k; p++)
            j->table->vec->load(x + p, at(&j->a, 0, p), j->a.dtype, 1);
    vecjob v = {j, x, j->b.cs != (int64_t)ane_dtype_size(j->b.dtype)};
    size_t tasks = cut(j->n, GEMV_BLOCK);
    bool ok = true;
    if (j->n * j->k < SERIAL_WORK)
        for (size_t t = 0; t < tasks; t++) gemv_task(&v, t);
    else ok = ane_parallel_for(tasks, gemv_task, &v);
    ane_scratch_pop(x);
    return ok ? ANE_OK : ane_fail(err, ANE_ERR_CANCELLED, "[gemm] cancelled");
}

/* ------------------------------------------------------------------ running a job */

static ane_status run_whole(job *j, void *given, ane_error *err);

/* The product with the shared operand's dimension cut: what begins at i. */
static void cut_job(const job *j, bool share_a, size_t step, size_t i, job *part) {
    *part = (job){.table = j->table, .e = j->e, .precision = j->precision, .m = j->m, .n = j->n,
                  .k = j->k, .a = j->a, .b = j->b, .c = j->c, .r = j->r, .ep = j->ep,
                  .pa = j->pa, .pb = j->pb};
    size_t total = share_a ? j->m : j->n;
    size_t size = min_size(step, total - i), r = share_a ? i : 0, c = share_a ? 0 : i;
    if (share_a) part->m = size, part->a.data = (char *)at(&j->a, i, 0);
    else part->n = size, part->b.data = (char *)at(&j->b, 0, i);
    part->c.data = (char *)at(&j->c, r, c);
    if (j->r.data) part->r.data = (char *)at(&j->r, r, c);
    if (j->ep.bias)
        part->ep.bias = (const char *)j->ep.bias + (int64_t)r * j->ep.bias_rs +
                        (int64_t)c * j->ep.bias_cs;
    ane__gemm_panels(part);
}

/* Cuts it so that the packed form is bounded. */
static ane_status run_cut(job *j, bool share_a, size_t step, void *given, ane_error *err) {
    size_t total = share_a ? j->m : j->n;
    for (size_t i = 0; i < total; i += step) {
        job part;
        cut_job(j, share_a, step, i, &part);
        ane_status st = run_whole(&part, given, err);
        if (st) return st;
    }
    return ANE_OK;
}

static bool shares_a(const job *j) {
    /* The smaller operand is packed once for all; ties go to B. */
    return j->pb.data || (!j->pa.data && j->m < j->n);
}

/* Blocks of C over the threads. */
static size_t tasks_of(const job *j, bool by_rows, size_t threads) {
    size_t count = by_rows ? j->ap.count : j->bp.count;
    size_t most = cut(BLOCK_ROWS, by_rows ? j->e->mr : j->e->nr);
    size_t n = up(cut(count, most), threads), least = threads * TASKS_PER_THREAD;
    return min_size(n < least ? least : n, count);
}

/* Operands are packed or packed by the tasks. */
static bool run_tasks(job *j, bool by_rows) {
    size_t n = tasks_of(j, by_rows, (size_t)ane_num_threads());
    j->tasks_m = by_rows ? n : 1;
    j->tasks_n = by_rows ? 1 : n;
    return ane_parallel_for(n, run_task, j);
}

/* Blocks of k that one part of a long sum takes; 0: not worth parts. */
static size_t part_of(const job *j, bool share_a) {
    const panels *x = share_a ? &j->ap : &j->bp;
    size_t image, block = x->count * panel_bytes(x, 0);
    if (x->ks.n < 2 || panels_bytes(x) <= PART_BYTES) return 0;
    if (!ane_mul_size(j->ap.count * j->e->mr * j->e->nr, j->bp.count * sizeof(float), &image) ||
        image > IMAGE_BYTES)
        return 0;
    return block > PART_BYTES ? 1 : PART_BYTES / block;
}

/* How a product that is not packed whole goes about it. */
typedef struct way {
    bool share_a, each;         /* which operand is for all; each thread packs it for itself */
    size_t step;                /* > 0: the product is cut into pieces of that size */
    size_t part;                /* blocks of k at a time */
    size_t bytes, image;        /* the shared operand's panels, C between parts */
} way;

static way way_of(const job *j, size_t threads) {
    way w = {.share_a = shares_a(j)};
    const panels *x = w.share_a ? &j->ap : &j->bp;
    w.bytes = panels_bytes(x);
    w.part = part_of(j, w.share_a);
    if (w.part) {
        w.bytes = up(w.part * x->count * panel_bytes(x, 0), ANE_ALIGN);
        w.image = j->ap.count * j->e->mr * j->bp.count * j->e->nr * sizeof(float);
    } else {
        w.part = x->ks.n;
        size_t fit = w.bytes > SHARED_BYTES ? SHARED_BYTES / (w.bytes / x->count) : x->count;
        size_t parts = w.bytes > SHARED_BYTES ? cut(x->count, fit < 16 ? 16 : fit) : 1;
        if (parts > 1) w.step = cut(x->count, parts) * x->width;
    }
    w.each = threads <= WORKERS && (w.share_a ? j->bp.count : j->ap.count) >= threads * 2;
    return w;
}

static ane_status run_whole(job *j, void *given, ane_error *err) {
    size_t threads = (size_t)ane_num_threads();
    bool stopped = false;
    if (j->pa.data && j->pb.data) {
        stopped = !run_tasks(j, j->ap.count >= j->bp.count);
        goto end;
    }
    way w = way_of(j, threads);
    const panels *x = w.share_a ? &j->ap : &j->bp;
    if (w.step) return run_cut(j, w.share_a, w.step, given, err);
    void *mine = NULL;
    char *shared = given;
    size_t all = w.each ? 0 : w.bytes;
    if (!shared && all + w.image && !(shared = mine = ane_scratch_push(all + w.image)))
        return ane_fail(err, ANE_ERR_NOMEM, "[gemm] no memory for %zu bytes of panels",
                        all + w.image);
    if (w.image) j->image = (float *)(void *)(shared + all);
    j->each_a = w.share_a;
    j->each_bytes = w.bytes;
    for (j->p0 = 0; j->p0 < x->ks.n && !stopped; j->p0 += w.part) {
        j->p1 = min_size(j->p0 + w.part, x->ks.n);
        ready *whole = w.share_a ? &j->pa : &j->pb;
        *whole = (ready){0};
        if (w.each) {
            j->workers = threads;
            memset(j->each, 0, sizeof j->each);
        } else {
            if (!ane__gemm_pack_all(j, w.share_a, shared)) {
                stopped = true;
                break;
            }
            *whole = (ready){shared, panel_offset(x, j->p0, 0)};
        }
        stopped = !run_tasks(j, !w.share_a);
    }
    ane_scratch_pop(mine);
end:
    if (stopped) return ane_fail(err, ANE_ERR_CANCELLED, "[gemm] cancelled");
    if (atomic_load(&j->failed))
        return ane_fail(err, ANE_ERR_NOMEM, "[gemm] no memory for a thread's panels");
    return ANE_OK;
}

/* As run_tasks; a, b: as its tasks find them. kept: of each thread. */
static void tasks_room(const job *j, ready a, ready b, bool by_rows, size_t kept, ane_room *room) {
    size_t n = tasks_of(j, by_rows, (size_t)room->threads);
    size_t rows = by_rows ? cut(j->ap.count, n) : j->ap.count;
    size_t cols = by_rows ? j->bp.count : cut(j->bp.count, n);
    ane_room_loop(room, n, block_scratch(j, a, b, rows, cols), kept);
}

static void whole_room(const job *j, ane_room *room) {
    if (j->pa.data && j->pb.data) {
        tasks_room(j, j->pa, j->pb, j->ap.count >= j->bp.count, 0, room);
        return;
    }
    way w = way_of(j, (size_t)room->threads);
    if (w.step) {
        size_t total = w.share_a ? j->m : j->n;
        for (size_t i = 0; i < total; i += w.step) {
            job part;
            cut_job(j, w.share_a, w.step, i, &part);
            if (!i || total - i < w.step) whole_room(&part, room);      /* all others are equal */
        }
        return;
    }
    job with = *j;
    static float image;                 /* only whether there is one */
    if (w.image) with.image = &image;
    size_t all = (w.each ? 0 : w.bytes) + w.image;
    if (all) ane_room_push(room, all);
    ready a = j->pa, b = j->pb;
    (w.share_a ? &a : &b)->data = "";   /* packed, as the tasks see it */
    tasks_room(&with, a, b, !w.share_a, w.each ? w.bytes : 0, room);
    if (all) ane_room_pop(room, all);
}

/* All on this thread, both operands packed by the one task. */
static ane_status run_serial(job *j, ane_error *err) {
    j->tasks_m = j->tasks_n = 1;
    run_task(j, 0);
    return atomic_load(&j->failed) ? ane_fail(err, ANE_ERR_NOMEM, "[gemm] no memory for panels")
                                   : ANE_OK;
}

size_t ane__gemm_work(const job *j) {
    size_t w;
    if (!ane_mul_size(j->m, j->n, &w) || !ane_mul_size(w, j->k ? j->k : 1, &w)) return SIZE_MAX;
    return w;
}

size_t ane__gemm_task_scratch(const job *j) {
    return block_scratch(j, j->pa, j->pb, j->ap.count, j->bp.count);
}

bool ane__gemm_is_small(const job *j) {
    return ane__gemm_work(j) < SERIAL_WORK * 4 && ane__gemm_task_scratch(j) < (1u << 20);
}

ane_status ane__gemm_run(job *j, bool alone, void *given, ane_error *err) {
    if (!j->m || !j->n) return ANE_OK;
    if (ane__gemm_is_vector(j)) return run_gemv(j, err);
    if (alone || (!j->pa.data && !j->pb.data && ane__gemm_is_small(j)))
        return run_serial(j, err);
    return run_whole(j, given, err);
}

size_t ane__gemm_scratch(const job *j) {
    bool packed = j->pa.data && j->pb.data, bare = !j->pa.data && !j->pb.data;
    if (packed || ane__gemm_is_vector(j) || (bare && ane__gemm_is_small(j))) return 0;
    bool share_a = shares_a(j);
    const panels *x = share_a ? &j->ap : &j->bp;
    size_t part = part_of(j, share_a), bytes = panels_bytes(x);
    if (part)
        return up(part * x->count * panel_bytes(x, 0), ANE_ALIGN) +
               j->ap.count * j->e->mr * j->bp.count * j->e->nr * sizeof(float);
    if (bytes <= SHARED_BYTES || x->count <= 16) return bytes;
    size_t least = bytes / x->count * 17;
    return least > SHARED_BYTES ? least : SHARED_BYTES;
}

size_t ane__gemm_alone_bytes(const job *j) {
    return ane__gemm_is_vector(j) ? j->k * sizeof(float) : ane__gemm_task_scratch(j);
}

void ane__gemm_room(const job *j, ane_room *room) {
    if (!j->m || !j->n) return;
    if (!ane__gemm_is_vector(j) && (j->pa.data || j->pb.data || !ane__gemm_is_small(j))) {
        whole_room(j, room);
        return;
    }
    size_t bytes = ane__gemm_alone_bytes(j);
    ane_room_push(room, bytes);         /* the vector's columns push nothing */
    ane_room_pop(room, bytes);
}
