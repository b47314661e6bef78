/* The compile cache. Compiled code stays with the system, under the model's identifier; ours
 * is an index on disk of what was compiled from what, one small file per identifier. Without
 * an entry that agrees in every byte, what the system has is not used: a missing, stale or
 * damaged entry costs one compile, and none can give a wrong result. */
#ifndef ANE_APPLE_INDEX_H
#define ANE_APPLE_INDEX_H

#include "model.h"

/* What a compiled program depends on. */
typedef struct ane_index_key {
    const char *program, *weights;      /* hashes; see source.h */
    const char *hex, *chip, *build;
} ane_index_key;

/* An entry for this key is there (attributes not compared yet). */
bool ane_index_find(const ane_index_key *k);
/* The entry is that of k with m's ports; marks it as used now. */
bool ane_index_confirm(const ane_index_key *k, const ane_model *m);
/* Writes the entry, and forgets those longest unused beyond the limit. Failing is no error:
 * the next process compiles again. */
void ane_index_put(const ane_index_key *k, const ane_model *m);
void ane_index_remove(const char *hex);

/* Counters of this process. */
enum { ANE_INDEX_HIT, ANE_INDEX_MISS, ANE_INDEX_STALE };
void ane_index_count(int what);

#endif
