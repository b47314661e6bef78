/* Who wants to know that memory was written, and whether he would: what lets a kernel keep
 * something that it has made of its operands. */
#include "tensor.h"
#include "watch.h"

#include <string.h>

void ane_surface_track(ane_surface *s) { atomic_store(&s->tracked, true); }

/* A writer marks after its last write, whoever looks clears the mark before its first read: so
 * what a look has missed is marked for the next one. A watch that begins meanwhile is marked
 * anyway: as both change one word, either the writer sees it, or it sees the writer's bytes. */
static bool is_watched(ane_surface *s) { return atomic_fetch_add(&s->watched, 0) != 0; }

/* The same elements with the dims of one gone and large strides first: slices of one parent, read
 * as they are or turned, then have their dims alike. */
static ane_tensor sorted(const ane_tensor *t) {
    ane_tensor r = *t;
    r.rank = 0;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] == 1) continue;
        int at = r.rank++;
        for (; at > 0 && r.strides[at - 1] < t->strides[i]; at--) {
            r.strides[at] = r.strides[at - 1];
            r.shape[at] = r.shape[at - 1];
        }
        r.strides[at] = t->strides[i];
        r.shape[at] = t->shape[i];
    }
    return r;
}

void ane__surface_wrote(const ane_tensor *t) {
    ane_surface *s = t->surface;
    if (!is_watched(s)) return;
    ane_tensor one = sorted(t);
    ane_mutex_lock(&s->mutex);
    for (ane__watch *w = s->watches; w; w = w->next)
        if (ane__boxes_meet(&one, &w->view)) atomic_store(&w->written, true);
    ane_mutex_unlock(&s->mutex);
}

void ane_surface_touch(ane_surface *s, size_t offset, size_t bytes) {
    if (!is_watched(s) || offset >= s->bytes) return;
    if (bytes > s->bytes - offset) bytes = s->bytes - offset;
    ane_tensor t = {.surface = s, .offset = offset, .dtype = ANE_U8, .rank = 1,
                    .shape = {(int64_t)bytes}, .strides = {1}};
    ane__surface_wrote(&t);
}

void ane_surface_expose(ane_surface *s, bool on) {
    if (on) {
        atomic_fetch_add(&s->exposed, 1);
        return;
    }
    ane_surface_touch(s, 0, s->bytes);          /* first: the end of the count is trusted */
    long left = atomic_fetch_sub(&s->exposed, 1) - 1;
    ANE_ASSERT(left >= 0);
}

/* Device and foreign memory never, nor what has a public name; what another process has, or a
 * child got, no more. */
bool ane__surface_tells(const ane_surface *s) {
    bool own = s->memory == ANE_MEM_HEAP ||
               (s->memory == ANE_MEM_SHM && !s->linked && s->forks == ane__fork_count());
    return own && atomic_load(&s->tracked) && !atomic_load(&s->shared) && !atomic_load(&s->exposed);
}

void ane__watch_begin(ane__watch *w, const ane_tensor *view) {
    ane_surface *s = ane_surface_retain(view->surface);
    w->view = sorted(view);
    atomic_store(&w->written, true);
    ane_mutex_lock(&s->mutex);
    w->next = s->watches;
    s->watches = w;
    (void)atomic_exchange(&s->watched, 1);
    ane_mutex_unlock(&s->mutex);
}

void ane__watch_end(ane__watch *w) {
    ane_surface *s = w->view.surface;
    if (!s) return;
    ane_mutex_lock(&s->mutex);
    ane__watch **at = &s->watches;
    while (*at != w) at = &(*at)->next;
    *at = w->next;
    if (!s->watches) atomic_store(&s->watched, 0);
    ane_mutex_unlock(&s->mutex);
    w->view.surface = NULL;
    ane_surface_release(s);
}
