/* Mutex, once, and the one worker pool. */
#ifndef ANE_BASE_SYNC_H
#define ANE_BASE_SYNC_H

#include "status.h"

#include <pthread.h>

typedef pthread_mutex_t ane_mutex;
typedef pthread_once_t ane_once;
#define ANE_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define ANE_ONCE_INIT PTHREAD_ONCE_INIT
#define ane_mutex_lock(m) ((void)pthread_mutex_lock(m))
#define ane_mutex_unlock(m) ((void)pthread_mutex_unlock(m))

/* Runs fn(arg, i) for i in [0, n), each exactly once, on the pool and the calling thread;
 * returns when all are done. Which thread runs which i is unspecified, so results may
 * depend on i only. Nested calls and calls while another thread owns the pool run on the
 * calling thread alone. With one thread it is a plain loop. */
typedef void ane_task_fn(void *arg, size_t i);
void ane_parallel_for(size_t n, ane_task_fn *fn, void *arg);
/* Index of the executing worker, 0 for the caller; < ane_num_threads(). */
int ane_worker_index(void);

#endif
