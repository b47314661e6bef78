/* Constant operands in a kernel's own order. */
#include "cpu.h"

#include <time.h>

ane_status ane_packed_make(ane_packed *k, ane_pack_once_fn *pack, const void *args,
                           ane_error *err) {
    static _Thread_local int packing;
    const struct timespec some = {.tv_nsec = 50000};
    for (int none = 0; !atomic_compare_exchange_strong(&k->state, &none, 1); none = 0) {
        /* Who packs may be called upon to run something in between. */
        if (none == 2 || packing) return ANE_OK;
        ane_status st = ane_run_check(err);
        if (st) return st;
        (void)nanosleep(&some, NULL);
    }
    void *data = ane_aligned_alloc(k->bytes);
    packing++;
    ane_status st = data ? pack(args, data, err)
                         : ane_fail(err, ANE_ERR_NOMEM,
                                    "[run] out of memory for %zu bytes of packed weights",
                                    k->bytes);
    packing--;
    if (st) {
        ane_aligned_free(data);
        atomic_store(&k->state, 0);
        return st;
    }
    k->data = data;
    atomic_store_explicit(&k->state, 2, memory_order_release);
    return ANE_OK;
}

const void *ane_packed_data(const ane_packed *k) {
    return k && atomic_load_explicit(&k->state, memory_order_acquire) == 2 ? k->data : NULL;
}

ane_packed *ane_plan_packed(ane_planner *pl, size_t bytes) {
    ane_packed *k = bytes ? ane_arena_alloc(pl->plan->arena, sizeof *k) : NULL;
    if (!k) return NULL;
    k->bytes = bytes;
    k->next = pl->plan->packed;
    return pl->plan->packed = k;
}
