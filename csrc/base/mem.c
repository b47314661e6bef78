#include "mem.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_long fail_in, seen;
static atomic_bool fail_sticky;

long ane_mem_fail_after(long n, bool sticky) {
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fail_in, n);
    return atomic_exchange(&seen, 0);
}

static bool fails(void) {
    atomic_fetch_add_explicit(&seen, 1, memory_order_relaxed);
    long left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    if (left <= 0) return false;
    if (left == 1) {
        if (!atomic_load(&fail_sticky)) atomic_store(&fail_in, 0);
        return true;
    }
    atomic_fetch_sub(&fail_in, 1);
    return false;
}

bool ane_shape_bytes(int rank, const int64_t *dims, size_t unit, size_t *out) {
    size_t n = unit;
    bool zero = false;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0) return false;
        if (dims[i] == 0) zero = true;
        else if (!ane_mul_size(n, (size_t)dims[i], &n)) return false;
    }
    if (n > (size_t)INT64_MAX) return false;
    *out = zero ? 0 : n;
    return true;
}

/* ---------------------------------------------------------------- the watch */

#define WATCHED 8192
static struct {
    pthread_mutex_t lock;
    atomic_bool on;
    size_t n, count[2];
    ane_mem_watched seen;
    struct {
        void *p;
        size_t bytes;
        int kind;
    } list[WATCHED];
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

void ane_mem_watch(bool on) {
    pthread_mutex_lock(&watch.lock);
    atomic_store(&watch.on, on);
    watch.n = watch.count[0] = watch.count[1] = 0;
    watch.seen = (ane_mem_watched){.all = true};
    pthread_mutex_unlock(&watch.lock);
}

void ane_mem_watch_read(ane_mem_watched *out) {
    pthread_mutex_lock(&watch.lock);
    *out = watch.seen;
    pthread_mutex_unlock(&watch.lock);
}

static void *watched(int kind, void *p, size_t bytes) {
    if (!p || !atomic_load_explicit(&watch.on, memory_order_relaxed)) return p;
    pthread_mutex_lock(&watch.lock);
    ane_mem_watched *w = &watch.seen;
    if (watch.n == WATCHED) {
        w->all = false;
    } else {
        watch.list[watch.n].p = p;
        watch.list[watch.n].kind = kind;
        watch.list[watch.n++].bytes = bytes;
        w->now[kind] += bytes;
        if (w->now[kind] > w->most[kind]) w->most[kind] = w->now[kind];
        if (++watch.count[kind] > w->blocks[kind]) w->blocks[kind] = watch.count[kind];
    }
    pthread_mutex_unlock(&watch.lock);
    return p;
}

static void unwatch(const void *p) {
    if (!p || !atomic_load_explicit(&watch.on, memory_order_relaxed)) return;
    pthread_mutex_lock(&watch.lock);
    for (size_t i = watch.n; i-- > 0;) {
        if (watch.list[i].p != p) continue;
        watch.seen.now[watch.list[i].kind] -= watch.list[i].bytes;
        watch.count[watch.list[i].kind]--;
        watch.list[i] = watch.list[--watch.n];
        break;
    }
    pthread_mutex_unlock(&watch.lock);
}

/* ---------------------------------------------------------------- blocks */

void *ane_malloc(size_t bytes) {
    return fails() ? NULL : watched(1, malloc(bytes ? bytes : 1), bytes);
}

void *ane_calloc(size_t n, size_t size) {
    return fails() ? NULL : watched(1, calloc(n ? n : 1, size ? size : 1), n * size);
}

void *ane_realloc(void *p, size_t bytes) {
    if (fails()) return NULL;
    unwatch(p);
    return watched(1, realloc(p, bytes ? bytes : 1), bytes);
}

char *ane_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    char *p = ane_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

void ane_free(void *p) {
    unwatch(p);
    free(p);
}

/* Blocks from here on lie on whole large pages where the system gives them. */
#define HUGE_FROM ((size_t)1 << 20)
#define HUGE_PAGE ((size_t)2 << 20)

size_t ane_aligned_size(size_t bytes) {
    size_t n;
    if (!ane_add_size(bytes, ANE_ALIGN, &n)) return SIZE_MAX;
    if (n < HUGE_FROM) return n;
    return ane_add_size(n, HUGE_PAGE - 1, &n) ? n & ~(HUGE_PAGE - 1) : SIZE_MAX;
}

void *ane_aligned_alloc(size_t bytes) {
    size_t n = ane_aligned_size(bytes);
    void *p = NULL;
    if (fails() || n == SIZE_MAX) return NULL;
    if (posix_memalign(&p, n < HUGE_FROM ? ANE_ALIGN : HUGE_PAGE, n)) return NULL;
#ifdef MADV_HUGEPAGE
    if (n >= HUGE_FROM) (void)madvise(p, n / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return watched(0, p, n);
}

void ane_aligned_free(void *p) {
    unwatch(p);
    free(p);
}

/* ---------------------------------------------------------------- arena */

typedef struct chunk {
    struct chunk *next;
    size_t used, size;
} chunk;

struct ane_arena {
    chunk *head;
    size_t bytes;
};

#define CHUNK_HEAD ((sizeof(chunk) + 15) & ~(size_t)15)

ane_arena *ane_arena_create(void) { return ane_calloc(1, sizeof(ane_arena)); }

void ane_arena_destroy(ane_arena *a) {
    if (!a) return;
    for (chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        ane_aligned_free(c);            /* also of what malloc gave */
    }
    free(a);
}

void *ane_arena_alloc(ane_arena *a, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!bytes) bytes = 16;
    chunk *c = a->head;
    if (!c || c->size - c->used < bytes) {
        /* Chunks double up to one large page; large requests get their own behind the head. */
        size_t size = c ? c->size * 2 : 4096;
        if (size >= HUGE_FROM) size = HUGE_PAGE - ANE_ALIGN - CHUNK_HEAD;
        bool own = bytes > size / 2;
        if (own) size = bytes;
        chunk *fresh = size >= HUGE_FROM ? ane_aligned_alloc(CHUNK_HEAD + size)
                                         : ane_malloc(CHUNK_HEAD + size);
        if (!fresh) return NULL;
        fresh->used = 0;
        fresh->size = size;
        if (own && c) {
            fresh->next = c->next;
            c->next = fresh;
        } else {
            fresh->next = c;
            a->head = fresh;
        }
        c = fresh;
    }
    void *p = (char *)c + CHUNK_HEAD + c->used;
    c->used += bytes;
    a->bytes += bytes;
    return memset(p, 0, bytes);
}

char *ane_arena_strndup(ane_arena *a, const char *s, size_t n) {
    char *p = ane_arena_alloc(a, n + 1);
    if (p && n) memcpy(p, s, n);
    return p;
}

char *ane_arena_printf(ane_arena *a, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : ane_arena_alloc(a, (size_t)n + 1);
    if (!p) return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

size_t ane_arena_bytes(const ane_arena *a) { return a->bytes; }
