/* Global L2 norm over several blocks, and the factor that clips it.
 *
 * Same bits for every thread count: a block is cut into at most PARTS parts whose size
 * depends on its length only, every part sums exact squares in 16 double lanes, and lanes,
 * parts and blocks are added in order. Error: the longest chain of additions has
 * part/16 + 16 + PARTS + blocks terms, each 2^-53 relative, and every term is positive. */
#include "train.h"

#include "../base/sync.h"

#include <math.h>

#define PARTS 256
#define LEAST ((size_t)16384)   /* elements that are worth a task; a multiple of 16 */

typedef struct sum {
    const float *x;
    size_t n, part;
    const ane_train_loops *t;
    double parts[PARTS];
} sum;

static void part(void *arg, size_t i) {
    sum *s = arg;
    size_t lo = i * s->part, n = s->n - lo > s->part ? s->part : s->n - lo;
    double lanes[ANE_NORM_LANES] = {0}, total = 0;
    s->t->squares(lanes, s->x + lo, n);
    for (int j = 0; j < ANE_NORM_LANES; j++) total += lanes[j];
    s->parts[i] = total;
}

void ane_grad_norm(const float *const *blocks, const size_t *counts, size_t n, double scale,
                   double *norm, bool *finite) {
    double total = 0;
    sum s = {.t = ane_train_table()};
    for (size_t i = 0; i < n; i++) {
        if (!counts[i]) continue;
        s.x = blocks[i];
        s.n = counts[i];
        s.part = (counts[i] + PARTS - 1) / PARTS;
        s.part = (s.part + LEAST - 1) / LEAST * LEAST;
        size_t parts = (counts[i] + s.part - 1) / s.part;
        ane_parallel_for(parts, part, &s);
        for (size_t j = 0; j < parts; j++) total += s.parts[j];
    }
    /* fp32 squares are below 2^256, so their sum cannot overflow a double: it is finite
     * exactly when every element is. */
    *finite = isfinite(total);
    *norm = sqrt(total) * fabs(scale);
}

double ane_clip_factor(double norm, double limit) {
    return limit > 0 && norm > limit ? limit / norm : 1;
}
