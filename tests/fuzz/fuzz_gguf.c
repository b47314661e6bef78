/* libFuzzer harness of the GGUF header and its dequantisation (see build.sh). */
#include "weights_common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    ane_weight_file f;
    ane_error err = {0};
    file_init(&f);
    ane_status st = ane__gguf_read(&f, data, n, "fuzz", &err);
    if (st) failed_well(st, &err);
    else accepted(&f, data, n);
    file_fini(&f);
    return 0;
}
