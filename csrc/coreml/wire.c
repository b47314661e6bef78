#include "wire.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ane_wire_init(ane_wire *w, const void *data, size_t n, const char *file,
                   ane_error *err) {
    const uint8_t *p = n ? data : (const uint8_t *)"";
    *w = (ane_wire){.base = p, .p = p, .end = p + n, .file = file ? file : "", .err = err};
}

ane_status ane_wire_stop(ane_wire *w, ane_status status) {
    if (!w->status) w->status = status;
    w->p = w->end;
    return w->status;
}

ane_status ane_wire_fail(ane_wire *w, const char *fmt, ...) {
    if (w->status) return w->status;    /* the first malformation is the one to report */
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return ane_wire_stop(w, ane_fail_at(w->err, ANE_ERR_PARSE, w->file, 0, 0,
                                        "%s: byte %zu: %s", w->file,
                                        (size_t)(w->p - w->base), text));
}

/* Reads a varint from [*p, end); false when it is cut off or longer than 64 bits. */
static bool varint(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    uint64_t v = 0;
    const uint8_t *q = *p;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (q == end) return false;
        uint8_t b = *q++;
        if (shift == 63 && b > 1) return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *p = q;
            *out = v;
            return true;
        }
    }
    return false;
}

static uint64_t little(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

bool ane_wire_next(ane_wire *w, ane_wire_field *f) {
    if (w->status || w->p == w->end) return false;
    uint64_t tag, n;
    if (!varint(&w->p, w->end, &tag)) {
        ane_wire_fail(w, "field tag is cut off or too long");
        return false;
    }
    if (tag >> 3 == 0 || tag >> 3 > 0x1fffffff) {
        ane_wire_fail(w, "field number %llu is out of range",
                      (unsigned long long)(tag >> 3));
        return false;
    }
    *f = (ane_wire_field){.number = (uint32_t)(tag >> 3), .kind = (ane_wire_kind)(tag & 7)};
    size_t left = (size_t)(w->end - w->p);
    switch (f->kind) {
    case ANE_WIRE_VARINT:
        if (varint(&w->p, w->end, &f->value)) return true;
        ane_wire_fail(w, "integer of field %u is cut off or too long", f->number);
        return false;
    case ANE_WIRE_FIXED64:
    case ANE_WIRE_FIXED32: {
        int size = f->kind == ANE_WIRE_FIXED64 ? 8 : 4;
        if (left < (size_t)size) {
            ane_wire_fail(w, "field %u needs %d bytes, %zu are left", f->number, size, left);
            return false;
        }
        f->value = little(w->p, size);
        w->p += size;
        return true;
    }
    case ANE_WIRE_BYTES:
        if (!varint(&w->p, w->end, &n)) {
            ane_wire_fail(w, "length of field %u is cut off or too long", f->number);
            return false;
        }
        left = (size_t)(w->end - w->p);
        if (n > left) {
            ane_wire_fail(w, "field %u claims %llu bytes, %zu are left", f->number,
                          (unsigned long long)n, left);
            return false;
        }
        f->data = w->p;
        f->size = (size_t)n;
        w->p += n;
        return true;
    default:
        ane_wire_fail(w, "field %u has wire type %d, which this format does not use",
                      f->number, (int)f->kind);
        return false;
    }
}

bool ane_wire_is(ane_wire *w, const ane_wire_field *f, ane_wire_kind kind) {
    if (f->kind == kind) return true;
    ane_wire_fail(w, "field %u has wire type %d, expected %d", f->number, (int)f->kind,
                  (int)kind);
    return false;
}

ane_wire ane_wire_message(ane_wire *parent, const ane_wire_field *f) {
    ane_wire w = {.base = parent->base, .file = parent->file, .err = parent->err};
    w.p = w.end = parent->end;
    w.depth = parent->depth + 1;
    if (!ane_wire_is(parent, f, ANE_WIRE_BYTES)) {
        w.status = parent->status;
        return w;
    }
    if (w.depth > ANE_WIRE_DEPTH) {
        w.status = ane_wire_fail(parent, "messages nest deeper than %d", ANE_WIRE_DEPTH);
        return w;
    }
    w.p = f->data;
    w.end = f->data + f->size;
    return w;
}

ane_status ane_wire_join(ane_wire *parent, const ane_wire *child) {
    return child->status ? ane_wire_stop(parent, child->status) : parent->status;
}

/* Length of a valid UTF-8 sequence at p, 0 when invalid (overlong, surrogate, > 10FFFF). */
static size_t utf8(const uint8_t *p, size_t n) {
    if (p[0] < 0x80) return p[0] ? 1 : 0;
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
    if (p[0] == 0xed && p[1] > 0x9f) return 0;
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    return len;
}

char *ane_wire_string(ane_wire *w, const ane_wire_field *f, ane_arena *arena) {
    if (!ane_wire_is(w, f, ANE_WIRE_BYTES)) return NULL;
    for (size_t i = 0; i < f->size;) {
        size_t n = utf8(f->data + i, f->size - i);
        if (!n) {
            ane_wire_fail(w, "string of field %u is not UTF-8 (or holds a NUL)", f->number);
            return NULL;
        }
        i += n;
    }
    char *s = ane_arena_strndup(arena, (const char *)f->data, f->size);
    if (!s) ane_wire_stop(w, ane_fail(w->err, ANE_ERR_NOMEM, "%s: out of memory", w->file));
    return s;
}

ane_wire_packed ane_wire_packed_begin(ane_wire *w, const ane_wire_field *f,
                                      ane_wire_kind element) {
    ane_wire_packed it = {.kind = element};
    if (f->kind == ANE_WIRE_BYTES) {
        it.p = f->data;
        it.end = f->data + f->size;
    } else if (ane_wire_is(w, f, element)) {
        it.one = true;
        it.single = f->value;
    }
    return it;
}

bool ane_wire_packed_next(ane_wire *w, ane_wire_packed *it, uint64_t *bits) {
    if (it->one) {
        it->one = false;
        *bits = it->single;
        return true;
    }
    if (w->status || it->p == it->end) return false;
    if (it->kind == ANE_WIRE_VARINT) {
        if (varint(&it->p, it->end, bits)) return true;
        ane_wire_fail(w, "packed integer is cut off or too long");
        return false;
    }
    size_t size = it->kind == ANE_WIRE_FIXED64 ? 8 : 4;
    if ((size_t)(it->end - it->p) < size) {
        ane_wire_fail(w, "packed field is not a multiple of %zu bytes", size);
        return false;
    }
    *bits = little(it->p, (int)size);
    it->p += size;
    return true;
}

/* ---------------------------------------------------------------- writing */

void ane_wire_out_free(ane_wire_out *o) {
    ane_free(o->data);
    *o = (ane_wire_out){0};
}

void ane_wire_raw(ane_wire_out *o, const void *data, size_t n) {
    size_t need;
    if (o->failed || !n) return;
    if (!ane_add_size(o->size, n, &need)) {
        o->failed = true;
        return;
    }
    if (need > o->capacity) {
        size_t cap = o->capacity ? o->capacity : 4096;
        while (cap < need && cap <= SIZE_MAX / 2) cap *= 2;
        uint8_t *p = cap >= need ? ane_realloc(o->data, cap) : NULL;
        if (!p) {
            o->failed = true;
            return;
        }
        o->data = p;
        o->capacity = cap;
    }
    memcpy(o->data + o->size, data, n);
    o->size = need;
}

static size_t encode(uint64_t v, uint8_t out[10]) {
    size_t n = 0;
    do {
        out[n] = (uint8_t)(v & 0x7f);
        v >>= 7;
        out[n++] |= v ? 0x80 : 0;
    } while (v);
    return n;
}

void ane_wire_raw_varint(ane_wire_out *o, uint64_t value) {
    uint8_t b[10];
    size_t n = encode(value, b);
    ane_wire_raw(o, b, n);
}

static void tag(ane_wire_out *o, uint32_t field, ane_wire_kind kind) {
    ane_wire_raw_varint(o, (uint64_t)field << 3 | (uint64_t)kind);
}

void ane_wire_put_varint(ane_wire_out *o, uint32_t field, uint64_t value) {
    tag(o, field, ANE_WIRE_VARINT);
    ane_wire_raw_varint(o, value);
}

void ane_wire_put_bytes(ane_wire_out *o, uint32_t field, const void *data, size_t n) {
    tag(o, field, ANE_WIRE_BYTES);
    ane_wire_raw_varint(o, n);
    ane_wire_raw(o, data, n);
}

void ane_wire_put_string(ane_wire_out *o, uint32_t field, const char *s) {
    ane_wire_put_bytes(o, field, s, strlen(s));
}

size_t ane_wire_begin(ane_wire_out *o, uint32_t field) {
    tag(o, field, ANE_WIRE_BYTES);
    return o->size;
}

void ane_wire_end(ane_wire_out *o, size_t mark) {
    if (o->failed) return;
    /* The length goes before the content: move the content up by the length's own size. */
    uint8_t b[10];
    size_t inner = o->size - mark, n = encode(inner, b);
    static const uint8_t zero[10];
    ane_wire_raw(o, zero, n);
    if (o->failed) return;
    memmove(o->data + mark + n, o->data + mark, inner);
    memcpy(o->data + mark, b, n);
}
