#include "lint.h"

#include "../ir/target.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALL ANE_CHIP_ALL
#define M1 ANE_CHIP_M1
#define M2 ANE_CHIP_M2
#define M3 ANE_CHIP_M3
#define INMEMORY ANE_ROUTE_INMEMORY
#define COREML ANE_ROUTE_COREML
#define INFO ANE_INFO
#define WARNING ANE_WARNING
#define ERROR ANE_ERROR

/* Rows of target.def as constants that the static table below can hold. */
enum {
#define CLIFF(id, value, chips, modelled, what, evidence)                                  \
    chips_##id = chips, modelled_##id = modelled,
#include "../ir/target.def"
};
#define LIMIT(id, value, what, evidence)                                                   \
    static const char limit_##id[] = what, limit_evidence_##id[] = evidence;
#define CLIFF(id, value, chips, modelled, what, evidence)                                  \
    static const char cliff_##id[] = what, cliff_evidence_##id[] = evidence;
#define OPERATION(name, verdict, evidence) static const char op_evidence_##name[] = evidence;
#include "../ir/target.def"

static const ane_lint_rule rules[] = {
#define RULE(id, name, severity, chips, routes, fixable, message, evidence, rewrite)       \
    {#id, #name, severity, chips, routes, message, evidence, rewrite, "", fixable},
#define LIMIT_RULE(id, name, severity, limit, chips, routes, fixable, rewrite)             \
    {#id, #name, severity, chips, routes, limit_##limit, limit_evidence_##limit, rewrite,  \
     "", fixable},
#define CLIFF_RULE(id, name, severity, cliff, routes, fixable, rewrite)                    \
    {#id, #name, severity, chips_##cliff, routes, cliff_##cliff, cliff_evidence_##cliff,   \
     rewrite, modelled_##cliff ? "modelled" : "not modelled", fixable},
#define OPERATION_RULE(id, name, severity, operation, routes, fixable, message, rewrite)   \
    {#id, #name, severity, ALL, routes, message, op_evidence_##operation, rewrite, "",     \
     fixable},
#include "rules.def"
};

size_t ane_lint_rule_count(void) { return sizeof rules / sizeof *rules; }
const ane_lint_rule *ane_lint_rule_at(size_t i) {
    return i < ane_lint_rule_count() ? &rules[i] : NULL;
}

struct ane_findings {
    ane_arena *arena;
    ane_finding *all;
    size_t n, cap;
    bool failed;                /* out of memory */
};

typedef struct walk {
    ane_findings *found;
    const ane_program *program;
    const ane_function *function;
    unsigned chips, routes;
    bool said[ANE_LINT_COUNT];          /* once a function is enough */
    bool *untried;                      /* the same, by row of the op table */
} walk;

/* ---------------------------------------------------------------- reporting */

static void report(walk *w, ane_lint_id id, ane_severity severity, const ane_op *op,
                   const char *what, const char *detail) {
    const ane_lint_rule *rule = &rules[id];
    ane_findings *f = w->found;
    if (!(rule->chips & w->chips) || !(rule->routes & w->routes) || f->failed) return;
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 32;
        ane_finding *all = ane_realloc(f->all, cap * sizeof *all);
        if (!all) {
            f->failed = true;
            return;
        }
        f->all = all;
        f->cap = cap;
    }
    char *kept_what = ane_arena_strndup(f->arena, what, strlen(what));
    char *kept = ane_arena_strndup(f->arena, detail, strlen(detail));
    const char *name = w->function ? w->function->name : "";
    char *function = ane_arena_strndup(f->arena, name, strlen(name));
    if (!kept || !kept_what || !function) {
        f->failed = true;
        return;
    }
    f->all[f->n++] = (ane_finding){.rule = rule,
                                   .severity = severity,
                                   .line = op            ? op->line
                                           : w->function ? w->function->line
                                                         : w->program->line,
                                   .column = op            ? op->column
                                             : w->function ? w->function->column
                                                           : w->program->column,
                                   .op = op ? op->id : 0,
                                   .function = function,
                                   .what = kept_what,
                                   .detail = kept};
}

static void on_op(walk *w, ane_lint_id id, const ane_op *op, const char *fmt, ...)
    ANE_PRINTF(4, 5);

static void on_op(walk *w, ane_lint_id id, const ane_op *op, const char *fmt, ...) {
    char what[200], detail[400];
    va_list ap;
    snprintf(what, sizeof what, "%s%s%.120s%s", op->row->name, op->n_results ? " '" : "",
             op->n_results ? op->results[0]->name : "", op->n_results ? "'" : "");
    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap);
    va_end(ap);
    report(w, id, rules[id].severity, op, what, detail);
}

