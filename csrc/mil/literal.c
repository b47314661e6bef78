/* Types and constant literals. A literal is read against its type, so that every error
 * knows what was expected; elements go straight to their packed bytes. */
#include "parse.h"

#include "../ir/number.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- types */

static bool dtype_word(const ane_token *t, ane_dtype *out) {
    if (t->kind != ANE_TOK_IDENT || t->n > 10) return false;
    for (int d = 0; d < ANE_DTYPE_COUNT; d++) {
        const char *name = ane_dtype_mil_name((ane_dtype)d);
        if (*name == *t->s && !strncmp(name, t->s, t->n) && !name[t->n]) {
            *out = (ane_dtype)d;
            return true;
        }
    }
    return false;
}

/* digits or `?` */
static ane_status parse_dim(ane_parser *ps, const char *what, int64_t *out) {
    uint64_t v;
    if (ane__is_punct(&ps->tok, '?')) {
        *out = ANE_DIM_ANY;
    } else {
        if (ps->tok.kind != ANE_TOK_INT || *ps->tok.s == '-' || *ps->tok.s == '+')
            return ane__parse_expected(ps, what);
        if (!ane__number_int(ps->tok.s, ps->tok.n, 64, true, &v))
            return ane__parse_fail(ps, &ps->tok, "%s does not fit 63 bits", what);
        *out = (int64_t)v;
    }
    return ane__parse_next(ps);
}

static ane_status parse_tensor_type(ane_parser *ps, const ane_token *open,
                                    const ane_type **out) {
    ane_dtype dtype;
    int rank = 0;
    int64_t dims[ANE_MAX_RANK];
    ane_status st;
    if (!dtype_word(&ps->tok, &dtype)) return ane__parse_expected(ps, "an element type");
    if ((st = ane__parse_next(ps)) ||
        (st = ane__parse_punct(ps, ',', "and the dimensions, as in tensor<fp16, [1, 8]>")))
        return st;
    ane_token bracket = ps->tok;
    if ((st = ane__parse_punct(ps, '[', "of the dimensions"))) return st;
    while (!ane__is_punct(&ps->tok, ']')) {
        if (rank) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ']', &bracket, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (rank == ANE_MAX_RANK)
            return ane__parse_fail(ps, &bracket, "a tensor has at most %d dimensions",
                                   ANE_MAX_RANK);
        if ((st = parse_dim(ps, "a dimension (a number or ?)", &dims[rank]))) return st;
        rank++;
    }
    if ((st = ane__parse_close(ps, ']', &bracket, NULL)) ||
        (st = ane__parse_close(ps, '>', open, NULL)))
        return st;
    /* Later sums and products of sizes stay far inside 64 bits. */
    int64_t known = 1;
    for (int i = 0; i < rank; i++)
        if (dims[i] > 0 && (__builtin_mul_overflow(known, dims[i], &known) ||
                            known > (int64_t)1 << 56))
            return ane__parse_fail(ps, &bracket, "the tensor has more than 2^56 elements");
    *out = ane_type_tensor(ps->p, dtype, rank, dims);
    return *out ? ANE_OK : ane__parse_nomem(ps);
}

static ane_status parse_type(ane_parser *ps, int depth, const ane_type **out);

static ane_status parse_tuple_type(ane_parser *ps, int depth, const ane_token *open,
                                   const ane_type **out) {
    const ane_type **items = NULL;
    int n = 0, cap = 0;
    ane_status st;
    for (;;) {
        if (n == cap) {
            cap = cap ? cap * 2 : 4;
            const ane_type **more = ane_arena_alloc(ps->tmp, (size_t)cap * sizeof *more);
            if (!more) return ane__parse_nomem(ps);
            if (n) memcpy(more, items, (size_t)n * sizeof *more);
            items = more;
        }
        if ((st = parse_type(ps, depth + 1, &items[n]))) return st;
        n++;
        if (!ane__is_punct(&ps->tok, ',')) break;
        if ((st = ane__parse_next(ps))) return st;
    }
    if ((st = ane__parse_close(ps, '>', open, "','"))) return st;
    *out = ane_type_tuple(ps->p, items, n);
    return *out ? ANE_OK : ane__parse_nomem(ps);
}

