/* The register peak of a table, measured: the denominator of every fraction we report. */
#include "kernels.h"

#include "../base/sync.h"

#include <time.h>

typedef struct measure {
    const ane_kernels *table;
    size_t loops;
} measure;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void task(void *arg, size_t i) {
    const measure *m = arg;
    (void)i;
    volatile float keep = m->table->peak(m->loops);
    (void)keep;
}

double ane_kernels_peak(const ane_kernels *table, double seconds) {
    measure m = {.table = table ? table : ane_kernels_get(), .loops = 2000};
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