static void on_port(walk *w, ane_lint_id id, ane_severity severity, bool input,
                    const ane_value *v, const char *detail) {
    char what[200];
    snprintf(what, sizeof what, "%s '%.120s'", input ? "input" : "output", v->name);
    report(w, id, severity, v->def, what, detail);
}

/* ---------------------------------------------------------------- ports */

static size_t port_bytes(const ane_type *t) {
    size_t n = 0;
    return t->kind == ANE_T_TENSOR && ane_type_static(t) && ane_type_bytes(t, &n) ? n : 0;
}

static void check_ports(walk *w, bool input, ane_value *const *v, int n) {
    char text[256];
    int tensors = 0;
    const ane_value *largest = NULL, *before = NULL;
    for (int i = 0; i < n; i++) {
        const ane_type *t = v[i]->type;
        if (t->kind == ANE_T_STATE) {
            on_port(w, ANE_LINT_ANE32, ANE_INFO, input, v[i], "a state");
            continue;
        }
        if (t->kind != ANE_T_TENSOR) continue;
        tensors++;
        if (before && strcmp(before->name, v[i]->name) > 0) {
            snprintf(text, sizeof text, "'%.80s' stands behind '%.80s' in the text", v[i]->name,
                     before->name);
            on_port(w, ANE_LINT_ANE04, ANE_WARNING, input, v[i], text);
        }
        before = v[i];
        size_t bytes = port_bytes(t);
        if (bytes && bytes < ANE_LIMIT_SMALL_PORT) {
            snprintf(text, sizeof text, "%zu bytes", bytes);
            on_port(w, ANE_LINT_ANE05, bytes < ANE_LIMIT_TINY_PORT ? ANE_ERROR : ANE_WARNING, input, v[i],
                    text);
        }
        if (bytes && (!largest || bytes > port_bytes(largest->type))) largest = v[i];
        bool dtype_ok = t->dtype == ANE_F16 || t->dtype == ANE_F32 || t->dtype == ANE_BOOL;
        if (!dtype_ok && (input || t->dtype == ANE_I8))
            on_port(w, ANE_LINT_ANE23, ANE_WARNING, input, v[i], ane_dtype_mil_name(t->dtype));
        if (t->rank != ANE_LIMIT_PORT_RANK || t->dims[0] != 1) {
            char type[ANE_TYPE_TEXT];
            on_port(w, ANE_LINT_ANE28, ANE_WARNING, input, v[i],
                    ane_type_text(t, type, sizeof type));
        }
        if (!ane_type_static(t))
            on_port(w, ANE_LINT_ANE32, ANE_INFO, input, v[i], "a flexible shape");
    }
    for (int i = 0; largest && i < n; i++) {
        size_t bytes = port_bytes(v[i]->type), top = port_bytes(largest->type);
        if (!bytes || bytes == top) continue;
        snprintf(text, sizeof text, "%zu bytes, '%.80s' has %zu", bytes, largest->name, top);
        on_port(w, ANE_LINT_ANE03, ANE_WARNING, input, v[i], text);
    }
    if (input && tensors > 1) {
        snprintf(text, sizeof text, "%d inputs", tensors);
        on_port(w, ANE_LINT_ANE02, ANE_WARNING, true, v[0], text);
    }
}

/* ---------------------------------------------------------------- operations */

static bool is_one_of(const char *name, const char *list) {
    size_t n = strlen(name);
    for (const char *p = list; *p;) {
        size_t m = strcspn(p, " ");
        if (m == n && !strncmp(p, name, n)) return true;
        p += m;
        p += strspn(p, " ");
    }
    return false;
}

