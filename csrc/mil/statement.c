/* One statement of a body: results, operation, arguments, attributes, nested blocks. The
 * graph checks it as it is made. */
#include "parse.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- string set */

typedef struct ane_string_set {
    const char **slots;
    size_t mask, n;
    uint64_t seed;                      /* see ir/names.c */
} string_set;

static size_t slot_of(const string_set *set, const char *s) {
    uint64_t h = 14695981039346656037u ^ set->seed;
    for (const char *c = s; *c; c++) h = (h ^ (unsigned char)*c) * 1099511628211u;
    size_t i = (size_t)(h ^ h >> 29) & set->mask;
    while (set->slots[i] && strcmp(set->slots[i], s)) i = (i + 1) & set->mask;
    return i;
}

/* Adds s (borrowed); *seen when it was there. */
static ane_status set_add(ane_parser *ps, const char *s, bool *seen) {
    string_set *set = ps->op_names;
    if (!set || set->n * 2 > set->mask) {
        string_set *big = ane_arena_alloc(ps->tmp, sizeof *big);
        size_t cap = set ? (set->mask + 1) * 2 : 64;
        const char **slots = ane_arena_alloc(ps->tmp, cap * sizeof *slots);
        if (!big || !slots) return ane__parse_nomem(ps);
        *big = (string_set){slots, cap - 1, 0, (uintptr_t)slots * 0x9e3779b97f4a7c15u};
        for (size_t i = 0; set && i <= set->mask; i++)
            if (set->slots[i]) {
                big->slots[slot_of(big, set->slots[i])] = set->slots[i];
                big->n++;
            }
        ps->op_names = set = big;
    }
    size_t i = slot_of(set, s);
    *seen = set->slots[i] != NULL;
    if (!*seen) {
        set->slots[i] = s;
        set->n++;
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- statements */

typedef struct bare {                   /* an untyped literal, typed when all args are known */
    int arg;
    ane_token tok;
} bare;

typedef struct statement {
    ane_block *block;
    ane_token op;
    const char *op_name;
    const ane_op_row *row;              /* NULL: unknown, reported when it is made */
    int n_results, cap_results;
    const char **names;
    const ane_type **types;
    ane_arg_desc *args;
    int n_args, cap_args;
    bare *bares;
    int n_bares, cap_bares;
    ane_attr_list attrs;
} statement;

static ane_status undefined(ane_parser *ps, const ane_token *t) {
    char got[64];
    return ane__parse_fail(ps, t, "%s is not defined before this use",
                           ane__lex_show(t, got, sizeof got));
}

static bool bare_literal(const ane_token *t) {
    return t->kind == ANE_TOK_INT || t->kind == ANE_TOK_FLOAT || t->kind == ANE_TOK_STRING ||
           ane__is_word(t, "true") || ane__is_word(t, "false") || ane__is_word(t, "inf") ||
           ane__is_word(t, "nan");
}

/* ident | typedvalue; *v NULL for a bare literal, which is left as the current token. */
static ane_status parse_value(ane_parser *ps, statement *s, ane_value **v) {
    ane_status st;
    *v = NULL;
    if (ps->tok.kind == ANE_TOK_IDENT) {
        if ((st = ane__parse_peek(ps))) return st;
        if (ane__is_punct(&ps->ahead, '(') || ane__is_punct(&ps->ahead, '<')) {
            ane_token at = ps->tok;
            const ane_const *c;
            if ((st = ane__parse_typed(ps, &c))) return st;
            st = ane_const_create(s->block, NULL, c, true, v, ps->err);
            if (st) return ane__parse_at(ps, &at, st);
            (*v)->def->line = at.line;
            (*v)->def->column = at.column;
            return ANE_OK;
        }
        *v = ane_function_value(ps->f, ps->tok.s, ps->tok.n);
        if (*v) return ane__parse_next(ps);
        if (!bare_literal(&ps->tok)) return undefined(ps, &ps->tok);
        return ANE_OK;
    }
    if (bare_literal(&ps->tok)) return ANE_OK;
    if (ane__is_punct(&ps->tok, '['))
        return ane__parse_fail(ps, &ps->tok, "expected a value, got an untyped list; write its "
                               "type, as in tensor<int32, [2]>([0, 1])");
    return ane__parse_expected(ps, "a value");
}

/* "(" [ value { "," value } ] ")" */
static ane_status parse_tuple(ane_parser *ps, statement *s, ane_arg_desc *a) {
    ane_token open = ps->tok;
    ane_value **v = NULL;
    int n = 0, cap = 0;
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    while (!ane__is_punct(&ps->tok, ')')) {
        if (n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ')', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (!(v = ane__parse_grown(ps, v, n, &cap, sizeof *v))) return ane__parse_nomem(ps);
        if (ane__is_punct(&ps->tok, '('))
            return ane__parse_fail(ps, &ps->tok, "a tuple of tuples is no argument");
        if ((st = parse_value(ps, s, &v[n]))) return st;
        if (!v[n])
            return ane__parse_fail(ps, &ps->tok, "expected a value, got an untyped literal; "
                                   "write its type, as in int32(1)");
        n++;
    }
    a->v = v;
    a->n = n;
    a->tuple = true;
    return ane__parse_close(ps, ')', &open, "','");
}

/* ident "=" argvalue */
static ane_status parse_arg(ane_parser *ps, statement *s) {
    ane_status st;
    ane_token name = ps->tok;
    if (name.kind != ANE_TOK_IDENT)
        return ane__parse_expected(ps, "a parameter's name (arguments are given as name = "
                                       "value)");
    if ((st = ane__parse_peek(ps))) return st;
    if (!ane__is_punct(&ps->ahead, '=')) {
        char got[64];
        return ane__parse_fail(ps, &name, "arguments are given as name = value; expected '=' "
                               "behind %.*s, got %s", name.n > 60 ? 60 : (int)name.n, name.s,
                               ane__lex_show(&ps->ahead, got, sizeof got));
    }
    if ((st = ane__parse_next(ps)) || (st = ane__parse_next(ps))) return st;
    s->args = ane__parse_grown(ps, s->args, s->n_args, &s->cap_args, sizeof *s->args);
    if (!s->args) return ane__parse_nomem(ps);
    ane_arg_desc *a = &s->args[s->n_args];
    *a = (ane_arg_desc){.name = ane__parse_word(ps, &name)};
    if (!a->name) return ane__parse_nomem(ps);
    if (ane__is_punct(&ps->tok, '(')) {
        if ((st = parse_tuple(ps, s, a))) return st;
    } else {
        ane_value **v = ane_arena_alloc(ps->tmp, sizeof *v);
        if (!v) return ane__parse_nomem(ps);
        a->v = v;
        a->n = 1;
        if ((st = parse_value(ps, s, v))) return st;
        if (!*v) {
            s->bares = ane__parse_grown(ps, s->bares, s->n_bares, &s->cap_bares, sizeof *s->bares);
            if (!s->bares) return ane__parse_nomem(ps);
            s->bares[s->n_bares++] = (bare){s->n_args, ps->tok};
            if ((st = ane__parse_next(ps))) return st;
        }
    }
    s->n_args++;
    return ANE_OK;
}

/* The element type that a bare literal takes: what its parameter allows, and the dtype
 * that the parameter's type variable has from another argument. */
static ane_dtype bare_dtype(const statement *s, const bare *b) {
    ane_dtype natural = b->tok.kind == ANE_TOK_STRING ? ANE_STRING
                        : b->tok.kind == ANE_TOK_INT   ? ANE_I32
                        : ane__is_word(&b->tok, "true") || ane__is_word(&b->tok, "false")
                            ? ANE_BOOL
                            : ANE_F32;
    if (!s->row || natural == ANE_STRING || natural == ANE_BOOL) return natural;
    int at = ane_op_param_index(s->row, s->args[b->arg].name);
    if (at < 0) return natural;
    const ane_op_param *q = &s->row->params[at];
    for (int i = 0; q->var >= 0 && i < s->n_args; i++) {
        int k = ane_op_param_index(s->row, s->args[i].name);
        if (k < 0 || s->row->params[k].var != q->var || !s->args[i].n) continue;
        const ane_value *v = s->args[i].v[0];
        if (v && v->type->kind == ANE_T_TENSOR) return v->type->dtype;
    }
    if (!q->dtypes || q->dtypes & 1u << natural) return natural;
    static const ane_dtype order[] = {ANE_F32, ANE_F16, ANE_I32};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (q->dtypes & 1u << order[i]) return order[i];
    return natural;
}

static ane_status place_bares(ane_parser *ps, statement *s) {
    for (int i = 0; i < s->n_bares; i++) {
        const bare *b = &s->bares[i];
        const ane_arg_desc *a = &s->args[b->arg];
        const ane_const *c;
        ane_value *v;
        ane_dtype d = bare_dtype(s, b);
        ane_status st = ane__parse_scalar(ps, &b->tok, d, &c);
        if (st) return st;
        if ((st = ane_const_create(s->block, NULL, c, true, &v, ps->err)))
            return ane__parse_at(ps, &b->tok, st);
        ((ane_value **)(uintptr_t)a->v)[0] = v;
        ane_program_warn(ps->p, b->tok.line, b->tok.column,
                         "%sparameter %s is an untyped literal, read as %s; the ANE's parser "
                         "refuses it", ps->op, a->name, ane_dtype_mil_name(d));
    }
    return ANE_OK;
}

/* type ident { "," type ident } "=" */
static ane_status parse_results(ane_parser *ps, statement *s) {
    ane_status st;
    for (;;) {
        if (s->n_results == s->cap_results) {
            int cap = s->cap_results;
            s->names = ane__parse_grown(ps, s->names, s->n_results, &cap, sizeof *s->names);
            s->types = ane__parse_grown(ps, s->types, s->n_results, &s->cap_results,
                                        sizeof *s->types);
            if (!s->names || !s->types) return ane__parse_nomem(ps);
        }
        if (s->n_results >= ANE_MAX_RESULTS)
            return ane__parse_fail(ps, &ps->tok, "more than %d results", ANE_MAX_RESULTS);
        if ((st = ane__parse_type(ps, &s->types[s->n_results]))) return st;
        if (ps->tok.kind != ANE_TOK_IDENT)
            return ane__parse_expected(ps, "the name of the result");
        if (!(s->names[s->n_results++] = ane__parse_word(ps, &ps->tok))) return ane__parse_nomem(ps);
        if ((st = ane__parse_next(ps))) return st;
        if (!ane__is_punct(&ps->tok, ',')) break;
        if ((st = ane__parse_next(ps))) return st;
    }
    return ane__parse_punct(ps, '=', "after the result's name");
}

/* Takes `name` (and for const `val`) out of the attributes. */
static ane_status take_attr(ane_parser *ps, statement *s, const char *name,
                            const ane_const **out) {
    (void)ps;
    *out = NULL;
    for (int i = 0; i < s->attrs.n; i++) {
        if (strcmp(s->attrs.v[i].name, name)) continue;
        *out = s->attrs.v[i].value;
        memmove(&s->attrs.v[i], &s->attrs.v[i + 1],
                (size_t)(s->attrs.n - i - 1) * sizeof *s->attrs.v);
        s->attrs.n--;
        break;
    }
    return ANE_OK;
}

static ane_status take_name(ane_parser *ps, statement *s, const char **out) {
    const ane_const *c;
    bool seen = false;
    *out = NULL;
    (void)take_attr(ps, s, "name", &c);
    if (!c) return ANE_OK;
    if (c->type->kind != ANE_T_TENSOR || c->type->rank || c->type->dtype != ANE_STRING)
        return ane__parse_fail(ps, &s->op, "the attribute name must be a string");
    *out = ((const char *const *)c->data)[0];
    ane_status st = set_add(ps, *out, &seen);
    if (!st && seen)
        ane_program_warn(ps->p, s->op.line, s->op.column,
                         "the name \"%.80s\" is given to more than one operation", *out);
    return st;
}

static ane_status make_const(ane_parser *ps, statement *s, const char *name) {
    const ane_const *val;
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    ane_value *v;
    (void)take_attr(ps, s, "val", &val);
    if (s->n_args)
        return ane__parse_fail(ps, &s->op, "expected no arguments, got %d; the value is the "
                               "attribute val", s->n_args);
    if (s->n_results != 1)
        return ane__parse_fail(ps, &s->op, "expected one result, got %d", s->n_results);
    if (!val) return ane__parse_fail(ps, &s->op, "required attribute val is missing");
    if (!ane_type_compatible(val->type, s->types[0]))
        return ane__parse_fail(ps, &s->op, "the result is declared %s, but val is %s",
                               ane_type_text(s->types[0], a, sizeof a),
                               ane_type_text(val->type, b, sizeof b));
    ane_status st = ane_const_create(s->block, s->names[0], val, false, &v, ps->err);
    if (st) {
        *ps->op = 0;
        return ane__parse_at(ps, &s->op, st);
    }
    ane_op *op = v->def;
    op->line = s->op.line;
    op->column = s->op.column;
    op->name = name;
    if (s->attrs.n) {
        ane_attr_list kept = s->attrs;
        if ((st = ane__keep_attrs(ps, &kept, &op->attrs, &op->n_attrs))) return st;
    }
    return ANE_OK;
}

/* "matmul 'y': " in front of what messages say. Not by snprintf: each statement pays for it. */
static void name_statement(ane_parser *ps, const statement *s) {
    char *q = ps->op;
    size_t n = strnlen(s->op_name, s->n_results ? 40 : 80);
    memcpy(q, s->op_name, n);
    q += n;
    if (s->n_results) {
        *q++ = ' ';
        *q++ = '\'';
        n = strnlen(s->names[0], 40);
        memcpy(q, s->names[0], n);
        q += n;
        *q++ = '\'';
    }
    memcpy(q, ": ", 3);
}

ane_status ane__parse_statement(ane_parser *ps, ane_block *b, int depth) {
    statement s = {.block = b};
    ane_block *blocks[ANE_MAX_BLOCKS];
    int n_blocks = 0;
    const char *name;
    ane_status st;
    if (ane__is_word(&ps->tok, "return"))
        return ane__parse_fail(ps, &ps->tok, "expected a statement or '}', got 'return'; "
                               "outputs are named behind the block, as in } -> (y);");
    if ((st = ane__parse_peek(ps))) return st;
    if (!ane__is_punct(&ps->ahead, '(') && (st = parse_results(ps, &s))) return st;
    s.op = ps->tok;
    if (s.op.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "the name of an operation");
    if (!(s.op_name = ane__parse_word(ps, &s.op))) return ane__parse_nomem(ps);
    name_statement(ps, &s);
    s.row = ane_op_row_find(s.op_name, ps->f->opset, NULL);
    if ((st = ane__parse_next(ps))) return st;
    ane_token open = ps->tok;
    if ((st = ane__parse_punct(ps, '(', "after the operation's name"))) return st;
    while (!ane__is_punct(&ps->tok, ')')) {
        if (s.n_args) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ')', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if ((st = parse_arg(ps, &s))) return st;
    }
    if ((st = ane__parse_close(ps, ')', &open, "','")) || (st = ane__parse_attrs(ps, &s.attrs)) ||
        (st = place_bares(ps, &s)))
        return st;
    while (ane__is_word(&ps->tok, "block")) {
        if (n_blocks == ANE_MAX_BLOCKS)
            return ane__parse_fail(ps, &ps->tok, "more than %d blocks", ANE_MAX_BLOCKS);
        char op[sizeof ps->op];
        memcpy(op, ps->op, sizeof op);
        *ps->op = 0;
        if ((st = ane__parse_nested(ps, depth, &blocks[n_blocks]))) return st;
        memcpy(ps->op, op, sizeof op);
        n_blocks++;
    }
    if ((st = ane__parse_punct(ps, ';', "at the end of the statement")) ||
        (st = take_name(ps, &s, &name)))
        return st;
    if (!strcmp(s.op_name, "const") && !n_blocks) {
        st = make_const(ps, &s, name);
        *ps->op = 0;
        return st;
    }
    ane_op_desc d = {.op = s.op_name, .name = name, .args = s.args, .n_args = s.n_args,
                     .n_results = s.n_results, .result_names = s.names, .declared = s.types,
                     .blocks = blocks, .n_blocks = n_blocks, .attrs = s.attrs.v,
                     .n_attrs = s.attrs.n, .line = s.op.line, .column = s.op.column};
    ane_op *op;
    *ps->op = 0;                        /* the graph names the op itself */
    st = ane_op_create(b, NULL, &d, &op, ps->err);
    return ane__parse_at(ps, &s.op, st);
}
