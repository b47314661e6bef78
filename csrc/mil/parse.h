/* What the parser's files share: programs and blocks (parse.c), statements (statement.c),
 * literals (literal.c). The public entry is ane_program_parse. */
#ifndef ANE_MIL_PARSE_H
#define ANE_MIL_PARSE_H

#include "../ir/blobfile.h"
#include "../ir/ir.h"
#include "../ir/ops.h"
#include "lex.h"

typedef struct ane_parser {
    ane_lexer lx;
    ane_token tok, ahead;               /* the current token and, when known, the next */
    bool has_ahead;
    ane_program *p;
    ane_function *f;
    ane_arena *tmp;                     /* dies with the parse */
    const ane_parse_options *opts;
    ane_error *err;
    char op[96];                        /* "matmul 'y': " while inside a statement */
    unsigned char *data;                /* elements of the literal being read */
    size_t data_n, data_cap;
    ane_weight_files *files;
    struct ane_string_set *op_names;    /* `name` attributes of the function */
} ane_parser;

ane_status ane__parse_next(ane_parser *ps);             /* to the next token */
ane_status ane__parse_peek(ane_parser *ps);             /* fills ahead */
/* PARSE at the current token: "<op>expected <what>, got <token>". */
ane_status ane__parse_expected(ane_parser *ps, const char *what);
/* PARSE at a token. */
ane_status ane__parse_fail(ane_parser *ps, const ane_token *at, const char *fmt, ...)
    ANE_PRINTF(3, 4);
ane_status ane__parse_nomem(ane_parser *ps);
/* Takes one punctuation byte; `what` says more about what it is for, or NULL. */
ane_status ane__parse_punct(ane_parser *ps, char c, const char *what);
/* Takes the partner of `open`; a failure names the opener and its line. `also` is what
 * else could stand here, like "','". */
ane_status ane__parse_close(ane_parser *ps, char c, const ane_token *open, const char *also);
/* A failed call below the parser becomes a PARSE error at this token. */
ane_status ane__parse_at(ane_parser *ps, const ane_token *at, ane_status st);

/* A token's text, NUL-terminated, for the length of the parse; NULL: no memory. */
char *ane__parse_word(ane_parser *ps, const ane_token *t);
/* An array of the parse's arena with room for one more than n; NULL: no memory. */
void *ane__parse_grown(ane_parser *ps, const void *old, int n, int *cap, size_t size);

typedef struct ane_attr_list {
    ane_attr *v;
    int n, cap;
} ane_attr_list;
/* [ "[" attr { "," attr } "]" ] */
ane_status ane__parse_attrs(ane_parser *ps, ane_attr_list *out);
/* Into the program's arena, as attributes of a program, function or op are kept. */
ane_status ane__keep_attrs(ane_parser *ps, const ane_attr_list *from, ane_attr **v, int *n);

/* depth counts the blocks around. */
ane_status ane__parse_statement(ane_parser *ps, ane_block *b, int depth);
ane_status ane__parse_nested(ane_parser *ps, int depth, ane_block **out);

static inline bool ane__is_punct(const ane_token *t, char c) {
    return t->kind == ANE_TOK_PUNCT && t->punct == c;
}
bool ane__is_word(const ane_token *t, const char *word);

ane_status ane__parse_type(ane_parser *ps, const ane_type **out);
/* type "(" literal ")" */
ane_status ane__parse_typed(ane_parser *ps, const ane_const **out);
/* One bare number, bool or string as a scalar of this dtype. */
ane_status ane__parse_scalar(ane_parser *ps, const ane_token *t, ane_dtype dtype,
                             const ane_const **out);

#endif
