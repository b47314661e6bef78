/* Surfaces: counted blocks of memory of five kinds behind one struct. A kind is a file and a
 * row of kinds[] in surface.c; everything else (counts, locks, validity, identity) is here
 * and the same for all. */
#ifndef ANE_SURFACE_H
#define ANE_SURFACE_H

#include "../base/mem.h"
#include "../base/status.h"
#include "../base/sync.h"

#include <stdatomic.h>

typedef struct ane__invalid {
    size_t lo, hi;
    char why[112];
} ane__invalid;

struct ane_surface {
    atomic_long refs;
    ane_memory memory;
    bool readonly;
    /* Somebody outside this process may see the bytes: they are never handed to another
     * surface of ours while that may last. */
    atomic_bool shared;
    bool apart;                     /* shm: a descriptor of its own, however small */
    unsigned forks;                 /* ane__fork_count() at creation */
    unsigned char *base;
    size_t bytes, capacity;
    uint64_t identity;
    char *name;                     /* NULL: none */

    atomic_bool tracked;            /* see ane_surface_track */
    atomic_long exposed;            /* views outside of the library that may write now */
    atomic_int watched;             /* whether there are watches; lets a write skip the mutex */

    ane_mutex mutex;                /* guards these and the four below */
    struct ane__watch *watches;
    long readers, writers;
    ane__invalid *invalid;
    size_t n_invalid, cap_invalid;
    ane__invalid first_invalid;     /* so that one range needs no allocation */
    atomic_size_t any_invalid;      /* = n_invalid; lets a check skip the mutex */

    /* What the kind needs. */
    int fd;                         /* shm, dma; -1: none (or the segment's) */
    bool linked;                    /* a named POSIX object that we created ... */
    long owner_pid;                 /* ... in this process */
    void *map;                      /* start and length of the mapping to undo */
    size_t map_bytes;
    size_t fd_offset;               /* of base in fd */
    void *handle;                   /* segment, or IOSurfaceRef */
    void (*release)(void *arg);     /* external */
    void *release_arg;
    /* external, may be NULL: is the memory behind these bytes still what was wrapped? Asked
     * by every ane_surface_check, with release_arg. */
    ane_status (*check)(void *arg, size_t offset, size_t bytes, ane_error *err);
    const ane_image_layout *image;  /* while being created as one */
    int own_fd;                     /* of a segment's slot, opened when asked for; -1 */
    struct ane_surface_pool *pool;  /* where the last release puts it; NULL: destroy */
    ane_surface *next_free;         /* in a pool's list */
    int pool_class;
    size_t pool_bytes;
};

typedef struct ane__surface_kind {
    bool (*available)(void);
    /* Fills base, capacity and the kind's own fields of *s; bytes >= 1; contents zero. */
    ane_status (*create)(ane_surface *s, size_t bytes, ane_error *err);
    void (*destroy)(ane_surface *s);
    /* NULL: only the count. */
    ane_status (*lock)(ane_surface *s, ane_access access, ane_error *err);
    ane_status (*unlock)(ane_surface *s, ane_access access, ane_error *err);
} ane__surface_kind;

extern const ane__surface_kind ane__surface_heap, ane__surface_shm, ane__surface_iosurface,
    ane__surface_dma, ane__surface_external;

/* A zeroed struct with one reference, an identity and no memory; destroyed by
 * ane__surface_free, which does not call the kind. */
ane_surface *ane__surface_new(ane_memory kind, size_t bytes, const char *name,
                              ane_error *err);
void ane__surface_free(ane_surface *s);
void ane__surface_destroy(ane_surface *s);      /* the kind's destroy, then free */
uint64_t ane__identity_next(void);
ane_status ane__surface_create_image(ane_memory kind, const ane_image_layout *layout,
                                     const char *name, ane_surface **out, ane_error *err);

/* Refuses sizes that this machine cannot hold, before anything is allocated. */
ane_status ane__memory_check(const char *who, size_t bytes, ane_error *err);
size_t ane__page_size(void);
size_t ane__round_up(size_t n, size_t unit);    /* 0 on overflow; unit a power of two */

/* How often this process forked, counted on both sides. Memory that was live across a fork
 * is shared with the other side and must not be recycled. */
unsigned ane__fork_count(void);
/* Called in parent and child after every fork, allocator mutex held. */
void ane__shm_after_fork(void);
void ane__shm_before_fork(void);

/* Pools: the last release of a surface gives it back; true when the pool took it. */
bool ane__pool_give(ane_surface *s);

#endif
