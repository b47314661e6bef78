/* Types: constructors, comparison, sizes and their text. Immutable, in the arena. */
#include "impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int ane__type_depth(const ane_type *t) {
    int d = 0;
    if (t->elem) d = ane__type_depth(t->elem);
    if (t->elem2) {
        int e = ane__type_depth(t->elem2);
        if (e > d) d = e;
    }
    for (int i = 0; i < t->n; i++) {
        int e = ane__type_depth(t->items[i]);
        if (e > d) d = e;
    }
    return d + 1;
}

/* NULL also for a type nested too deeply: nothing legal comes near the limit. */
static ane_type *new_type(ane_program *p, ane_type_kind kind, const ane_type *elem,
                          const ane_type *elem2) {
    ane_type t = {.kind = kind, .elem = elem, .elem2 = elem2};
    if (ane__type_depth(&t) > ANE_MAX_TYPE_DEPTH) return NULL;
    ane_type *q = ane_arena_alloc(p->arena, sizeof *q);
    if (q) *q = t;
    return q;
}

const ane_type *ane_type_tensor(ane_program *p, ane_dtype dtype, int rank,
                                const int64_t *dims) {
    if (rank < 0 || rank > ANE_MAX_RANK) return NULL;
    ane_type *t = ane_arena_alloc(p->arena, sizeof *t);
    if (!t) return NULL;
    t->kind = ANE_T_TENSOR;
    t->dtype = dtype;
    t->rank = rank;
    for (int i = 0; i < rank; i++) t->dims[i] = dims[i];
    return t;
}

const ane_type *ane_type_list(ane_program *p, const ane_type *elem, int64_t length) {
    ane_type *t = new_type(p, ANE_T_LIST, elem, NULL);
    if (t) t->length = length;
    return t;
}

const ane_type *ane_type_state(ane_program *p, const ane_type *elem) {
    return new_type(p, ANE_T_STATE, elem, NULL);
}

const ane_type *ane_type_dict(ane_program *p, const ane_type *key, const ane_type *value) {
    return new_type(p, ANE_T_DICT, key, value);
}

const ane_type *ane_type_tuple(ane_program *p, const ane_type *const *items, int n) {
    ane_type probe = {.kind = ANE_T_TUPLE, .n = n, .items = items};
    if (n < 0 || ane__type_depth(&probe) > ANE_MAX_TYPE_DEPTH) return NULL;
    ane_type *t = ane_arena_alloc(p->arena, sizeof *t);
    const ane_type **copy = ane_arena_alloc(p->arena, (size_t)n * sizeof *copy);
    if (!t || !copy) return NULL;
    for (int i = 0; i < n; i++) copy[i] = items[i];
    t->kind = ANE_T_TUPLE;
    t->n = n;
    t->items = copy;
    return t;
}

const ane_type *ane__type_copy(ane_program *p, const ane_type *t) {
    ane_type *q = ane_arena_alloc(p->arena, sizeof *q);
    if (!q) return NULL;
    *q = *t;
    if (t->elem && !(q->elem = ane__type_copy(p, t->elem))) return NULL;
    if (t->elem2 && !(q->elem2 = ane__type_copy(p, t->elem2))) return NULL;
    if (t->kind == ANE_T_TUPLE) {
        const ane_type **items = ane_arena_alloc(p->arena, (size_t)t->n * sizeof *items);
        if (!items) return NULL;
        for (int i = 0; i < t->n; i++)
            if (!(items[i] = ane__type_copy(p, t->items[i]))) return NULL;
        q->items = items;
    }
    return q;
}

/* One walk for equality and compatibility: loose lets unknown dims match anything. */
static bool match(const ane_type *a, const ane_type *b, bool loose) {
    if (a == b) return true;
    if (!a || !b || a->kind != b->kind) return false;
    switch (a->kind) {
    case ANE_T_TENSOR:
        if (a->dtype != b->dtype || a->rank != b->rank) return false;
        for (int i = 0; i < a->rank; i++) {
            int64_t x = a->dims[i], y = b->dims[i];
            if (x != y && !(loose && (x < 0 || y < 0))) return false;
        }
        return true;
    case ANE_T_LIST:
        if (a->length != b->length && !(loose && (a->length < 0 || b->length < 0)))
            return false;
        return match(a->elem, b->elem, loose);
    case ANE_T_STATE: return match(a->elem, b->elem, loose);
    case ANE_T_DICT:
        return match(a->elem, b->elem, loose) && match(a->elem2, b->elem2, loose);
    case ANE_T_TUPLE:
        if (a->n != b->n) return false;
        for (int i = 0; i < a->n; i++)
            if (!match(a->items[i], b->items[i], loose)) return false;
        return true;
    }
    return false;
}

bool ane_type_equal(const ane_type *a, const ane_type *b) { return match(a, b, false); }
bool ane_type_compatible(const ane_type *a, const ane_type *b) { return match(a, b, true); }

