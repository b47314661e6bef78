/* What the harnesses of weight-file headers share: an empty ane_weight_file over bytes in
 * memory, and the promises that hold for every file that a reader accepts. */
#include "../../csrc/weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(bool ok, const char *what, const char *detail) {
    if (ok) return;
    fprintf(stderr, "fuzz: %s: %s\n", what, detail);
    abort();
}

static inline void file_init(ane_weight_file *f) {
    memset(f, 0, sizeof *f);
    f->arena = ane_arena_create();
    f->path = "fuzz";
    must(f->arena != NULL, "arena", "");
}

static inline void file_fini(ane_weight_file *f) {
    ane_free(f->entries);
    ane_free(f->index);
    ane_free(f->meta);
    ane_arena_destroy(f->arena);
}

static inline void failed_well(ane_status st, const ane_error *err) {
    must(err->status == st && err->message[0], "a failure has status and message",
         err->message);
    must(st == ANE_ERR_PARSE || st == ANE_ERR_UNSUPPORTED, "status of a malformed file",
         err->message);
}

/* Every byte that an entry claims is read: the sanitizer sees what is out of bounds. */
static inline void accepted(ane_weight_file *f, const uint8_t *base, size_t n) {
    ane_error err = {0};
    ane_status st = ane__weight_index(f, &err);
    unsigned sum = 0;
    if (st) {
        failed_well(st, &err);
        return;
    }
    for (size_t i = 0; i < f->n; i++) {
        const ane_weight *w = &f->entries[i];
        size_t bytes = 0;
        must(w->bytes <= n && w->offset <= n - w->bytes, "entry inside the file", w->name);
        must(ane_utf8_valid(w->name, strlen(w->name)), "name is UTF-8", w->name);
        must(ane__weight_find(f, w->name) == w, "name is found", w->name);
        must(w->rank <= ANE_MAX_RANK && w->type, "rank and type", w->name);
        if (w->code == ANE_WEIGHT_PLAIN)
            must(ane_shape_bytes(w->rank, w->shape, ane_dtype_size(w->dtype), &bytes) &&
                     bytes == w->bytes, "bytes follow from dtype and shape", w->name);
        else if (w->code != ANE_WEIGHT_OPAQUE) {
            size_t block = w->code == ANE_WEIGHT_Q8_0 ? 34 : 18;
            must(ane_shape_bytes(w->rank, w->shape, 4, &bytes) &&
                     bytes / 128 * block == w->bytes, "blocks follow from the shape", w->name);
            float *out = malloc(bytes + 1);
            if (out) ane_gguf_dequant(out, base + w->offset, bytes / 4, (ane_weight_code)w->code);
            free(out);
        }
        for (size_t k = 0; base && k < w->bytes; k++) sum += base[w->offset + k];
    }
    volatile unsigned used = sum;
    (void)used;
}