/* A matrix product, or one of a batch that is 1 all over, with a constant. */
static void check_product(walk *w, const ane_op *op) {
    bool linear = !strcmp(op->row->name, "linear");
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, linear ? "weight" : "y");
    const ane_type *t;
    if (!x || !y || x->type->kind != ANE_T_TENSOR || y->type->kind != ANE_T_TENSOR) return;
    bool of_x = ane_value_is_constant(x);
    if (of_x == ane_value_is_constant(y)) return;
    t = of_x ? x->type : y->type;
    for (int i = 0; i + 2 < t->rank; i++)
        if (t->dims[i] != 1) return;
    if (t->rank >= 2)
        on_op(w, ANE_LINT_ANE46, op, "'%.80s' is constant", of_x ? x->name : y->name);
}

static const char arithmetic[] =
    "add sub mul real_div floor_div mod maximum minimum pow abs sign square exp2 threshold "
    "matmul linear reduce_sum reduce_mean reduce_max reduce_min reduce_prod "
    "reduce_sum_square reduce_l1_norm reduce_l2_norm cumsum";

static bool integer(ane_dtype d) {
    return d == ANE_I8 || d == ANE_I16 || d == ANE_I32 || d == ANE_I64 || d == ANE_U8 ||
           d == ANE_U16 || d == ANE_U32 || d == ANE_U64;
}

static bool nibble(const ane_type *t) {
    return t->kind == ANE_T_TENSOR && (t->dtype == ANE_I4 || t->dtype == ANE_U4);
}

static void check_dims(walk *w, const ane_op *op) {
    for (int i = 0; i < op->n_results; i++) {
        const ane_type *t = op->results[i]->type;
        for (int d = 0; t->kind == ANE_T_TENSOR && d < t->rank; d++)
            if (t->dims[d] > ANE_LIMIT_LARGE_DIM) {
                on_op(w, ANE_LINT_ANE19, op, "dimension %d is %lld", d, (long long)t->dims[d]);
                return;
            }
    }
}

static void check_conv(walk *w, const ane_op *op) {
    const ane_value *weight = ane_op_in(op, "weight"), *x = ane_op_in(op, "x");
    if (ane_op_in(op, "bias")) on_op(w, ANE_LINT_ANE14, op, "%s", "");
    if (weight && !ane_value_is_constant(weight))
        on_op(w, ANE_LINT_ANE16, op, "weight '%.80s'", weight->name);
    int64_t groups = ane_op_i64(op, "groups", 1);
    if (groups != 1) on_op(w, ANE_LINT_ANE17, op, "groups %lld", (long long)groups);
    if (!x || x->type->kind != ANE_T_TENSOR || x->type->rank < 2) return;
    int64_t in = x->type->dims[1];
    if (in >= ANE_LIMIT_WIDE_INPUT) on_op(w, ANE_LINT_ANE18, op, "%lld input channels", (long long)in);
    const ane_type *out = op->results[0]->type;
    if (in != ANE_LIMIT_M3_CONV_CHANNELS ||
        (out->rank > 1 && out->dims[1] != ANE_LIMIT_M3_CONV_CHANNELS))
        on_op(w, ANE_LINT_ANE20, op, "%lld input channels", (long long)in);
}

static void check_epsilon(walk *w, const ane_op *op) {
    const ane_value *x = ane_op_in(op, "x");
    double e = ane_op_f64(op, "epsilon", 1);
    if (x && x->type->kind == ANE_T_TENSOR && x->type->dtype == ANE_F16 && e > 0 &&
        e < ane_cliff_at(ANE_CLIFF_FP16_NORMAL)->value)
        on_op(w, ANE_LINT_ANE36, op, "epsilon %g", e);
}

static void once(walk *w, ane_lint_id id, const ane_op *op) {
    if (!w->said[id]) on_op(w, id, op, "%s", "");
    w->said[id] = true;
}

