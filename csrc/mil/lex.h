/* Bytes to tokens with line and column. Never looks behind the end, never allocates. */
#ifndef ANE_MIL_LEX_H
#define ANE_MIL_LEX_H

#include "../base/mem.h"
#include "../base/status.h"

typedef enum ane_tok {
    ANE_TOK_END,
    ANE_TOK_IDENT,                      /* names, reserved words, true, false, inf, nan */
    ANE_TOK_STRING,                     /* text includes the quotes */
    ANE_TOK_INT,                        /* sign and digits */
    ANE_TOK_FLOAT,                      /* anything else that is a number; signed inf, nan */
    ANE_TOK_ARROW,
    ANE_TOK_PUNCT                       /* one byte: ( ) [ ] { } < > , ; = ? */
} ane_tok;

typedef struct ane_token {
    ane_tok kind;
    char punct;                         /* PUNCT */
    const char *s;                      /* borrowed from the text */
    size_t n;
    int line, column;                   /* 1-based; columns count characters, not bytes */
} ane_token;

typedef struct ane_lexer {
    const char *p, *end, *line_start;
    int line;
    size_t continuation;                /* UTF-8 continuation bytes so far in this line */
    const char *filename;
    ane_error *err;
} ane_lexer;

void ane__lex_init(ane_lexer *lx, const char *text, size_t n, const char *filename,
                   ane_error *err);
ane_status ane__lex_next(ane_lexer *lx, ane_token *out);
/* Steps over blanks, a comma and blanks; false, somewhere: there is none. */
bool ane__lex_comma(ane_lexer *lx);
/* The characters of a STRING token, escapes resolved, in the arena. */
ane_status ane__lex_unescape(const ane_lexer *lx, const ane_token *t, ane_arena *arena,
                             char **out);
/* How a token looks in a message: `"..."`, `end of text`; cut to a readable length. */
char *ane__lex_show(const ane_token *t, char *buf, size_t n);

#endif
