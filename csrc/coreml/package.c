/* A serialized Model to the program graph: one function per message of MIL.proto. The
 * reader's recursion is bounded by ANE_WIRE_DEPTH, its memory by a fixed multiple of the
 * bytes it is given. */
#include "reader.h"

#include "../ir/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names in scope. A nested block may reuse a name of its surroundings or of a sibling;
 * leaving a block undoes what it entered. */
typedef struct scope_entry {
    const char *name;
    ane_value *value;
    uint32_t hash;
    int32_t next;               /* in the bucket */
} scope_entry;

static uint32_t hash(const char *s) {
    uint32_t h = 2166136261u;
    for (; *s; s++) h = (h ^ (uint8_t)*s) * 16777619u;
    return h;
}

static int32_t scope_find(const ane_coreml_reader *r, const char *name) {
    if (!r->n_buckets) return -1;
    uint32_t h = hash(name);
    for (int32_t i = r->buckets[h & (r->n_buckets - 1)]; i >= 0; i = r->entries[i].next)
        if (r->entries[i].hash == h && !strcmp(r->entries[i].name, name)) return i;
    return -1;
}

static bool scope_put(ane_coreml_reader *r, const char *name, ane_value *v) {
    if (r->n_entries == r->cap_entries) {
        int32_t cap = r->cap_entries ? 2 * r->cap_entries : 256;
        scope_entry *e = ane_realloc(r->entries, (size_t)cap * sizeof *e);
        if (!e) return false;
        r->entries = e;
        r->cap_entries = cap;
        uint32_t n = (uint32_t)cap;
        int32_t *b = ane_realloc(r->buckets, n * sizeof *b);
        if (!b) return false;
        r->buckets = b;
        r->n_buckets = n;
        /* Later entries first in their bucket, so that inner names hide outer ones. */
        for (uint32_t i = 0; i < n; i++) b[i] = -1;
        for (int32_t i = 0; i < r->n_entries; i++) {
            e[i].next = b[e[i].hash & (n - 1)];
            b[e[i].hash & (n - 1)] = i;
        }
    }
    uint32_t h = hash(name);
    int32_t *head = &r->buckets[h & (r->n_buckets - 1)];
    r->entries[r->n_entries] = (scope_entry){.name = name, .value = v, .hash = h,
                                             .next = *head};
    *head = r->n_entries++;
    return true;
}

static void scope_leave(ane_coreml_reader *r, int32_t mark) {
    while (r->n_entries > mark) {
        scope_entry *e = &r->entries[--r->n_entries];
        r->buckets[e->hash & (r->n_buckets - 1)] = e->next;
    }
}

/* ---------------------------------------------------------------- names */

/* In a package a name belongs to its block, which may hide one of a block around it; in the
 * graph it is the function's alone. The name of a new value of block b in the graph: its own
 * where that is free, else one made from it, for whoever is the inner one: a name of the
 * function's body may be that of an output. A name that b itself has is left for the graph to
 * refuse. NULL: out of memory. */
static const char *own_name(ane_coreml_reader *r, const ane_block *b, const char *name,
                            ane_wire *w) {
    ane_function *f = r->function;
    size_t n = strlen(name);
    ane_value *taken = ane_function_value(f, name, n);
    if (!taken || scope_find(r, name) >= r->mark) return name;
    char *made = ane_arena_alloc(r->scratch, n + 12);
    if (!made) {
        ane__coreml_nomem(w);
        return NULL;
    }
    do {
        snprintf(made, n + 12, "%s_%u", name, (unsigned)++r->renamed);
    } while (ane_function_value(f, made, strlen(made)));
    if (b != f->body) return made;
    ane_status st = ane_value_rename(taken, made, w->err);
    if (st) ane_wire_stop(w, st);
    return st ? NULL : name;
}

/* NamedValueType. */
static bool read_named_type(ane_wire *parent, const ane_wire_field *field,
                            ane_coreml_reader *r, const char **name, const ane_type **type) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    *name = "";
    *type = NULL;
    while (ane_wire_next(&w, &f)) {
        char *s;
        if (f.number == 1 && (s = ane_wire_string(&w, &f, r->scratch))) *name = s;
        else if (f.number == 2) *type = ane__coreml_type(&w, &f, r);
    }
    if (!w.status && !*type) ane_wire_fail(&w, "'%.80s' has no type", *name);
    return ane_wire_join(parent, &w) == ANE_OK;
}

/* ---------------------------------------------------------------- graph */