static ane_status parse_type(ane_parser *ps, int depth, const ane_type **out) {
    ane_dtype dtype;
    ane_token word = ps->tok, open;
    const ane_type *a, *b;
    int64_t n;
    ane_status st;
    if (word.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "a type");
    if (depth >= ANE_MAX_TYPE_DEPTH)
        return ane__parse_fail(ps, &word, "types nest deeper than %d", ANE_MAX_TYPE_DEPTH);
    if (dtype_word(&word, &dtype)) {
        *out = ane_type_tensor(ps->p, dtype, 0, NULL);
        return *out ? ane__parse_next(ps) : ane__parse_nomem(ps);
    }
    bool tensor = ane__is_word(&word, "tensor"), list = ane__is_word(&word, "list"),
         tuple = ane__is_word(&word, "tuple"), dict = ane__is_word(&word, "dict"),
         state = ane__is_word(&word, "state");
    if (!tensor && !list && !tuple && !dict && !state) {
        char got[64];
        return ane__parse_fail(ps, &word, "expected a type (fp16, fp32, int32, bool, string, "
                               "..., tensor, list, tuple, dict or state), got %s",
                               ane__lex_show(&word, got, sizeof got));
    }
    if ((st = ane__parse_next(ps))) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '<', "after a type's name"))) return st;
    if (tensor) return parse_tensor_type(ps, &open, out);
    if (tuple) return parse_tuple_type(ps, depth, &open, out);
    if ((st = parse_type(ps, depth + 1, &a))) return st;
    if (state) {
        if (a->kind != ANE_T_TENSOR)
            return ane__parse_fail(ps, &word, "a state holds a tensor");
        if ((st = ane__parse_close(ps, '>', &open, NULL))) return st;
        *out = ane_type_state(ps->p, a);
    } else if (list) {
        if ((st = ane__parse_punct(ps, ',', "and the length")) ||
            (st = parse_dim(ps, "a length (a number or ?)", &n)) ||
            (st = ane__parse_close(ps, '>', &open, NULL)))
            return st;
        *out = ane_type_list(ps->p, a, n);
    } else {
        if ((st = ane__parse_punct(ps, ',', "and the type of the values")) ||
            (st = parse_type(ps, depth + 1, &b)) ||
            (st = ane__parse_close(ps, '>', &open, NULL)))
            return st;
        *out = ane_type_dict(ps->p, a, b);
    }
    return *out ? ANE_OK : ane__parse_nomem(ps);
}

ane_status ane__parse_type(ane_parser *ps, const ane_type **out) {
    return parse_type(ps, 0, out);
}

/* ---------------------------------------------------------------- elements */

static ane_status data_room(ane_parser *ps, size_t more) {
    size_t want, cap = ps->data_cap ? ps->data_cap : 256;
    if (!ane_add_size(ps->data_n, more, &want)) return ane__parse_nomem(ps);
    if (want <= ps->data_cap) return ANE_OK;
    while (cap < want) cap *= 2;
    unsigned char *q = ane_realloc(ps->data, cap);
    if (!q) return ane__parse_nomem(ps);
    ps->data = q;
    ps->data_cap = cap;
    return ANE_OK;
}

static bool is_signed(ane_dtype d) {
    return d == ANE_I4 || d == ANE_I8 || d == ANE_I16 || d == ANE_I32 || d == ANE_I64;
}

typedef struct elements {
    const ane_type *type;
    size_t count;
    size_t base;                        /* where in ps->data they start */
    bool overflow;
} elements;

/* One token to bits. */
static ane_status element_bits(ane_parser *ps, const ane_token *t, ane_dtype dtype,
                               uint64_t *bits, bool *overflow) {
    char got[64];
    const char *name = ane_dtype_mil_name(dtype);
    if (dtype == ANE_BOOL) {
        if (!ane__is_word(t, "true") && !ane__is_word(t, "false"))
            return ane__parse_fail(ps, t, "expected true or false, got %s",
                                   ane__lex_show(t, got, sizeof got));
        *bits = ane__is_word(t, "true");
        return ANE_OK;
    }
    bool word = ane__is_word(t, "inf") || ane__is_word(t, "nan");
    if (ane__is_float(dtype)) {
        if (t->kind != ANE_TOK_INT && t->kind != ANE_TOK_FLOAT && !word)
            return ane__parse_fail(ps, t, "expected a number of type %s, got %s", name,
                                   ane__lex_show(t, got, sizeof got));
        bool over;
        ane__number_float(t->s, t->n, dtype, bits, &over);
        *overflow |= over;
        return ANE_OK;
    }
    int width = ane_dtype_bits(dtype);
    if (t->kind != ANE_TOK_INT)
        return ane__parse_fail(ps, t, "expected an integer of type %s, got %s", name,
                               ane__lex_show(t, got, sizeof got));
    if (!ane__number_int(t->s, t->n, width, is_signed(dtype), bits)) {
        if (is_signed(dtype))
            return ane__parse_fail(ps, t, "%s holds -2^%d to 2^%d-1, got %s", name, width - 1,
                                   width - 1, ane__lex_show(t, got, sizeof got));
        return ane__parse_fail(ps, t, "%s holds 0 to 2^%d-1, got %s", name, width,
                               ane__lex_show(t, got, sizeof got));
    }
    return ANE_OK;
}

