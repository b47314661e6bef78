/* Bound operands in a kernel's own order, kept from run to run while nobody writes to them. */
#include "cpu.h"

#include <string.h>

static atomic_size_t packs;

size_t ane_kept_packs(void) { return atomic_load(&packs); }

int ane_plan_keep(ane_planner *pl, const ane_view *v, size_t bytes) {
    ane_plan *p = pl->plan;
    if (v->buf < 0 || p->bufs[v->buf].kind != ANE_BUF_INPUT || !bytes) return -1;
    if (p->n_keeps == p->cap_keeps) {
        int cap = p->cap_keeps ? p->cap_keeps * 2 : 16;
        ane_keep *grown = ane_realloc(p->keeps, (size_t)cap * sizeof *grown);
        if (!grown) return -1;
        p->keeps = grown;
        p->cap_keeps = cap;
    }
    ane_keep *k = &p->keeps[p->n_keeps];
    *k = (ane_keep){.view = *v, .bytes = bytes};
    for (int d = 0; d < v->rank; d++)
        if (!v->strides[d]) k->view.shape[d] = 1;
    return p->n_keeps++;
}

static void drop(ane_kept *k) {
    ane_aligned_free(k->data);
    k->data = NULL;
    k->good = false;
}

/* Found written so many times in a row, it is no weight. */
#define CHANGES 3

const void *ane_kept_use(const ane_exec *ex, int keep, ane_pack_once_fn *pack, const void *args) {
    if (keep < 0 || !ex->kept) return NULL;
    ane_kept *k = &ex->kept[keep];
    if (!k->watch.view.surface || !ane__surface_tells(k->watch.view.surface)) return NULL;
    if (!atomic_exchange(&k->watch.written, false)) {
        k->changes = 0;
        if (k->good) return k->data;
    } else {
        k->good = false;
        if (++k->changes >= CHANGES) {
            k->changes = CHANGES;
            drop(k);
            return NULL;
        }
    }
    if (!k->data) k->data = ane_aligned_alloc(ex->plan->keeps[keep].bytes);
    ane_error why;
    k->good = k->data && !pack(args, k->data, &why);
    if (k->good) atomic_fetch_add(&packs, 1);
    else drop(k);                       /* the product packs for itself, or is cancelled, too */
    return k->data;
}

void ane_kept_bind(const ane_plan *p, ane_kept *kept, const ane_tensor *inputs) {
    for (int i = 0; kept && i < p->n_keeps; i++) {
        ane_kept *k = &kept[i];
        const ane_view *v = &p->keeps[i].view;
        const ane_tensor *in = inputs ? &inputs[p->bufs[v->buf].index] : NULL;
        ane_tensor t = {.dtype = v->dtype, .rank = v->rank};
        memcpy(t.shape, v->shape, sizeof t.shape);
        memcpy(t.strides, v->strides, sizeof t.strides);
        if (in) {
            t.surface = in->surface;
            t.offset = (size_t)((int64_t)in->offset + v->offset);
        }
        if (in && k->watch.view.surface == in->surface && k->watch.view.offset == t.offset) continue;
        ane__watch_end(&k->watch);
        if (in) ane__watch_begin(&k->watch, &t);
        else drop(k);
        k->good = false;
        k->changes = 0;
    }
}
