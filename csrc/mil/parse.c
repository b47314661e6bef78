/* MIL text to graph: recursive descent, one production per function, bounded depth. Every
 * statement is checked by the graph as it is made; literals are in literal.c. */
#include "parse.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- tokens and errors */

ane_status ane__parse_nomem(ane_parser *ps) {
    return ane_fail(ps->err, ANE_ERR_NOMEM, "out of memory");
}

static ane_status lex(ane_parser *ps, ane_token *t) {
    ane_status st = ane__lex_next(&ps->lx, t);
    if (st && *ps->op) ane_error_prefix(ps->err, "%s", ps->op);
    return st;
}

ane_status ane__parse_next(ane_parser *ps) {
    if (ps->has_ahead) {
        ps->tok = ps->ahead;
        ps->has_ahead = false;
        return ANE_OK;
    }
    return lex(ps, &ps->tok);
}

ane_status ane__parse_peek(ane_parser *ps) {
    if (ps->has_ahead) return ANE_OK;
    ane_status st = lex(ps, &ps->ahead);
    ps->has_ahead = !st;
    return st;
}

bool ane__is_word(const ane_token *t, const char *word) {
    size_t n = strlen(word);
    return t->kind == ANE_TOK_IDENT && t->n == n && !memcmp(t->s, word, n);
}

ane_status ane__parse_fail(ane_parser *ps, const ane_token *at, const char *fmt, ...) {
    char msg[sizeof ps->err->message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return ane_fail_at(ps->err, ANE_ERR_PARSE, ps->lx.filename, at->line, at->column, "%s%s",
                       ps->op, msg);
}

ane_status ane__parse_expected(ane_parser *ps, const char *what) {
    char got[64];
    return ane__parse_fail(ps, &ps->tok, "expected %s, got %s", what,
                           ane__lex_show(&ps->tok, got, sizeof got));
}

ane_status ane__parse_punct(ane_parser *ps, char c, const char *what) {
    char text[160];
    if (ane__is_punct(&ps->tok, c)) return ane__parse_next(ps);
    snprintf(text, sizeof text, what ? "'%c' %s" : "'%c'", c, what);
    return ane__parse_expected(ps, text);
}

ane_status ane__parse_close(ane_parser *ps, char c, const ane_token *open, const char *also) {
    char text[160];
    if (ane__is_punct(&ps->tok, c)) return ane__parse_next(ps);
    snprintf(text, sizeof text, "%s%s'%c' to close the '%c' of line %d, column %d",
             also ? also : "", also ? " or " : "", c, open->punct, open->line, open->column);
    return ane__parse_expected(ps, text);
}

ane_status ane__parse_at(ane_parser *ps, const ane_token *at, ane_status st) {
    switch (st) {
    case ANE_OK: case ANE_ERR_NOMEM: case ANE_ERR_OS: case ANE_ERR_CANCELLED:
    case ANE_ERR_RUNTIME: return st;
    default: break;
    }
    ane_error *err = ps->err;
    err->status = ANE_ERR_PARSE;
    if (err->line) return ANE_ERR_PARSE;
    if (*ps->op) ane_error_prefix(err, "%s", ps->op);
    err->line = at->line;
    err->column = at->column;
    snprintf(err->file, sizeof err->file, "%s", ps->lx.filename);
    return ANE_ERR_PARSE;
}

static char *word(ane_parser *ps, const ane_token *t) {
    return ane_arena_strndup(ps->tmp, t->s, t->n);
}

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

/* ---------------------------------------------------------------- attributes */

typedef struct attr_list {
    ane_attr *v;
    int n, cap;
} attr_list;

/* [ "[" attr { "," attr } "]" ] */
static ane_status parse_attrs(ane_parser *ps, attr_list *out) {
    *out = (attr_list){NULL, 0, 0};
    if (!ane__is_punct(&ps->tok, '[')) return ANE_OK;
    ane_token open = ps->tok;
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    while (!ane__is_punct(&ps->tok, ']')) {
        if (out->n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ']', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (ps->tok.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "an attribute's name");
        if (out->n >= ANE_MAX_ATTRS)
            return ane__parse_fail(ps, &ps->tok, "more than %d attributes", ANE_MAX_ATTRS);
        ane_token name = ps->tok;
        if (out->n == out->cap) {
            int cap = out->cap ? out->cap * 2 : 4;
            ane_attr *v = ane_arena_alloc(ps->tmp, (size_t)cap * sizeof *v);
            if (!v) return ane__parse_nomem(ps);
            if (out->n) memcpy(v, out->v, (size_t)out->n * sizeof *v);
            out->v = v;
            out->cap = cap;
        }
        ane_attr *a = &out->v[out->n];
        if (!(a->name = word(ps, &name))) return ane__parse_nomem(ps);
        for (int i = 0; i < out->n; i++)
            if (!strcmp(out->v[i].name, a->name))
                return ane__parse_fail(ps, &name, "attribute %.80s is given twice", a->name);
        if ((st = ane__parse_next(ps)) ||
            (st = ane__parse_punct(ps, '=', "after an attribute's name")) ||
            (st = ane__parse_typed(ps, &a->value)))
            return st;
        out->n++;
    }
    return ane__parse_close(ps, ']', &open, "','");
}

/* Attributes of a program or function are kept with their names in the program's arena. */
static ane_status keep_attrs(ane_parser *ps, const attr_list *from, ane_attr **v, int *n) {
    if (!from->n) return ANE_OK;
    ane_attr *copy = ane_arena_alloc(ps->p->arena, (size_t)from->n * sizeof *copy);
    if (!copy) return ane__parse_nomem(ps);
    for (int i = 0; i < from->n; i++) {
        copy[i] = from->v[i];
        copy[i].name = ane_arena_strndup(ps->p->arena, from->v[i].name,
                                         strlen(from->v[i].name));
        if (!copy[i].name) return ane__parse_nomem(ps);
    }
    *v = copy;
    *n = from->n;
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
    attr_list attrs;
} statement;

/* Doubles an array of the parse's arena. */
static void *grown(ane_parser *ps, const void *old, int n, int *cap, size_t size) {
    int fresh = *cap ? *cap * 2 : 4;
    if (n < *cap) return (void *)old;
    void *q = ane_arena_alloc(ps->tmp, (size_t)fresh * size);
    if (q && n) memcpy(q, old, (size_t)n * size);
    if (q) *cap = fresh;
    return q;
}

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
        if (!(v = grown(ps, v, n, &cap, sizeof *v))) return ane__parse_nomem(ps);
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
    s->args = grown(ps, s->args, s->n_args, &s->cap_args, sizeof *s->args);
    if (!s->args) return ane__parse_nomem(ps);
    ane_arg_desc *a = &s->args[s->n_args];
    *a = (ane_arg_desc){.name = word(ps, &name)};
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
            s->bares = grown(ps, s->bares, s->n_bares, &s->cap_bares, sizeof *s->bares);
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
            s->names = grown(ps, s->names, s->n_results, &cap, sizeof *s->names);
            s->types = grown(ps, s->types, s->n_results, &s->cap_results, sizeof *s->types);
            if (!s->names || !s->types) return ane__parse_nomem(ps);
        }
        if (s->n_results >= ANE_MAX_RESULTS)
            return ane__parse_fail(ps, &ps->tok, "more than %d results", ANE_MAX_RESULTS);
        if ((st = ane__parse_type(ps, &s->types[s->n_results]))) return st;
        if (ps->tok.kind != ANE_TOK_IDENT)
            return ane__parse_expected(ps, "the name of the result");
        if (!(s->names[s->n_results++] = word(ps, &ps->tok))) return ane__parse_nomem(ps);
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
        attr_list kept = s->attrs;
        if ((st = keep_attrs(ps, &kept, &op->attrs, &op->n_attrs))) return st;
    }
    return ANE_OK;
}