/* map<string, X> entry: key, and where the value message is. */
static bool read_entry(ane_wire *parent, const ane_wire_field *field,
                       ane_coreml_reader *r, const char **key, ane_wire_field *value) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    *key = "";
    *value = (ane_wire_field){0};
    while (ane_wire_next(&w, &f)) {
        char *s;
        if (f.number == 1 && (s = ane_wire_string(&w, &f, r->scratch))) *key = s;
        else if (f.number == 2) *value = f;
    }
    if (!w.status && !value->number) ane_wire_fail(&w, "map entry '%.80s' has no value", *key);
    return ane_wire_join(parent, &w) == ANE_OK;
}

typedef struct attrs {
    ane_attr *all;
    int n, cap;
} attrs;

static void read_attr(ane_wire *w, const ane_wire_field *f, ane_coreml_reader *r, attrs *out) {
    ane_wire_field v;
    const char *key;
    if (!read_entry(w, f, r, &key, &v)) return;
    const ane_const *c = ane__coreml_value(w, &v, r);
    if (!c) return;
    if (out->n == out->cap) {
        int cap = out->cap ? 2 * out->cap : 4;
        ane_attr *more = ane_arena_alloc(r->program->arena, (size_t)cap * sizeof *more);
        if (!more) {
            ane__coreml_nomem(w);
            return;
        }
        if (out->n) memcpy(more, out->all, (size_t)out->n * sizeof *more);
        out->all = more;
        out->cap = cap;
    }
    char *name = ane_arena_strndup(r->program->arena, key, strlen(key));
    if (!name) ane__coreml_nomem(w);
    else out->all[out->n++] = (ane_attr){name, c};
}

static ane_value *bind(ane_wire *w, const ane_wire_field *f, ane_block *b,
                       ane_coreml_reader *r) {
    char *s = NULL;
    ane_value *v = NULL;
    if (f->number == 1 && (s = ane_wire_string(w, f, r->scratch))) {
        int32_t i = scope_find(r, s);
        if (i < 0) ane_wire_fail(w, "'%.80s' is not defined here", s);
        else v = r->entries[i].value;
    } else if (f->number == 2) {
        const ane_const *c = ane__coreml_value(w, f, r);
        ane_status st = c ? ane_const_create(b, NULL, c, true, &v, w->err) : ANE_OK;
        if (st) ane_wire_stop(w, st);
    }
    return w->status ? NULL : v;
}

/* Argument: bindings in order. */
static void read_argument(ane_wire *parent, const ane_wire_field *field, ane_block *b,
                          ane_coreml_reader *r, ane_arg_desc *out) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    ane_value **v = NULL;
    int n = 0, cap = 0;
    while (ane_wire_next(&w, &f)) {
        if (f.number != 1) continue;
        ane_wire e = ane_wire_message(&w, &f);
        ane_value *one = NULL;
        while (ane_wire_next(&e, &g))
            if (g.number == 1 || g.number == 2) one = bind(&e, &g, b, r);
        if (!e.status && !one) ane_wire_fail(&e, "argument '%.80s' is empty", out->name);
        if (ane_wire_join(&w, &e)) break;
        if (n == cap) {
            cap = cap ? 2 * cap : 2;
            ane_value **more = ane_arena_alloc(r->scratch, (size_t)cap * sizeof *more);
            if (!more) {
                ane__coreml_nomem(&w);
                break;
            }
            if (n) memcpy(more, v, (size_t)n * sizeof *more);
            v = more;
        }
        v[n++] = one;
    }
    out->n = n;
    out->v = v;
    out->tuple = n != 1;
    ane_wire_join(parent, &w);
}

static void read_block(ane_wire *parent, const ane_wire_field *field, ane_block *b,
                       ane_coreml_reader *r);

#define MAX_OP_ARGS 64

