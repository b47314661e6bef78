#include "json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void ane_json_init(ane_json *r, const char *text, size_t n, const char *file,
                   ane_error *err) {
    *r = (ane_json){.start = text, .p = text, .end = text + n, .file = file ? file : "",
                    .err = err};
}

bool ane_json_fail(ane_json *r, ane_status status, const char *fmt, ...) {
    if (r->status) return false;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    int line = 1, column = 1;
    for (const char *c = r->start; c < r->p; c++) {
        if (*c == '\n') line++, column = 1;
        else if (column < INT32_MAX) column++;
    }
    /* Headers are mostly one long line: the byte says more than the column. */
    r->status = ane_fail_at(r->err, status, r->file, line, column, "%s (byte %zu)", text,
                            (size_t)(r->p - r->start));
    return false;
}

static void blank(ane_json *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\n' || *r->p == '\r'))
        r->p++;
}

static bool expected(ane_json *r, const char *what) {
    if (r->p >= r->end)
        return ane_json_fail(r, ANE_ERR_PARSE, "JSON: expected %s, the text ends", what);
    unsigned char c = (unsigned char)*r->p;
    if (c >= 32 && c < 127)
        return ane_json_fail(r, ANE_ERR_PARSE, "JSON: expected %s, found '%c'", what, c);
    return ane_json_fail(r, ANE_ERR_PARSE, "JSON: expected %s, found byte 0x%02X", what, c);
}

ane_json_kind ane_json_peek(ane_json *r) {
    if (r->status) return ANE_JSON_NONE;
    blank(r);
    if (r->p >= r->end) return ANE_JSON_NONE;
    switch (*r->p) {
    case '{': return ANE_JSON_OBJECT;
    case '[': return ANE_JSON_ARRAY;
    case '"': return ANE_JSON_STRING;
    case 't': return ANE_JSON_TRUE;
    case 'f': return ANE_JSON_FALSE;
    case 'n': return ANE_JSON_NULL;
    default:
        return *r->p == '-' || (*r->p >= '0' && *r->p <= '9') ? ANE_JSON_NUMBER
                                                             : ANE_JSON_NONE;
    }
}

/* ---------------------------------------------------------------- nesting */

static bool open(ane_json *r, char bracket, bool array, const char *what) {
    if (r->status) return false;
    blank(r);
    if (r->p >= r->end || *r->p != bracket) return expected(r, what);
    if (r->depth >= ANE_JSON_DEPTH)
        return ane_json_fail(r, ANE_ERR_PARSE, "JSON: nested deeper than %d levels",
                             ANE_JSON_DEPTH);
    uint64_t bit = 1ull << r->depth++;
    r->arrays = array ? r->arrays | bit : r->arrays & ~bit;
    r->started &= ~bit;
    r->p++;
    return true;
}

bool ane_json_object(ane_json *r) { return open(r, '{', false, "an object"); }
bool ane_json_array(ane_json *r) { return open(r, '[', true, "a list"); }

/* Steps to the next element of the innermost level: true when there is one. */
static bool next(ane_json *r, char close) {
    if (r->status || !r->depth) return false;
    uint64_t bit = 1ull << (r->depth - 1);
    blank(r);
    if (r->p < r->end && *r->p == close) {
        r->p++;
        r->depth--;
        return false;
    }
    if (r->started & bit) {
        if (r->p >= r->end || *r->p != ',')
            return expected(r, close == '}' ? "',' or '}'" : "',' or ']'");
        r->p++;
        blank(r);
    }
    r->started |= bit;
    return true;
}

bool ane_json_key(ane_json *r, ane_json_str *key) {
    if (!next(r, '}') || !ane_json_string(r, key)) return false;
    blank(r);
    if (r->p >= r->end || *r->p != ':') return expected(r, "':'");
    r->p++;
    return true;
}

bool ane_json_item(ane_json *r) { return next(r, ']'); }

/* ---------------------------------------------------------------- strings */

