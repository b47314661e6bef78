/* ops.def's rows, parsed once into ane_op_row. A malformed row aborts at first use: the
 * texts are ours, and a test walks all of them. */
#include "ops_fn.h"

#include "../base/sync.h"

#include <stdlib.h>
#include <string.h>

typedef struct raw_row {
    const char *name;
    int opset;
    const char *params, *results;
    ane_infer_fn *infer;
    ane_eval_fn *eval;
    const char *doc;
} raw_row;

static const raw_row raw[] = {
#define OP(name, opset, params, results, infer, eval, doc)                               \
    {name, opset, params, results, ane__infer_##infer, ane__eval_##eval, doc},
#include "ops.def"
#undef OP
};
#define N_ROWS (sizeof raw / sizeof *raw)
#define N_BUCKETS 1024u

static ane_op_row rows[N_ROWS];
static uint16_t bucket[N_BUCKETS];      /* row + 1 of the first with this name; 0: none */
static ane_once once = ANE_ONCE_INIT;

/* `eval` of rows that have no evaluation of their own: const, cond, while_loop, ... */
ane_status ane__eval_none(ane_eval *ev) {
    return ane_eval_fail(ev, ANE_ERR_UNSUPPORTED, "has no evaluation");
}

/* ---------------------------------------------------------------- parameter texts */

static const struct {
    const char *name;
    uint32_t dtypes;
} sets[] = {
    {"F", ANE__SET_F},
    {"FI", ANE__SET_FI},
    {"FIB", ANE__SET_FIB},
    {"A", ANE__SET_A},
    {"AN", ANE__SET_AN},
    {"IX", ANE__SET_IX},
    {"str", ANE__DT(ANE_STRING)},
    {"b1", ANE__DT(ANE_BOOL)},
};

static uint32_t one_set(const char *s, size_t n) {
    char name[32];
    ANE_ASSERT(n < sizeof name);
    memcpy(name, s, n);
    name[n] = 0;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!strcmp(sets[i].name, name)) return sets[i].dtypes;
    ane_dtype d;
    if (ane_dtype_parse(name, &d, NULL)) ane__abort(__FILE__, __LINE__, name);
    return ANE__DT(d);
}

/* A dtype set: names joined by '|'. */
static uint32_t dtype_set(const char *s, size_t n) {
    uint32_t all = 0;
    while (n) {
        size_t k = 0;
        while (k < n && s[k] != '|') k++;
        all |= one_set(s, k);
        if (k < n) k++;
        s += k;
        n -= k;
    }
    return all;
}

typedef struct var_table {
    struct {
        const char *name;
        size_t n;
        uint32_t dtypes;
    } v[8];
    int n;
} var_table;

static int var_find(const var_table *t, const char *s, size_t n) {
    for (int i = 0; i < t->n; i++)
        if (t->v[i].n == n && !memcmp(t->v[i].name, s, n)) return i;
    return -1;
}

/* The table lives as long as the process. Plain calloc: the counter that makes allocations
 * fail in tests must not hit a table that is built once. */
static void *take(size_t bytes) {
    void *p = calloc(1, bytes);
    ANE_ASSERT(p);
    return p;
}

static char *copy_text(const char *s, size_t n) { return memcpy(take(n + 1), s, n); }

/* dtype of a default literal: the set's own when there is one, else int32 or fp32 by how
 * the literal is written. */
static ane_dtype default_dtype(uint32_t set, const char *text) {
    if (!(set & (set - 1)))
        for (int d = 0; d < ANE_DTYPE_COUNT; d++)
            if (set == ANE__DT(d)) return (ane_dtype)d;
    bool real = strpbrk(text, ".einf") != NULL;
    if (!real && (set & ANE__DT(ANE_I32))) return ANE_I32;
    ANE_ASSERT(set & ANE__DT(ANE_F32));
    return ANE_F32;
}

static const ane_const *default_const(const ane_op_param *p) {
    const char *text = p->default_text;
    ane_type *t = take(sizeof *t);
    ane_const *c = take(sizeof *c);
    t->kind = ANE_T_TENSOR;
    if (p->rank1) {
        t->rank = 1;
        t->dims[0] = 1;
    }
    c->type = t;
    if (*text == '"') {
        const char **s = take(sizeof *s);
        ANE_ASSERT(p->dtypes == ANE__DT(ANE_STRING));
        *s = copy_text(text + 1, strlen(text) - 2);
        t->dtype = ANE_STRING;
        c->data = s;
        c->bytes = sizeof *s;
        return c;
    }
    void *data = take(8);
    c->data = data;
    if (!strcmp(text, "true") || !strcmp(text, "false")) {
        t->dtype = ANE_BOOL;
        *(uint8_t *)data = *text == 't';
        c->bytes = 1;
        return c;
    }
    t->dtype = default_dtype(p->dtypes, text);
    char *end;
    if (t->dtype == ANE_F32) {
        *(float *)data = strtof(text, &end);
        c->bytes = 4;
    } else if (t->dtype == ANE_I32 || t->dtype == ANE_U32) {
        *(int32_t *)data = (int32_t)strtol(text, &end, 10);
        c->bytes = 4;
    } else {
        ANE_ASSERT(t->dtype == ANE_I64);
        *(int64_t *)data = strtoll(text, &end, 10);
        c->bytes = 8;
    }
    ANE_ASSERT(!*end);
    return c;
}

