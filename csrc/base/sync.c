/* The worker pool. One job at a time: its owner publishes it in one atomic word
 * (generation | open | number of workers inside), takes part, closes it, and waits only for
 * workers that did join. A worker that wakes late finds the job closed and sleeps again, so
 * a busy machine never makes the owner wait for a thread that has nothing to do. */
#include "sync.h"

#include "env.h"
#include "mem.h"
#include "scratch.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS ANE__THREADS
/* Idle threads look this long before they sleep: the gap between two ops of a program, and
 * what one thread is done before another at the end of a loop. To sleep and be woken costs
 * some 30 microseconds, half of them the waker's. Longer would take a notebook's other
 * thread off its core. */
#define SPIN_NS 50000

#define OPEN (1ull << 31)
#define GENERATION(s) ((uint32_t)((s) >> 32))
#define INSIDE(s) ((uint32_t)((s) & (OPEN - 1)))

/* Tasks [lo, hi) that one thread takes from the front and others, when they have done with
 * theirs, from the back: lo << 32 | hi. A thread so meets the same part of every loop over
 * the same data, which it still has in its own caches. */
#define RANGES 256
typedef struct range {
    _Alignas(64) _Atomic uint64_t tasks;
} range;
static range ranges[RANGES];

static struct {
    ane_mutex owner;            /* held while a job runs */
    ane_mutex lock;             /* guards sleeping, waking and `created` */
    pthread_cond_t wake, done;
    int sleepers, created;
    _Atomic uint64_t state;
    atomic_int want;            /* workers with an index up to this may join */
    int n_ranges;
    ane_task_fn *fn;
    void *arg;
    ane_work_log *log;          /* of the owner; NULL: nobody asked */
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static atomic_int threads;      /* 0: not yet decided */
static ane_once once = ANE_ONCE_INIT;

static _Thread_local int worker_index;
static _Thread_local bool inside;       /* this thread runs a task of some loop */
static _Thread_local ane_poll *poll;
static _Thread_local ane_work_log *journal;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

typedef struct spin {
    int turns;
    int64_t end;                /* 0: not yet looked at the clock */
} spin;

/* One turn of waiting; false: it has been long enough. */
static bool spin_on(spin *s) {
    relax();
    if (++s->turns % 32) return true;
    int64_t now = ane_now_ns();
    if (!s->end) s->end = now + SPIN_NS;
    return now < s->end;
}

/* ------------------------------------------------------------------ how many threads */

#if defined(__linux__)
/* CPUs that a cgroup's quota allows (rounded up), or INT_MAX. */
static int quota_of(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return INT_MAX;
    long long quota = -1, period = 0;
    int got = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    if (got != 2 || quota <= 0 || period <= 0) return INT_MAX;      /* "max 100000" */
    long long cpus = (quota + period - 1) / period;
    return cpus < INT_MAX ? (int)cpus : INT_MAX;
}

static int cgroup_cpus(void) {
    char line[1024], path[1200];
    int least = INT_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return least;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "0::/", 4)) continue;                     /* version 2 */
        char *group = line + 3;
        group[strcspn(group, "\n")] = 0;
        for (;;) {              /* every ancestor's quota binds */
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
            int q = quota_of(path);
            if (q < least) least = q;
            char *slash = strrchr(group, '/');
            if (!slash) break;
            *slash = 0;
        }
    }
    fclose(f);
    return least;
}
#endif

static int usable_cpus(void) {
    int n = 0;
#if defined(__linux__)
    /* The mask may be larger than cpu_set_t on big machines. */
    for (int cpus = 1024; cpus <= 65536 && !n; cpus *= 8) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (!set) break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        if (!sched_getaffinity(0, bytes, set)) n = CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
    }
    int quota = cgroup_cpus();
    if (n < 1) n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (quota < n) n = quota;
#else
    n = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* In a forked child only the calling thread exists: forget the workers and whatever
 * another thread was doing with the pool; the next loop makes new ones. */
static void after_fork(void) {
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.sleepers = pool.created = 0;
    atomic_store(&pool.state, 0);
    worker_index = 0;
    ane__scratch_forget();
}

