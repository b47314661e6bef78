/* MIL text to graph: recursive descent, one production per function, bounded depth. Here:
 * tokens and errors, attributes, blocks, functions, programs. Statements are in
 * statement.c, literals in literal.c. */
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

char *ane__parse_word(ane_parser *ps, const ane_token *t) {
    return ane_arena_strndup(ps->tmp, t->s, t->n);
}

void *ane__parse_grown(ane_parser *ps, const void *old, int n, int *cap, size_t size) {
    int fresh = *cap ? *cap * 2 : 4;
    if (n < *cap) return (void *)old;
    void *q = ane_arena_alloc(ps->tmp, (size_t)fresh * size);
    if (q && n) memcpy(q, old, (size_t)n * size);
    if (q) *cap = fresh;
    return q;
}

/* ---------------------------------------------------------------- attributes */

/* [ "[" attr { "," attr } "]" ] */
ane_status ane__parse_attrs(ane_parser *ps, ane_attr_list *out) {
    *out = (ane_attr_list){NULL, 0, 0};
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
        if (!(a->name = ane__parse_word(ps, &name))) return ane__parse_nomem(ps);
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

ane_status ane__keep_attrs(ane_parser *ps, const ane_attr_list *from, ane_attr **v, int *n) {
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

/* ---------------------------------------------------------------- blocks, functions */

/* "{" { statement } "}" "->" "(" [ ident { "," ident } ] ")" */
static ane_status parse_body(ane_parser *ps, ane_block *b, int depth) {
    ane_token open = ps->tok;
    ane_value **v = NULL;
    int n = 0, cap = 0;
    ane_status st = ane__parse_punct(ps, '{', "of the body");
    if (st) return st;
    while (!ane__is_punct(&ps->tok, '}')) {
        if (ps->tok.kind != ANE_TOK_IDENT)
            return ane__parse_close(ps, '}', &open, "a statement");
        if ((st = ane__parse_statement(ps, b, depth))) return st;
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
        if (!(v = ane__parse_grown(ps, v, n, &cap, sizeof *v))) return ane__parse_nomem(ps);
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
        if (!(*params = ane__parse_grown(ps, *params, *n, &cap, sizeof **params)))
            return ane__parse_nomem(ps);
        ane_param_desc *q = &(*params)[*n];
        if ((st = ane__parse_type(ps, &q->type))) return st;
        if (ps->tok.kind != ANE_TOK_IDENT)
            return ane__parse_expected(ps, "the name of the parameter");
        if (!(q->name = ane__parse_word(ps, &ps->tok))) return ane__parse_nomem(ps);
        ++*n;
        if ((st = ane__parse_next(ps))) return st;
    }
    return ane__parse_close(ps, ')', &open, "','");
}

/* "block" [ ident ] "(" params ")" body: our own text form of nested blocks, docs/mil-text.md */
ane_status ane__parse_nested(ane_parser *ps, int depth, ane_block **out) {
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
    ane_attr_list attrs;
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
        (st = parse_params(ps, &params, &n)) || (st = ane__parse_attrs(ps, &attrs)))
        return st;
    const char *fname = ane__parse_word(ps, &name), *ftag = ane__parse_word(ps, &tag);
    if (!fname || !ftag) return ane__parse_nomem(ps);
    st = ane_function_create(ps->p, fname, ftag, params, n, &ps->f, ps->err);
    if (st) return ane__parse_at(ps, &name, st);
    ps->f->line = name.line;
    ps->f->column = name.column;
    ps->op_names = NULL;
    if ((st = ane__keep_attrs(ps, &attrs, &ps->f->attrs, &ps->f->n_attrs)) ||
        (st = parse_body(ps, ps->f->body, 0)))
        return st;
    return ane__parse_punct(ps, ';', "after the outputs");
}

/* "program" "(" version ")" [ attrs ] "{" { function } "}" */
static ane_status parse_program(ane_parser *ps) {
    ane_token open;
    ane_attr_list attrs;
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
    ps->p->line = v.line;
    ps->p->column = v.column;
    ps->p->filename = ane_arena_strndup(ps->p->arena, ps->lx.filename, strlen(ps->lx.filename));
    if (!ps->p->filename) return ane__parse_nomem(ps);
    if (strlen(version) != 3 || version[2] > '3')
        ane_program_warn(ps->p, v.line, v.column,
                         "version %s was never seen; it is read like 1.3", version);
    if ((st = ane__parse_next(ps)) || (st = ane__parse_close(ps, ')', &open, NULL)) ||
        (st = ane__parse_attrs(ps, &attrs)) ||
        (st = ane__keep_attrs(ps, &attrs, &ps->p->attrs, &ps->p->n_attrs)))
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