/* Where the engine's arithmetic differs, or is not known. */
static void check_values(walk *w, const ane_op *op) {
    static const char functions[] =
        "acos asin atan atanh cos cosh elu erf exp exp2 gelu inverse log pow rsqrt "
        "scaled_tanh sigmoid silu sin sinh softmax softplus softsign sqrt tan tanh";
    static const char sums[] =
        "avg_pool batch_norm conv conv_transpose cumsum einsum gru instance_norm l2_norm "
        "layer_norm linear local_response_norm lstm matmul reduce_l1_norm reduce_l2_norm "
        "reduce_log_sum reduce_log_sum_exp reduce_mean reduce_prod reduce_sum "
        "reduce_sum_square rnn scaled_dot_product_attention softmax";
    const char *name = op->row->name;
    const ane_type *out = op->n_results ? op->results[0]->type : NULL;
    ane_edges e;
    if (!out || out->kind != ANE_T_TENSOR) return;
    bool edges = ane_target_edges(w->chips, op, &e);
    if (!strcmp(name, "round")) {
        on_op(w, ANE_LINT_ANE38, op, "%s", "");
        on_op(w, ANE_LINT_ANE39, op, "%s", "");
    }
    if (!strcmp(name, "reduce_log_sum_exp")) on_op(w, ANE_LINT_ANE41, op, "%s", "");
    else if (edges && integer(out->dtype)) on_op(w, ANE_LINT_ANE40, op, "%s", "");
    else if (edges && e.above == ane_cliff_at(ANE_CLIFF_PRODUCT_OVERFLOW)->value)
        once(w, ANE_LINT_ANE37, op);
    if (out->dtype == ANE_F32 && strcmp(name, "cast")) once(w, ANE_LINT_ANE42, op);
    if (is_one_of(name, sums)) once(w, ANE_LINT_ANE43, op);
    if (is_one_of(name, functions)) once(w, ANE_LINT_ANE44, op);
}

/* An argument given, as opposed to one that the table's default stands for. */
static bool given(const ane_op *op, const char *name) { return ane_op_in(op, name) != NULL; }

static void check_op(walk *w, const ane_op *op) {
    const char *name = op->row->name;
    if (!strcmp(name, "const")) {
        const ane_const *c = op->results[0]->konst;
        if (c && c->blob_path && c->blob_offset % 64)
            on_op(w, ANE_LINT_ANE09, op, "offset %llu of '%.120s'",
                  (unsigned long long)c->blob_offset, c->blob_path);
        return;
    }
    check_dims(w, op);
    for (int i = 0; i < op->row->n_params; i++)
        for (int k = 0; k < op->args[i].n; k++) {
            const ane_value *v = op->args[i].v[k];
            if (v->def && v->def->inlined && !op->row->params[i].attribute &&
                op->row->params[i].is_const) {
                on_op(w, ANE_LINT_ANE13, op, "%s is written in place",
                      op->row->params[i].name);
                i = op->row->n_params - 1;      /* one finding an op */
                break;
            }
        }
    if (!strcmp(name, "concat")) {
        const ane_value *axis = ane_op_in(op, "axis"), *inter = ane_op_in(op, "interleave");
        bool named = axis && axis->def && !axis->def->inlined && inter && inter->def &&
                     !inter->def->inlined;
        if (!named) on_op(w, ANE_LINT_ANE01, op, "axis and interleave are not both named");
    } else if (!strcmp(name, "conv")) {
        check_conv(w, op);
    } else if (!strcmp(name, "scaled_dot_product_attention")) {
        if (given(op, "attn_mask")) on_op(w, ANE_LINT_ANE07, op, "%s", "");
    } else if (!strcmp(name, "gelu")) {
        on_op(w, ANE_LINT_ANE12, op, "mode %s", ane_op_str(op, "mode", "EXACT"));
    } else if (is_one_of(name, "rsqrt log inverse")) {
        if (!given(op, "epsilon")) on_op(w, ANE_LINT_ANE21, op, "%s", "");
        else check_epsilon(w, op);
    } else if (is_one_of(name, "constexpr_blockwise_shift_scale constexpr_lut_to_sparse "
                               "constexpr_sparse_blockwise_shift_scale") ||
               (!strcmp(name, "constexpr_lut_to_dense") && op->row->opset >= 18)) {
        on_op(w, ANE_LINT_ANE24, op, "%s", "");
    } else if (!strcmp(name, "tile")) {
        on_op(w, ANE_LINT_ANE25, op, "%s", "");
    } else if (is_one_of(name, "matmul linear")) {
        check_product(w, op);
    } else if (!strcmp(name, "layer_norm")) {
        on_op(w, ANE_LINT_ANE27, op, "%s", "");
        check_epsilon(w, op);
    } else if (is_one_of(name, "batch_norm instance_norm l2_norm")) {
        check_epsilon(w, op);
    }
    if (ane_op_cuts_last_axis(op)) on_op(w, ANE_LINT_ANE35, op, "%s", "");
    check_values(w, op);
    if (!strcmp(name, "mul")) {
        const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
        const ane_type *a = x->type, *b = y->type, *r = op->results[0]->type;
        if (r->rank == 4 && a->rank == 4 && b->rank == 4 && a->dims[0] != b->dims[0])
            on_op(w, ANE_LINT_ANE26, op, "%lld against %lld", (long long)a->dims[0],
                  (long long)b->dims[0]);
    }
    const char *evidence;
    ane_verdict verdict = ane_target_verdict(name, &evidence);
    if (verdict == ANE_OP_REFUSED && strcmp(name, "gelu"))
        on_op(w, ANE_LINT_ANE33, op, "%s", evidence);
    if (verdict == ANE_OP_UNTRIED && !w->untried[op->row->index]) {
        w->untried[op->row->index] = true;
        on_op(w, ANE_LINT_ANE45, op, "%s", "");
    }
    const ane_value *x = ane_op_in(op, "x");
    ane_dtype from = x && x->type->kind == ANE_T_TENSOR ? x->type->dtype : ANE_F16;
    const ane_type *out = op->n_results ? op->results[0]->type : NULL;
    if (is_one_of(name, arithmetic) && integer(from))
        on_op(w, ANE_LINT_ANE22, op, "on %s", ane_dtype_mil_name(from));
    else if (!strcmp(name, "cast") && out && (from == ANE_I32 || out->dtype == ANE_I32))
        on_op(w, ANE_LINT_ANE22, op, "cast from %s to %s", ane_dtype_mil_name(from),
              ane_dtype_mil_name(out->dtype));
    for (int i = 0; i < op->row->n_params; i++)
        for (int k = 0; k < op->args[i].n; k++)
            if (nibble(op->args[i].v[k]->type)) {
                on_op(w, ANE_LINT_ANE22, op, "%s is %s", op->row->params[i].name,
                      ane_dtype_mil_name(op->args[i].v[k]->type->dtype));
                return;
            }
    if (op->n_blocks) on_op(w, ANE_LINT_ANE34, op, "%s", "");
}