static void init(void) {
    const char *env = ane_env(ANE_ENV_NUM_THREADS);
    int n = 0;
    if (*env) {
        char *end;
        errno = 0;
        long v = strtol(env, &end, 10);
        if (!errno && !*end && v >= 1 && v <= MAX_THREADS) n = (int)v;
        else
            ane__log("ANETORCH_NUM_THREADS: expected 1 to %d, got '%s'; using the CPUs this "
                     "process may use", MAX_THREADS, env);
    }
    if (!n) n = usable_cpus();
    int unset = 0;
    atomic_compare_exchange_strong(&threads, &unset, n);
    pthread_atfork(NULL, NULL, after_fork);
}

int ane_num_threads(void) {
    const ane_room *r = ane__room();
    if (r) return r->threads;           /* a run keeps the number that it was stated for */
    pthread_once(&once, init);
    return atomic_load_explicit(&threads, memory_order_relaxed);
}

ane_status ane_set_num_threads(int n, ane_error *err) {
    if (n < 1 || n > MAX_THREADS)
        return ane_fail(err, ANE_ERR_INVALID, "[set_num_threads] expected 1 to %d, got %d",
                        MAX_THREADS, n);
    pthread_once(&once, init);
    /* Takes effect at the next loop; workers beyond n stay asleep. */
    atomic_store(&threads, n);
    return ANE_OK;
}

int ane_worker_index(void) { return worker_index; }

/* ------------------------------------------------------------------ interrupts */

int64_t ane_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

ane_poll *ane_poll_swap(ane_poll *p) {
    ane_poll *before = poll;
    poll = p;
    return before;
}

bool ane_poll_check(void) {
    ane_poll *p = poll;
    if (!p) return false;
    if (p->stopped) return true;
    if (p->cancel && __atomic_load_n(p->cancel, __ATOMIC_RELAXED)) return p->stopped = true;
    if (p->fn) {
        int64_t now = ane_now_ns();
        if (now - p->last_ns >= ANE_POLL_NS) {
            p->last_ns = now;
            if (p->fn(p->arg)) p->stopped = true;
        }
    }
    return p->stopped;
}

/* ------------------------------------------------------------------ loops */

ane_work_log *ane_work_log_swap(ane_work_log *s) {
    ane_work_log *before = journal;
    journal = s;
    return before;
}

static void record(ane_work_log *s, int64_t begin) {
    size_t i = __atomic_fetch_add(&s->n, 1, __ATOMIC_RELAXED);
    if (i < s->cap) s->list[i] = (ane_work){worker_index, s->step, begin, ane_now_ns()};
}

static bool alone(size_t n, ane_task_fn *fn, void *arg) {
    /* A loop inside a task belongs to the span of that task. */
    ane_work_log *mine = inside ? NULL : journal;
    int64_t begin = mine ? ane_now_ns() : 0;
    bool all = true;
    for (size_t i = 0; i < n && all; i++) {
        fn(arg, i);
        if (poll && i + 1 < n && ane_poll_check()) all = false;
    }
    if (mine) record(mine, begin);
    return all;
}

/* The first or the last task of a range; false: it is empty. */
static bool take(range *r, bool front, size_t *i) {
    uint64_t t = atomic_load_explicit(&r->tasks, memory_order_relaxed);
    for (;;) {
        uint64_t lo = t >> 32, hi = t & UINT32_MAX;
        if (lo >= hi) return false;
        *i = (size_t)(front ? lo : hi - 1);
        uint64_t rest = front ? (lo + 1) << 32 | hi : lo << 32 | (hi - 1);
        if (atomic_compare_exchange_weak_explicit(&r->tasks, &t, rest, memory_order_relaxed,
                                                  memory_order_relaxed))
            return true;
    }
}

/* Others find nothing more to take; false: nothing was left anyway. */
static bool drain(void) {
    bool some = false;
    for (int v = 0; v < pool.n_ranges; v++) {
        uint64_t t = atomic_exchange(&ranges[v].tasks, 0);
        some |= (t >> 32) < (t & UINT32_MAX);
    }
    return some;
}

/* Tasks until none is left. `watch`: this is the owner, who looks at its poll. */
static bool claim(bool watch) {
    int n = pool.n_ranges, mine = worker_index % n;
    for (int k = 0; k < n; k++) {
        range *r = &ranges[(mine + k) % n];
        for (size_t i; take(r, k == 0, &i);) {
            pool.fn(pool.arg, i);
            /* What others hold is finished. */
            if (watch && ane_poll_check()) return !drain();
        }
    }
    return true;
}

