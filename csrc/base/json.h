/* Bounded JSON reader for files that nobody has to trust: safetensors headers, manifests,
 * indexes. It pulls, keeps nothing and allocates nothing; the text must outlive it.
 *
 * RFC 8259, strictly: UTF-8 checked (no overlong forms, no surrogates), escapes checked,
 * no control characters in strings, no trailing commas, nothing after the value. Nesting
 * is at most ANE_JSON_DEPTH. The first error sticks: every later call returns false.
 *
 *     ane_json r;  ane_json_str key;  uint64_t n;
 *     ane_json_init(&r, text, bytes, "model.json", err);
 *     for (ane_json_object(&r); ane_json_key(&r, &key);)
 *         if (ane_json_is(&key, "n")) ane_json_u64(&r, &n); else ane_json_skip(&r);
 *     ane_json_end(&r);
 *     return r.status;
 */
#ifndef ANE_BASE_JSON_H
#define ANE_BASE_JSON_H

#include "mem.h"

#include <string.h>

#define ANE_JSON_DEPTH 64

typedef enum ane_json_kind {
    ANE_JSON_NONE,              /* the text ended, or an error came before */
    ANE_JSON_OBJECT, ANE_JSON_ARRAY, ANE_JSON_STRING, ANE_JSON_NUMBER, ANE_JSON_TRUE,
    ANE_JSON_FALSE, ANE_JSON_NULL
} ane_json_kind;

/* A string as it stands in the text, without its quotes. */
typedef struct ane_json_str {
    const char *at;
    size_t raw;                 /* bytes in the text */
    size_t n;                   /* bytes when decoded; equal to raw without escapes */
} ane_json_str;

typedef struct ane_json {
    const char *start, *p, *end;
    const char *file;           /* for messages; may be "" */
    ane_error *err;
    ane_status status;
    int depth;
    uint64_t arrays;            /* bit d: level d is an array */
    uint64_t started;           /* bit d: level d has had an element */
} ane_json;

void ane_json_init(ane_json *r, const char *text, size_t n, const char *file,
                   ane_error *err);
/* Fails at the reader's place; returns false, so `return ane_json_fail(...)` works. */
bool ane_json_fail(ane_json *r, ane_status status, const char *fmt, ...) ANE_PRINTF(3, 4);

/* What the next value is, without taking it. */
ane_json_kind ane_json_peek(ane_json *r);
/* Takes '{' or '['; then key/item step through, and are false at the closing bracket
 * (taken) or on an error. After key or item the value must be taken. */
bool ane_json_object(ane_json *r);
bool ane_json_key(ane_json *r, ane_json_str *key);
bool ane_json_array(ane_json *r);
bool ane_json_item(ane_json *r);

bool ane_json_string(ane_json *r, ane_json_str *out);
/* Digits only: no sign, fraction or exponent, at most 2^64-1. */
bool ane_json_u64(ane_json *r, uint64_t *out);
/* Checks and skips any value. */
bool ane_json_skip(ane_json *r);
/* Only white space is left. */
bool ane_json_end(ane_json *r);

/* Decoded text into dst (s->n bytes, no NUL). */
void ane_json_decode(const ane_json_str *s, char *dst);
/* Decoded, NUL-terminated; NULL without memory. */
char *ane_json_dup(ane_arena *a, const ane_json_str *s);
bool ane__json_is_escaped(const ane_json_str *s, const char *text);
/* Equal to a NUL-terminated text, decoded. Here, so that the length of a literal is known. */
static inline bool ane_json_is(const ane_json_str *s, const char *text) {
    size_t n = strlen(text);
    if (s->n != n) return false;
    return s->n == s->raw ? !memcmp(s->at, text, n) : ane__json_is_escaped(s, text);
}

/* Strict UTF-8 without NUL; also for names in binary files. */
bool ane_utf8_valid(const char *s, size_t n);

#endif