/* Blocks nest at most ANE_MAX_BLOCK_DEPTH deep, so this recursion is bounded. */
static size_t check_block(walk *w, const ane_block *b) {
    size_t bytes = 0;
    for (const ane_op *op = b->first; op && !w->found->failed; op = op->next) {
        check_op(w, op);
        for (int i = 0; i < op->n_results; i++) bytes += port_bytes(op->results[i]->type);
        for (int i = 0; i < op->n_blocks; i++) bytes += check_block(w, op->blocks[i]);
    }
    return bytes;
}

/* ---------------------------------------------------------------- whole programs */

/* Records per weight file: more than one distinct offset of one path. */
static void check_records(walk *w, const ane_block *b) {
    const ane_const *first = NULL;
    for (const ane_op *op = b->first; op; op = op->next) {
        const ane_const *c = op->n_results ? op->results[0]->konst : NULL;
        if (strcmp(op->row->name, "const") || !c || !c->blob_path) continue;
        if (!first) first = c;
        else if (!strcmp(first->blob_path, c->blob_path) &&
                 first->blob_offset != c->blob_offset) {
            on_op(w, ANE_LINT_ANE10, op, "'%.120s'", c->blob_path);
            return;
        }
    }
}

/* The first constant of a weight file. */
static void check_baked(walk *w, const ane_block *b) {
    for (const ane_op *op = b->first; op; op = op->next) {
        const ane_const *c = op->n_results ? op->results[0]->konst : NULL;
        if (strcmp(op->row->name, "const") || !c || !c->blob_path) continue;
        on_op(w, ANE_LINT_ANE08, op, "'%.120s'", c->blob_path);
        return;
    }
}

/* Results are few: a scan of all pairs that stops at a bound. */
static void check_results(walk *w, const ane_block *b) {
    for (int i = 1; i < b->n_outputs && i < ANE_LIMIT_PORTS; i++)
        for (int k = 0; k < i; k++)
            if (b->outputs[k] == b->outputs[i]) {
                on_port(w, ANE_LINT_ANE15, ANE_ERROR, false, b->outputs[i], "");
                break;
            }
}

static void check_reading(walk *w) {
    const ane_warning *all;
    size_t n = ane_program_warnings(w->program, &all);
    for (size_t i = 0; i < n && !w->found->failed; i++) {
        size_t before = w->found->n;
        report(w, ANE_LINT_ANE47, ANE_WARNING, NULL, "text", all[i].message);
        if (w->found->n == before) continue;
        w->found->all[before].line = all[i].line;
        w->found->all[before].column = all[i].column;
    }
}

