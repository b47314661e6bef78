/* What all surfaces share: counting, identity, locks, validity. Memory itself comes from
 * surface_<kind>.c. */
#include "surface.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    const ane__surface_kind *kind;
} kinds[] = {
    [ANE_MEM_HEAP] = {"heap", &ane__surface_heap},
    [ANE_MEM_SHM] = {"shm", &ane__surface_shm},
    [ANE_MEM_IOSURFACE] = {"iosurface", &ane__surface_iosurface},
    [ANE_MEM_DMA] = {"dma", &ane__surface_dma},
    [ANE_MEM_EXTERNAL] = {"external", &ane__surface_external},
};

static bool known(ane_memory kind) { return (unsigned)kind < sizeof kinds / sizeof *kinds; }

const char *ane_memory_name(ane_memory kind) {
    return known(kind) ? kinds[kind].name : "unknown";
}

bool ane_memory_available(ane_memory kind) {
    return known(kind) && kinds[kind].kind->available();
}

ane_memory ane_memory_default(void) {
#if defined(__APPLE__)
    if (ane_memory_available(ANE_MEM_IOSURFACE)) return ANE_MEM_IOSURFACE;
#endif
    return ane_memory_available(ANE_MEM_SHM) ? ANE_MEM_SHM : ANE_MEM_HEAP;
}

/* ---------------------------------------------------------------- forks */

static ane_once fork_once = ANE_ONCE_INIT;
static atomic_uint forks;

static void after_fork(void) {
    atomic_fetch_add(&forks, 1);
    ane__shm_after_fork();
}
static void watch_forks(void) {
    (void)pthread_atfork(ane__shm_before_fork, after_fork, after_fork);
}

unsigned ane__fork_count(void) {
    pthread_once(&fork_once, watch_forks);
    return atomic_load_explicit(&forks, memory_order_relaxed);
}

/* ---------------------------------------------------------------- sizes */

size_t ane__page_size(void) {
    static atomic_size_t page;
    size_t p = atomic_load_explicit(&page, memory_order_relaxed);
    if (!p) {
        long n = sysconf(_SC_PAGESIZE);
        p = n > 0 ? (size_t)n : 4096;
        atomic_store(&page, p);
    }
    return p;
}

size_t ane__round_up(size_t n, size_t unit) {
    return n > SIZE_MAX - (unit - 1) ? 0 : (n + unit - 1) & ~(unit - 1);
}

/* A number in a one-line file; SIZE_MAX where there is none ("max"). */
static size_t number_in(const char *path) {
    FILE *f = fopen(path, "re");
    unsigned long long n = 0;
    if (!f) return SIZE_MAX;
    int got = fscanf(f, "%llu", &n);
    fclose(f);
    return got == 1 ? (size_t)n : SIZE_MAX;
}

static size_t memory_limit;
static ane_once limit_once = ANE_ONCE_INIT;

/* RAM plus swap, or the control group's limit. What is free right now is not asked: that
 * would refuse what reclaiming could give. Sparse files make this check necessary: a memfd
 * of a petabyte is created without complaint and kills the process when touched. */
static void find_memory_limit(void) {
    size_t limit = SIZE_MAX;
    long pages = sysconf(_SC_PHYS_PAGES);
    if (pages > 0 && ane_mul_size((size_t)pages, ane__page_size(), &limit)) {
        FILE *f = fopen("/proc/meminfo", "re");
        char line[128];
        unsigned long long kib;
        while (f && fgets(line, sizeof line, f))
            if (sscanf(line, "SwapTotal: %llu", &kib) == 1) limit += (size_t)kib << 10;
        if (f) fclose(f);
    }
    size_t v2 = number_in("/sys/fs/cgroup/memory.max");
    size_t v1 = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    if (v2 < limit) limit = v2;
    if (v1 < limit) limit = v1;
    memory_limit = limit;
}

ane_status ane__memory_check(const char *who, size_t bytes, ane_error *err) {
    pthread_once(&limit_once, find_memory_limit);
    if (bytes <= memory_limit) return ANE_OK;
    return ane_fail(err, ANE_ERR_NOMEM,
                    "[%s] %zu bytes asked for, but this machine (or its control group) has "
                    "%zu bytes in all; use a smaller shape",
                    who, bytes, memory_limit);
}

/* ---------------------------------------------------------------- life */

uint64_t ane__identity_next(void) {
    static _Atomic uint64_t last;
    return atomic_fetch_add_explicit(&last, 1, memory_order_relaxed) + 1;
}