const ane_type *ane__type_refine(ane_program *p, const ane_type *t, const ane_type *hint) {
    if (!hint || t == hint || t->kind != hint->kind || ane_type_static(t)) return t;
    switch (t->kind) {
    case ANE_T_TENSOR: {
        if (t->rank != hint->rank) return t;
        int64_t dims[ANE_MAX_RANK];
        bool better = false;
        for (int i = 0; i < t->rank; i++) {
            bool take = t->dims[i] < 0 && hint->dims[i] >= 0;
            dims[i] = take ? hint->dims[i] : t->dims[i];
            better |= take;
        }
        return better ? ane_type_tensor(p, t->dtype, t->rank, dims) : t;
    }
    case ANE_T_LIST: {
        const ane_type *e = ane__type_refine(p, t->elem, hint->elem);
        int64_t n = t->length < 0 ? hint->length : t->length;
        if (!e || (e == t->elem && n == t->length)) return e ? t : NULL;
        return ane_type_list(p, e, n);
    }
    case ANE_T_STATE: {
        const ane_type *e = ane__type_refine(p, t->elem, hint->elem);
        if (!e || e == t->elem) return e ? t : NULL;
        return ane_type_state(p, e);
    }
    default: return t;
    }
}

bool ane_type_static(const ane_type *t) {
    switch (t->kind) {
    case ANE_T_TENSOR:
        for (int i = 0; i < t->rank; i++)
            if (t->dims[i] < 0) return false;
        return true;
    case ANE_T_LIST: return t->length >= 0 && ane_type_static(t->elem);
    case ANE_T_STATE: return ane_type_static(t->elem);
    case ANE_T_DICT: return ane_type_static(t->elem) && ane_type_static(t->elem2);
    case ANE_T_TUPLE:
        for (int i = 0; i < t->n; i++)
            if (!ane_type_static(t->items[i])) return false;
        return true;
    }
    return false;
}

int64_t ane_type_count(const ane_type *t) {
    size_t n;
    if (t->kind != ANE_T_TENSOR || !ane_shape_bytes(t->rank, t->dims, 1, &n)) return -1;
    return (int64_t)n;
}

bool ane_type_bytes(const ane_type *t, size_t *bytes) {
    int64_t n = ane_type_count(t);
    if (n < 0) return false;
    if (t->dtype == ANE_STRING) return ane_mul_size((size_t)n, sizeof(char *), bytes);
    size_t bits;
    if (!ane_mul_size((size_t)n, (size_t)ane_dtype_bits(t->dtype), &bits)) {
        /* Beyond 2^64 bits whole bytes may still fit. */
        return ane_dtype_size(t->dtype) &&
               ane_mul_size((size_t)n, ane_dtype_size(t->dtype), bytes) &&
               *bytes <= (size_t)INT64_MAX;
    }
    *bytes = bits / 8 + (bits % 8 != 0);
    return true;
}

/* ---------------------------------------------------------------- text */

typedef struct out {
    char *p;
    size_t n, used;
} out;

static void put(out *o, const char *s) {
    if (o->used >= o->n) return;
    size_t m = strlen(s), room = o->n - o->used - 1;
    if (m > room) {                     /* cut, show it, and take nothing more */
        memcpy(o->p + o->used, s, room);
        o->p[o->n - 1] = 0;
        if (o->n >= 4) memcpy(o->p + o->n - 4, "...", 3);
        o->used = o->n;
        return;
    }
    memcpy(o->p + o->used, s, m + 1);
    o->used += m;
}

static void put_int(out *o, int64_t v) {
    char buf[24];
    snprintf(buf, sizeof buf, "%" PRId64, v);
    put(o, buf);
}

static void text(const ane_type *t, out *o) {
    if (o->used >= o->n) return;
    switch (t->kind) {
    case ANE_T_TENSOR:
        if (t->rank == 0) {
            put(o, ane_dtype_mil_name(t->dtype));
            return;
        }
        put(o, "tensor<");
        put(o, ane_dtype_mil_name(t->dtype));
        put(o, ", [");
        for (int i = 0; i < t->rank; i++) {
            if (i) put(o, ", ");
            if (t->dims[i] < 0) put(o, "?");
            else put_int(o, t->dims[i]);
        }
        put(o, "]>");
        return;
    case ANE_T_LIST:
        put(o, "list<");
        text(t->elem, o);
        put(o, ", ");
        if (t->length < 0) put(o, "?");
        else put_int(o, t->length);
        put(o, ">");
        return;
    case ANE_T_STATE:
        put(o, "state<");
        text(t->elem, o);
        put(o, ">");
        return;
    case ANE_T_DICT:
        put(o, "dict<");
        text(t->elem, o);
        put(o, ", ");
        text(t->elem2, o);
        put(o, ">");
        return;
    case ANE_T_TUPLE:
        put(o, "tuple<");
        for (int i = 0; i < t->n; i++) {
            if (i) put(o, ", ");
            text(t->items[i], o);
        }
        put(o, ">");
        return;
    }
}

char *ane_type_text(const ane_type *t, char *buf, size_t n) {
    out o = {buf, n, 0};
    if (n) buf[0] = 0;
    text(t, &o);
    return buf;
}