static ane_status append(ane_parser *ps, elements *el, const ane_token *t) {
    ane_dtype dtype = el->type->dtype;
    ane_status st;
    if (dtype == ANE_STRING) {
        char got[64], *s;
        if (t->kind != ANE_TOK_STRING)
            return ane__parse_fail(ps, t, "expected a string, got %s",
                                   ane__lex_show(t, got, sizeof got));
        if ((st = ane__lex_unescape(&ps->lx, t, ps->p->arena, &s)) ||
            (st = data_room(ps, sizeof s)))
            return st;
        memcpy(ps->data + ps->data_n, &s, sizeof s);
        ps->data_n += sizeof s;
        el->count++;
        return ANE_OK;
    }
    uint64_t bits;
    if ((st = element_bits(ps, t, dtype, &bits, &el->overflow)) || (st = data_room(ps, 8)))
        return st;
    int width = ane_dtype_bits(dtype);
    if (width >= 8) {
        memcpy(ps->data + ps->data_n, &bits, (size_t)width / 8);    /* little-endian */
        ps->data_n += (size_t)width / 8;
    } else {
        size_t at = el->count * (size_t)width;
        unsigned char *d = ps->data + el->base + at / 8;
        if (at % 8 == 0) {
            d[0] = 0;
            ps->data_n++;
        }
        d[0] |= (unsigned char)(bits << at % 8);
        if (at % 8 + (size_t)width > 8) {
            d[1] = (unsigned char)(bits >> (8 - at % 8));
            ps->data_n++;
        }
    }
    el->count++;
    return ANE_OK;
}

/* element | dtype "(" element ")" */
static ane_status parse_element(ane_parser *ps, elements *el) {
    ane_status st;
    if (ps->tok.kind == ANE_TOK_IDENT) {
        if ((st = ane__parse_peek(ps))) return st;
        if (ane__is_punct(&ps->ahead, '(') || ane__is_punct(&ps->ahead, '<')) {
            ane_token at = ps->tok, open;
            const ane_type *t;
            char a[ANE_TYPE_TEXT];
            if ((st = ane__parse_type(ps, &t))) return st;
            if (t->kind != ANE_T_TENSOR || t->rank || t->dtype != el->type->dtype)
                return ane__parse_fail(ps, &at, "expected a %s, got a value of type %s",
                                       ane_dtype_mil_name(el->type->dtype),
                                       ane_type_text(t, a, sizeof a));
            open = ps->tok;
            if ((st = ane__parse_punct(ps, '(', NULL)) || (st = append(ps, el, &ps->tok)) ||
                (st = ane__parse_next(ps)))
                return st;
            return ane__parse_close(ps, ')', &open, NULL);
        }
    }
    if ((st = append(ps, el, &ps->tok))) return st;
    return ane__parse_next(ps);
}

/* As many elements as are plain numbers, from the current token on: long lists are most of a
 * text's bytes, and tokens of them most of its cost. *n counts them; none: nothing happened. */
static ane_status plain_elements(ane_parser *ps, elements *el, int64_t *n) {
    ane_dtype dtype = el->type->dtype;
    size_t width = ane_dtype_size(dtype);
    if (ps->has_ahead || !width || dtype == ANE_STRING) return ANE_OK;
    const char *p = ps->tok.s;
    ane_lexer at = ps->lx, ahead = at;  /* behind the last element; at the next */
    int64_t before = *n;
    uint64_t bits;
    while ((p = ane__number_scan(p, at.end, dtype, &bits))) {
        ane_status st = data_room(ps, 8);
        if (st) return st;
        memcpy(ps->data + ps->data_n, &bits, 8);        /* little-endian */
        ps->data_n += width;
        ++*n;
        at = ahead;
        at.p = p;
        if (p[0] == ',' && p[1] == ' ') {
            p += 2;
            continue;
        }
        ahead = at;
        if (!ane__lex_comma(&ahead)) break;
        p = ahead.p;
    }
    ps->lx = at;
    el->count += (size_t)(*n - before);
    return *n > before ? ane__parse_next(ps) : ANE_OK;
}