/* Length of the valid UTF-8 sequence at s, or 0. */
static size_t utf8_one(const unsigned char *s, size_t n) {
    unsigned char c = s[0];
    if (c < 0x80) return 1;
    size_t len = c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (!len || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (c == 0xe0 && s[1] < 0xa0) return 0;             /* overlong */
    if (c == 0xed && s[1] >= 0xa0) return 0;            /* surrogate */
    if (c == 0xf0 && s[1] < 0x90) return 0;             /* overlong */
    if (c == 0xf4 && s[1] >= 0x90) return 0;            /* above U+10FFFF */
    return len;
}

bool ane_utf8_valid(const char *s, size_t n) {
    for (size_t i = 0, k; i < n; i += k)
        if (!s[i] || !(k = utf8_one((const unsigned char *)s + i, n - i))) return false;
    return true;
}

static int hex4(const char *p, const char *end) {
    int v = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
              : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

static size_t utf8_put(uint32_t c, char *dst) {
    if (c < 0x80) {
        dst[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        dst[0] = (char)(0xc0 | c >> 6);
        dst[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        dst[0] = (char)(0xe0 | c >> 12);
        dst[1] = (char)(0x80 | (c >> 6 & 63));
        dst[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    dst[0] = (char)(0xf0 | c >> 18);
    dst[1] = (char)(0x80 | (c >> 12 & 63));
    dst[2] = (char)(0x80 | (c >> 6 & 63));
    dst[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* Decodes the escape at *p (behind the backslash) and moves past it; -1 when malformed. */
static long escape(const char **p, const char *end) {
    if (*p >= end) return -1;
    switch (*(*p)++) {
    case '"': return '"';
    case '\\': return '\\';
    case '/': return '/';
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'u': break;
    default: return -1;
    }
    long hi = hex4(*p, end);
    if (hi < 0 || (hi >= 0xdc00 && hi < 0xe000)) return -1;
    *p += 4;
    if (hi < 0xd800 || hi >= 0xdc00) return hi;
    if (end - *p < 6 || (*p)[0] != '\\' || (*p)[1] != 'u') return -1;
    long lo = hex4(*p + 2, end);
    if (lo < 0xdc00 || lo >= 0xe000) return -1;
    *p += 6;
    return 0x10000 + ((hi - 0xd800) << 10) + (lo - 0xdc00);
}

/* How many of these eight bytes are plain (ASCII from the space on, neither quote nor
 * backslash) before the first that is not. */
static size_t plain8(const char *p) {
    const uint64_t ones = UINT64_MAX / 255;
    uint64_t x, quote, slash;
    memcpy(&x, p, sizeof x);
    quote = x ^ ones * '"', slash = x ^ ones * '\\';
    /* A byte below k leaves its top bit set after - k, where it was not set before; what it
     * borrows may mark bytes above it, but none below. */
    uint64_t odd = (x | ((x - ones * 0x20) & ~x) | ((quote - ones) & ~quote) |
                    ((slash - ones) & ~slash)) & ones * 0x80;
    if (!odd) return sizeof x;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (size_t)__builtin_ctzll(odd) / 8;
#else
    return 0;
#endif
}

bool ane_json_string(ane_json *r, ane_json_str *out) {
    if (r->status) return false;
    blank(r);
    if (r->p >= r->end || *r->p != '"') return expected(r, "a string");
    const char *opener = r->p, *p = r->p + 1;
    size_t n = 0;
    char scratch[4];
    for (;;) {
        const char *from = p;           /* plain ASCII, which is nearly everything */
        for (size_t k = 8; k == 8 && r->end - p >= 8; p += k) k = plain8(p);
        while (p < r->end && (unsigned char)(*p - 0x20) < 0x60 && *p != '"' && *p != '\\') p++;
        n += (size_t)(p - from);
        if (p >= r->end) {
            r->p = opener;
            return ane_json_fail(r, ANE_ERR_PARSE, "JSON: this string is not closed");
        }
        unsigned char c = (unsigned char)*p;
        if (c == '"') break;
        if (c == '\\') {
            const char *at = p++;
            long code = escape(&p, r->end);
            if (code < 0) {
                r->p = at;
                return ane_json_fail(r, ANE_ERR_PARSE, "JSON: malformed escape in a string");
            }
            n += utf8_put((uint32_t)code, scratch);
            continue;
        }
        size_t len = c < 0x20 ? 0 : utf8_one((const unsigned char *)p, (size_t)(r->end - p));
        if (!len) {
            r->p = p;
            return ane_json_fail(r, ANE_ERR_PARSE, c < 0x20
                                 ? "JSON: control character 0x%02X in a string"
                                 : "JSON: a string is not UTF-8 at byte 0x%02X", c);
        }
        p += len;
        n += len;
    }
    *out = (ane_json_str){opener + 1, (size_t)(p - opener - 1), n};
    r->p = p + 1;
    return true;
}

void ane_json_decode(const ane_json_str *s, char *dst) {
    if (s->n == s->raw) {               /* every escape is longer than what it stands for */
        if (s->n) memcpy(dst, s->at, s->n);
        return;
    }
    const char *p = s->at, *end = s->at + s->raw;
    while (p < end) {
        if (*p != '\\') {
            *dst++ = *p++;
            continue;
        }
        p++;
        dst += utf8_put((uint32_t)escape(&p, end), dst);
    }
}

char *ane_json_dup(ane_arena *a, const ane_json_str *s) {
    char *p = ane_arena_alloc(a, s->n + 1);
    if (p) ane_json_decode(s, p);
    return p;
}

bool ane__json_is_escaped(const ane_json_str *s, const char *text) {
    const char *p = s->at, *end = s->at + s->raw;
    char one[4];
    while (p < end) {
        size_t len = 1;
        if (*p == '\\') {
            p++;
            len = utf8_put((uint32_t)escape(&p, end), one);
        } else {
            one[0] = *p++;
        }
        if (memcmp(one, text, len)) return false;       /* lengths were equal: in bounds */
        text += len;
    }
    return true;
}

/* ---------------------------------------------------------------- numbers and the rest */

static bool digit(const ane_json *r) { return r->p < r->end && *r->p >= '0' && *r->p <= '9'; }

bool ane_json_u64(ane_json *r, uint64_t *out) {
    if (r->status) return false;
    blank(r);
    const char *from = r->p;
    uint64_t v = 0;
    if (!digit(r)) return expected(r, "an integer of at least 0");
    const char *safe = r->end - from > 19 ? from + 19 : r->end;     /* 10^19 < 2^64 */
    for (; r->p < safe && *r->p >= '0' && *r->p <= '9'; r->p++)
        v = v * 10 + (uint64_t)(*r->p - '0');
    while (digit(r)) {
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*r->p - '0'), &v)) {
            r->p = from;
            return ane_json_fail(r, ANE_ERR_PARSE, "JSON: integer above 2^64-1");
        }
        r->p++;
    }
    if (*from == '0' && r->p - from > 1) {
        r->p = from;
        return ane_json_fail(r, ANE_ERR_PARSE, "JSON: a number starts with 0");
    }
    if (r->p < r->end && (*r->p == '.' || *r->p == 'e' || *r->p == 'E'))
        return expected(r, "an integer, no fraction or exponent");
    *out = v;
    return true;
}

static bool number(ane_json *r) {
    if (*r->p == '-') r->p++;
    if (!digit(r)) return expected(r, "a digit");
    if (*r->p == '0') r->p++;
    else while (digit(r)) r->p++;
    if (digit(r)) return ane_json_fail(r, ANE_ERR_PARSE, "JSON: a number starts with 0");
    if (r->p < r->end && *r->p == '.') {
        r->p++;
        if (!digit(r)) return expected(r, "a digit");
        while (digit(r)) r->p++;
    }
    if (r->p < r->end && (*r->p == 'e' || *r->p == 'E')) {
        r->p++;
        if (r->p < r->end && (*r->p == '+' || *r->p == '-')) r->p++;
        if (!digit(r)) return expected(r, "a digit");
        while (digit(r)) r->p++;
    }
    return true;
}

static bool word(ane_json *r, const char *text) {
    size_t n = strlen(text);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, text, n)) return expected(r, "a value");
    r->p += n;
    return true;
}

/* One value that is not an object or a list; those are entered. */
static bool skip_one(ane_json *r) {
    ane_json_str s;
    switch (ane_json_peek(r)) {
    case ANE_JSON_OBJECT: return ane_json_object(r);
    case ANE_JSON_ARRAY: return ane_json_array(r);
    case ANE_JSON_STRING: return ane_json_string(r, &s);
    case ANE_JSON_NUMBER: return number(r);
    case ANE_JSON_TRUE: return word(r, "true");
    case ANE_JSON_FALSE: return word(r, "false");
    case ANE_JSON_NULL: return word(r, "null");
    case ANE_JSON_NONE: break;
    }
    return r->status ? false : expected(r, "a value");
}

bool ane_json_skip(ane_json *r) {
    int depth = r->depth;
    ane_json_str key;
    if (!skip_one(r)) return false;
    while (r->depth > depth) {
        bool more = r->arrays & (1ull << (r->depth - 1)) ? ane_json_item(r)
                                                         : ane_json_key(r, &key);
        if (more && !skip_one(r)) return false;
        if (r->status) return false;
    }
    return true;
}

bool ane_json_end(ane_json *r) {
    if (r->status) return false;
    blank(r);
    if (r->p < r->end) return expected(r, "the end of the text");
    return true;
}
