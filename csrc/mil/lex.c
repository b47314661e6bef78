#include "lex.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

void ane__lex_init(ane_lexer *lx, const char *text, size_t n, const char *filename,
                   ane_error *err) {
    *lx = (ane_lexer){.p = text, .end = text + n, .line_start = text, .line = 1,
                      .filename = filename, .err = err};
    if (n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) {   /* a byte order mark */
        lx->p += 3;
        lx->line_start += 3;
    }
}

static int column(const ane_lexer *lx, const char *p) {
    size_t c = (size_t)(p - lx->line_start) - lx->continuation + 1;
    return c > INT_MAX ? INT_MAX : (int)c;
}

/* Classes of a byte: bit 0 letter or _, 1 digit, 2 hex digit, 3 @, 4 punctuation. */
#define L 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
#define H 5, 5, 5, 5, 5, 5
static const unsigned char classes[256] = {
    ['0'] = 6, 6, 6, 6, 6, 6, 6, 6, 6, 6,
    ['@'] = 8, H, L, ['_'] = 1, ['a'] = H, L,
    ['('] = 16, [')'] = 16, ['['] = 16, [']'] = 16, ['{'] = 16, ['}'] = 16, ['<'] = 16,
    ['>'] = 16, [','] = 16, [';'] = 16, ['='] = 16, ['?'] = 16,
};
#undef L
#undef H
static inline unsigned class_of(char c) { return classes[(unsigned char)c]; }
static inline bool letter(char c) { return class_of(c) & 1; }
static inline bool digit(char c) { return class_of(c) & 2; }
static inline bool hex(char c) { return class_of(c) & 4; }
/* What may follow in an identifier. */
static inline bool follows(char c) { return class_of(c) & 11; }

#define FAIL(lx, line, col, ...)                                                           \
    ane_fail_at((lx)->err, ANE_ERR_PARSE, (lx)->filename, line, col, __VA_ARGS__)

/* Length of the UTF-8 sequence at p: 1 to 4; 0: malformed. */
static int utf8(const char *p, const char *end) {
    const unsigned char *u = (const unsigned char *)p;
    size_t left = (size_t)(end - p);
    if (u[0] < 0x80) return 1;
    int n = u[0] >= 0xc2 && u[0] <= 0xdf ? 2 : u[0] >= 0xe0 && u[0] <= 0xef ? 3
            : u[0] >= 0xf0 && u[0] <= 0xf4 ? 4 : 0;
    if (!n || left < (size_t)n) return 0;
    for (int i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80) return 0;
    if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] >= 0xa0) ||  /* surrogates */
        (u[0] == 0xf0 && u[1] < 0x90) || (u[0] == 0xf4 && u[1] >= 0x90))
        return 0;
    return n;
}

static ane_status skip_blank(ane_lexer *lx) {
    while (lx->p < lx->end) {
        char c = *lx->p;
        if (c == '\n') {
            lx->p++;
            lx->line_start = lx->p;
            lx->continuation = 0;
            /* Lines beyond INT_MAX only lose their number. */
            if (lx->line < INT_MAX) lx->line++;
        } else if (c == ' ' || c == '\t' || c == '\r') {
            lx->p++;
        } else if (c == '/' && lx->p + 1 < lx->end && lx->p[1] == '/') {
            const char *nl = memchr(lx->p, '\n', (size_t)(lx->end - lx->p));
            lx->p = nl ? nl : lx->end;
        } else if (c == '/' && lx->p + 1 < lx->end && lx->p[1] == '*') {
            return FAIL(lx, lx->line, column(lx, lx->p),
                        "comments start with //; /* */ is not MIL");
        } else {
            break;
        }
    }
    return ANE_OK;
}

bool ane__lex_comma(ane_lexer *lx) {
    if (skip_blank(lx) || lx->p == lx->end || *lx->p != ',') return false;
    lx->p++;
    return !skip_blank(lx);
}