ane_surface *ane__surface_new(ane_memory kind, size_t bytes, const char *name,
                              ane_error *err) {
    ane_surface *s = ane_calloc(1, sizeof *s);
    if (s && name && !(s->name = ane_strdup(name))) {
        ane_free(s);
        s = NULL;
    }
    if (!s) {
        (void)ane_fail(err, ANE_ERR_NOMEM, "[surface] no memory for a surface's record");
        return NULL;
    }
    atomic_init(&s->refs, 1);
    s->memory = kind;
    s->bytes = bytes;
    s->fd = s->own_fd = -1;
    s->forks = ane__fork_count();
    s->identity = ane__identity_next();
    (void)pthread_mutex_init(&s->mutex, NULL);
    return s;
}

void ane__surface_free(ane_surface *s) {
    if (!s) return;
    (void)pthread_mutex_destroy(&s->mutex);
    if (s->invalid != &s->first_invalid) ane_free(s->invalid);
    ane_free(s->name);
    ane_free(s);
}

void ane__surface_destroy(ane_surface *s) {
    kinds[s->memory].kind->destroy(s);
    ane__surface_free(s);
}

static ane_status create(ane_memory kind, size_t bytes, const char *name, bool apart,
                         const ane_image_layout *image, ane_surface **out, ane_error *err) {
    if (!known(kind) || kind == ANE_MEM_EXTERNAL)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[surface_create] memory kind %d cannot be created; use heap, shm, "
                        "iosurface or dma",
                        (int)kind);
    if (!kinds[kind].kind->available())
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[surface_create] memory kind '%s' is not available on this "
                        "machine; '%s' is the default here",
                        kinds[kind].name, ane_memory_name(ane_memory_default()));
    size_t held = bytes ? bytes : 1;
    if (held > (size_t)INT64_MAX)
        return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] %zu bytes is beyond 2^63-1",
                        held);
    ane_status st = ane__memory_check("surface_create", held, err);
    if (st) return st;
    ane_surface *s = ane__surface_new(kind, bytes, name, err);
    if (!s) return ANE_ERR_NOMEM;
    s->apart = apart;
    s->image = image;
    st = kinds[kind].kind->create(s, held, err);
    s->image = NULL;
    if (st) {
        ane__surface_free(s);
        return st;
    }
    *out = s;
    return ANE_OK;
}

ane_status ane_surface_create(ane_memory kind, size_t bytes, const char *name,
                              ane_surface **out, ane_error *err) {
    return create(kind, bytes, name, false, NULL, out, err);
}

ane_status ane_surface_create_apart(ane_memory kind, size_t bytes, const char *name,
                                    ane_surface **out, ane_error *err) {
    return create(kind, bytes, name, true, NULL, out, err);
}

ane_status ane__surface_create_image(ane_memory kind, const ane_image_layout *layout,
                                     const char *name, ane_surface **out, ane_error *err) {
    return create(kind, layout->bytes, name, false, layout, out, err);
}

ane_surface *ane_surface_retain(ane_surface *s) {
    if (s) atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

void ane_surface_release(ane_surface *s) {
    if (!s) return;
    long left = atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) - 1;
    ANE_ASSERT(left >= 0);
    if (left) return;
    if (s->pool && ane__pool_give(s)) return;
    ane__surface_destroy(s);
}

void *ane_surface_base(const ane_surface *s) { return s->base; }
size_t ane_surface_bytes(const ane_surface *s) { return s->bytes; }
size_t ane_surface_capacity(const ane_surface *s) { return s->capacity; }
ane_memory ane_surface_memory(const ane_surface *s) { return s->memory; }
bool ane_surface_readonly(const ane_surface *s) { return s->readonly; }
uint64_t ane_surface_identity(const ane_surface *s) { return s->identity; }
const char *ane_surface_name(const ane_surface *s) { return s->name ? s->name : ""; }

/* ---------------------------------------------------------------- locks */

static ane_status check_access(const char *who, const ane_surface *s, ane_access access,
                               ane_error *err) {
    if (access < ANE_READ || access > ANE_READWRITE)
        return ane_fail(err, ANE_ERR_INVALID, "[%s] access %d is none of 1, 2, 3", who,
                        (int)access);
    if ((access & ANE_WRITE) && s->readonly)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[%s] the memory is read-only; lock it for reading", who);
    return ANE_OK;
}

ane_status ane_surface_lock(ane_surface *s, ane_access access, ane_error *err) {
    ane_status st = check_access("surface_lock", s, access, err);
    if (st) return st;
    const ane__surface_kind *kind = kinds[s->memory].kind;
    ane_mutex_lock(&s->mutex);
    if (kind->lock) st = kind->lock(s, access, err);
    if (!st) {
        if (access == ANE_READ) s->readers++;
        else s->writers++;
    }
    ane_mutex_unlock(&s->mutex);
    if (!st && access != ANE_READ) ane_surface_expose(s, true);
    return st;
}

