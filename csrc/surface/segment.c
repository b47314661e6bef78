/* Small shared surfaces: slots of a common memfd, since a descriptor each would meet the
 * usual limit of 1,024 soon. One list of segments per power of two; a segment's file is
 * sparse, so slots that were never used cost nothing.
 *
 * A slot goes back into use only while nobody outside can see it. What was handed to another
 * process, and whatever was live across a fork, is retired: its segment is unmapped when its
 * last surface goes, and the other side keeps its own mapping of the same file. */
#include "segment.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLASSES 9
#define LEAST ((size_t)256)
#define SLOTS 512
#define WORDS (SLOTS / 64)
/* An empty segment is kept for the next surface; beyond this many touched bytes its pages
 * are given back first. */
#define KEEP_BYTES ((size_t)1 << 20)

struct ane__segment {
    ane__segment *next, *prev;
    int fd, class;
    bool retired, listed;
    unsigned char *base;
    size_t bytes;
    unsigned live, lost;                /* lost: freed, but visible outside */
    uint64_t vacant[WORDS];             /* bit set: may be taken */
    uint64_t touched[WORDS];            /* bit set: may hold old bytes */
};

static ane_mutex mutex = ANE_MUTEX_INIT;
static ane__segment *open_lists[CLASSES];       /* segments with a vacant slot */

static size_t slot_bytes(int class) { return LEAST << class; }

static int class_of(size_t bytes) {
    int c = 0;
    while (slot_bytes(c) < bytes) c++;
    return c;
}

static void list_add(ane__segment *g) {
    g->prev = NULL;
    g->next = open_lists[g->class];
    if (g->next) g->next->prev = g;
    open_lists[g->class] = g;
    g->listed = true;
}

static void list_drop(ane__segment *g) {
    if (!g->listed) return;
    if (g->prev) g->prev->next = g->next;
    else open_lists[g->class] = g->next;
    if (g->next) g->next->prev = g->prev;
    g->listed = false;
}

static void destroy(ane__segment *g) {
    list_drop(g);
    (void)munmap(g->base, g->bytes);
    (void)close(g->fd);
    ane_free(g);
}

static ane_status create(int class, ane__segment **out, ane_error *err) {
    ane__segment *g = ane_calloc(1, sizeof *g);
    if (!g)
        return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] no memory for a segment");
    g->class = class;
    g->bytes = slot_bytes(class) * SLOTS;
    void *base = NULL;
    ane_status st = ane__shm_file("anetorch", g->bytes, &g->fd, &base, err);
    if (st) {
        ane_free(g);
        return st;
    }
    g->base = base;
    memset(g->vacant, 0xff, sizeof g->vacant);
    list_add(g);
    *out = g;
    return ANE_OK;
}

ane_status ane__segment_take(ane_surface *s, size_t bytes, ane_error *err) {
    int class = class_of(bytes);
    size_t slot = slot_bytes(class);
    ane_mutex_lock(&mutex);
    ane__segment *g = open_lists[class];
    ane_status st = g ? ANE_OK : create(class, &g, err);
    if (st) {
        ane_mutex_unlock(&mutex);
        return st;
    }
    int w = 0;
    while (!g->vacant[w]) w++;          /* listed: there is one */
    int bit = __builtin_ctzll(g->vacant[w]);
    uint64_t m = (uint64_t)1 << bit;
    bool dirty = (g->touched[w] & m) != 0;
    g->vacant[w] &= ~m;
    g->touched[w] |= m;
    g->live++;
    bool full = true;
    for (int i = 0; i < WORDS; i++) full = full && !g->vacant[i];
    if (full) list_drop(g);
    ane_mutex_unlock(&mutex);
    size_t index = (size_t)w * 64 + (size_t)bit;
    s->handle = g;
    s->fd = g->fd;
    s->fd_offset = index * slot;
    s->base = g->base + s->fd_offset;
    s->capacity = slot;
    if (dirty) memset(s->base, 0, slot);
    return ANE_OK;
}

void ane__segment_give(ane_surface *s) {
    ane__segment *g = s->handle;
    size_t index = s->fd_offset / slot_bytes(g->class);
    ane_mutex_lock(&mutex);
    g->live--;
    if (g->retired || atomic_load(&s->shared)) {
        g->lost++;
    } else {
        g->vacant[index / 64] |= (uint64_t)1 << (index % 64);
        if (!g->listed) list_add(g);
    }
    if (!g->live) {
        bool only = open_lists[g->class] == g && !g->next;
        if (g->retired || g->lost || !only) {
            destroy(g);
        } else {
            size_t used = 0;
            for (int i = 0; i < WORDS; i++)
                used += (size_t)__builtin_popcountll(g->touched[i]) * slot_bytes(g->class);
            if (used > KEEP_BYTES && ane__shm_punch(g->base, g->bytes))
                memset(g->touched, 0, sizeof g->touched);
        }
    }
    ane_mutex_unlock(&mutex);
}

void ane__shm_before_fork(void) { ane_mutex_lock(&mutex); }

void ane__shm_after_fork(void) {
    for (int c = 0; c < CLASSES; c++)
        for (ane__segment *g = open_lists[c], *next; g; g = next) {
            next = g->next;
            list_drop(g);
            g->retired = true;
            /* An empty one is nobody's: each side unmaps its own copy. */
            if (!g->live) destroy(g);
        }
    ane_mutex_unlock(&mutex);
}