static ane_status lex_string(ane_lexer *lx, ane_token *t) {
    const char *p = lx->p + 1;
    for (;;) {
        if (p == lx->end || *p == '\n')
            return FAIL(lx, lx->line, t->column,
                        "the string opened here is not closed on its line: expected \"");
        if (*p == '"') break;
        if (!*p) return FAIL(lx, lx->line, column(lx, p), "a string holds a zero byte");
        if (*p == '\\') {
            if (++p == lx->end || *p == '\n') continue;
            if ((unsigned char)*p >= 0x80)
                return FAIL(lx, lx->line, column(lx, p), "unknown escape in a string");
            p++;
            continue;
        }
        if ((unsigned char)*p < 0x80) {
            p++;
            continue;
        }
        int n = utf8(p, lx->end);
        if (!n) return FAIL(lx, lx->line, column(lx, p), "a string is not valid UTF-8");
        lx->continuation += (size_t)n - 1;
        p += n;
    }
    t->kind = ANE_TOK_STRING;
    t->n = (size_t)(p + 1 - t->s);
    lx->p = p + 1;
    return ANE_OK;
}

/* sign? (hex float | decimal | inf | nan) */
static ane_status lex_number(ane_lexer *lx, ane_token *t) {
    const char *p = lx->p, *end = lx->end;
    if (*p == '-' || *p == '+') p++;
    if (p < end && letter(*p)) {
        const char *s = p;
        while (p < end && follows(*p)) p++;
        if (p - s == 3 && (!memcmp(s, "inf", 3) || !memcmp(s, "nan", 3))) {
            t->kind = ANE_TOK_FLOAT;
            goto done;
        }
        goto bad;
    }
    if (p == end || !digit(*p)) {
        return FAIL(lx, lx->line, t->column,
                    "a sign belongs directly before its number; expected a digit after '%c'",
                    *lx->p);
    }
    t->kind = ANE_TOK_INT;
    if (*p == '0' && p + 1 < end && (p[1] == 'x' || p[1] == 'X')) {
        t->kind = ANE_TOK_FLOAT;
        p += 2;
        int digits = 0;
        while (p < end && hex(*p)) p++, digits = 1;
        if (p < end && *p == '.') {
            p++;
            while (p < end && hex(*p)) p++, digits = 1;
        }
        if (!digits || p == end || (*p != 'p' && *p != 'P')) goto bad;
    } else {
        while (p < end && digit(*p)) p++;
        if (p < end && *p == '.') {
            t->kind = ANE_TOK_FLOAT;
            p++;
            while (p < end && digit(*p)) p++;
        }
    }
    if (p < end && (*p == 'e' || *p == 'E' || *p == 'p' || *p == 'P')) {
        bool hexadecimal = *p == 'p' || *p == 'P';
        if (hexadecimal && !memchr(lx->p, 'x', (size_t)(p - lx->p)) &&
            !memchr(lx->p, 'X', (size_t)(p - lx->p)))
            goto bad;
        t->kind = ANE_TOK_FLOAT;
        p++;
        if (p < end && (*p == '-' || *p == '+')) p++;
        if (p == end || !digit(*p)) goto bad;
        while (p < end && digit(*p)) p++;
    }
    if (p < end && (follows(*p) || *p == '.')) goto bad;
done:
    t->n = (size_t)(p - t->s);
    lx->p = p;
    return ANE_OK;
bad:
    while (p < end && (letter(*p) || digit(*p) || *p == '.')) p++;
    return FAIL(lx, lx->line, t->column, "malformed number '%.*s'",
                p - lx->p > 40 ? 40 : (int)(p - lx->p), lx->p);
}

ane_status ane__lex_next(ane_lexer *lx, ane_token *t) {
    ane_status st = skip_blank(lx);
    if (st) return st;
    const char *p = lx->p, *end = lx->end;
    *t = (ane_token){.s = p, .line = lx->line, .column = column(lx, p)};
    if (p == end) return ANE_OK;
    char c = *p;
    if (letter(c)) {
        while (p < end && follows(*p)) p++;
        t->kind = ANE_TOK_IDENT;
        t->n = (size_t)(p - t->s);
        lx->p = p;
        return ANE_OK;
    }
    if (c == '-' && p + 1 < end && p[1] == '>') {
        t->kind = ANE_TOK_ARROW;
        t->n = 2;
        lx->p = p + 2;
        return ANE_OK;
    }
    if (digit(c) || c == '-' || c == '+') return lex_number(lx, t);
    if (c == '"') return lex_string(lx, t);
    if (class_of(c) & 16) {
        t->kind = ANE_TOK_PUNCT;
        t->punct = c;
        t->n = 1;
        lx->p = p + 1;
        return ANE_OK;
    }
    if (c > 32 && c < 127)
        return FAIL(lx, t->line, t->column, "unexpected character '%c'", c);
    return FAIL(lx, t->line, t->column, "unexpected byte 0x%02x", (unsigned char)c);
}

