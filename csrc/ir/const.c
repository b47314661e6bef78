/* Constants: making, reading and comparing them. Up to 64 bytes live in the arena, more
 * is a view of a surface that the program retains. */
#include "impl.h"

#include "../base/f16.h"

#include <math.h>
#include <string.h>

#define INLINE_BYTES 64

static ane_const *new_const(ane_program *p, const ane_type *type, ane_error *err) {
    ane_const *c = ane_arena_alloc(p->arena, sizeof *c);
    if (!c) {
        ane__nomem(err);
        return NULL;
    }
    c->type = type;
    return c;
}

static bool size_fits(const ane_type *type, size_t bytes, ane_error *err) {
    size_t want = 0;
    char buf[ANE_TYPE_TEXT];
    if (type->kind == ANE_T_TENSOR && ane_type_bytes(type, &want) && want == bytes)
        return true;
    ane_fail(err, ANE_ERR_SHAPE, "a constant of type %s takes %zu bytes, got %zu",
             ane_type_text(type, buf, sizeof buf), want, bytes);
    return false;
}

const ane_const *ane_const_tensor(ane_program *p, const ane_type *type, const void *data,
                                  size_t bytes, ane_error *err) {
    if (!size_fits(type, bytes, err)) return NULL;
    if (type->dtype == ANE_STRING) {
        /* The strings themselves are copied too: data is an array of pointers. */
        size_t n = bytes / sizeof(char *);
        const char **copy = ane_arena_alloc(p->arena, bytes);
        ane_const *c = copy ? new_const(p, type, err) : (ane__nomem(err), NULL);
        if (!c) return NULL;
        for (size_t i = 0; i < n; i++) {
            const char *s = ((const char *const *)data)[i];
            if (!(copy[i] = ane_arena_strndup(p->arena, s, strlen(s)))) {
                ane__nomem(err);
                return NULL;
            }
        }
        c->data = copy;
        c->bytes = bytes;
        return c;
    }
    if (bytes > INLINE_BYTES) {
        ane_surface *s = NULL;
        if (ane_surface_create(ANE_MEM_HEAP, bytes, NULL, &s, err)) return NULL;
        memcpy(ane_surface_base(s), data, bytes);
        const ane_const *c = ane_const_view(p, type, s, 0, bytes, err);
        ane_surface_release(s);
        return c;
    }
    void *copy = ane_arena_alloc(p->arena, bytes);
    ane_const *c = copy ? new_const(p, type, err) : (ane__nomem(err), NULL);
    if (!c) return NULL;
    if (bytes) memcpy(copy, data, bytes);
    c->data = copy;
    c->bytes = bytes;
    return c;
}

const ane_const *ane_const_view(ane_program *p, const ane_type *type, ane_surface *owner,
                                size_t offset, size_t bytes, ane_error *err) {
    if (!size_fits(type, bytes, err)) return NULL;
    size_t have = ane_surface_bytes(owner);
    if (type->dtype == ANE_STRING || offset > have || bytes > have - offset) {
        ane_fail(err, ANE_ERR_INVALID,
                 "constant at bytes %zu to %zu lies outside its surface of %zu bytes",
                 offset, offset + bytes, have);
        return NULL;
    }
    ane_const *c = new_const(p, type, err);
    if (!c || ane__own_surface(p, owner, err)) return NULL;
    c->data = (const char *)ane_surface_base(owner) + offset;
    c->bytes = bytes;
    c->owner = owner;
    return c;
}

const ane_const *ane_const_string(ane_program *p, const char *s, ane_error *err) {
    const ane_type *t = ane_type_tensor(p, ANE_STRING, 0, NULL);
    if (!t) {
        ane__nomem(err);
        return NULL;
    }
    return ane_const_tensor(p, t, &s, sizeof s, err);
}

const ane_const *ane_const_blob(ane_program *p, const ane_type *type, ane_surface *owner,
                                size_t at, size_t bytes, const char *path, uint64_t offset,
                                ane_error *err) {
    const ane_const *c = owner ? ane_const_view(p, type, owner, at, bytes, err)
                               : new_const(p, type, err);
    if (!c) return NULL;
    ane_const *w = (ane_const *)c;      /* still ours alone */
    w->blob_offset = offset;
    w->blob_path = ane_arena_strndup(p->arena, path, strlen(path));
    if (w->blob_path) return w;
    ane__nomem(err);
    return NULL;
}

const ane_const *ane_const_items(ane_program *p, const ane_type *type,
                                 const ane_const *const *items, int n, ane_error *err) {
    ane_const *c = new_const(p, type, err);
    const ane_const **copy = c ? ane_arena_alloc(p->arena, (size_t)n * sizeof *copy) : NULL;
    if (!copy) {
        ane__nomem(err);
        return NULL;
    }
    for (int i = 0; i < n; i++) copy[i] = items[i];
    c->n = n;
    c->items = copy;
    return c;
}

const ane_const *ane_const_copy(ane_program *p, const ane_const *c, ane_error *err) {
    const ane_type *t = ane__type_copy(p, c->type);
    if (!t) {
        ane__nomem(err);
        return NULL;
    }
    if (t->kind != ANE_T_TENSOR) {
        const ane_const **items = ane_arena_alloc(p->arena, (size_t)c->n * sizeof *items);
        if (!items) {
            ane__nomem(err);
            return NULL;
        }
        for (int i = 0; i < c->n; i++)
            if (!(items[i] = ane_const_copy(p, c->items[i], err))) return NULL;
        return ane_const_items(p, t, items, c->n, err);
    }
    size_t at = c->owner ? (size_t)((const char *)c->data -
                                    (const char *)ane_surface_base(c->owner)) : 0;
    if (c->blob_path)
        return ane_const_blob(p, t, c->owner, at, c->bytes, c->blob_path, c->blob_offset, err);
    if (c->owner) return ane_const_view(p, t, c->owner, at, c->bytes, err);
    return c->data ? ane_const_tensor(p, t, c->data, c->bytes, err) : new_const(p, t, err);
}

