/* The register peak of a table and the speed of a copy, measured: the denominators of every
 * fraction we report. */
#include "kernels.h"

#include "../base/mem.h"
#include "../base/sync.h"

#include <string.h>

typedef struct measure {
    const ane_kernels *table;
    size_t loops;
} measure;

static double now(void) { return 1e-9 * (double)ane_now_ns(); }

static void task(void *arg, size_t i) {
    const measure *m = arg;
    (void)i;
    volatile float keep = m->table->peak(m->loops);
    (void)keep;
}

double ane_kernels_peak(const ane_kernels *table, double seconds) {
    /* Extensions have no peak of their own: the table below is what they extend. */
    measure m = {.table = ane_whole_for(table), .loops = 2000};
    size_t threads = (size_t)ane_num_threads();
    /* Warms the clock and finds the loop count. */
    double t0 = now();
    ane_parallel_for(threads, task, &m);
    double dt = now() - t0;
    if (dt > 0 && seconds > dt) m.loops = (size_t)((double)m.loops * seconds / dt);
    t0 = now();
    ane_parallel_for(threads, task, &m);
    dt = now() - t0;
    return (double)(m.table->peak_flops * m.loops * threads) / dt * 1e-9;
}

ane_status ane_measure_flops(const char *isa, double seconds, double *rate, ane_error *err) {
    const ane_kernels *table = NULL;
    for (size_t i = 0; isa && *isa && i < ane_kernels_count(); i++)
        if (!strcmp(ane_kernels_at(i)->name, isa)) table = ane_kernels_at(i);
    if (isa && *isa && !table)
        return ane_fail(err, ANE_ERR_NOT_FOUND,
                        "[measure] no kernel table \"%s\" runs here; ane_isa_name lists them", isa);
    *rate = ane_kernels_peak(table, seconds) * 1e9;
    return ANE_OK;
}

#define PIECE 65536                     /* bytes that one task copies */

typedef struct copy {
    char *dst, *src;
    size_t bytes;
} copy;

static void copy_piece(void *arg, size_t i) {
    const copy *c = arg;
    size_t at = i * PIECE, n = c->bytes - at < PIECE ? c->bytes - at : PIECE;
    memcpy(c->dst + at, c->src + at, n);
}

ane_status ane_measure_copy(size_t bytes, double seconds, double *rate, ane_error *err) {
    copy c = {.bytes = bytes / 2 > 64 ? bytes / 2 : 64};
    c.dst = ane_aligned_alloc(c.bytes);
    c.src = ane_aligned_alloc(c.bytes);
    ane_status st = ANE_OK;
    if (c.dst && c.src) {
        size_t tasks = (c.bytes + PIECE - 1) / PIECE, rounds = 0;
        memset(c.src, 1, c.bytes);
        ane_parallel_for(tasks, copy_piece, &c);        /* touches every page */
        double t0 = now(), dt = 0;
        while (dt < seconds || !rounds) {
            ane_parallel_for(tasks, copy_piece, &c);
            rounds++;
            dt = now() - t0;
        }
        *rate = 2 * (double)c.bytes * (double)rounds / dt;
    } else {
        st = ane_fail(err, ANE_ERR_NOMEM, "[measure] out of memory for a copy of %zu bytes",
                      bytes);
    }
    ane_aligned_free(c.dst);
    ane_aligned_free(c.src);
    return st;
}
