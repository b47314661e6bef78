/* Weak stand-ins until the op table and the surfaces land; the real ones win at link. */
#include "ops.h"

#define WEAK __attribute__((weak))

WEAK const ane_op_row *ane_op_row_find(const char *name, int opset, const ane_op_row **later) {
    (void)name, (void)opset;
    if (later) *later = NULL;
    return NULL;
}
WEAK int ane_op_param_index(const ane_op_row *row, const char *name) {
    (void)row, (void)name;
    return -1;
}
WEAK ane_status ane_surface_create(ane_memory kind, size_t bytes, const char *name,
                                   ane_surface **out, ane_error *err) {
    (void)kind, (void)bytes, (void)name, (void)out;
    return ane_fail(err, ANE_ERR_UNSUPPORTED, "surfaces are not built in");
}
WEAK ane_surface *ane_surface_retain(ane_surface *s) { return s; }
WEAK void ane_surface_release(ane_surface *s) { (void)s; }
WEAK void *ane_surface_base(const ane_surface *s) { return (void *)s; }
WEAK size_t ane_surface_bytes(const ane_surface *s) { (void)s; return 0; }