static ane_status count_wrong(ane_parser *ps, const ane_token *open, const elements *el,
                              int level, int64_t got) {
    char a[ANE_TYPE_TEXT];
    return ane__parse_fail(ps, open, "the list has %" PRId64 " elements, but dimension %d of "
                           "%s is %" PRId64, got, level, ane_type_text(el->type, a, sizeof a),
                           el->type->dims[level]);
}

/* "[" ... "]" of one dimension; depth is bounded by the rank. dims holds what is known so
 * far. */
static ane_status parse_rows(ane_parser *ps, elements *el, int level, int64_t *dims,
                             bool flat) {
    const ane_type *t = el->type;
    ane_token open = ps->tok;
    int64_t n = 0;
    bool last = flat || level == t->rank - 1;
    ane_status st = ane__parse_punct(ps, '[', "of a list");
    if (st) return st;
    while (!ane__is_punct(&ps->tok, ']')) {
        if (n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ']', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (!last && !ane__is_punct(&ps->tok, '[')) {
            char a[ANE_TYPE_TEXT];
            return ane__parse_fail(ps, &ps->tok, "expected '[' of dimension %d of %s", level + 1,
                                   ane_type_text(t, a, sizeof a));
        }
        if (last && ane__is_punct(&ps->tok, '[')) {
            char a[ANE_TYPE_TEXT];
            return ane__parse_fail(ps, &ps->tok, "the list nests deeper than the %d dimensions "
                                   "of %s", t->rank, ane_type_text(t, a, sizeof a));
        }
        int64_t before = n;
        if (last && (st = plain_elements(ps, el, &n))) return st;
        if (n > before) continue;
        st = last ? parse_element(ps, el) : parse_rows(ps, el, level + 1, dims, false);
        if (st) return st;
        n++;
    }
    if (!flat) {
        if (dims[level] >= 0 && dims[level] != n) {
            if (t->dims[level] >= 0) return count_wrong(ps, &open, el, level, n);
            return ane__parse_fail(ps, &open, "the list has %" PRId64 " elements, its "
                                   "neighbours have %" PRId64, n, dims[level]);
        }
        dims[level] = n;
    }
    return ane__parse_close(ps, ']', &open, "','");
}

static ane_status tensor_const(ane_parser *ps, elements *el, const int64_t *dims,
                               const ane_token *at, const ane_const **out) {
    const ane_type *t = el->type;
    if (!ane_type_static(t)) {
        t = ane_type_tensor(ps->p, t->dtype, t->rank, dims);
        if (!t) return ane__parse_nomem(ps);
    }
    if (el->overflow)
        ane_program_warn(ps->p, at->line, at->column,
                         "a value lies beyond the range of %s and became infinite",
                         ane_dtype_mil_name(t->dtype));
    *out = ane_const_tensor(ps->p, t, ps->data + el->base, ps->data_n - el->base, ps->err);
    ps->data_n = el->base;
    return *out ? ANE_OK : ps->err->status;
}

static ane_status parse_tensor(ane_parser *ps, const ane_type *t, const ane_const **out) {
    elements el = {.type = t, .base = ps->data_n};
    int64_t dims[ANE_MAX_RANK];
    ane_token at = ps->tok;
    char a[ANE_TYPE_TEXT];
    ane_status st;
    if (!t->rank) {
        if (ane__is_punct(&ps->tok, '['))
            return ane__parse_fail(ps, &at, "expected one value of type %s, got a list",
                                   ane_type_text(t, a, sizeof a));
        if ((st = data_room(ps, 8)) || (st = parse_element(ps, &el))) return st;
        return tensor_const(ps, &el, NULL, &at, out);
    }
    if (!ane__is_punct(&ps->tok, '[')) {
        char got[64];
        return ane__parse_fail(ps, &at, "expected a list for %s, got %s",
                               ane_type_text(t, a, sizeof a),
                               ane__lex_show(&at, got, sizeof got));
    }
    if ((st = data_room(ps, 8)) || (st = ane__parse_peek(ps))) return st;
    for (int i = 0; i < t->rank; i++) dims[i] = t->dims[i];
    bool flat = t->rank > 1 && !ane__is_punct(&ps->ahead, '[') &&
                !(ane__is_punct(&ps->ahead, ']') && ane_type_count(t) <= 0);
    if ((st = parse_rows(ps, &el, 0, dims, flat))) return st;
    if (flat) {
        if (ane_type_count(t) < 0 || (size_t)ane_type_count(t) != el.count)
            return ane__parse_fail(ps, &at, "a flat list of %zu elements does not fill %s",
                                   el.count, ane_type_text(t, a, sizeof a));
        ane_program_warn(ps->p, at.line, at.column,
                         "a flat list for %s; nested lists are the portable form",
                         ane_type_text(t, a, sizeof a));
    }
    for (int i = 0; i < t->rank; i++)   /* below an empty list */
        if (dims[i] < 0) dims[i] = 0;
    return tensor_const(ps, &el, dims, &at, out);
}

ane_status ane__parse_scalar(ane_parser *ps, const ane_token *t, ane_dtype dtype,
                             const ane_const **out) {
    const ane_type *type = ane_type_tensor(ps->p, dtype, 0, NULL);
    elements el = {.type = type, .base = ps->data_n};
    if (!type) return ane__parse_nomem(ps);
    ane_status st = append(ps, &el, t);
    return st ? st : tensor_const(ps, &el, NULL, t, out);
}

/* ---------------------------------------------------------------- containers */

static ane_status parse_literal(ane_parser *ps, const ane_type *t, int depth,
                                const ane_const **out);

typedef struct items {
    const ane_const **v;
    int n, cap;
} items;

static ane_status push(ane_parser *ps, items *it, const ane_const *c) {
    if (it->n == it->cap) {
        int cap = it->cap ? it->cap * 2 : 8;
        const ane_const **v = ane_arena_alloc(ps->tmp, (size_t)cap * sizeof *v);
        if (!v) return ane__parse_nomem(ps);
        if (it->n) memcpy(v, it->v, (size_t)it->n * sizeof *v);
        it->v = v;
        it->cap = cap;
    }
    it->v[it->n++] = c;
    return ANE_OK;
}

/* "{" { "{" key "," value "}" } "}" */
static ane_status parse_dict(ane_parser *ps, const ane_type *t, int depth, items *it) {
    ane_token open = ps->tok;
    const ane_const *c;
    ane_status st = ane__parse_punct(ps, '{', "of a dictionary");
    if (st) return st;
    while (!ane__is_punct(&ps->tok, '}')) {
        if (it->n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, '}', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        ane_token pair = ps->tok;
        if ((st = ane__parse_punct(ps, '{', "of a key and value")) ||
            (st = parse_literal(ps, t->elem, depth + 1, &c)) || (st = push(ps, it, c)) ||
            (st = ane__parse_punct(ps, ',', "between key and value")) ||
            (st = parse_literal(ps, t->elem2, depth + 1, &c)) || (st = push(ps, it, c)) ||
            (st = ane__parse_close(ps, '}', &pair, NULL)))
            return st;
    }
    return ane__parse_close(ps, '}', &open, "','");
}

static ane_status parse_container(ane_parser *ps, const ane_type *t, int depth,
                                  const ane_const **out) {
    items it = {NULL, 0, 0};
    ane_token open = ps->tok;
    const ane_const *c;
    char a[ANE_TYPE_TEXT];
    ane_status st;
    if (t->kind == ANE_T_DICT) {
        if ((st = parse_dict(ps, t, depth, &it))) return st;
        goto made;
    }
    bool tuple = t->kind == ANE_T_TUPLE;
    if (!ane__is_punct(&open, '(') && (tuple || !ane__is_punct(&open, '[')))
        return ane__parse_expected(ps, tuple ? "'(' of a tuple" : "'[' of a list");
    char close = open.punct == '(' ? ')' : ']';
    if ((st = ane__parse_next(ps))) return st;
    while (!ane__is_punct(&ps->tok, close)) {
        if (it.n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, close, &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (tuple && it.n == t->n)
            return ane__parse_fail(ps, &ps->tok, "the tuple has more than the %d items of %s",
                                   t->n, ane_type_text(t, a, sizeof a));
        if ((st = parse_literal(ps, tuple ? t->items[it.n] : t->elem, depth + 1, &c)) ||
            (st = push(ps, &it, c)))
            return st;
    }
    if (tuple ? it.n != t->n : t->length >= 0 && it.n != t->length)
        return ane__parse_fail(ps, &open, "%s takes %lld items, got %d",
                               ane_type_text(t, a, sizeof a),
                               (long long)(tuple ? t->n : t->length), it.n);
    if ((st = ane__parse_close(ps, close, &open, "','"))) return st;
made:
    *out = ane_const_items(ps->p, t, it.v, it.n, ps->err);
    return *out ? ANE_OK : ps->err->status;
}

/* BLOBFILE "(" "path" "=" string "," "offset" "=" integer ")", in either order */
static ane_status parse_blobfile(ane_parser *ps, const ane_type *t, const ane_const **out) {
    ane_token at = ps->tok, open;
    const char *path = NULL;
    uint64_t offset = 0;
    bool have_offset = false;
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '(', "after BLOBFILE"))) return st;
    for (int i = 0; i < 2; i++) {
        if (i && (st = ane__parse_punct(ps, ',', "between path and offset"))) return st;
        ane_token key = ps->tok;
        bool is_path = ane__is_word(&key, "path");
        if ((!is_path && !ane__is_word(&key, "offset")) || (is_path ? path != NULL : have_offset))
            return ane__parse_expected(ps, i ? path ? "offset = ..." : "path = ..."
                                             : "path = ... or offset = ...");
        if ((st = ane__parse_next(ps)) || (st = ane__parse_punct(ps, '=', NULL))) return st;
        ane_token v = ps->tok;
        const ane_const *c;
        if ((st = ane__parse_typed(ps, &c))) return st;
        bool scalar = c->type->kind == ANE_T_TENSOR && !c->type->rank && c->data;
        if (is_path) {
            if (!scalar || c->type->dtype != ANE_STRING)
                return ane__parse_fail(ps, &v, "BLOBFILE: path must be a string");
            path = ((const char *const *)c->data)[0];
        } else {
            ane_dtype d = scalar ? c->type->dtype : ANE_STRING;
            if (d == ANE_STRING || d == ANE_BOOL || ane__is_float(d) ||
                (is_signed(d) && ane_const_i64(c, 0) < 0))
                return ane__parse_fail(ps, &v,
                                       "BLOBFILE: offset must be a non-negative integer, as "
                                       "uint64(64)");
            offset = (uint64_t)ane_const_i64(c, 0);
            have_offset = true;
        }
    }
    if ((st = ane__parse_close(ps, ')', &open, NULL))) return st;
    return ane__parse_at(ps, &at, ane_weight_files_const(ps->files, ps->p, t, path, offset,
                                                         at.line, at.column, out, ps->err));
}

