/* Scratch memory of threads, and its statement before a run. A thread has two blocks: a stack
 * that grows when it is empty, to the deepest it has been, and one that tasks of a loop share.
 * Those of workers lie in a table, so that the owner of the pool can make them before a loop:
 * what a run takes does not depend on which thread happens to be fast. */
#include "scratch.h"

#include "mem.h"

#include <string.h>

typedef struct scratch {
    char *base;
    size_t size, used;
    size_t deep, peak;          /* with what has memory of its own: now, and the most ever */
} scratch;

typedef struct ane_blocks {
    scratch stack, kept;
    char pad[2 * ANE_ALIGN - 2 * sizeof(scratch)];      /* workers' lie side by side, and each
                                                           push writes to its own */
} blocks;

typedef struct frame {          /* one cache line in front of what push returns */
    size_t bytes;
    bool own;                   /* memory of its own */
    char pad[ANE_ALIGN - 2 * sizeof(size_t)];
} frame;

/* Of workers, and what the pool's owner has seen to: at least that large. */
static _Alignas(ANE_ALIGN) blocks of_worker[ANE__THREADS];
static struct {
    size_t stack, kept;
} reserved[ANE__THREADS];

static pthread_key_t mine_key;
static ane_once once = ANE_ONCE_INIT;
static _Thread_local blocks *mine;      /* NULL: not used so far */
static _Thread_local ane_room *room;

static void destroy(void *p) {
    blocks *b = p;
    if (!b) return;
    ane_aligned_free(b->stack.base);
    ane_aligned_free(b->kept.base);
    ane_free(b);
}

static void init(void) { pthread_key_create(&mine_key, destroy); }

/* NULL: no memory. */
static blocks *get(void) {
    if (mine) return mine;
    pthread_once(&once, init);
    mine = ane_calloc(1, sizeof *mine);
    if (mine) pthread_setspecific(mine_key, mine);
    return mine;
}

void ane__scratch_worker(int index) { mine = &of_worker[index]; }

/* An empty block becomes one of `size` bytes. The old one goes first: both at once would be
 * more than anybody has stated. */
static bool renew(scratch *s, size_t size) {
    ane_aligned_free(s->base);
    s->base = ane_aligned_alloc(size);
    s->size = s->base ? size : 0;
    return s->base != NULL;
}

void *ane_scratch_keep(size_t bytes) {
    static char nothing;
    blocks *b = get();
    if (!bytes) return &nothing;
    if (!b || (bytes > b->kept.size && !renew(&b->kept, bytes))) return NULL;
    if (bytes > b->kept.peak) b->kept.peak = bytes;
    return b->kept.base;
}

/* What a push takes with its frame; 0: too much. */
static size_t framed(size_t bytes) {
    size_t want;
    if (!ane_add_size(bytes, sizeof(frame) + ANE_ALIGN - 1, &want)) return 0;
    return want & ~(size_t)(ANE_ALIGN - 1);
}

void *ane_scratch_push(size_t bytes) {
    size_t want = framed(bytes);
    blocks *b = get();
    if (!want || !b) return NULL;
    scratch *s = &b->stack;
    if (!s->deep && (s->size < want || s->size < s->peak) &&
        !renew(s, want > s->peak ? want : s->peak))
        return NULL;
    frame *f;
    if (s->size - s->used >= want) {
        f = (frame *)(void *)(s->base + s->used);
        s->used += want;
        f->own = false;
    } else {
        f = ane_aligned_alloc(want);
        if (!f) return NULL;
        f->own = true;
    }
    f->bytes = want;
    s->deep += want;
    if (s->deep > s->peak) s->peak = s->deep;
    return f + 1;
}

void ane_scratch_pop(void *p) {
    if (!p) return;
    frame *f = (frame *)p - 1;
    scratch *s = &mine->stack;
    s->deep -= f->bytes;
    if (f->own) ane_aligned_free(f);
    else s->used -= f->bytes;
}

size_t ane_scratch_used(void) { return mine ? mine->stack.peak + mine->kept.peak : 0; }

/* ------------------------------------------------------------------ rooms */

void ane_room_init(ane_room *r, int threads, size_t *sizes) {
    *r = (ane_room){.threads = threads, .stack = sizes, .kept = sizes + threads};
}

static void take(size_t *most, size_t bytes) {
    if (bytes > *most) *most = bytes;
}

/* A size beyond memory stays one, whatever is added to it. */
static size_t sum(size_t a, size_t b) {
    size_t n;
    return ane_add_size(a, b, &n) ? n : SIZE_MAX;
}
static size_t pushed(size_t bytes) {
    size_t n = framed(bytes);
    return n ? n : SIZE_MAX;
}

void ane_room_push(ane_room *r, size_t bytes) {
    r->deep = sum(r->deep, pushed(bytes));
    take(&r->stack[0], r->deep);
}

void ane_room_pop(ane_room *r, size_t bytes) {
    if (r->deep != SIZE_MAX) r->deep -= pushed(bytes);
}

void ane_room_loop(ane_room *r, size_t n, size_t each, size_t kept) {
    size_t threads = (size_t)r->threads < n ? (size_t)r->threads : n;
    for (size_t i = 0; i < threads; i++) {
        if (each) take(&r->stack[i], sum(i ? 0 : r->deep, pushed(each)));
        take(&r->kept[i], kept);
    }
}

size_t ane_room_bytes(const ane_room *r, int i) {
    size_t stack = r->stack[i], kept = r->kept[i];
    return sum(stack ? ane_aligned_size(stack) : 0, kept ? ane_aligned_size(kept) : 0);
}

size_t ane_room_total(const ane_room *r) {
    size_t n = 0;
    for (int i = 0; i < r->threads; i++) n = sum(n, ane_room_bytes(r, i));
    return n;
}

const ane_room *ane__room(void) { return room; }

/* The stack only while nothing is on it. */
static bool hold(blocks *b, size_t stack, size_t kept) {
    if (stack > b->stack.size && !b->stack.deep && !renew(&b->stack, stack)) return false;
    return kept <= b->kept.size || renew(&b->kept, kept);
}

bool ane_room_enter(ane_room *r) {
    blocks *b = get(), *outer = NULL;
    if (room && b) {                    /* what lies there is in use */
        outer = b;
        b = ane_calloc(1, sizeof *b);
    }
    if (!b || !hold(b, r->stack[0], r->kept[0])) {
        if (outer) destroy(b);
        return false;
    }
    mine = b;
    r->before = room;
    r->outer = outer;
    room = r;
    return true;
}

void ane_room_leave(void) {
    ane_room *r = room;
    room = r->before;
    if (!r->outer) return;
    destroy(mine);
    mine = r->outer;
}

void ane__scratch_reserve(int workers) {
    for (int i = 1; room && i <= workers && i < room->threads; i++) {
        size_t stack = room->stack[i], kept = room->kept[i];
        if (stack <= reserved[i].stack && kept <= reserved[i].kept) continue;
        /* One that gets nothing here asks again itself, and reports it. */
        if (!hold(&of_worker[i], stack, kept)) continue;
        take(&reserved[i].stack, stack);
        take(&reserved[i].kept, kept);
    }
}

void ane__scratch_forget(void) {
    memset(of_worker, 0, sizeof of_worker);
    memset(reserved, 0, sizeof reserved);
}
