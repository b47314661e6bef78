/* libFuzzer harness of the MILBlob reader (see build.sh): u64 offset, u64 count, dtype,
 * flags, then the file. */
#include "weights_common.h"

#include "../../csrc/weights/blob.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    uint64_t offset, count;
    ane_blob b;
    ane_error err = {0};
    char text[512];
    if (n < 18) return 0;
    memcpy(&offset, data, 8);
    memcpy(&count, data + 8, 8);
    ane_dtype dtype = (ane_dtype)(data[16] % ANE_DTYPE_COUNT);
    const uint8_t *file = data + 18;
    size_t bytes = n - 18;
    ane_status st = ane_blob_find(file, bytes, offset, dtype, count, data[17] & 1u, &b, &err);
    if (st) {
        must(err.status == st && err.message[0], "status and message", err.message);
        return 0;
    }
    must(b.bytes <= bytes && b.offset <= bytes - b.bytes, "data inside the file", "");
    must(b.offset >= 64, "data behind the header", "");
    size_t need = 0;
    must(ane_blob_bytes(dtype, count, &need) && need == b.bytes, "size of the type", "");
    unsigned sum = 0;
    for (size_t i = 0; i < b.bytes; i++) sum += file[b.offset + i];
    volatile unsigned used = sum;
    (void)used;
    ane_blob_deviations(b.deviations, text, sizeof text);
    must(!b.deviations == !text[0], "deviations have words", text);
    return 0;
}
