/* What mapping.c and guard.c share. */
#ifndef ANE_WEIGHTS_MAPPING_H
#define ANE_WEIGHTS_MAPPING_H

#include "weights.h"

#include <stdatomic.h>

/* Slots of live mappings, readable from a signal handler. */
#define ANE_GUARD_SLOTS 1024

typedef struct ane__guard_slot {
    _Atomic uintptr_t base, end;        /* base 0: free */
    atomic_bool broken;                 /* zeros were mapped over a part that faulted */
} ane__guard_slot;

/* A slot for [base, base+bytes), or NULL when all are taken (then faults in this mapping
 * go to whoever handled SIGBUS before). */
ane__guard_slot *ane__guard_add(const void *base, size_t bytes);
void ane__guard_remove(ane__guard_slot *slot);

#endif