#define MAX_LITERAL_DEPTH 32

static ane_status parse_literal(ane_parser *ps, const ane_type *t, int depth,
                                const ane_const **out) {
    ane_status st;
    if (depth > MAX_LITERAL_DEPTH)
        return ane__parse_fail(ps, &ps->tok, "values nest deeper than %d", MAX_LITERAL_DEPTH);
    if (t->kind == ANE_T_STATE)
        return ane__parse_fail(ps, &ps->tok, "a state has no literal value");
    if (ps->tok.kind == ANE_TOK_IDENT) {
        if ((st = ane__parse_peek(ps))) return st;
        bool call = ane__is_punct(&ps->ahead, '(') || ane__is_punct(&ps->ahead, '<');
        if (call && ane__is_word(&ps->tok, "BLOBFILE")) return parse_blobfile(ps, t, out);
        if (call) {                     /* a value that repeats its type */
            ane_token at = ps->tok, open;
            const ane_type *inner;
            char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
            if ((st = ane__parse_type(ps, &inner))) return st;
            if (!ane_type_compatible(inner, t))
                return ane__parse_fail(ps, &at, "expected a value of type %s, got %s",
                                       ane_type_text(t, a, sizeof a),
                                       ane_type_text(inner, b, sizeof b));
            open = ps->tok;
            if ((st = ane__parse_punct(ps, '(', "of the value")) ||
                (st = parse_literal(ps, inner, depth + 1, out)))
                return st;
            return ane__parse_close(ps, ')', &open, NULL);
        }
    }
    return t->kind == ANE_T_TENSOR ? parse_tensor(ps, t, out)
                                   : parse_container(ps, t, depth, out);
}

ane_status ane__parse_typed(ane_parser *ps, const ane_const **out) {
    const ane_type *t;
    ane_token open;
    ane_status st = ane__parse_type(ps, &t);
    if (st) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '(', "of the value")) ||
        (st = parse_literal(ps, t, 0, out)))
        return st;
    return ane__parse_close(ps, ')', &open, NULL);
}