static void work(void) {
    ane_work_log *mine = pool.log;
    int64_t begin = mine ? ane_now_ns() : 0;
    inside = true;
    claim(false);
    inside = false;
    if (mine) record(mine, begin);
    uint64_t s = atomic_fetch_sub(&pool.state, 1) - 1;
    if (!(s & OPEN) && !INSIDE(s)) {
        ane_mutex_lock(&pool.lock);
        pthread_cond_signal(&pool.done);
        ane_mutex_unlock(&pool.lock);
    }
}

/* A job this worker has not seen yet and may take part in. */
static bool invited(uint64_t s, uint32_t seen) {
    return (s & OPEN) && GENERATION(s) != seen && worker_index <= atomic_load(&pool.want);
}

static void *worker(void *arg) {
    worker_index = (int)(intptr_t)arg;
    ane__scratch_worker(worker_index);
    uint32_t seen = 0;
    for (spin idle = {0};;) {
        uint64_t s = atomic_load(&pool.state);
        if (invited(s, seen)) {
            if (!atomic_compare_exchange_strong(&pool.state, &s, s + 1)) continue;
            seen = GENERATION(s);
            work();
            idle = (spin){0};
        } else if (!spin_on(&idle)) {
            ane_mutex_lock(&pool.lock);
            while (!invited(atomic_load(&pool.state), seen)) {
                pool.sleepers++;
                pthread_cond_wait(&pool.wake, &pool.lock);
                pool.sleepers--;
            }
            ane_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* Makes workers up to index `want`; fewer where the system refuses. */
static int grow(int want) {
    ane_mutex_lock(&pool.lock);
    if (pool.created < want) {
        sigset_t all, before;
        sigfillset(&all);
        /* Signals belong to the program's own threads. */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        while (pool.created < want) {
            pthread_t id;
            void *index = (void *)(intptr_t)(pool.created + 1);
            if (pthread_create(&id, &attr, worker, index)) break;
            pool.created++;
        }
        pthread_attr_destroy(&attr);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    int have = pool.created < want ? pool.created : want;
    ane_mutex_unlock(&pool.lock);
    return have;
}

bool ane_parallel_for(size_t n, ane_task_fn *fn, void *arg) {
    if (ane_poll_check()) return n == 0;
    int limit = ane_num_threads();
    if (n <= 1 || n > UINT32_MAX || limit == 1 || inside) return alone(n, fn, arg);
    if (pthread_mutex_trylock(&pool.owner)) return alone(n, fn, arg);
    int want = grow((size_t)limit < n ? limit - 1 : (int)n - 1);
    pool.n_ranges = want + 1 < RANGES ? want + 1 : RANGES;
    for (int v = 0; v < pool.n_ranges; v++) {
        uint64_t parts = (uint64_t)pool.n_ranges, lo = n * (uint64_t)v / parts;
        atomic_store_explicit(&ranges[v].tasks, lo << 32 | n * ((uint64_t)v + 1) / parts,
                              memory_order_relaxed);
    }
    /* They are idle, and see it when they join. */
    ane__scratch_reserve(want);
    pool.fn = fn;
    pool.arg = arg;
    pool.log = journal;
    atomic_store(&pool.want, want);
    uint64_t s = atomic_load(&pool.state);
    atomic_store(&pool.state, ((uint64_t)(GENERATION(s) + 1) << 32) | OPEN);
    ane_mutex_lock(&pool.lock);
    /* A sleeper may have an index beyond `want`: then all are woken. */
    if (pool.created > want) pthread_cond_broadcast(&pool.wake);
    else
        for (int i = 0; i < pool.sleepers && i < want; i++) pthread_cond_signal(&pool.wake);
    ane_mutex_unlock(&pool.lock);

    int64_t begin = journal ? ane_now_ns() : 0;
    inside = true;
    bool all = claim(true);
    inside = false;
    if (journal) record(journal, begin);

    s = atomic_fetch_and(&pool.state, ~OPEN) & ~OPEN;
    for (spin wait = {0}; INSIDE(s) && spin_on(&wait);) s = atomic_load(&pool.state);
    if (INSIDE(s)) {
        ane_mutex_lock(&pool.lock);
        while (INSIDE(atomic_load(&pool.state))) pthread_cond_wait(&pool.done, &pool.lock);
        ane_mutex_unlock(&pool.lock);
    }
    ane_mutex_unlock(&pool.owner);
    return all;
}