static ane_status parse_nested(ane_parser *ps, int depth, ane_block **out);

static ane_status parse_statement(ane_parser *ps, ane_block *b, int depth) {
    statement s = {.block = b};
    ane_block *blocks[ANE_MAX_BLOCKS];
    int n_blocks = 0;
    const char *name;
    ane_status st;
    if (ps->tok.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "a statement or '}'");
    if (ane__is_word(&ps->tok, "return"))
        return ane__parse_fail(ps, &ps->tok, "expected a statement or '}', got 'return'; "
                               "outputs are named behind the block, as in } -> (y);");
    if ((st = ane__parse_peek(ps))) return st;
    if (!ane__is_punct(&ps->ahead, '(') && (st = parse_results(ps, &s))) return st;
    s.op = ps->tok;
    if (s.op.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "the name of an operation");
    if (!(s.op_name = word(ps, &s.op))) return ane__parse_nomem(ps);
    if (s.n_results) snprintf(ps->op, sizeof ps->op, "%.40s '%.40s': ", s.op_name, s.names[0]);
    else snprintf(ps->op, sizeof ps->op, "%.80s: ", s.op_name);
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
    if ((st = ane__parse_close(ps, ')', &open, "','")) || (st = parse_attrs(ps, &s.attrs)) ||
        (st = place_bares(ps, &s)))
        return st;
    while (ane__is_word(&ps->tok, "block")) {
        if (n_blocks == ANE_MAX_BLOCKS)
            return ane__parse_fail(ps, &ps->tok, "more than %d blocks", ANE_MAX_BLOCKS);
        char op[sizeof ps->op];
        memcpy(op, ps->op, sizeof op);
        *ps->op = 0;
        if ((st = parse_nested(ps, depth, &blocks[n_blocks]))) return st;
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

/* ---------------------------------------------------------------- blocks, functions */

/* "{" { statement } "}" "->" "(" [ ident { "," ident } ] ")" */
static ane_status parse_body(ane_parser *ps, ane_block *b, int depth) {
    ane_token open = ps->tok;
    ane_value **v = NULL;
    int n = 0, cap = 0;
    ane_status st = ane__parse_punct(ps, '{', "of the body");
    if (st) return st;
    while (!ane__is_punct(&ps->tok, '}')) {
        if (ps->tok.kind == ANE_TOK_END)
            return ane__parse_close(ps, '}', &open, "a statement");
        if ((st = parse_statement(ps, b, depth))) return st;
    }
    if ((st = ane__parse_next(ps))) return st;
    if (ps->tok.kind != ANE_TOK_ARROW)
        return ane__parse_expected(ps, "'->' and the outputs, as in } -> (y);");
    if ((st = ane__parse_next(ps))) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '(', "of the outputs"))) return st;
    while (!ane__is_punct(&ps->tok, ')')) {
        if (n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ')', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (ps->tok.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "an output's name");
        if (!(v = grown(ps, v, n, &cap, sizeof *v))) return ane__parse_nomem(ps);
        if (!(v[n] = ane_function_value(ps->f, ps->tok.s, ps->tok.n))) {
            char got[64];
            return ane__parse_fail(ps, &ps->tok, "output %s is not defined",
                                   ane__lex_show(&ps->tok, got, sizeof got));
        }
        n++;
        if ((st = ane__parse_next(ps))) return st;
    }
    if ((st = ane__parse_close(ps, ')', &open, "','"))) return st;
    return ane__parse_at(ps, &open, ane_block_set_outputs(b, v, n, ps->err));
}

