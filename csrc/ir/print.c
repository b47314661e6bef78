/* Graph to MIL text, canonical: one layout, hex floats, inferred types. Parsing the result
 * gives the same program, in either spelling. */
#include "ir.h"
#include "number.h"
#include "ops.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct printer {
    char *text;
    size_t n, cap;
    bool failed;                        /* out of memory: everything after is dropped */
    bool old;                           /* the 1.0 spelling */
} printer;

static void put_n(printer *pr, const char *s, size_t n) {
    size_t want;
    if (pr->failed) return;
    if (!ane_add_size(pr->n, n, &want) || !ane_add_size(want, 1, &want)) {
        pr->failed = true;
        return;
    }
    if (want > pr->cap) {
        size_t cap = pr->cap ? pr->cap : 4096;
        while (cap < want && cap <= SIZE_MAX / 2) cap *= 2;
        char *q = ane_realloc(pr->text, cap);
        if (!q) {
            pr->failed = true;
            return;
        }
        pr->text = q;
        pr->cap = cap;
    }
    memcpy(pr->text + pr->n, s, n);
    pr->n += n;
}

static void put(printer *pr, const char *s) { put_n(pr, s, strlen(s)); }

static void put_int(printer *pr, int64_t v) {
    char buf[24];
    snprintf(buf, sizeof buf, "%" PRId64, v);
    put(pr, buf);
}

static void indent(printer *pr, int levels) {
    for (int i = 0; i < levels; i++) put_n(pr, "    ", 4);
}

/* ---------------------------------------------------------------- types, literals */

static void type(printer *pr, const ane_type *t) {
    switch (t->kind) {
    case ANE_T_TENSOR:
        if (!t->rank && !pr->old) {
            put(pr, ane_dtype_mil_name(t->dtype));
            return;
        }
        put(pr, "tensor<");
        put(pr, ane_dtype_mil_name(t->dtype));
        put(pr, ", [");
        for (int i = 0; i < t->rank; i++) {
            if (i) put(pr, ", ");
            if (t->dims[i] < 0) put(pr, "?");
            else put_int(pr, t->dims[i]);
        }
        put(pr, "]>");
        return;
    case ANE_T_LIST:
        put(pr, "list<");
        type(pr, t->elem);
        put(pr, ", ");
        if (t->length < 0) put(pr, "?");
        else put_int(pr, t->length);
        break;
    case ANE_T_STATE:
        put(pr, "state<");
        type(pr, t->elem);
        break;
    case ANE_T_DICT:
        put(pr, "dict<");
        type(pr, t->elem);
        put(pr, ", ");
        type(pr, t->elem2);
        break;
    case ANE_T_TUPLE:
        put(pr, "tuple<");
        for (int i = 0; i < t->n; i++) {
            if (i) put(pr, ", ");
            type(pr, t->items[i]);
        }
        break;
    }
    put(pr, ">");
}

static void quoted(printer *pr, const char *s) {
    put(pr, "\"");
    for (const char *run = s;; s++) {
        unsigned char c = (unsigned char)*s;
        if (c >= 32 && c != '"' && c != '\\' && c != 127) continue;
        put_n(pr, run, (size_t)(s - run));
        run = s + 1;
        char hex[8];
        if (!c) break;
        switch (c) {
        case '"': put(pr, "\\\""); break;
        case '\\': put(pr, "\\\\"); break;
        case '\n': put(pr, "\\n"); break;
        case '\t': put(pr, "\\t"); break;
        case '\r': put(pr, "\\r"); break;
        default:
            snprintf(hex, sizeof hex, "\\x%02x", c);
            put(pr, hex);
        }
    }
    put(pr, "\"");
}