static void read_operation(ane_wire *parent, const ane_wire_field *field, ane_block *b,
                           ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, v;
    ane_op_desc d = {0};
    ane_arg_desc args[MAX_OP_ARGS];
    ane_block *blocks[8];
    attrs extra = {0};
    const ane_const *val = NULL;
    int cap = 0;
    const char **names = NULL;
    const ane_type **types = NULL;
    ane_wire first = w;         /* the op's name may follow its inputs on the wire */
    while (ane_wire_next(&first, &f))
        if (f.number == 1) d.op = ane_wire_string(&first, &f, r->scratch);
    ane_wire_join(&w, &first);
    if (!w.status && !d.op) ane_wire_fail(&w, "operation without a type");
    const ane_op_row *row =
        w.status ? NULL : ane_op_row_find(d.op, r->function->opset, NULL);
    while (ane_wire_next(&w, &f)) {
        const char *key;
        if (f.number == 2 || f.number == 5) {
            if (!read_entry(&w, &f, r, &key, &v)) break;
            int p = row ? ane_op_param_index(row, key) : -1;
            if (f.number == 5 && !strcmp(key, "name")) {
                const ane_const *c = ane__coreml_value(&w, &v, r);
                /* No data: it was put into a weight file that is absent. */
                if (c && c->data && c->type->kind == ANE_T_TENSOR &&
                    c->type->dtype == ANE_STRING && ane_type_count(c->type) == 1)
                    d.name = ((const char *const *)c->data)[0];
                continue;
            }
            if (f.number == 5 && !strcmp(d.op, "const") && !strcmp(key, "val")) {
                val = ane__coreml_value(&w, &v, r);
                continue;
            }
            if (f.number == 5 && p < 0) {
                read_attr(&w, &f, r, &extra);
                continue;
            }
            if (d.n_args == MAX_OP_ARGS) {
                ane_wire_fail(&w, "%s: more than %d arguments", d.op, MAX_OP_ARGS);
                break;
            }
            ane_arg_desc *a = &args[d.n_args++];
            *a = (ane_arg_desc){.name = key};
            if (f.number == 2) {
                read_argument(&w, &v, b, r, a);
                if (row && p >= 0) a->tuple = row->params[p].tuple;
            } else {                    /* a constexpr's parameter, given as attribute */
                ane_value **one = ane_arena_alloc(r->scratch, sizeof *one);
                if (!one) ane__coreml_nomem(&w);
                v.number = 2;
                if (one && (*one = bind(&w, &v, b, r))) {
                    a->v = one;
                    a->n = 1;
                }
            }
        } else if (f.number == 3) {
            if (d.n_results == cap) {
                cap = cap ? 2 * cap : 2;
                const char **n2 = ane_arena_alloc(r->scratch, (size_t)cap * sizeof *n2);
                const ane_type **t2 = ane_arena_alloc(r->scratch, (size_t)cap * sizeof *t2);
                if (!n2 || !t2) {
                    ane__coreml_nomem(&w);
                    break;
                }
                if (d.n_results) {
                    memcpy(n2, names, (size_t)d.n_results * sizeof *n2);
                    memcpy(t2, types, (size_t)d.n_results * sizeof *t2);
                }
                names = n2;
                types = t2;
            }
            if (!read_named_type(&w, &f, r, &names[d.n_results], &types[d.n_results])) break;
            d.n_results++;
        } else if (f.number == 4) {
            if (d.n_blocks == (int)(sizeof blocks / sizeof *blocks)) {
                ane_wire_fail(&w, "%s: more than %d blocks", d.op, d.n_blocks);
                break;
            }
            ane_block *nested = ane_block_create(r->function, NULL);
            if (!nested) {
                ane__coreml_nomem(&w);
                break;
            }
            blocks[d.n_blocks++] = nested;
            read_block(&w, &f, nested, r);
        }
    }
    if (!w.status && !strcmp(d.op, "const")) {
        ane_value *c = NULL;
        if (!val || d.n_results != 1) {
            ane_wire_fail(&w, "const without value or with %d results", d.n_results);
        } else {
            const char *own = own_name(r, b, names[0], &w);
            ane_status st = own ? ane_const_create(b, own, val, false, &c, w.err) : w.status;
            if (!st && d.name && !(c->def->name = ane_arena_strndup(
                                       r->program->arena, d.name, strlen(d.name))))
                st = ane__coreml_nomem(&w);
            if (st) ane_wire_stop(&w, st);
            else if (!scope_put(r, names[0], c)) ane__coreml_nomem(&w);
        }
    } else if (!w.status) {
        d.args = args;
        d.blocks = blocks;
        d.attrs = extra.all;
        d.n_attrs = extra.n;
        d.declared = types;
        const char **own = ane_arena_alloc(r->scratch, (size_t)d.n_results * sizeof *own);
        if (!own) ane__coreml_nomem(&w);
        for (int i = 0; own && i < d.n_results; i++)
            if (!(own[i] = own_name(r, b, names[i], &w))) own = NULL;
        d.result_names = own;
    }
    if (!w.status && d.result_names) {
        ane_op *op = NULL;
        ane_status st = ane_op_create(b, NULL, &d, &op, w.err);
        if (st) {
            ane_error_prefix(w.err, "%s: ", w.file);
            ane_wire_stop(&w, st);
        }
        for (int i = 0; op && i < op->n_results; i++)
            if (!scope_put(r, names[i], op->results[i])) ane__coreml_nomem(&w);
    }
    ane_wire_join(parent, &w);
}

