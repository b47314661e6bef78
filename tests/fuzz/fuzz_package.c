/* libFuzzer harness of the Core ML specification reader: any bytes must give a program or
 * an error; a program must verify, and survive write, read (see build.sh). Weight files of
 * the input are absent, as after a download that lost them. */
#include "../../csrc/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(bool ok, const char *what, const char *detail) {
    if (ok) return;
    fprintf(stderr, "fuzz_package: %s: %s\n", what, detail);
    abort();
}

/* The weight file that ane_coreml_write gives away byte by byte. */
typedef struct bytes {
    uint8_t *data;
    size_t n;
} bytes;

static ane_status sink(void *arg, const void *data, size_t n, ane_error *err) {
    bytes *b = arg;
    uint8_t *more = ane_realloc(b->data, b->n + n + 1);
    if (!more) return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    memcpy(more + b->n, data, n);
    b->data = more;
    b->n += n;
    return ANE_OK;
}

static ane_status give(void *arg, const char *path, ane_surface **out, ane_error *err) {
    const bytes *b = arg;
    if (strcmp(path, "@model_path/weights/weight.bin") || !b->n)
        return ane_fail(err, ANE_ERR_NOT_FOUND, "no file %s", path);
    ane_status st = ane_surface_create(ANE_MEM_HEAP, b->n, NULL, out, err);
    if (!st) memcpy(ane_surface_base(*out), b->data, b->n);
    return st;
}

static bool write_model(const ane_program *p, const ane_description *d, bytes *model,
                        bytes *weights, ane_error *err) {
    void *made = NULL;
    ane_status st = ane_coreml_write(p, d, "@model_path/weights/weight.bin", sink, weights,
                                     &made, &model->n, err);
    must(!st == (made != NULL), "a model only on success", err->message);
    must(!st || err->message[0], "a failure has a message", "");
    model->data = made;
    return !st;
}

static void forget(bytes *b) {
    ane_free(b->data);
    *b = (bytes){0};
}

static void round_trip(const ane_program *p, const ane_description *d) {
    bytes model = {0}, weights = {0}, again = {0}, more = {0};
    ane_error err = {0};
    ane_program *q = NULL;
    ane_description *e = NULL;
    /* Constants without their file and types that Core ML lacks cannot be written. */
    if (write_model(p, d, &model, &weights, &err)) {
        ane_parse_options opts = {.size = sizeof opts, .open = give, .open_arg = &weights};
        must(!ane_coreml_read(model.data, model.n, &opts, &q, &e, &err), "read of the written",
             err.message);
        /* Names that p lacks are given when it is written, and weights go to a file: the
         * bytes are what must come back. */
        must(write_model(q, e, &again, &more, &err), "second write", err.message);
        must(again.n == model.n && !memcmp(again.data, model.data, model.n) &&
                 more.n == weights.n && (!more.n || !memcmp(more.data, weights.data, more.n)),
             "equal bytes", "");
    }
    forget(&model);
    forget(&weights);
    forget(&again);
    forget(&more);
    ane_program_release(q);
    ane_description_destroy(e);
}

/* Reads every number a description holds: what is shorter than its counts say is found. */
static void touch(const ane_description *d) {
    volatile int64_t sum = 0;
    for (size_t i = 0; i < d->n_interfaces; i++)
        for (int role = 0; role < 3; role++)
            for (size_t k = 0; k < d->interfaces[i].n[role]; k++) {
                const ane_feature *f = &d->interfaces[i].features[role][k];
                size_t width = f->flexibility == ANE_FLEX_RANGE ? 2 : (size_t)f->rank;
                size_t n = f->flexibility == ANE_FLEX_NONE ? 0 : f->n_flex * width;
                must(f->rank >= 0 && f->rank <= ANE_MAX_RANK, "a rank", f->name);
                for (size_t j = 0; j < n; j++) sum ^= f->flex[j];
            }
}

/* The same with an allocation failing: any answer but a crash or a leak. */
static void starved(const uint8_t *data, size_t n) {
    ane_error err = {0};
    ane_program *p = NULL;
    ane_description *d = NULL;
    bytes model = {0}, weights = {0};
    ane_parse_options opts = {.size = sizeof opts, .allow_missing_weights = true};
    size_t h = n;
    for (size_t i = 0; i < n; i++) h = h * 31 + data[i];
    ane_mem_fail_after(1 + (long)(h % 97), h & 128);
    ane_status st = ane_coreml_read(data, n, &opts, &p, &d, &err);
    must(!st == (p != NULL) && !st == (d != NULL), "out is set only on success", err.message);
    if (!st) (void)write_model(p, d, &model, &weights, &err);
    ane_mem_fail_after(0, false);
    forget(&model);
    forget(&weights);
    ane_program_release(p);
    ane_description_destroy(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    starved(data, n);
    ane_error err = {0};
    ane_program *p = NULL;
    ane_description *d = NULL;
    ane_parse_options opts = {.size = sizeof opts, .allow_missing_weights = true};
    ane_status st = ane_coreml_read(data, n, &opts, &p, &d, &err);
    if (st) {
        must(!p && !d, "out stays NULL on failure", err.message);
        must(err.status == st && err.message[0], "a failure has status and message",
             err.message);
        return 0;
    }
    must(!ane_program_verify(p, &err), "verify", err.message);
    touch(d);
    round_trip(p, d);
    round_trip(p, NULL);
    ane_program_release(p);
    ane_description_destroy(d);
    return 0;
}
