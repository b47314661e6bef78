/* What the worker pool (sync.c) and the threads' scratch (scratch.c) tell each other. */
#ifndef ANE_BASE_SCRATCH_H
#define ANE_BASE_SCRATCH_H

#include "sync.h"

#define ANE__THREADS 4096               /* workers have an index below */

/* The calling thread is worker `index` from now on. */
void ane__scratch_worker(int index);
/* Blocks of workers 1..workers as the calling thread's room states them, on whose behalf they
 * are about to work. Only the owner of the pool, while they are idle. */
void ane__scratch_reserve(int workers);
/* In a forked child, where there are no workers any more. */
void ane__scratch_forget(void);
/* The calling thread's, or NULL. */
const ane_room *ane__room(void);

#endif