/* ---------------------------------------------------------------- strings */

static int hex_value(char c) {
    return digit(c) ? c - '0' : (c | 32) - 'a' + 10;
}

/* One escape, p behind the backslash. Writes its bytes; *p moves on. False: unknown. */
static bool escape(const char **pp, const char *end, char **out) {
    static const char from[] = "\"\\'?abfnrtv", to[] = "\"\\'?\a\b\f\n\r\t\v";
    const char *p = *pp;
    const char *at = *p ? strchr(from, *p) : NULL;
    unsigned long v = 0;
    if (at) {
        *(*out)++ = to[at - from];
        *pp = p + 1;
        return true;
    }
    if (*p == 'x') {
        int n = 0;
        for (p++; p < end && hex(*p) && n < 2; p++, n++)
            v = v * 16 + (unsigned long)hex_value(*p);
        if (!n) return false;
    } else if (*p >= '0' && *p <= '7') {
        for (int n = 0; p < end && *p >= '0' && *p <= '7' && n < 3; p++, n++)
            v = v * 8 + (unsigned long)(*p - '0');
    } else if (*p == 'u') {
        int n = 0;
        for (p++; p < end && hex(*p) && n < 4; p++, n++)
            v = v * 16 + (unsigned long)hex_value(*p);
        if (n != 4 || (v >= 0xd800 && v < 0xe000)) return false;
        if (v >= 0x800) {
            *(*out)++ = (char)(0xe0 | v >> 12);
            *(*out)++ = (char)(0x80 | (v >> 6 & 0x3f));
            *(*out)++ = (char)(0x80 | (v & 0x3f));
        } else if (v >= 0x80) {
            *(*out)++ = (char)(0xc0 | v >> 6);
            *(*out)++ = (char)(0x80 | (v & 0x3f));
        }
        if (v >= 0x80) {
            *pp = p;
            return true;
        }
    } else {
        return false;
    }
    if (!v || v > 255) return false;    /* strings end at a zero byte */
    *(*out)++ = (char)v;
    *pp = p;
    return true;
}

ane_status ane__lex_unescape(const ane_lexer *lx, const ane_token *t, ane_arena *arena,
                             char **out) {
    /* No escape is shorter than what it stands for: \uXXXX gives at most 3 bytes. */
    char *buf = ane_arena_alloc(arena, t->n), *q = buf;
    if (!buf) return ane_fail(lx->err, ANE_ERR_NOMEM, "out of memory");
    const char *p = t->s + 1, *end = t->s + t->n - 1;
    bool raw_bytes = false;
    while (p < end) {
        if (*p != '\\') {
            *q++ = *p++;
            continue;
        }
        const char *at = p++;
        raw_bytes |= p < end && (*p == 'x' || digit(*p));
        if (p == end || !escape(&p, end, &q)) {
            char shown[4] = {'\\', at[1], 0};
            return FAIL(lx, t->line, t->column, "unknown escape %s in a string; known: \\\" "
                        "\\\\ \\' \\? \\a \\b \\f \\n \\r \\t \\v \\xHH \\uHHHH and octal",
                        shown);
        }
    }
    *q = 0;
    for (const char *c = buf; raw_bytes && c < q;) {
        int n = utf8(c, q);
        if (!n)
            return FAIL(lx, t->line, t->column,
                        "the escapes of this string do not make valid UTF-8");
        c += n;
    }
    *out = buf;
    return ANE_OK;
}

char *ane__lex_show(const ane_token *t, char *buf, size_t n) {
    size_t cut = t->n > 40 ? 40 : t->n;
    while (cut < t->n && cut && ((unsigned char)t->s[cut] & 0xc0) == 0x80) cut--;
    const char *more = cut < t->n ? "..." : "";
    if (t->kind == ANE_TOK_END) snprintf(buf, n, "the end of the text");
    else if (t->kind == ANE_TOK_STRING) snprintf(buf, n, "%.*s%s", (int)cut, t->s, more);
    else snprintf(buf, n, "'%.*s%s'", (int)cut, t->s, more);
    return buf;
}