/* ---------------------------------------------------------------- reading */

static uint64_t bits_at(const unsigned char *d, int64_t i, int bits) {
    /* Sub-byte: least significant bit first; 3 and 6 bits may straddle a byte. */
    size_t at = (size_t)i * (size_t)bits, byte = at / 8, shift = at % 8;
    unsigned v = d[byte];
    if (shift + (size_t)bits > 8) v |= (unsigned)d[byte + 1] << 8;
    return (v >> shift) & ((1u << bits) - 1u);
}

static double f8_value(unsigned v, int mantissa, int bias) {
    unsigned m = v & ((1u << mantissa) - 1u);
    int e = (int)((v & 0x7fu) >> mantissa);
    double x;
    if (mantissa == 3 && (v & 0x7fu) == 0x7fu) x = NAN;         /* e4m3fn has no inf */
    else if (mantissa == 2 && e == 31) x = m ? NAN : INFINITY;
    else if (e == 0) x = ldexp(m, 1 - bias - mantissa);
    else x = ldexp(m + (1u << mantissa), e - bias - mantissa);
    return v & 0x80u ? -x : x;
}

/* Data may sit at any byte of a file: every read is a memcpy. */
#define READ(type)                                                                         \
    ({                                                                                     \
        type v_;                                                                           \
        memcpy(&v_, d + (size_t)i * sizeof v_, sizeof v_);                                 \
        v_;                                                                                \
    })

double ane_const_f64(const ane_const *c, int64_t i) {
    const unsigned char *d = c->data;
    switch (c->type->dtype) {
    case ANE_F16: return (double)ane_f32_from_f16(READ(uint16_t));
    case ANE_BF16: return (double)ane_f32_from_bf16(READ(uint16_t));
    case ANE_F32: return (double)READ(float);
    case ANE_F64: return READ(double);
    case ANE_F8E4M3: return f8_value(d[i], 3, 7);
    case ANE_F8E5M2: return f8_value(d[i], 2, 15);
    case ANE_U64: return (double)READ(uint64_t);
    default: return (double)ane_const_i64(c, i);
    }
}

static int64_t to_i64(double x) {
    if (!(x >= -0x1p63)) return x != x ? 0 : INT64_MIN;
    return x >= 0x1p63 ? INT64_MAX : (int64_t)x;
}

int64_t ane_const_i64(const ane_const *c, int64_t i) {
    const unsigned char *d = c->data;
    switch (c->type->dtype) {
    case ANE_BOOL: return d[i] != 0;
    case ANE_I8: return READ(int8_t);
    case ANE_U8: return READ(uint8_t);
    case ANE_I16: return READ(int16_t);
    case ANE_U16: return READ(uint16_t);
    case ANE_I32: return READ(int32_t);
    case ANE_U32: return READ(uint32_t);
    case ANE_I64: return READ(int64_t);
    case ANE_U64: return (int64_t)READ(uint64_t);
    case ANE_I4: {
        int v = (int)bits_at(d, i, 4);
        return v >= 8 ? v - 16 : v;
    }
    case ANE_U1: return (int64_t)bits_at(d, i, 1);
    case ANE_U2: return (int64_t)bits_at(d, i, 2);
    case ANE_U3: return (int64_t)bits_at(d, i, 3);
    case ANE_U4: return (int64_t)bits_at(d, i, 4);
    case ANE_U6: return (int64_t)bits_at(d, i, 6);
    case ANE_F16: case ANE_BF16: case ANE_F32: case ANE_F64:
    case ANE_F8E4M3: case ANE_F8E5M2: return to_i64(ane_const_f64(c, i));
    case ANE_STRING: case ANE_DTYPE_COUNT: break;
    }
    return 0;
}

bool ane_const_equal(const ane_const *a, const ane_const *b) {
    if (a == b) return true;
    if (!a || !b || !ane_type_equal(a->type, b->type)) return false;
    if (!a->blob_path != !b->blob_path) return false;
    if (a->blob_path &&
        (strcmp(a->blob_path, b->blob_path) || a->blob_offset != b->blob_offset))
        return false;
    if (a->type->kind != ANE_T_TENSOR) {
        if (a->n != b->n) return false;
        for (int i = 0; i < a->n; i++)
            if (!ane_const_equal(a->items[i], b->items[i])) return false;
        return true;
    }
    if (!a->data || !b->data) return a->blob_path != NULL || a->data == b->data;
    if (a->bytes != b->bytes) return false;
    if (a->type->dtype != ANE_STRING) {
        if (!memcmp(a->data, b->data, a->bytes)) return true;
        /* A text has one NaN; which one of many it was makes no difference. */
        bool may_nan = a->type->dtype == ANE_F16 || a->type->dtype == ANE_BF16 ||
                       a->type->dtype == ANE_F32 || a->type->dtype == ANE_F64 ||
                       a->type->dtype == ANE_F8E4M3 || a->type->dtype == ANE_F8E5M2;
        int64_t n = may_nan ? ane_type_count(a->type) : 0;
        for (int64_t i = 0; i < n; i++) {
            double x = ane_const_f64(a, i), y = ane_const_f64(b, i);
            if (x != y ? x == x || y == y : signbit(x) != signbit(y)) return false;
        }
        return may_nan;
    }
    for (size_t i = 0; i < a->bytes / sizeof(char *); i++)
        if (strcmp(((const char *const *)a->data)[i], ((const char *const *)b->data)[i]))
            return false;
    return true;
}
