#include "sync.h"

#include "../ane.h"

void ane_parallel_for(size_t n, ane_task_fn *fn, void *arg) {
    for (size_t i = 0; i < n; i++) fn(arg, i);
}
int ane_worker_index(void) { return 0; }
int ane_num_threads(void) { return 1; }
ane_status ane_set_num_threads(int n, ane_error *err) {
    if (n < 1 || n > 4096)
        return ane_fail(err, ANE_ERR_INVALID, "[set_num_threads] expected 1 to 4096, got %d", n);
    return ANE_OK;
}
