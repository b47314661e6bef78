/* Types and constants of a specification: ValueType and Value of MIL.proto. Recursion is
 * bounded by ANE_WIRE_DEPTH, counts by the bytes that hold them. */
#include "reader.h"

#include <stdlib.h>
#include <string.h>

ane_status ane__coreml_nomem(ane_wire *w) {
    return ane_wire_stop(w, ane_fail(w->err, ANE_ERR_NOMEM, "%s: out of memory", w->file));
}

/* ---------------------------------------------------------------- types */

static bool read_dtype(ane_wire *w, uint64_t code, ane_dtype *out) {
    switch (code) {
#define X(name, mil, numpy, brief, bits, blob, proto)                                      \
    case proto: *out = ANE_##name; return true;
        ANE_DTYPE_MAP(X)
#undef X
    default:
        ane_wire_fail(w, "unknown data type %llu", (unsigned long long)code);
        return false;
    }
}

/* A Dimension: its size, or ANE_DIM_ANY. */
static int64_t read_dimension(ane_wire *parent, const ane_wire_field *field) {
    ane_wire w = ane_wire_message(parent, field), e;
    ane_wire_field f, g;
    int64_t dim = ANE_DIM_ANY;
    while (ane_wire_next(&w, &f)) {
        if (f.number == 1) {
            e = ane_wire_message(&w, &f);
            dim = 0;                    /* a size of 0 is left out on the wire */
            while (ane_wire_next(&e, &g))
                if (g.number == 1 && ane_wire_is(&e, &g, ANE_WIRE_VARINT)) {
                    if (g.value > INT64_MAX) ane_wire_fail(&e, "dimension is too large");
                    else dim = (int64_t)g.value;
                }
            ane_wire_join(&w, &e);
        } else if (f.number == 2) {
            dim = ANE_DIM_ANY;
        }
    }
    ane_wire_join(parent, &w);
    return dim;
}

static const ane_type *read_tensor_type(ane_wire *parent, const ane_wire_field *field,
                                        ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    ane_dtype dtype = ANE_DTYPE_COUNT;
    int64_t dims[ANE_MAX_RANK], rank = 0;
    int n = 0;
    while (ane_wire_next(&w, &f)) {
        if (f.number == 1 && ane_wire_is(&w, &f, ANE_WIRE_VARINT)) {
            read_dtype(&w, f.value, &dtype);
        } else if (f.number == 2 && ane_wire_is(&w, &f, ANE_WIRE_VARINT)) {
            rank = (int64_t)f.value;
        } else if (f.number == 3) {
            if (n == ANE_MAX_RANK)
                ane_wire_fail(&w, "a tensor has more than %d dimensions", ANE_MAX_RANK);
            else dims[n++] = read_dimension(&w, &f);
        }
    }
    if (!w.status && dtype == ANE_DTYPE_COUNT) ane_wire_fail(&w, "tensor without data type");
    if (!w.status && rank != n)
        ane_wire_fail(&w, "tensor of rank %lld has %d dimensions", (long long)rank, n);
    if (ane_wire_join(parent, &w)) return NULL;
    const ane_type *t = ane_type_tensor(r->program, dtype, n, dims);
    if (!t) ane__coreml_nomem(parent);
    return t;
}

