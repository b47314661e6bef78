/* Three ways, by how many there are and how many of them live at once, so that the time stays
 * in proportion to the program. Up to SMALL buffers: the largest first, each into the smallest
 * gap between those that live with it, by looking at all that are placed. More: the very same
 * placement, the neighbours found by a tree. Hundreds alive at any time: in order of birth,
 * blocks of sizes that occur go from hand to hand. */
#include "memplan.h"

#include "../base/mem.h"

#include <string.h>

#define SMALL 1024
#define ALIVE_MEAN 48                   /* of the second way; beyond it the third */

typedef struct planner {
    ane_lifetime *items;
    int n;                              /* that live at all */
    int *by_size, *by_first, *by_last;
    int *near;                          /* those that live with the one being placed */
    int *rank;                          /* of an item in by_first */
    size_t total;
} planner;

static size_t rounded(const ane_lifetime *it) {
    return (it->bytes + ANE_ALIGN - 1) & ~(size_t)(ANE_ALIGN - 1);
}

/* ---------------------------------------------------------------- orders */

typedef bool before_fn(const ane_lifetime *items, int a, int b);

/* Ties in order of birth, so that the layout is reproducible. */
static bool larger(const ane_lifetime *items, int a, int b) {
    const ane_lifetime *x = &items[a], *y = &items[b];
    if (x->bytes != y->bytes) return x->bytes > y->bytes;
    return x->first != y->first ? x->first < y->first : a < b;
}
static bool born_before(const ane_lifetime *items, int a, int b) {
    return items[a].first != items[b].first ? items[a].first < items[b].first : a < b;
}
static bool dies_before(const ane_lifetime *items, int a, int b) {
    return items[a].last != items[b].last ? items[a].last < items[b].last : a < b;
}
static bool lies_before(const ane_lifetime *items, int a, int b) {
    return items[a].offset != items[b].offset ? items[a].offset < items[b].offset : a < b;
}

/* Heap sort of indices: qsort has no context argument, and a static one is not safe. */
static void sift(int *order, int n, int root, const ane_lifetime *items, before_fn *before) {
    for (int child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && before(items, order[child], order[child + 1])) child++;
        if (!before(items, order[root], order[child])) return;
        int t = order[root];
        order[root] = order[child];
        order[child] = t;
    }
}

static void sort(int *order, int n, const ane_lifetime *items, before_fn *before) {
    for (int i = n / 2 - 1; i >= 0; i--) sift(order, n, i, items, before);
    for (int i = n - 1; i > 0; i--) {
        int t = order[0];
        order[0] = order[i];
        order[i] = t;
        sift(order, i, 0, items, before);
    }
}

/* ---------------------------------------------------------------- largest first */

/* Into the smallest gap between its neighbours (ascending offsets) that is large enough; else
 * on top. */
static void settle(planner *p, ane_lifetime *it, const int *near, int n) {
    size_t need = rounded(it), top = 0, best = 0, best_gap = SIZE_MAX;
    for (int j = 0; j < n; j++) {
        const ane_lifetime *o = &p->items[near[j]];
        if (o->last < it->first || it->last < o->first) continue;
        if (o->offset > top && o->offset - top >= need && o->offset - top < best_gap) {
            best = top;
            best_gap = o->offset - top;
        }
        size_t end = o->offset + rounded(o);
        if (end > top) top = end;
    }
    it->offset = best_gap < SIZE_MAX ? best : top;
    if (it->offset + need > p->total) p->total = it->offset + need;
}

static void place_few(planner *p) {
    int *placed = p->near;
    for (int k = 0; k < p->n; k++) {
        int at = p->by_size[k], j = k;
        settle(p, &p->items[at], placed, k);
        for (; j > 0 && p->items[placed[j - 1]].offset > p->items[at].offset; j--)
            placed[j] = placed[j - 1];
        placed[j] = at;
    }
}

/* A tree over the items in order of birth: the latest death among those placed below a node,
 * -1 for none. Whoever lives with [first, last] was born by `last` and dies from `first` on. */
typedef struct alive_tree {
    int *death, width;                  /* leaves from `width` on */
    const int *by_first;
    int first, end;                     /* asked for: deaths from `first`, births below `end` */
    int *found, n;
} alive_tree;

static void collect(alive_tree *t, int node, int lo, int width) {
    if (lo >= t->end || t->death[node] < t->first) return;
    if (width == 1) {
        t->found[t->n++] = t->by_first[lo];
        return;
    }
    collect(t, 2 * node, lo, width / 2);
    collect(t, 2 * node + 1, lo + width / 2, width / 2);
}

