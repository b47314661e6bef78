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
/* (ane_free of ane.h frees what the first four gave.) */

/* Testing: the n-th allocation from now (1 = the next) fails, and every later one when
 * `sticky`. 0 turns it off. Returns how many allocations were seen since the last call. */
long ane_mem_fail_after(long n, bool sticky);

/* Bump allocator; everything goes at once. Memory is zeroed. */
typedef struct ane_arena ane_arena;
ane_arena *ane_arena_create(void);
void ane_arena_destroy(ane_arena *a);
void *ane_arena_alloc(ane_arena *a, size_t bytes);      /* 16-byte aligned; NULL: no memory */
char *ane_arena_strndup(ane_arena *a, const char *s, size_t n);
char *ane_arena_printf(ane_arena *a, const char *fmt, ...) ANE_PRINTF(2, 3);
size_t ane_arena_bytes(const ane_arena *a);

#endif