/* Fills a block: its parameters (nested blocks only), operations, outputs. */
static void read_block(ane_wire *parent, const ane_wire_field *field, ane_block *b,
                       ane_coreml_reader *r) {
    int32_t mark = r->n_entries, around = r->mark;
    ane_wire w = ane_wire_message(parent, field), again = w;
    ane_wire_field f;
    bool body = b == r->function->body;
    r->mark = body ? 0 : mark;          /* the function's parameters are in its body's scope */
    while (!body && ane_wire_next(&again, &f)) {
        const char *name;
        const ane_type *type;
        ane_value *v;
        if (f.number != 1 || !read_named_type(&again, &f, r, &name, &type)) continue;
        const char *own = own_name(r, b, name, &again);
        ane_status st = own ? ane_block_add_param(b, own, type, &v, again.err) : again.status;
        if (st) ane_wire_stop(&again, st);
        else if (!scope_put(r, name, v)) ane__coreml_nomem(&again);
    }
    ane_wire_join(&w, &again);
    again = w;
    while (ane_wire_next(&w, &f))
        if (f.number == 3) read_operation(&w, &f, b, r);
    if (!w.status) {
        ane_value **out = NULL;
        int n = 0, cap = 0;
        while (ane_wire_next(&again, &f)) {
            if (f.number != 2) continue;
            if (n == cap) {
                cap = cap ? 2 * cap : 4;
                ane_value **more = ane_arena_alloc(r->scratch, (size_t)cap * sizeof *more);
                if (!more) {
                    ane__coreml_nomem(&again);
                    break;
                }
                if (n) memcpy(more, out, (size_t)n * sizeof *more);
                out = more;
            }
            f.number = 1;               /* a binding by name */
            out[n++] = bind(&again, &f, b, r);
        }
        ane_status st = again.status ? ANE_OK : ane_block_set_outputs(b, out, n, w.err);
        if (st) ane_wire_stop(&again, st);
        ane_wire_join(&w, &again);
    }
    scope_leave(r, mark);
    r->mark = around;
    ane_wire_join(parent, &w);
}

/* "CoreML7" -> "ios17"; text tags pass. */
static const char *opset_tag(const char *opset) {
    static const char *const tags[][2] = {{"CoreML5", "ios15"}, {"CoreML6", "ios16"},
                                          {"CoreML7", "ios17"}, {"CoreML8", "ios18"},
                                          {"CoreML9", "ios26"}};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (!strcmp(opset, tags[i][0])) return tags[i][1];
    return opset;
}

static void read_function(ane_wire *parent, const ane_wire_field *field, const char *name,
                          ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field), first = w;
    ane_wire_field f, body = {0}, v;
    const char *opset = "", *key;
    ane_param_desc *params = NULL;
    attrs extra = {0};
    int n = 0, cap = 0;
    r->n_entries = 0;
    for (uint32_t i = 0; i < r->n_buckets; i++) r->buckets[i] = -1;
    while (ane_wire_next(&first, &f)) {
        char *s;
        if (f.number == 2 && (s = ane_wire_string(&first, &f, r->scratch))) opset = s;
        if (f.number == 4) read_attr(&first, &f, r, &extra);
        if (f.number != 1) continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 4;
            ane_param_desc *more = ane_arena_alloc(r->scratch, (size_t)cap * sizeof *more);
            if (!more) {
                ane__coreml_nomem(&first);
                break;
            }
            if (n) memcpy(more, params, (size_t)n * sizeof *more);
            params = more;
        }
        if (read_named_type(&first, &f, r, &params[n].name, &params[n].type)) n++;
    }
    ane_wire_join(&w, &first);
    while (ane_wire_next(&w, &f))
        if (f.number == 3 && read_entry(&w, &f, r, &key, &v) && !strcmp(key, opset)) body = v;
    if (!w.status && !body.number)
        ane_wire_fail(&w, "function '%.80s' has no block for its opset '%.40s'", name, opset);
    ane_status st = w.status;
    if (!st) st = ane_function_create(r->program, name, opset_tag(opset), params, n,
                                      &r->function, w.err);
    if (st) ane_wire_stop(&w, st);
    for (int i = 0; !w.status && i < n; i++)
        if (!scope_put(r, params[i].name, r->function->params[i])) ane__coreml_nomem(&w);
    if (!w.status) {
        r->function->attrs = extra.all;
        r->function->n_attrs = extra.n;
        read_block(&w, &body, r->function->body, r);
    }
    ane_wire_join(parent, &w);
}