static int born_by(const planner *p, int last) {
    int lo = 0, hi = p->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (p->items[p->by_first[mid]].first <= last) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* Pairs that live at once, by two merges of births and deaths. */
static int64_t pairs_alive(const planner *p) {
    int64_t pairs = 0;
    for (int k = 0, dead = 0; k < p->n; k++) {
        while (p->items[p->by_last[dead]].last < p->items[p->by_first[k]].first) dead++;
        pairs += k - dead;
    }
    return pairs;
}

static ane_status place_by_tree(planner *p, ane_error *err) {
    alive_tree t = {.width = 1, .by_first = p->by_first, .found = p->near};
    while (t.width < p->n) t.width *= 2;
    t.death = ane_malloc(2 * (size_t)t.width * sizeof *t.death);
    if (!t.death) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    memset(t.death, -1, 2 * (size_t)t.width * sizeof *t.death);
    for (int k = 0; k < p->n; k++) {
        int at = p->by_size[k];
        ane_lifetime *it = &p->items[at];
        t.first = it->first;
        t.end = born_by(p, it->last);
        t.n = 0;
        collect(&t, 1, 0, t.width);
        sort(t.found, t.n, p->items, lies_before);
        settle(p, it, t.found, t.n);
        for (int node = t.width + p->rank[at]; node && t.death[node] < it->last; node /= 2)
            t.death[node] = it->last;
    }
    ane_free(t.death);
    return ANE_OK;
}

/* ---------------------------------------------------------------- in order of birth */

/* Classes are the sizes that occur, ascending; a block keeps its class. free_in: a tree over
 * the classes, whether any block of those below a node is free. */
typedef struct classes {
    int n, width;
    size_t *bytes;
    bool *free_in;
    int *head, *next;                   /* free blocks by class, as lists of dead items */
} classes;

static void set_free(classes *c, int class, bool any) {
    int node = c->width + class;
    c->free_in[node] = any;
    for (node /= 2; node; node /= 2)
        c->free_in[node] = c->free_in[2 * node] || c->free_in[2 * node + 1];
}

/* The first class from `class` on that has a free block; -1: none. */
static int next_free(const classes *c, int class) {
    int node = c->width + class;
    if (c->free_in[node]) return class;
    for (; node > 1; node /= 2)
        if (!(node & 1) && c->free_in[node + 1]) {
            node++;
            while (node < c->width) node = 2 * node + !c->free_in[2 * node];
            return node - c->width;
        }
    return -1;
}

static int class_of(const classes *c, size_t bytes) {
    int lo = 0, hi = c->n - 1;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (c->bytes[mid] < bytes) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static ane_status place_in_time(planner *p, int *held, ane_error *err) {
    classes c = {.width = 1, .next = p->near};
    while (c.width < p->n) c.width *= 2;
    c.bytes = ane_malloc((size_t)p->n * sizeof *c.bytes);
    c.head = ane_malloc((size_t)p->n * sizeof *c.head);
    c.free_in = ane_calloc(2 * (size_t)c.width, sizeof *c.free_in);
    ane_status st = ANE_OK;
    if (!c.bytes || !c.head || !c.free_in) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    for (int k = p->n - 1; k >= 0; k--) {
        size_t bytes = rounded(&p->items[p->by_size[k]]);
        if (!c.n || c.bytes[c.n - 1] != bytes) c.bytes[c.n++] = bytes;
    }
    memset(c.head, -1, (size_t)c.n * sizeof *c.head);
    for (int k = 0, dead = 0; k < p->n; k++) {
        int at = p->by_first[k];
        ane_lifetime *it = &p->items[at];
        for (; p->items[p->by_last[dead]].last < it->first; dead++) {
            int gone = p->by_last[dead], class = held[gone];
            c.next[gone] = c.head[class];
            c.head[class] = gone;
            set_free(&c, class, true);
        }
        int own = class_of(&c, rounded(it)), class = next_free(&c, own);
        if (class >= 0 && c.bytes[class] / 2 <= c.bytes[own]) {
            int from = c.head[class];
            it->offset = p->items[from].offset;
            c.head[class] = c.next[from];
            if (c.head[class] < 0) set_free(&c, class, false);
        } else {
            class = own;
            it->offset = p->total;
            p->total += c.bytes[own];
        }
        held[at] = class;
    }
done:
    ane_free(c.bytes);
    ane_free(c.head);
    ane_free(c.free_in);
    return st;
}

/* ---------------------------------------------------------------- all */

ane_status ane_memplan(ane_lifetime *items, int n, size_t *total, ane_error *err) {
    size_t sum = 0, each = (size_t)n;
    planner p = {.items = items};
    ane_status st = ANE_OK;
    *total = 0;
    if (!n) return ANE_OK;
    int *block = ane_mul_size(each, 5 * sizeof *block, &each) ? ane_malloc(each) : NULL;
    if (!block) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    p.by_size = block;
    p.by_first = block + n;
    p.by_last = block + 2 * (size_t)n;
    p.near = block + 3 * (size_t)n;
    p.rank = block + 4 * (size_t)n;
    for (int i = 0; i < n; i++) {
        items[i].offset = 0;
        if (items[i].first > items[i].last || !items[i].bytes) continue;
        if (items[i].bytes > SIZE_MAX - ANE_ALIGN || !ane_add_size(sum, rounded(&items[i]), &sum)) {
            st = ane_fail(err, ANE_ERR_NOMEM, "[compile] scratch memory beyond 2^64 bytes");
            goto done;
        }
        p.by_size[p.n] = p.by_first[p.n] = p.by_last[p.n] = i;
        p.n++;
    }
    sort(p.by_size, p.n, items, larger);
    if (p.n <= SMALL) {
        place_few(&p);
    } else {
        sort(p.by_first, p.n, items, born_before);
        sort(p.by_last, p.n, items, dies_before);
        for (int k = 0; k < p.n; k++) p.rank[p.by_first[k]] = k;
        bool crowded = pairs_alive(&p) > (int64_t)p.n * ALIVE_MEAN;
        st = crowded ? place_in_time(&p, p.rank, err) : place_by_tree(&p, err);
    }
    *total = p.total;
done:
    ane_free(block);
    return st;
}
