/* Weak stand-ins until the op table lands; the real ones win at link. */
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
