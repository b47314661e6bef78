/* libFuzzer harness of the MIL parser: any bytes must give a program or an error; a
 * program must survive print, parse, print in both spellings, verify and clone.
 *
 *     tests/fuzz/build.sh mil && ./build/fuzz/fuzz_mil -dict=tests/fuzz/mil.dict \
 *         -max_total_time=60 tests/fuzz/seeds/mil
 *
 * Built over csrc without py/; also links with a plain main (tests/fuzz/replay.c) where
 * there is no libFuzzer. */
#include "../../csrc/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(bool ok, const char *what, const char *detail) {
    if (ok) return;
    fprintf(stderr, "fuzz_mil: %s: %s\n", what, detail);
    abort();
}

static ane_program *round_trip(const ane_program *p, const char *spelling) {
    char *text = NULL, *again = NULL;
    size_t n = 0, m = 0;
    ane_error err = {0};
    ane_program *q = NULL;
    ane_parse_options opts = {.size = sizeof opts, .allow_missing_weights = true};
    must(!ane_program_print(p, spelling, &text, &n, &err), "print", err.message);
    must(!ane_program_parse(text, n, &opts, &q, &err), "parse of the print", err.message);
    must(ane_program_same(p, q), "same after the round trip", text);
    must(!ane_program_print(q, spelling, &again, &m, &err), "second print", err.message);
    must(n == m && !memcmp(text, again, n), "equal text", again);
    ane_free(text);
    ane_free(again);
    return q;
}

/* The same with an allocation failing: any answer but a crash or a leak. */
static void starved(const uint8_t *data, size_t n) {
    ane_error err = {0};
    ane_program *p = NULL, *copy = NULL;
    ane_parse_options opts = {.size = sizeof opts, .allow_missing_weights = true};
    char *text = NULL;
    size_t m, h = n;
    for (size_t i = 0; i < n; i++) h = h * 31 + data[i];
    ane_mem_fail_after(1 + (long)(h % 61), h & 64);
    ane_status st = ane_program_parse((const char *)data, n, &opts, &p, &err);
    if (!st) (void)ane_program_print(p, NULL, &text, &m, &err);
    if (!st) (void)ane_program_clone(p, &copy, &err);
    ane_mem_fail_after(0, false);
    must(!st == (p != NULL), "out is set only on success", err.message);
    ane_free(text);
    ane_program_release(copy);
    ane_program_release(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    starved(data, n);
    ane_error err = {0};
    ane_program *p = NULL, *copy = NULL;
    ane_parse_options opts = {.size = sizeof opts, .allow_missing_weights = true};
    if (ane_program_parse((const char *)data, n, &opts, &p, &err)) {
        must(p == NULL, "out stays NULL on failure", err.message);
        must(err.status == ANE_ERR_PARSE, "status of a malformed text", err.message);
        must(err.line > 0 && err.column > 0 && err.message[0], "position", err.message);
        return 0;
    }
    must(!ane_program_verify(p, &err), "verify", err.message);
    ane_program_release(round_trip(p, "1.0"));
    ane_program *q = round_trip(p, "1.3");
    must(!ane_program_clone(q, &copy, &err), "clone", err.message);
    must(ane_program_same(p, copy), "same after the clone", "");
    ane_program_release(copy);
    ane_program_release(q);
    ane_program_release(p);
    return 0;
}
