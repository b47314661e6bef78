/* Constant operands in a kernel's own order. */
#include "cpu.h"

ane_status ane_packed_make(ane_packed *k, ane_pack_once_fn *pack, const void *args,
                           ane_error *err) {
    int none = 0;
    if (!atomic_compare_exchange_strong(&k->state, &none, 1)) return ANE_OK;
    void *data = ane_aligned_alloc(k->bytes);
    ane_status st = data ? pack(args, data, err)
                         : ane_fail(err, ANE_ERR_NOMEM,
                                    "[run] out of memory for %zu bytes of packed weights",
                                    k->bytes);
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