const ane_type *ane__coreml_type(ane_wire *parent, const ane_wire_field *field,
                                 ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    const ane_type *t = NULL, *a = NULL, *b = NULL;
    if (++r->type_depth > ANE_MAX_TYPE_DEPTH)
        ane_wire_fail(&w, "types nest deeper than %d", ANE_MAX_TYPE_DEPTH);
    while (ane_wire_next(&w, &f)) {
        if (f.number == 1) {
            t = read_tensor_type(&w, &f, r);
            continue;
        }
        if (f.number < 2 || f.number > 5) continue;
        ane_wire e = ane_wire_message(&w, &f);
        int64_t length = -1;
        int n = 0, cap = 0;
        const ane_type **items = NULL;
        a = b = NULL;
        while (ane_wire_next(&e, &g)) {
            if (f.number == 3 && g.number == 1) {
                if (n == cap) {
                    cap = cap ? 2 * cap : 4;
                    const ane_type **more =
                        ane_arena_alloc(r->scratch, (size_t)cap * sizeof *more);
                    if (!more) {
                        ane__coreml_nomem(&e);
                        break;
                    }
                    if (n) memcpy(more, items, (size_t)n * sizeof *more);
                    items = more;
                }
                items[n++] = ane__coreml_type(&e, &g, r);
            } else if (g.number == 1) {
                a = ane__coreml_type(&e, &g, r);
            } else if (g.number == 2 && f.number == 2) {
                length = read_dimension(&e, &g);
            } else if (g.number == 2 && f.number == 4) {
                b = ane__coreml_type(&e, &g, r);
            }
        }
        if (!e.status && f.number != 3 && (!a || (f.number == 4 && !b)))
            ane_wire_fail(&e, "list, dictionary or state type without an element type");
        if (!e.status && f.number == 5 && a->kind != ANE_T_TENSOR)
            ane_wire_fail(&e, "a state holds a tensor");
        if (ane_wire_join(&w, &e)) break;
        switch (f.number) {
        case 2: t = ane_type_list(r->program, a, length); break;
        case 3: t = ane_type_tuple(r->program, items, n); break;
        case 4: t = ane_type_dict(r->program, a, b); break;
        default: t = ane_type_state(r->program, a); break;
        }
        if (!t) ane__coreml_nomem(&w);
    }
    r->type_depth--;
    if (!w.status && !t) ane_wire_fail(&w, "value type of an unknown kind");
    return ane_wire_join(parent, &w) ? NULL : t;
}

/* ---------------------------------------------------------------- values */

/* Stores one number of a Repeated* message as an element of dtype; false: out of range. */
static bool store(ane_dtype dtype, uint8_t *to, int member, uint64_t bits) {
    int64_t i = member == 2 ? (int64_t)(int32_t)bits : (int64_t)bits;
    switch (dtype) {
    case ANE_F32:
    case ANE_F64: {
        if (member == 1 && dtype == ANE_F32) {
            uint32_t u = (uint32_t)bits;
            memcpy(to, &u, 4);
            return true;
        }
        if (member == 6 && dtype == ANE_F64) {
            memcpy(to, &bits, 8);
            return true;
        }
        return false;
    }
    case ANE_BOOL: *to = bits != 0; return member == 3;
    case ANE_I8: *to = (uint8_t)i; return i >= INT8_MIN && i <= INT8_MAX;
    case ANE_U8: *to = (uint8_t)i; return i >= 0 && i <= UINT8_MAX;
    case ANE_I16:
    case ANE_U16: {
        uint16_t u = (uint16_t)i;
        memcpy(to, &u, 2);
        return dtype == ANE_I16 ? i >= INT16_MIN && i <= INT16_MAX
                                : i >= 0 && i <= UINT16_MAX;
    }
    case ANE_I32:
    case ANE_U32: {
        uint32_t u = (uint32_t)i;
        memcpy(to, &u, 4);
        /* uint32 travels as the int32 of the same bits. */
        return i >= INT32_MIN && i <= (dtype == ANE_U32 ? (int64_t)UINT32_MAX : INT32_MAX);
    }
    case ANE_I64:
    case ANE_U64: memcpy(to, &bits, 8); return member == 5 || member == 2;
    default: return false;
    }
}

static const ane_const *read_strings(ane_wire *w, const ane_type *t, int64_t count,
                                     ane_coreml_reader *r) {
    ane_wire_field f;
    const char **all = NULL;
    int64_t n = 0;
    /* Each string takes at least two bytes of the message. */
    if (count > (w->end - w->p) / 2) {
        ane_wire_fail(w, "%lld strings declared, fewer are there", (long long)count);
        return NULL;
    }
    all = ane_arena_alloc(r->program->arena, (size_t)count * sizeof *all);
    if (!all) {
        ane__coreml_nomem(w);
        return NULL;
    }
    while (ane_wire_next(w, &f)) {
        if (f.number != 1) continue;
        char *s = ane_wire_string(w, &f, r->program->arena);
        if (!s) return NULL;
        if (n == count) {
            ane_wire_fail(w, "more than the declared %lld strings", (long long)count);
            return NULL;
        }
        all[n++] = s;
    }
    if (!w->status && n != count)
        ane_wire_fail(w, "%lld strings declared, %lld are there", (long long)count,
                      (long long)n);
    if (w->status) return NULL;
    const ane_const *c = ane_const_tensor(r->program, t, all, (size_t)count * sizeof *all,
                                          w->err);
    if (!c) ane_wire_stop(w, ANE_ERR_NOMEM);
    return c;
}