static void element(printer *pr, const ane_const *c, int64_t i) {
    ane_dtype d = c->type->dtype;
    char buf[ANE_NUMBER_TEXT];
    if (d == ANE_STRING) {
        quoted(pr, ((const char *const *)c->data)[i]);
    } else if (d == ANE_BOOL) {
        put(pr, ane_const_i64(c, i) ? "true" : "false");
    } else if (ane__is_float(d)) {
        uint64_t bits = 0;
        size_t size = ane_dtype_size(d);
        memcpy(&bits, (const char *)c->data + (size_t)i * size, size);  /* little-endian */
        put(pr, ane__number_text(bits, d, buf));
    } else if (d == ANE_U64) {
        snprintf(buf, sizeof buf, "%" PRIu64, (uint64_t)ane_const_i64(c, i));
        put(pr, buf);
    } else {
        put_int(pr, ane_const_i64(c, i));
    }
}

/* One dimension; depth is the rank. */
static void rows(printer *pr, const ane_const *c, int level, int64_t *at) {
    put(pr, "[");
    for (int64_t i = 0; i < c->type->dims[level] && !pr->failed; i++) {
        if (i) put(pr, ", ");
        if (level == c->type->rank - 1) element(pr, c, (*at)++);
        else rows(pr, c, level + 1, at);
    }
    put(pr, "]");
}


static void literal(printer *pr, const ane_const *c) {
    const ane_type *t = c->type;
    if (t->kind == ANE_T_TENSOR) {
        int64_t at = 0;
        if (c->blob_path) {
            put(pr, pr->old ? "BLOBFILE(path = tensor<string, []>("
                            : "BLOBFILE(path = string(");
            quoted(pr, c->blob_path);
            put(pr, pr->old ? "), offset = tensor<uint64, []>(" : "), offset = uint64(");
            char buf[24];
            snprintf(buf, sizeof buf, "%" PRIu64, c->blob_offset);
            put(pr, buf);
            put(pr, "))");
        } else if (!t->rank) {
            element(pr, c, 0);
        } else {
            rows(pr, c, 0, &at);
        }
        return;
    }
    bool tuple = t->kind == ANE_T_TUPLE, dict = t->kind == ANE_T_DICT;
    put(pr, tuple ? "(" : dict ? "{" : "[");
    for (int i = 0; i < c->n; i++) {
        if (i) put(pr, ", ");
        if (dict) put(pr, "{");
        literal(pr, c->items[i]);
        if (!dict) continue;
        put(pr, ", ");
        literal(pr, c->items[++i]);
        put(pr, "}");
    }
    put(pr, tuple ? ")" : dict ? "}" : "]");
}

static void typed(printer *pr, const ane_const *c) {
    type(pr, c->type);
    put(pr, "(");
    literal(pr, c);
    put(pr, ")");
}

/* ---------------------------------------------------------------- statements */

static void attr_begin(printer *pr, bool *any) {
    put(pr, *any ? ", " : "[");
    *any = true;
}

static void attrs(printer *pr, const ane_attr *a, int n, bool *any) {
    for (int i = 0; i < n; i++) {
        attr_begin(pr, any);
        put(pr, a[i].name);
        put(pr, " = ");
        typed(pr, a[i].value);
    }
}

static void value(printer *pr, const ane_value *v) {
    if (v->def && v->def->inlined) typed(pr, v->konst);
    else put(pr, v->name);
}

static void argument(printer *pr, const ane_arg *a) {
    if (a->tuple) put(pr, "(");
    for (int k = 0; k < a->n; k++) {
        if (k) put(pr, ", ");
        value(pr, a->v[k]);
    }
    if (a->tuple) put(pr, ")");
}

/* ios16's constexpr_* give their parameters as attributes. */
static bool as_attribute(const ane_op *op, int i) {
    const ane_arg *a = &op->args[i];
    return op->row->params[i].attribute && a->n == 1 && a->v[0]->def &&
           a->v[0]->def->inlined;
}

static void body(printer *pr, const ane_block *b, int level);

static void params(printer *pr, ane_value *const *v, int n) {
    put(pr, "(");
    for (int i = 0; i < n; i++) {
        if (i) put(pr, ", ");
        type(pr, v[i]->type);
        put(pr, " ");
        put(pr, v[i]->name);
    }
    put(pr, ")");
}

