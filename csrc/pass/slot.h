/* A tensor inside a packed surface. The public side is in ane.h. */
#ifndef ANE_SLOT_H
#define ANE_SLOT_H

#include "../ane.h"

/* Can rows of `columns` elements be cut out of these dims as strided views? */
bool ane_slot_splits(int rank, const int64_t *dims, int64_t columns);
/* The slot inside `packed` and the port as two views of one shape; false: only element by
 * element. Surfaces are borrowed. */
bool ane_slot_views(const ane_slot *slot, const ane_tensor *packed, const ane_tensor *port,
                    ane_tensor *inside, ane_tensor *outside);

#endif