/* [ type ident { "," type ident } ] ")" */
static ane_status parse_params(ane_parser *ps, ane_param_desc **params, int *n) {
    ane_token open = ps->tok;
    int cap = 0;
    *params = NULL;
    *n = 0;
    ane_status st = ane__parse_punct(ps, '(', "of the parameters");
    if (st) return st;
    while (!ane__is_punct(&ps->tok, ')')) {
        if (*n) {
            if (!ane__is_punct(&ps->tok, ',')) return ane__parse_close(ps, ')', &open, "','");
            if ((st = ane__parse_next(ps))) return st;
        }
        if (!(*params = grown(ps, *params, *n, &cap, sizeof **params)))
            return ane__parse_nomem(ps);
        ane_param_desc *q = &(*params)[*n];
        if ((st = ane__parse_type(ps, &q->type))) return st;
        if (ps->tok.kind != ANE_TOK_IDENT)
            return ane__parse_expected(ps, "the name of the parameter");
        if (!(q->name = word(ps, &ps->tok))) return ane__parse_nomem(ps);
        ++*n;
        if ((st = ane__parse_next(ps))) return st;
    }
    return ane__parse_close(ps, ')', &open, "','");
}

/* "block" [ ident ] "(" params ")" body: our own text form of nested blocks, docs/mil-text.md */
static ane_status parse_nested(ane_parser *ps, int depth, ane_block **out) {
    ane_token at = ps->tok;
    ane_param_desc *params;
    ane_value *v;
    int n;
    if (depth >= ANE_MAX_BLOCK_DEPTH)
        return ane__parse_fail(ps, &at, "blocks nest deeper than %d", ANE_MAX_BLOCK_DEPTH);
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    if (ps->tok.kind == ANE_TOK_IDENT && (st = ane__parse_next(ps))) return st;
    if ((st = parse_params(ps, &params, &n))) return st;
    ane_block *b = ane_block_create(ps->f, NULL);
    if (!b) return ane__parse_nomem(ps);
    for (int i = 0; i < n; i++)
        if ((st = ane_block_add_param(b, params[i].name, params[i].type, &v, ps->err)))
            return ane__parse_at(ps, &at, st);
    *out = b;
    return parse_body(ps, b, depth + 1);
}

