/* Mutex, once, the one worker pool, interrupts of long loops, per-thread scratch and what a
 * piece of work will take of it. */
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
 * calling thread alone. With one thread it is a plain loop.
 * False when the calling thread's poll (below) asked to stop: some i were then left out. */
typedef void ane_task_fn(void *arg, size_t i);
bool ane_parallel_for(size_t n, ane_task_fn *fn, void *arg);
/* Index of the executing worker, 0 for the caller; < ane_num_threads() at the start of the
 * loop that runs it. */
int ane_worker_index(void);

/* Interrupts. Whoever runs a program installs a poll for its own thread; parallel loops
 * and ane_poll_check then look at it between tasks: `cancel` every time, `fn` at most
 * every ANE_POLL_NS. A task should therefore take a few milliseconds at most. */
#define ANE_POLL_NS 20000000
typedef struct ane_poll {
    volatile int *cancel;       /* may be NULL */
    int (*fn)(void *arg);       /* may be NULL; non-zero stops */
    void *arg;
    int64_t last_ns;            /* 0 at first */
    bool stopped;               /* sticky: set once either says stop */
} ane_poll;
/* Installs p (NULL: none) for this thread and returns the one before. */
ane_poll *ane_poll_swap(ane_poll *p);
/* True when this thread's run has been stopped. */
bool ane_poll_check(void);

/* What every thread did while the loops of one thread ran, for traces. `step` is the owner's
 * to set before a loop. Entries beyond `cap` are counted and not kept. */
typedef struct ane_work {
    int worker, step;           /* 0: the thread that ran the program */
    int64_t begin, end;         /* monotonic nanoseconds */
} ane_work;
typedef struct ane_work_log {
    int step;
    size_t cap, n;              /* n: atomic */
    ane_work list[];
} ane_work_log;
/* Records this thread's loops into s (NULL: not) and returns what was before. */
ane_work_log *ane_work_log_swap(ane_work_log *s);
int64_t ane_now_ns(void);

/* Memory of the executing thread, kept from call to call, used like a stack: pop in the
 * reverse order of push. 64-byte aligned, not zeroed; NULL: no memory (pop takes NULL). */
void *ane_scratch_push(size_t bytes);
void ane_scratch_pop(void *p);
/* The most bytes that this thread's blocks were asked to hold at once (tests). */
size_t ane_scratch_used(void);
/* A second block of the executing thread, not a stack: what was written stays until the same
 * thread asks for more than it holds, so that tasks of one loop share it. Only for tasks that
 * call nothing that keeps something, too. NULL: no memory. */
void *ane_scratch_keep(size_t bytes);

/* What a piece of work will push and keep on each thread, stated before it runs: whoever states
 * it goes through the same pushes, pops and loops as the work. In memory of the caller. */
typedef struct ane_room {
    int threads;                /* that the work is stated for */
    size_t deep;                /* what the calling thread has pushed so far */
    size_t *stack, *kept;       /* [threads]: the most of each; the caller's first */
    struct ane_room *before;    /* while the work runs: what the thread did, and its blocks */
    struct ane_blocks *outer;   /* for that; NULL: nothing */
} ane_room;
/* threads: at least 1. `sizes` holds 2 * threads zeros, and outlives the room. */
void ane_room_init(ane_room *r, int threads, size_t *sizes);
/* As ane_scratch_push and _pop of the calling thread. */
void ane_room_push(ane_room *r, size_t bytes);
void ane_room_pop(ane_room *r, size_t bytes);
/* A loop of n tasks that push `each` (0: nothing) and keep `kept` bytes. */
void ane_room_loop(ane_room *r, size_t n, size_t each, size_t kept);
/* Bytes that the blocks of thread i take, as the allocator rounds them; of all threads. */
size_t ane_room_bytes(const ane_room *r, int i);
size_t ane_room_total(const ane_room *r);
/* From here to leave, loops of this thread run on r->threads, and every thread that takes part
 * in one gets its blocks first, whole: work that keeps to what it stated allocates nothing
 * else. The caller's own blocks are made here; false: no memory, and nothing has changed. Work
 * inside of other work (of a poll, say) has blocks of its own until it leaves. */
bool ane_room_enter(ane_room *r);
void ane_room_leave(void);

#endif
