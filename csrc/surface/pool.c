/* Recycling: a surface made by a pool goes back to it with its last release, by size class,
 * and comes out again with a new identity. What another process may see never comes back. */
#include "surface.h"

#include <string.h>

/* Classes are (8 + k) * 2^e bytes: at most an eighth of a block is wasted. */
#define STEPS 8
#define LEAST_LOG 6
#define CLASSES ((63 - LEAST_LOG) * STEPS)

struct ane_surface_pool {
    atomic_long refs;                   /* the owner's, and one per surface outside */
    ane_memory memory;
    ane_mutex mutex;
    bool closed;
    unsigned forks;
    size_t limit, held;                 /* bytes */
    uint64_t hits, misses;
    ane_surface *lists[CLASSES];
};

/* Class and its size; false when bytes are beyond all. */
static bool class_of(size_t bytes, int *class, size_t *size) {
    if (bytes <= (size_t)STEPS << (LEAST_LOG - 3)) {
        *class = 0;
        *size = (size_t)1 << LEAST_LOG;
        return true;
    }
    int e = 63 - __builtin_clzll((unsigned long long)(bytes - 1));     /* 2^e <= bytes-1 */
    size_t step = (size_t)1 << (e - 3);
    size_t k = ((bytes - 1) >> (e - 3)) - STEPS + 1;                   /* 1..8 */
    *size = ((size_t)STEPS + k) * step;
    *class = (e - LEAST_LOG) * STEPS + (int)k;
    return *class < CLASSES;
}

ane_status ane_surface_pool_create(ane_memory memory, size_t limit, ane_surface_pool **out,
                                   ane_error *err) {
    if (memory == ANE_MEM_EXTERNAL || !ane_memory_available(memory))
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[pool] memory kind '%s' is not available here",
                        ane_memory_name(memory));
    ane_surface_pool *p = ane_calloc(1, sizeof *p);
    if (!p) return ane_fail(err, ANE_ERR_NOMEM, "[pool] no memory for a pool");
    atomic_init(&p->refs, 1);
    p->memory = memory;
    p->limit = limit;
    p->forks = ane__fork_count();
    (void)pthread_mutex_init(&p->mutex, NULL);
    *out = p;
    return ANE_OK;
}

/* Takes every idle surface out, to be destroyed without the lock. */
static ane_surface *drain_locked(ane_surface_pool *p) {
    ane_surface *all = NULL;
    for (int c = 0; c < CLASSES; c++)
        while (p->lists[c]) {
            ane_surface *s = p->lists[c];
            p->lists[c] = s->next_free;
            s->next_free = all;
            all = s;
        }
    p->held = 0;
    return all;
}

static void destroy_list(ane_surface *s) {
    for (ane_surface *next; s; s = next) {
        next = s->next_free;
        ane__surface_destroy(s);
    }
}

static void drop(ane_surface_pool *p) {
    if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1) return;
    (void)pthread_mutex_destroy(&p->mutex);
    ane_free(p);
}

void ane_surface_pool_clear(ane_surface_pool *p) {
    ane_mutex_lock(&p->mutex);
    ane_surface *all = drain_locked(p);
    ane_mutex_unlock(&p->mutex);
    destroy_list(all);
}

void ane_surface_pool_destroy(ane_surface_pool *p) {
    if (!p) return;
    ane_mutex_lock(&p->mutex);
    p->closed = true;
    ane_surface *all = drain_locked(p);
    ane_mutex_unlock(&p->mutex);
    destroy_list(all);
    drop(p);
}

ane_status ane_surface_pool_take(ane_surface_pool *p, size_t bytes, ane_surface **out,
                                 ane_error *err) {
    int class;
    size_t size;
    if (!class_of(bytes, &class, &size))
        return ane_fail(err, ANE_ERR_NOMEM, "[pool] %zu bytes is too large", bytes);
    ane_surface *stale = NULL, *s;
    ane_mutex_lock(&p->mutex);
    if (p->closed) {
        ane_mutex_unlock(&p->mutex);
        return ane_fail(err, ANE_ERR_INVALID, "[pool] the pool is closed");
    }
    unsigned forks = ane__fork_count();
    if (p->forks != forks) {            /* idle surfaces exist on both sides of the fork */
        stale = drain_locked(p);
        p->forks = forks;
    }
    s = p->lists[class];
    if (s) {
        p->lists[class] = s->next_free;
        p->held -= size;
        p->hits++;
    } else {
        p->misses++;
    }
    ane_mutex_unlock(&p->mutex);
    destroy_list(stale);
    if (s) {
        s->next_free = NULL;
        s->identity = ane__identity_next();
        atomic_store_explicit(&s->refs, 1, memory_order_relaxed);
    } else {
        ane_status st = ane_surface_create(p->memory, size, NULL, &s, err);
        if (st) return st;
        s->pool = p;
    }
    s->bytes = bytes;
    s->pool_class = class;
    s->pool_bytes = size;
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    *out = s;
    return ANE_OK;
}

bool ane__pool_give(ane_surface *s) {
    ane_surface_pool *p = s->pool;
    unsigned forks = ane__fork_count();
    bool keep = !atomic_load(&s->shared) && s->forks == forks && !s->readers && !s->writers;
    if (keep) {
        s->n_invalid = 0;
        atomic_store_explicit(&s->any_invalid, 0, memory_order_relaxed);
        ane_mutex_lock(&p->mutex);
        keep = !p->closed && p->forks == forks && s->pool_bytes <= p->limit - p->held;
        if (keep) {
            p->held += s->pool_bytes;
            s->next_free = p->lists[s->pool_class];
            p->lists[s->pool_class] = s;
        }
        ane_mutex_unlock(&p->mutex);
    }
    drop(p);
    return keep;
}

void ane_surface_pool_stats(ane_surface_pool *p, size_t *held, uint64_t *hits,
                            uint64_t *misses) {
    ane_mutex_lock(&p->mutex);
    *held = p->held;
    *hits = p->hits;
    *misses = p->misses;
    ane_mutex_unlock(&p->mutex);
}