static bool has_version(const ane_program *p) {
    for (int i = 0; i < p->n_attrs; i++) {
        const ane_const *c = p->attrs[i].value;
        if (strcmp(p->attrs[i].name, "buildInfo") || c->type->kind != ANE_T_DICT) continue;
        for (int k = 0; k + 1 < c->n; k += 2) {
            const ane_const *key = c->items[k];
            if (key->type->kind == ANE_T_TENSOR && key->type->dtype == ANE_STRING &&
                !strcmp(((const char *const *)key->data)[0], "coremlc-version"))
                return true;
        }
    }
    return false;
}

ane_status ane_lint(const ane_program *p, const char *target, const char *route,
                    ane_findings **out, ane_error *err) {
    walk w = {.program = p, .routes = ANE_ROUTE_INMEMORY};
    ane_status st = ane_target_parse(target, &w.chips, "lint", err);
    if (st) return st;
    if (route && !strcmp(route, "coreml")) w.routes = ANE_ROUTE_COREML;
    else if (route && strcmp(route, "inmemory"))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[lint] unknown route '%.40s'; expected inmemory or coreml", route);
    ane_findings *f = ane_calloc(1, sizeof *f);
    if (f) f->arena = ane_arena_create();
    if (f && f->arena) w.untried = ane_arena_alloc(f->arena, ane_op_row_count());
    if (!w.untried) {
        ane_findings_destroy(f);
        return ane_fail(err, ANE_ERR_NOMEM, "[lint] out of memory");
    }
    w.found = f;
    if (!has_version(p)) report(&w, ANE_LINT_ANE29, ANE_INFO, NULL, "program", "");
    check_reading(&w);
    int functions = 0;
    for (const ane_function *fn = p->functions; fn; fn = fn->next) functions++;
    if (functions > ANE_LIMIT_COMPILES) {
        char text[64];
        snprintf(text, sizeof text, "%d functions, each compiled alone", functions);
        report(&w, ANE_LINT_ANE06, ANE_INFO, NULL, "program", text);
    }
    if (functions > 1)
        report(&w, ANE_LINT_ANE32, ANE_INFO, NULL, "program", "several functions");
    for (const ane_function *fn = p->functions; fn; fn = fn->next) {
        char text[128];
        w.function = fn;
        memset(w.said, 0, sizeof w.said);
        memset(w.untried, 0, ane_op_row_count());
        if (strcmp(p->version, "1.0") || fn->opset >= 18) {
            snprintf(text, sizeof text, "program(%.20s), %.20s", p->version, fn->opset_tag);
            report(&w, ANE_LINT_ANE30, ANE_INFO, NULL, "function", text);
        }
        for (int i = 0; i < fn->n_attrs; i++)
            if (!strcmp(fn->attrs[i].name, "FlexibleShapeInformation"))
                report(&w, ANE_LINT_ANE32, ANE_INFO, NULL, "function",
                       "FlexibleShapeInformation");
        check_ports(&w, true, fn->params, fn->n_params);
        check_ports(&w, false, fn->body->outputs, fn->body->n_outputs);
        check_records(&w, fn->body);
        check_baked(&w, fn->body);
        check_results(&w, fn->body);
        size_t bytes = check_block(&w, fn->body);
        for (int i = 0; i < fn->n_params; i++) bytes += port_bytes(fn->params[i]->type);
        if (bytes > ANE_LIMIT_WORKING_SET) {
            snprintf(text, sizeof text, "%.1f MB in values and constants", (double)bytes / 1e6);
            report(&w, ANE_LINT_ANE31, ANE_INFO, NULL, "function", text);
        }
    }
    if (f->failed) {
        ane_findings_destroy(f);
        return ane_fail(err, ANE_ERR_NOMEM, "[lint] out of memory");
    }
    *out = f;
    return ANE_OK;
}

size_t ane_findings_count(const ane_findings *f) { return f->n; }
const ane_finding *ane_findings_at(const ane_findings *f, size_t i) {
    return i < f->n ? &f->all[i] : NULL;
}
void ane_findings_destroy(ane_findings *f) {
    if (!f) return;
    ane_arena_destroy(f->arena);
    ane_free(f->all);
    ane_free(f);
}