ane_status ane_surface_unlock(ane_surface *s, ane_access access, ane_error *err) {
    ane_status st = check_access("surface_unlock", s, access, err);
    if (st) return st;
    const ane__surface_kind *kind = kinds[s->memory].kind;
    ane_mutex_lock(&s->mutex);
    long *count = access == ANE_READ ? &s->readers : &s->writers;
    if (*count < 1)
        st = ane_fail(err, ANE_ERR_INVALID,
                      "[surface_unlock] no %s lock is held (%ld for reading, %ld for "
                      "writing)",
                      access == ANE_READ ? "read" : "write", s->readers, s->writers);
    else if (!kind->unlock || !(st = kind->unlock(s, access, err)))
        --*count;
    ane_mutex_unlock(&s->mutex);
    if (!st && access != ANE_READ) ane_surface_expose(s, false);
    return st;
}

/* ---------------------------------------------------------------- validity */

/* Room for one more range. Without memory the last range swallows the new one: more is then
 * called invalid than is, never less. */
static void add_range(ane_surface *s, size_t lo, size_t hi, const char *why) {
    if (lo >= hi) return;
    if (!s->cap_invalid) {
        s->invalid = &s->first_invalid;
        s->cap_invalid = 1;
    }
    if (s->n_invalid == s->cap_invalid) {
        size_t cap = s->cap_invalid * 4;
        bool own = s->invalid != &s->first_invalid;
        ane__invalid *grown = ane_realloc(own ? s->invalid : NULL, cap * sizeof *grown);
        if (!grown) {
            ane__invalid *last = &s->invalid[s->n_invalid - 1];
            if (lo < last->lo) last->lo = lo;
            if (hi > last->hi) last->hi = hi;
            return;
        }
        if (!own) *grown = s->first_invalid;
        s->invalid = grown;
        s->cap_invalid = cap;
    }
    ane__invalid *r = &s->invalid[s->n_invalid++];
    r->lo = lo;
    r->hi = hi;
    snprintf(r->why, sizeof r->why, "%s", why ? why : "");
}

/* Cuts [lo, hi) out of every range. */
static void cut_range(ane_surface *s, size_t lo, size_t hi) {
    size_t n = s->n_invalid;
    for (size_t i = 0; i < n;) {
        ane__invalid r = s->invalid[i];
        if (r.hi <= lo || r.lo >= hi) {
            i++;
            continue;
        }
        s->invalid[i] = s->invalid[--n];
        s->invalid[n] = s->invalid[--s->n_invalid];
        add_range(s, r.lo, lo, r.why);
        add_range(s, hi > r.lo ? hi : r.lo, r.hi, r.why);
    }
}

static size_t range_end(const ane_surface *s, size_t offset, size_t bytes) {
    size_t end;
    return ane_add_size(offset, bytes, &end) && end < s->bytes ? end : s->bytes;
}

void ane_surface_invalidate(ane_surface *s, size_t offset, size_t bytes, const char *why) {
    ane_surface_touch(s, offset, bytes);
    ane_mutex_lock(&s->mutex);
    size_t end = range_end(s, offset, bytes);
    cut_range(s, offset, end);
    add_range(s, offset, end, why);
    atomic_store_explicit(&s->any_invalid, s->n_invalid, memory_order_release);
    ane_mutex_unlock(&s->mutex);
}

void ane_surface_validate(ane_surface *s, size_t offset, size_t bytes) {
    ane_surface_touch(s, offset, bytes);
    if (!atomic_load_explicit(&s->any_invalid, memory_order_acquire)) return;
    ane_mutex_lock(&s->mutex);
    cut_range(s, offset, range_end(s, offset, bytes));
    atomic_store_explicit(&s->any_invalid, s->n_invalid, memory_order_release);
    ane_mutex_unlock(&s->mutex);
}

ane_status ane_surface_check(const ane_surface *cs, size_t offset, size_t bytes,
                             ane_error *err) {
    ane_surface *s = (ane_surface *)cs;
    ane_status st = s->check ? s->check(s->release_arg, offset, bytes, err) : ANE_OK;
    if (st || !atomic_load_explicit(&s->any_invalid, memory_order_acquire)) return st;
    ane_mutex_lock(&s->mutex);
    size_t end = range_end(s, offset, bytes);
    for (size_t i = 0; i < s->n_invalid && !st; i++) {
        const ane__invalid *r = &s->invalid[i];
        if (r->lo < end && offset < r->hi)
            st = ane_fail(err, ANE_ERR_RUNTIME,
                          "bytes %zu to %zu do not hold a result: %s; run again or write "
                          "them before reading",
                          r->lo > offset ? r->lo : offset, r->hi < end ? r->hi : end,
                          r->why[0] ? r->why : "the run that writes them failed");
    }
    ane_mutex_unlock(&s->mutex);
    return st;
}
