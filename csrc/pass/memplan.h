/* Lifetimes to offsets: which bytes of one block each buffer may use. */
#ifndef ANE_MEMPLAN_H
#define ANE_MEMPLAN_H

#include "../base/status.h"

typedef struct ane_lifetime {
    size_t bytes;
    int first, last;                    /* steps, inclusive; first > last: never used */
    size_t offset;                      /* result: a multiple of ANE_ALIGN */
} ane_lifetime;

/* Buffers whose lifetimes meet never overlap. *total is the block's size. */
ane_status ane_memplan(ane_lifetime *items, int n, size_t *total, ane_error *err);

#endif
