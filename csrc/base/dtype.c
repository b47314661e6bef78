/* Names and sizes of element types, from the one list in ane.h. */
#include "mem.h"

#include <string.h>

static const struct {
    const char *mil, *numpy, *brief;
    int bits;
} table[] = {
#define X(name, mil, numpy, brief, bits, blob, proto) {mil, numpy, brief, bits},
    ANE_DTYPE_MAP(X)
#undef X
};

static bool known(ane_dtype d) { return (unsigned)d < ANE_DTYPE_COUNT; }

const char *ane_dtype_name(ane_dtype d) { return known(d) ? table[d].numpy : "?"; }
const char *ane_dtype_mil_name(ane_dtype d) { return known(d) ? table[d].mil : "?"; }
int ane_dtype_bits(ane_dtype d) { return known(d) ? table[d].bits : 0; }
size_t ane_dtype_size(ane_dtype d) {
    int bits = ane_dtype_bits(d);
    return bits >= 8 ? (size_t)bits / 8 : 0;
}

ane_status ane_dtype_parse(const char *name, ane_dtype *out, ane_error *err) {
    for (int i = 0; i < ANE_DTYPE_COUNT; i++)
        if (!strcmp(name, table[i].numpy) || !strcmp(name, table[i].mil) ||
            !strcmp(name, table[i].brief)) {
            *out = (ane_dtype)i;
            return ANE_OK;
        }
    if (!strcmp(name, "bool_")) {
        *out = ANE_BOOL;
        return ANE_OK;
    }
    return ane_fail(err, ANE_ERR_DTYPE,
                    "unknown dtype '%.40s'; use NumPy's names (float16, float32, int32, "
                    "...), MIL's (fp16, fp32, ...) or the short ones (f16, f32, i32, ...)",
                    name);
}