/* TensorValue: one Repeated* message or raw bytes. */
static const ane_const *read_tensor_value(ane_wire *parent, const ane_wire_field *field,
                                          const ane_type *t, ane_coreml_reader *r) {
    size_t bytes = 0;
    int64_t count = t->kind == ANE_T_TENSOR ? ane_type_count(t) : -1;
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    const ane_const *c = NULL;
    uint8_t *buf = NULL;
    size_t at = 0;
    if (!w.status && (count < 0 || (t->dtype != ANE_STRING && !ane_type_bytes(t, &bytes))))
        ane_wire_fail(&w, "a constant needs a tensor type of known shape");
    size_t unit = w.status ? 0 : ane_dtype_size(t->dtype);
    while (!c && ane_wire_next(&w, &f)) {
        ane_wire e = ane_wire_message(&w, &f);
        if (f.number == 4) {
            if (t->dtype != ANE_STRING) ane_wire_fail(&e, "strings for a number type");
            else c = read_strings(&e, t, count, r);
        } else if (f.number == 7) {
            while (ane_wire_next(&e, &g)) {
                if (g.number != 1 || !ane_wire_is(&e, &g, ANE_WIRE_BYTES)) continue;
                if (t->dtype == ANE_STRING || g.size != bytes) {
                    ane_wire_fail(&e, "constant has %zu bytes, its type needs %zu", g.size,
                                  bytes);
                    break;
                }
                c = ane_const_tensor(r->program, t, g.data, bytes, e.err);
                if (!c) ane_wire_stop(&e, ANE_ERR_NOMEM);
            }
        } else if (f.number >= 1 && f.number <= 6) {
            static const ane_wire_kind kinds[] = {0, ANE_WIRE_FIXED32, ANE_WIRE_VARINT,
                                                  ANE_WIRE_VARINT, 0, ANE_WIRE_VARINT,
                                                  ANE_WIRE_FIXED64};
            /* Every element takes at least a byte: no allocation beyond the input. */
            if (t->dtype == ANE_STRING || !unit || count > e.end - e.p) {
                ane_wire_fail(&e, "constant does not hold the %lld elements of its type",
                              (long long)count);
            } else if (!buf && !(buf = ane_calloc(1, bytes ? bytes : 1))) {
                ane__coreml_nomem(&e);
            }
            while (ane_wire_next(&e, &g)) {
                if (g.number != 1) continue;
                ane_wire_packed it = ane_wire_packed_begin(&e, &g, kinds[f.number]);
                uint64_t bits;
                while (ane_wire_packed_next(&e, &it, &bits)) {
                    if (at + unit > bytes) {
                        ane_wire_fail(&e, "constant has more than the %lld elements of its "
                                      "type", (long long)count);
                    } else if (!store(t->dtype, buf + at, (int)f.number, bits)) {
                        char text[ANE_TYPE_TEXT];
                        ane_wire_fail(&e, "value does not fit %s",
                                      ane_type_text(t, text, sizeof text));
                    }
                    at += unit;
                }
            }
            if (!e.status && at != bytes)
                ane_wire_fail(&e, "constant has %zu elements, its type %lld",
                              unit ? at / unit : 0, (long long)count);
            if (!e.status) {
                c = ane_const_tensor(r->program, t, buf, bytes, e.err);
                if (!c) ane_wire_stop(&e, ANE_ERR_NOMEM);
            }
        }
        ane_wire_join(&w, &e);
    }
    /* Nothing on the wire is the empty tensor. */
    if (!w.status && !c && count == 0) {
        c = ane_const_tensor(r->program, t, "", 0, w.err);
        if (!c) ane_wire_stop(&w, ANE_ERR_NOMEM);
    }
    if (!w.status && !c) ane_wire_fail(&w, "constant without a value");
    ane_free(buf);
    return ane_wire_join(parent, &w) ? NULL : c;
}

/* Whether these are the items of a tuple, list or (key, value, ...) dictionary of type t. */
static bool items_fit(const ane_type *t, const ane_const *const *items, int n, bool dict) {
    if (dict ? t->kind != ANE_T_DICT : t->kind != ANE_T_LIST && t->kind != ANE_T_TUPLE)
        return false;
    if (t->kind == ANE_T_TUPLE && n != t->n) return false;
    if (t->kind == ANE_T_LIST && t->length >= 0 && n != t->length) return false;
    for (int i = 0; i < n; i++) {
        const ane_type *want = t->kind == ANE_T_TUPLE       ? t->items[i]
                               : t->kind == ANE_T_DICT && i % 2 ? t->elem2
                                                            : t->elem;
        if (!ane_type_compatible(items[i]->type, want)) return false;
    }
    return true;
}

