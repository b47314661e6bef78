/* The one exported door to internals, for the tests: `ane__testing("name")` gives a
 * function of ANE_TESTING_MAP, to be cast to its own type. */
#ifndef ANE_TESTING_H
#define ANE_TESTING_H

#include "ane.h"

ANE_API void (*ane__testing(const char *name))(void);

/* In py/testing_*.c: ANE_INTERNAL(ane_mem_fail_after)(3, false) calls through the door. */
#define ANE_INTERNAL(fn) ((__typeof__(&fn))ane__testing(#fn))

#endif
