#include "memplan.h"

#include "../base/mem.h"


/* Largest first; equal sizes in order of birth, so that the layout is reproducible. */
static int by_size(const ane_lifetime *a, const ane_lifetime *b) {
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    return a->first != b->first ? (a->first < b->first ? -1 : 1) : 0;
}

/* Heap sort of indices: qsort has no context argument, and a static one is not safe. */
static void sift(int *order, int n, int root, const ane_lifetime *items) {
    for (int child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n) {
            int c = by_size(&items[order[child]], &items[order[child + 1]]);
            if (c < 0 || (c == 0 && order[child] < order[child + 1])) child++;
        }
        int c = by_size(&items[order[root]], &items[order[child]]);
        if (c > 0 || (c == 0 && order[root] > order[child])) return;
        int t = order[root];
        order[root] = order[child];
        order[child] = t;
    }
}

ane_status ane_memplan(ane_lifetime *items, int n, size_t *total, ane_error *err) {
    size_t sum = 0;
    *total = 0;
    if (!n) return ANE_OK;
    int *order = ane_malloc((size_t)n * sizeof *order);
    int *placed = ane_malloc((size_t)n * sizeof *placed);   /* by offset, ascending */
    if (!order || !placed) {
        ane_free(order);
        ane_free(placed);
        return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    }
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n / 2 - 1; i >= 0; i--) sift(order, n, i, items);
    for (int i = n - 1; i > 0; i--) {
        int t = order[0];
        order[0] = order[i];
        order[i] = t;
        sift(order, i, 0, items);
    }
    int n_placed = 0;
    ane_status st = ANE_OK;
    for (int k = 0; k < n; k++) {
        ane_lifetime *it = &items[order[k]];
        it->offset = 0;
        if (it->first > it->last || !it->bytes) continue;
        size_t need;
        if (!ane_add_size(it->bytes, ANE_ALIGN - 1, &need) ||
            !ane_add_size(sum, need & ~(size_t)(ANE_ALIGN - 1), &sum)) {
            st = ane_fail(err, ANE_ERR_NOMEM, "[compile] scratch memory beyond 2^64 bytes");
            break;
        }
        need &= ~(size_t)(ANE_ALIGN - 1);
        /* The smallest gap between live neighbours that is large enough; else on top. */
        size_t top = 0, best = 0, best_gap = SIZE_MAX;
        bool found = false;
        for (int j = 0; j < n_placed; j++) {
            const ane_lifetime *o = &items[placed[j]];
            if (o->last < it->first || it->last < o->first) continue;
            if (o->offset > top && o->offset - top >= need && o->offset - top < best_gap) {
                best = top;
                best_gap = o->offset - top;
                found = true;
            }
            size_t end = o->offset + ((o->bytes + ANE_ALIGN - 1) & ~(size_t)(ANE_ALIGN - 1));
            if (end > top) top = end;
        }
        it->offset = found ? best : top;
        if (it->offset + need > *total) *total = it->offset + need;
        int j = n_placed++;
        for (; j > 0 && items[placed[j - 1]].offset > it->offset; j--)
            placed[j] = placed[j - 1];
        placed[j] = order[k];
    }
    ane_free(order);
    ane_free(placed);
    return st;
}