/* TupleValue, ListValue (fields of Value) and DictionaryValue (fields of pairs). */
static const ane_const *read_items(ane_wire *parent, const ane_wire_field *field,
                                   const ane_type *t, bool dict, ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    const ane_const **items = NULL;
    int n = 0, cap = 0;
    while (ane_wire_next(&w, &f)) {
        if (f.number != 1) continue;
        if (n + 2 > cap) {
            int more = cap ? 2 * cap : 8;
            const ane_const **p = ane_arena_alloc(r->scratch, (size_t)more * sizeof *p);
            if (!p) {
                ane__coreml_nomem(&w);
                break;
            }
            if (n) memcpy(p, items, (size_t)n * sizeof *p);
            items = p;
            cap = more;
        }
        if (!dict) {
            items[n++] = ane__coreml_value(&w, &f, r);
            continue;
        }
        const ane_const *pair[2] = {NULL, NULL};
        ane_wire e = ane_wire_message(&w, &f);
        while (ane_wire_next(&e, &g))
            if (g.number == 1 || g.number == 2)
                pair[g.number - 1] = ane__coreml_value(&e, &g, r);
        if (!e.status && (!pair[0] || !pair[1]))
            ane_wire_fail(&e, "dictionary entry without key or value");
        ane_wire_join(&w, &e);
        items[n++] = pair[0];
        items[n++] = pair[1];
    }
    if (!w.status && !items_fit(t, items, n, dict)) {
        char text[ANE_TYPE_TEXT];
        ane_wire_fail(&w, "%d items do not make a value of type %s", dict ? n / 2 : n,
                      ane_type_text(t, text, sizeof text));
    }
    if (ane_wire_join(parent, &w)) return NULL;
    const ane_const *c = ane_const_items(r->program, t, items, n, parent->err);
    if (!c) ane_wire_stop(parent, ANE_ERR_INVALID);
    return c;
}

static const ane_const *read_blob(ane_wire *parent, const ane_wire_field *field,
                                  const ane_type *t, ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    const char *path = NULL;
    uint64_t offset = 0;
    while (ane_wire_next(&w, &f)) {
        if (f.number == 1) path = ane_wire_string(&w, &f, r->program->arena);
        else if (f.number == 2 && ane_wire_is(&w, &f, ANE_WIRE_VARINT)) offset = f.value;
    }
    if (!w.status && !path) ane_wire_fail(&w, "weight file without a name");
    if (ane_wire_join(parent, &w)) return NULL;
    const ane_const *c = NULL;
    ane_status st = ane_weight_files_const(r->files, r->program, t, path, offset, 0, 0, &c,
                                           parent->err);
    if (st) ane_wire_stop(parent, st);
    return c;
}

const ane_const *ane__coreml_value(ane_wire *parent, const ane_wire_field *field,
                                  ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    const ane_type *t = NULL;
    const ane_const *c = NULL;
    /* The type may follow the value on the wire: remember where the value is. */
    ane_wire_field held = {0};
    while (ane_wire_next(&w, &f)) {
        if (f.number == 2) t = ane__coreml_type(&w, &f, r);
        else if (f.number == 3 || f.number == 5) held = f;
    }
    if (!w.status && !t) ane_wire_fail(&w, "value without a type");
    if (!w.status && !held.number) ane_wire_fail(&w, "value without content");
    if (!w.status && held.number == 5) c = read_blob(&w, &held, t, r);
    if (!w.status && held.number == 3) {
        ane_wire e = ane_wire_message(&w, &held);
        while (!c && ane_wire_next(&e, &g)) {
            if (g.number == 1) c = read_tensor_value(&e, &g, t, r);
            else if (g.number == 2 || g.number == 3) c = read_items(&e, &g, t, false, r);
            else if (g.number == 4) c = read_items(&e, &g, t, true, r);
        }
        if (!e.status && !c) ane_wire_fail(&e, "immediate value without content");
        ane_wire_join(&w, &e);
    }
    return ane_wire_join(parent, &w) ? NULL : c;
}