/* One "name:c type suffix". */
static void parse_param(const char *s, size_t n, var_table *vars,
                        ane_op_param *p) {
    p->var = -1;
    if (*s == '@') {
        p->attribute = true;
        s++, n--;
    }
    const char *colon = memchr(s, ':', n);
    ANE_ASSERT(colon);
    p->name = copy_text(s, (size_t)(colon - s));
    n -= (size_t)(colon + 1 - s);
    s = colon + 1;
    if (n > 2 && s[0] == 'c' && s[1] == ' ') {
        p->is_const = true;
        s += 2, n -= 2;
    }
    const char *eq = memchr(s, '=', n);
    if (eq) {
        p->default_text = copy_text(eq + 1, n - (size_t)(eq + 1 - s));
        p->optional = true;
        n = (size_t)(eq - s);
    }
    if (n && s[n - 1] == '?') {
        p->optional = true;
        n--;
    }
    if (n > 2 && !memcmp(s + n - 2, "[]", 2)) {
        p->rank1 = true;
        n -= 2;
    } else if (n > 3 && !memcmp(s + n - 3, "...", 3)) {
        p->tuple = true;
        n -= 3;
    }
    if (n == 3 && !memcmp(s, "any", 3)) p->kind = ANE_P_ANY;
    else if (n == 4 && !memcmp(s, "list", 4)) p->kind = ANE_P_LIST;
    else if (n == 5 && !memcmp(s, "state", 5)) p->kind = ANE_P_STATE;
    else if ((p->var = var_find(vars, s, n)) >= 0) p->dtypes = vars->v[p->var].dtypes;
    else {
        const char *lt = memchr(s, '<', n);
        if (!lt) p->dtypes = dtype_set(s, n);
        else {
            ANE_ASSERT(s[n - 1] == '>' && vars->n < 8);
            p->var = vars->n++;
            vars->v[p->var].name = s;
            vars->v[p->var].n = (size_t)(lt - s);
            p->dtypes = dtype_set(lt + 1, n - 2 - (size_t)(lt - s));
            vars->v[p->var].dtypes = p->dtypes;
        }
    }
    if (p->default_text) p->default_value = default_const(p);
}

/* Calls fn on each comma separated piece; returns how many. */
static int each_piece(const char *s, var_table *vars, ane_op_param *out) {
    int n = 0;
    while (*s) {
        while (*s == ' ') s++;
        size_t k = 0, depth = 0;
        for (; s[k] && (s[k] != ',' || depth); k++) depth += s[k] == '"' ? 1 - 2 * depth : 0;
        size_t end = k;
        while (end && s[end - 1] == ' ') end--;
        if (out) parse_param(s, end, vars, &out[n]);
        n++;
        s += k;
        if (*s) s++;
    }
    return n;
}

static int count_results(const char *s) {
    if (!strcmp(s, "-")) return 0;
    if (strstr(s, "...")) return -1;
    return each_piece(s, NULL, NULL);
}

static uint32_t hash(const char *s) {
    uint32_t h = 2166136261u;
    while (*s) h = (h ^ (unsigned char)*s++) * 16777619u;
    return h;
}

static void build(void) {
    ANE_ASSERT(N_ROWS < N_BUCKETS / 2);
    for (size_t i = 0; i < N_ROWS; i++) {
        ane_op_row *r = &rows[i];
        var_table vars = {.n = 0};
        r->name = raw[i].name;
        r->opset = raw[i].opset;
        r->params_text = raw[i].params;
        r->results_text = raw[i].results;
        r->doc = raw[i].doc;
        r->infer = raw[i].infer;
        r->eval = raw[i].eval == ane__eval_none ? NULL : raw[i].eval;
        r->index = (int)i;
        r->n_params = each_piece(r->params_text, NULL, NULL);
        ane_op_param *p = take(sizeof *p * (size_t)(r->n_params + 1));
        each_piece(r->params_text, &vars, p);
        r->params = p;
        r->n_results = count_results(r->results_text);
        uint32_t h = hash(r->name) % N_BUCKETS;
        while (bucket[h] && strcmp(rows[bucket[h] - 1].name, r->name))
            h = (h + 1) % N_BUCKETS;
        /* Rows of one name stand together, oldest first. */
        if (!bucket[h]) bucket[h] = (uint16_t)(i + 1);
        else ANE_ASSERT(!strcmp(rows[i - 1].name, r->name) && rows[i - 1].opset < r->opset);
    }
}

static void ensure(void) { pthread_once(&once, build); }

/* ---------------------------------------------------------------- lookup */

size_t ane_op_row_count(void) { return N_ROWS; }

const ane_op_row *ane_op_row_at(size_t i) {
    ensure();
    return i < N_ROWS ? &rows[i] : NULL;
}

const ane_op_row *ane_op_row_find(const char *name, int opset, const ane_op_row **later) {
    ensure();
    if (later) *later = NULL;
    uint32_t h = hash(name) % N_BUCKETS;
    while (bucket[h] && strcmp(rows[bucket[h] - 1].name, name)) h = (h + 1) % N_BUCKETS;
    if (!bucket[h]) return NULL;
    const ane_op_row *best = NULL;
    for (size_t i = bucket[h] - 1u; i < N_ROWS && !strcmp(rows[i].name, name); i++) {
        if (rows[i].opset > opset) {
            if (later) *later = &rows[i];
            break;
        }
        best = &rows[i];
    }
    return best;
}

int ane_op_param_index(const ane_op_row *row, const char *name) {
    for (int i = 0; i < row->n_params; i++)
        if (*row->params[i].name == *name && !strcmp(row->params[i].name, name)) return i;
    return -1;
}
