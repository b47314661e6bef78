/* Pooling over channels-last rows. */
#include "conv_plan.h"

#include "../base/mem.h"
#include "../base/sync.h"

#include <stdatomic.h>

#define TASK 16384                      /* elements read by one task, at least */

typedef struct job {
    const ane_kernels *table;
    const ane_pool_args *g;
    ane_rows x;
    bool direct;
    int64_t rows, per;
    atomic_bool failed;
} job;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* One row of outputs. */
static void pool_row(job *j, int64_t r, const float **taps, float *acc) {
    const ane_pool_args *g = j->g;
    const ane_rows *x = &j->x;
    int64_t at[3] = {r / g->out[1] % g->out[0], r % g->out[1], 0};
    int64_t n = r / g->out[1] / g->out[0];
    char *y = (char *)g->y.data + n * g->y.sn + at[0] * g->y.s[0] + at[1] * g->y.s[1];
    size_t channels = (size_t)g->channels;
    const float *image = x->base + n * x->sn;
    for (; at[2] < g->out[2]; at[2]++) {
        int64_t lo[3], hi[3], volume = 1;
        size_t count = 0;
        for (int d = 0; d < 3; d++) {
            int64_t start = at[d] * g->stride[d] - g->pad[d];
            lo[d] = most(start, 0);
            hi[d] = start + g->kernel[d];
            volume *= least(hi[d], g->in[d] + g->after[d]) - start;
            hi[d] = least(hi[d], g->in[d]);
        }
        for (int64_t a = lo[0]; a < hi[0]; a++)
            for (int64_t b = lo[1]; b < hi[1]; b++)
                for (int64_t c = lo[2]; c < hi[2]; c++)
                    taps[count++] = image + a * x->s[0] + b * x->s[1] + c * x->s[2];
        int64_t by = g->exclude ? (int64_t)count : volume;
        float *to = j->direct ? (float *)(void *)(y + at[2] * g->y.s[2])
                              : acc + (size_t)at[2] * channels;
        j->table->conv->pool(g->kind, taps, count, count ? 1.0f / (float)by : 0.0f, to,
                             channels);
    }
    if (j->direct) return;
    ane_tile_out out = {.alpha = 1, .c = y, .c_dtype = g->y.dtype, .c_rs = g->y.s[2],
                        .c_cs = g->y.sc};
    j->table->tile(&out, acc, channels, (size_t)g->out[2], channels);
}

static size_t list_bytes(const ane_pool_args *g) {
    size_t list = (size_t)(least(g->kernel[0], g->in[0]) * least(g->kernel[1], g->in[1]) *
                           least(g->kernel[2], g->in[2]));
    return (list * sizeof(float *) + ANE_ALIGN) & ~(size_t)(ANE_ALIGN - 1);
}

/* The store reads whole vectors of a row, up to a vector past the last. */
static size_t task_bytes(const job *j) {
    const ane_pool_args *g = j->g;
    return list_bytes(g) + (j->direct ? 0 : (size_t)(g->out[2] * g->channels + 64) * sizeof(float));
}

static void pool_task(void *arg, size_t task) {
    job *j = arg;
    size_t list = list_bytes(j->g);
    char *scratch = ane_scratch_push(task_bytes(j));
    if (!scratch) {
        atomic_store(&j->failed, true);
        return;
    }
    int64_t first = (int64_t)task * j->per, end = least(first + j->per, j->rows);
    for (int64_t r = first; r < end; r++)
        pool_row(j, r, (const float **)(void *)scratch, (float *)(void *)(scratch + list));
    ane_scratch_pop(scratch);
}

static const int64_t none[3] = {0};

static bool is_empty(const ane_pool_args *g) {
    return !g->n || !g->channels || !g->out[0] || !g->out[1] || !g->out[2];
}

/* Rows of a task; the tasks. */
static size_t divide(job *j) {
    const ane_pool_args *g = j->g;
    j->direct = ane__rows_writable(&g->y, g->channels);
    j->rows = g->n * g->out[0] * g->out[1];
    int64_t work = g->out[2] * g->channels;
    for (int d = 0; d < 3; d++) work *= least(g->kernel[d], g->in[d]);
    j->per = work ? TASK / work + 1 : j->rows;
    return (size_t)((j->rows - 1) / j->per + 1);
}

void ane_pool_room(const ane_pool_args *g, ane_room *room) {
    job j = {.g = g};
    if (is_empty(g)) return;
    size_t staged = 0;
    bool rows = ane__rows_view(&g->x, g->channels, g->in, &j.x);
    if (!rows && !ane__rows_stage_bytes(g->n, g->channels, g->in, none, none, NULL, &j.x, &staged))
        staged = SIZE_MAX;
    if (!rows) ane_room_push(room, staged);
    size_t tasks = divide(&j);
    ane_room_loop(room, tasks, task_bytes(&j), 0);
    if (!rows) ane_room_pop(room, staged);
}

ane_status ane_pool_with(const ane_kernels *table, const ane_pool_args *g, ane_error *err) {
    job j = {.g = g};
    if (is_empty(g)) return ANE_OK;
    j.table = ane_whole_for(table);
    if (!ane__rows_view(&g->x, g->channels, g->in, &j.x)) {
        ane_status st = ane__rows_stage(j.table, &g->x, g->n, g->channels, g->in, none, none,
                                        NULL, &j.x, err);
        if (st) return st;
    }
    bool done = ane_parallel_for(divide(&j), pool_task, &j);
    ane_scratch_pop(j.x.owned);
    if (!done) return ane_fail(err, ANE_ERR_CANCELLED, "[pool] cancelled");
    if (atomic_load(&j.failed)) return ane_fail(err, ANE_ERR_NOMEM, "[pool] out of memory");
    return ANE_OK;
}

ane_status ane_pool(const ane_pool_args *args, ane_error *err) {
    return ane_pool_with(NULL, args, err);
}

const char *ane_pool_name(void) { return ane_kernels_get()->conv->pool_name; }