/* "func" ident "<" ident ">" "(" params ")" [ attrs ] body ";" */
static ane_status parse_function(ane_parser *ps) {
    ane_token open;
    ane_param_desc *params;
    attr_list attrs;
    int n;
    if (!ane__is_word(&ps->tok, "func")) return ane__parse_expected(ps, "'func' or '}'");
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    ane_token name = ps->tok;
    if (name.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "the function's name");
    if ((st = ane__parse_next(ps))) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '<', "and the opset, as in main<ios18>")))
        return st;
    ane_token tag = ps->tok;
    if (tag.kind != ANE_TOK_IDENT) return ane__parse_expected(ps, "an opset, as ios18");
    if ((st = ane__parse_next(ps)) || (st = ane__parse_close(ps, '>', &open, NULL)) ||
        (st = parse_params(ps, &params, &n)) || (st = parse_attrs(ps, &attrs)))
        return st;
    const char *fname = word(ps, &name), *ftag = word(ps, &tag);
    if (!fname || !ftag) return ane__parse_nomem(ps);
    st = ane_function_create(ps->p, fname, ftag, params, n, &ps->f, ps->err);
    if (st) return ane__parse_at(ps, &name, st);
    ps->op_names = NULL;
    if ((st = keep_attrs(ps, &attrs, &ps->f->attrs, &ps->f->n_attrs)) ||
        (st = parse_body(ps, ps->f->body, 0)))
        return st;
    return ane__parse_punct(ps, ';', "after the outputs");
}

/* "program" "(" version ")" [ attrs ] "{" { function } "}" */
static ane_status parse_program(ane_parser *ps) {
    ane_token open;
    attr_list attrs;
    ane_status st = ane__parse_next(ps);
    if (st) return st;
    if (!ane__is_word(&ps->tok, "program"))
        return ane__parse_expected(ps, "'program', as in program(1.3)");
    if ((st = ane__parse_next(ps))) return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '(', "and a version, as in program(1.3)"))) return st;
    ane_token v = ps->tok;
    char version[16] = "";
    if (v.n < sizeof version) memcpy(version, v.s, v.n);
    if (v.kind != ANE_TOK_FLOAT || strspn(version, "0123456789.") != v.n || !v.n)
        return ane__parse_expected(ps, "a version, as 1.0 or 1.3");
    if (strncmp(version, "1.", 2))
        return ane__parse_fail(ps, &v, "version %s is not known; expected 1.0 to 1.3", version);
    st = ane_program_create(version, &ps->p, ps->err);
    if (st) return ane__parse_at(ps, &v, st);
    ps->p->parsing = true;
    ps->p->filename = ane_arena_strndup(ps->p->arena, ps->lx.filename, strlen(ps->lx.filename));
    if (!ps->p->filename) return ane__parse_nomem(ps);
    if (strlen(version) != 3 || version[2] > '3')
        ane_program_warn(ps->p, v.line, v.column,
                         "version %s was never seen; it is read like 1.3", version);
    if ((st = ane__parse_next(ps)) || (st = ane__parse_close(ps, ')', &open, NULL)) ||
        (st = parse_attrs(ps, &attrs)) ||
        (st = keep_attrs(ps, &attrs, &ps->p->attrs, &ps->p->n_attrs)))
        return st;
    open = ps->tok;
    if ((st = ane__parse_punct(ps, '{', "of the program"))) return st;
    while (!ane__is_punct(&ps->tok, '}')) {
        if (ps->tok.kind == ANE_TOK_END) return ane__parse_close(ps, '}', &open, "'func'");
        if ((st = parse_function(ps))) return st;
    }
    if ((st = ane__parse_next(ps))) return st;
    if (ps->tok.kind != ANE_TOK_END)
        return ane__parse_expected(ps, "the end of the text after the program");
    return ANE_OK;
}

ane_status ane_program_parse(const char *text, size_t n, const ane_parse_options *opts,
                             ane_program **out, ane_error *err) {
    ane_error local = {0};
    ane_parse_options o = {.size = sizeof o};
    if (opts) memcpy(&o, opts, opts->size < sizeof o ? opts->size : sizeof o);
    ane_parser *ps = ane_calloc(1, sizeof *ps);
    if (!ps) return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    ps->opts = &o;
    ps->err = err ? err : &local;
    ps->tmp = ane_arena_create();
    ane__lex_init(&ps->lx, text, n, o.filename ? o.filename : "<mil>", ps->err);
    ane_status st = ps->tmp ? ane_weight_files_create(&o, &ps->files, ps->err)
                            : ane__parse_nomem(ps);
    if (!st) st = parse_program(ps);
    if (ps->p) ps->p->parsing = false;
    if (!st) {
        st = ane_program_verify(ps->p, ps->err);
        ANE_ASSERT(!st || st == ANE_ERR_NOMEM);
    }
    ane_weight_files_destroy(ps->files);
    ane_arena_destroy(ps->tmp);
    ane_free(ps->data);
    if (st) ane_program_release(ps->p);
    else *out = ps->p;
    ane_free(ps);
    return st;
}