static void read_program(ane_wire *parent, const ane_wire_field *field,
                         ane_coreml_reader *r) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, v;
    attrs extra = {0};
    const char *name;
    while (ane_wire_next(&w, &f)) {
        if (f.number == 2 && read_entry(&w, &f, r, &name, &v)) {
            char *kept = ane_arena_strndup(r->program->arena, name, strlen(name));
            if (!kept) ane__coreml_nomem(&w);
            else read_function(&w, &v, kept, r);
        } else if (f.number == 4) {
            read_attr(&w, &f, r, &extra);
        }
    }
    r->program->attrs = extra.all;
    r->program->n_attrs = extra.n;
    ane_wire_join(parent, &w);
}

ane_status ane_coreml_read(const void *data, size_t n, const ane_parse_options *opts,
                           ane_program **program, ane_description **description,
                           ane_error *err) {
    const char *file = opts && opts->filename ? opts->filename : "<model>";
    ane_coreml_reader r = {0};
    ane_description *d = NULL;
    ane_wire w, first;
    ane_wire_field f, main = {0};
    ane_arena *arena = ane_arena_create();
    ane_wire_init(&w, data, n, file, err);
    r.scratch = ane_arena_create();
    if (arena) d = ane_arena_alloc(arena, sizeof *d);
    if (!d || !r.scratch) {
        ane_arena_destroy(arena);
        d = NULL;
        ane__coreml_nomem(&w);
        goto done;
    }
    *d = (ane_description){.arena = arena, .author = "", .license = "", .version = "",
                           .short_description = "", .default_function = ""};
    first = w;
    const char *other = NULL;
    while (ane_wire_next(&first, &f)) {
        if (f.number == 1 && ane_wire_is(&first, &f, ANE_WIRE_VARINT))
            d->specification_version = (int)(f.value & 0x7fffffff);
        else if (f.number == 502) main = f;
        else if (ane_coreml_model_kind(f.number)) other = ane_coreml_model_kind(f.number);
    }
    if (ane_wire_join(&w, &first)) {
        if (!main.number && !other)
            ane_error_prefix(err, "not a Core ML specification, or a damaged one: ");
        goto done;
    }
    if (!main.number) {
        if (other)
            ane_wire_stop(&w, ane_fail(err, ANE_ERR_UNSUPPORTED,
                                       "%s: this is a %s model, not an ML Program; %s", file,
                                       other, strcmp(other, "pipeline")
                                           ? "convert it again with convert_to=\"mlprogram\""
                                           : "load the models inside it one by one"));
        else ane_wire_fail(&w, "no model in this file (not a Core ML specification?)");
        goto done;
    }
    ane_status st = ane_program_create(d->specification_version >= 9 ? "1.3" : "1.0",
                                       &r.program, err);
    if (!st) st = ane_weight_files_create(opts, &r.files, err);
    if (st) {
        ane_wire_stop(&w, st);
        goto done;
    }
    if (opts && opts->filename)
        r.program->filename =
            ane_arena_strndup(r.program->arena, file, strlen(file));
    while (ane_wire_next(&w, &f)) {
        if (f.number == 2) {
            ane_wire e = ane_wire_message(&w, &f);
            d->raw_bytes = f.size;
            d->raw = ane_arena_strndup(d->arena, (const char *)f.data, f.size);
            if (!d->raw) ane__coreml_nomem(&e);
            ane_coreml_read_description(&e, d);
            ane_wire_join(&w, &e);
        } else if (f.number == 502) {
            read_program(&w, &f, &r);
        }
    }
    if (!w.status && (st = ane_program_verify(r.program, err))) ane_wire_stop(&w, st);
done:
    ane_weight_files_destroy(r.files);
    ane_arena_destroy(r.scratch);
    ane_free(r.entries);
    ane_free(r.buckets);
    if (w.status) {
        ane_program_release(r.program);
        ane_description_destroy(d);
        return w.status;
    }
    *program = r.program;
    *description = d;
    return ANE_OK;
}
