/* Allocation: checked sizes, 64-byte aligned blocks, arenas, and a counter that makes the
 * n-th allocation fail so that tests can walk every error path. */
#ifndef ANE_BASE_MEM_H
#define ANE_BASE_MEM_H

#include "status.h"

#define ANE_ALIGN 64

/* a*b and a+b, false on overflow. */
static inline bool ane_mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool ane_add_size(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
/* Product of dims * unit; false on overflow or a negative dim. */
bool ane_shape_bytes(int rank, const int64_t *dims, size_t unit, size_t *out);

/* malloc family with the failure counter; NULL on failure. Sizes of 0 give a block. */
void *ane_malloc(size_t bytes);
void *ane_calloc(size_t n, size_t size);
void *ane_realloc(void *p, size_t bytes);
char *ane_strdup(const char *s);
/* Aligned to ANE_ALIGN; freed by ane_aligned_free only. */
void *ane_aligned_alloc(size_t bytes);
void ane_aligned_free(void *p);
/* What a block of that size takes: with its rounding, to whole large pages from a megabyte on.
 * SIZE_MAX: beyond memory. */
size_t ane_aligned_size(size_t bytes);
/* (ane_free of ane.h frees what the first four gave.) */

/* Testing: the n-th allocation from now (1 = the next) fails, and every later one when
 * `sticky`. 0 turns it off. Returns how many allocations were seen since the last call. */
long ane_mem_fail_after(long n, bool sticky);

/* Testing: what blocks made since ane_mem_watch(true) hold, now and at most: [0] aligned ones,
 * as ane_aligned_size has them, [1] the malloc family's. Blocks from before are not looked at. */
typedef struct ane_mem_watched {
    bool all;                           /* false: there were too many blocks to follow */
    size_t now[2], most[2], blocks[2];  /* blocks: the most at once */
} ane_mem_watched;
void ane_mem_watch(bool on);
void ane_mem_watch_read(ane_mem_watched *out);

/* Bump allocator; everything goes at once. Memory is zeroed. */
typedef struct ane_arena ane_arena;
ane_arena *ane_arena_create(void);
void ane_arena_destroy(ane_arena *a);
void *ane_arena_alloc(ane_arena *a, size_t bytes);      /* 16-byte aligned; NULL: no memory */
char *ane_arena_strndup(ane_arena *a, const char *s, size_t n);
char *ane_arena_printf(ane_arena *a, const char *fmt, ...) ANE_PRINTF(2, 3);
size_t ane_arena_bytes(const ane_arena *a);

#endif
