/* libFuzzer harness of the safetensors header (see build.sh). */
#include "weights_common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    ane_weight_file f;
    ane_error err = {0};
    file_init(&f);
    ane_status st = ane__safetensors_read(&f, data, n, "fuzz", 0, &err);
    if (st) failed_well(st, &err);
    else accepted(&f, data, n);
    file_fini(&f);
    return 0;
}
