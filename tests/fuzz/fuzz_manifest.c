/* libFuzzer harness of the manifest and of the index of shards (see build.sh). The first
 * two bytes are the size of the data file. */
#include "weights_common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    ane_weight_file f;
    ane_weight_index x = {0};
    ane_error err = {0};
    if (n < 2) return 0;
    size_t bytes = (size_t)data[0] << 8 | data[1];
    const char *text = (const char *)data + 2;
    file_init(&f);
    ane_status st = ane__manifest_read(&f, text, n - 2, "fuzz", bytes, &err);
    if (st) failed_well(st, &err);
    else accepted(&f, NULL, bytes);
    st = ane__index_read(f.arena, text, n - 2, "fuzz", &x, &err);
    if (st) failed_well(st, &err);
    for (size_t i = 0; i < x.n_files; i++)
        must(!strchr(x.files[i], '/') && x.files[i][0] != '.' && x.files[i][0], "plain name",
             x.files[i]);
    for (size_t i = 0; i < x.n_places; i++)
        must(x.places[i].file < x.n_files, "shard number", x.places[i].name);
    ane__index_free(&x);
    file_fini(&f);
    return 0;
}
