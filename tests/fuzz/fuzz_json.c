/* libFuzzer harness of the JSON reader: walking and skipping accept the same texts, and
 * strings decode to what they say (see build.sh). */
#include "weights_common.h"

static bool walk(ane_json *r) {
    ane_json_str s;
    uint64_t v;
    ane_json at;
    switch (ane_json_peek(r)) {
    case ANE_JSON_OBJECT:
        for (ane_json_object(r); ane_json_key(r, &s);)
            if (!walk(r)) return false;
        return !r->status;
    case ANE_JSON_ARRAY:
        for (ane_json_array(r); ane_json_item(r);)
            if (!walk(r)) return false;
        return !r->status;
    case ANE_JSON_STRING: {
        if (!ane_json_string(r, &s)) return false;
        char *text = malloc(s.n + 1);
        if (!text) return true;
        must(s.n <= s.raw, "decoded is no longer than written", "");
        ane_json_decode(&s, text);
        text[s.n] = 0;
        if (!memchr(text, 0, s.n)) {
            must(ane_utf8_valid(text, s.n), "decoded is UTF-8", text);
            must(ane_json_is(&s, text), "decoded is itself", text);
            text[s.n / 2] ^= 1;
            must(!s.n || !ane_json_is(&s, text), "another text is not", text);
        }
        free(text);
        return true;
    }
    case ANE_JSON_NUMBER:
        at = *r;
        at.err = NULL;
        if (!ane_json_u64(&at, &v)) return ane_json_skip(r);
        *r = (at.err = r->err, at);
        return true;
    default: return ane_json_skip(r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    ane_error err = {0};
    ane_json a, b;
    ane_json_init(&a, (const char *)data, n, "fuzz", &err);
    bool walked = walk(&a) && ane_json_end(&a);
    must(walked == !a.status, "status says it", err.message);
    if (!walked) failed_well(a.status, &err);
    ane_json_init(&b, (const char *)data, n, "fuzz", &err);
    bool skipped = ane_json_skip(&b) && ane_json_end(&b);
    must(walked == skipped, "walk and skip agree", err.message);
    return 0;
}