static void statement(printer *pr, const ane_op *op, int level) {
    bool any = false;
    indent(pr, level);
    for (int i = 0; i < op->n_results; i++) {
        if (i) put(pr, ", ");
        type(pr, op->results[i]->type);
        put(pr, " ");
        put(pr, op->results[i]->name);
    }
    if (op->n_results) put(pr, " = ");
    put(pr, op->row->name);
    put(pr, "(");
    for (int i = 0; i < op->row->n_params; i++) {
        const ane_arg *a = &op->args[i];
        if ((!a->n && !a->tuple) || as_attribute(op, i)) continue;
        if (any) put(pr, ", ");
        any = true;
        put(pr, op->row->params[i].name);
        put(pr, " = ");
        argument(pr, a);
    }
    put(pr, ")");
    any = false;
    if (op->name) {
        attr_begin(pr, &any);
        put(pr, pr->old ? "name = tensor<string, []>(" : "name = string(");
        quoted(pr, op->name);
        put(pr, ")");
    }
    if (!strcmp(op->row->name, "const")) {
        attr_begin(pr, &any);
        put(pr, "val = ");
        typed(pr, op->results[0]->konst);
    }
    for (int i = 0; i < op->row->n_params; i++)
        if (as_attribute(op, i)) {
            attr_begin(pr, &any);
            put(pr, op->row->params[i].name);
            put(pr, " = ");
            typed(pr, op->args[i].v[0]->konst);
        }
    attrs(pr, op->attrs, op->n_attrs, &any);
    if (any) put(pr, "]");
    for (int i = 0; i < op->n_blocks; i++) {
        put(pr, "\n");
        indent(pr, level + 1);
        put(pr, "block ");
        params(pr, op->blocks[i]->params, op->blocks[i]->n_params);
        put(pr, " ");
        body(pr, op->blocks[i], level + 1);
    }
    put(pr, ";\n");
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static void body(printer *pr, const ane_block *b, int level) {
    put(pr, "{\n");
    for (const ane_op *op = b->first; op && !pr->failed; op = op->next)
        if (!op->inlined) statement(pr, op, level + 1);
    indent(pr, level);
    put(pr, "} -> (");
    for (int i = 0; i < b->n_outputs; i++) {
        if (i) put(pr, ", ");
        put(pr, b->outputs[i]->name);
    }
    put(pr, ")");
}

static void function(printer *pr, const ane_function *f) {
    bool any = false;
    indent(pr, 1);
    put(pr, "func ");
    put(pr, f->name);
    put(pr, "<");
    put(pr, f->opset_tag);
    put(pr, ">");
    params(pr, f->params, f->n_params);
    if (f->n_attrs) {
        put(pr, " ");
        attrs(pr, f->attrs, f->n_attrs, &any);
        put(pr, "]");
    }
    put(pr, " ");
    body(pr, f->body, 1);
    put(pr, ";\n");
}

ane_status ane_program_print(const ane_program *p, const char *spelling, char **text,
                             size_t *n, ane_error *err) {
    if (!spelling) spelling = p->version;
    if (strncmp(spelling, "1.", 2) || !spelling[2] ||
        spelling[2 + strspn(spelling + 2, "0123456789")])
        return ane_fail(err, ANE_ERR_INVALID, "print: spelling must be \"1.0\" or \"1.3\", got "
                        "\"%.40s\"", spelling);
    printer pr = {.old = !strcmp(spelling, "1.0")};
    bool any = false;
    put(&pr, "program(");
    put(&pr, spelling);
    put(&pr, ")\n");
    if (p->n_attrs) {
        attrs(&pr, p->attrs, p->n_attrs, &any);
        put(&pr, "]\n");
    }
    put(&pr, "{\n");
    for (const ane_function *f = p->functions; f; f = f->next) function(&pr, f);
    put(&pr, "}\n");
    if (pr.failed) {
        ane_free(pr.text);
        return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    }
    pr.text[pr.n] = 0;
    *text = pr.text;
    if (n) *n = pr.n;
    return ANE_OK;
}
