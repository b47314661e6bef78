/* The program graph to a serialized Model and its weight file, as coremltools reads them. */
#include "coreml.h"

#include "../ir/ops.h"
#include "../weights/blob.h"

#include <string.h>

/* A writer's habit shared with coremltools: smaller constants stay in the specification. */
#define BLOB_ELEMENTS 10

typedef struct writer {
    ane_wire_out out;
    const char *weight_path;
    ane_blob_record *records;
    const ane_const **consts;           /* parallel to records */
    size_t n, cap, next;
    ane_error *err;
    ane_status status;
} writer;

static void stop(writer *w, ane_status st) {
    if (!w->status) w->status = st;
}

static unsigned proto_code(ane_dtype d) {
    static const unsigned codes[] = {
#define X(name, mil, numpy, brief, bits, blob, proto) proto,
        ANE_DTYPE_MAP(X)
#undef X
    };
    return codes[d];
}

static int spec_version(int opset) { return opset <= 15 ? 6 : opset - 9; }

static const char *opset_name(const ane_function *f) {
    switch (f->opset) {
    case 15: return "CoreML5";
    case 16: return "CoreML6";
    case 17: return "CoreML7";
    default: return !strcmp(f->opset_tag, "ios26") ? "CoreML9" : "CoreML8";
    }
}

/* ---------------------------------------------------------------- types */

static void put_type(writer *w, uint32_t field, const ane_type *t);

static void put_dim(writer *w, uint32_t field, int64_t dim) {
    size_t m = ane_wire_begin(&w->out, field), e;
    if (ane_dim_known(dim)) {
        e = ane_wire_begin(&w->out, 1);
        ane_wire_put_varint(&w->out, 1, (uint64_t)dim);
    } else {
        e = ane_wire_begin(&w->out, 2);
        ane_wire_put_varint(&w->out, 1, 0);
    }
    ane_wire_end(&w->out, e);
    ane_wire_end(&w->out, m);
}

static void put_type(writer *w, uint32_t field, const ane_type *t) {
    ane_wire_out *o = &w->out;
    size_t m = ane_wire_begin(o, field), e;
    switch (t->kind) {
    case ANE_T_TENSOR:
        e = ane_wire_begin(o, 1);
        ane_wire_put_varint(o, 1, proto_code(t->dtype));
        ane_wire_put_varint(o, 2, (uint64_t)t->rank);
        for (int i = 0; i < t->rank; i++) put_dim(w, 3, t->dims[i]);
        break;
    case ANE_T_LIST:
        e = ane_wire_begin(o, 2);
        put_type(w, 1, t->elem);
        put_dim(w, 2, t->length);
        break;
    case ANE_T_TUPLE:
        e = ane_wire_begin(o, 3);
        for (int i = 0; i < t->n; i++) put_type(w, 1, t->items[i]);
        break;
    case ANE_T_DICT:
        e = ane_wire_begin(o, 4);
        put_type(w, 1, t->elem);
        put_type(w, 2, t->elem2);
        break;
    default:
        e = ane_wire_begin(o, 5);
        put_type(w, 1, t->elem);
        break;
    }
    ane_wire_end(o, e);
    ane_wire_end(o, m);
}

static void put_named_type(writer *w, uint32_t field, const char *name, const ane_type *t) {
    size_t m = ane_wire_begin(&w->out, field);
    ane_wire_put_string(&w->out, 1, name);
    put_type(w, 2, t);
    ane_wire_end(&w->out, m);
}

/* ---------------------------------------------------------------- values */

static bool in_blob(const ane_const *c) {
    return c->type->kind == ANE_T_TENSOR && c->data && ane_blob_code(c->type->dtype) &&
           ane_type_count(c->type) >= BLOB_ELEMENTS;
}

static void put_tensor_value(writer *w, const ane_const *c) {
    ane_wire_out *o = &w->out;
    const ane_type *t = c->type;
    int64_t n = ane_type_count(t);
    const uint8_t *p = c->data;
    size_t m = ane_wire_begin(o, 1), e, v;
    switch (t->dtype) {
    case ANE_STRING:
        e = ane_wire_begin(o, 4);
        for (int64_t i = 0; i < n; i++)
            ane_wire_put_string(o, 1, ((const char *const *)c->data)[i]);
        break;
    case ANE_BOOL:
    case ANE_I32:
    case ANE_I64:
    case ANE_U64:
        e = ane_wire_begin(o, t->dtype == ANE_BOOL ? 3 : t->dtype == ANE_I32 ? 2 : 5);
        v = ane_wire_begin(o, 1);
        for (int64_t i = 0; i < n; i++)
            ane_wire_raw_varint(o, (uint64_t)ane_const_i64(c, i));
        ane_wire_end(o, v);
        break;
    case ANE_F32:
    case ANE_F64:               /* packed little-endian: the constant's own bytes */
        e = ane_wire_begin(o, t->dtype == ANE_F32 ? 1 : 6);
        ane_wire_put_bytes(o, 1, p, c->bytes);
        break;
    default:
        e = ane_wire_begin(o, 7);
        ane_wire_put_bytes(o, 1, p, c->bytes);
        break;
    }
    ane_wire_end(o, e);
    ane_wire_end(o, m);
}

static void put_value(writer *w, uint32_t field, const ane_const *c) {
    ane_wire_out *o = &w->out;
    size_t m = ane_wire_begin(o, field), e, s;
    put_type(w, 2, c->type);
    if (c->type->kind == ANE_T_TENSOR && !c->data) {
        stop(w, ane_fail(w->err, ANE_ERR_INVALID,
                         "a constant of weight file '%.200s' has no data; load the program "
                         "with its weights before saving it",
                         c->blob_path ? c->blob_path : "?"));
    } else if (in_blob(c)) {
        /* Constants come in the order in which layout() saw them. */
        e = ane_wire_begin(o, 5);
        ane_wire_put_string(o, 1, w->weight_path);
        ANE_ASSERT(w->next < w->n && w->consts[w->next] == c);
        ane_wire_put_varint(o, 2, w->records[w->next++].offset);
        ane_wire_end(o, e);
    } else {
        e = ane_wire_begin(o, 3);
        switch (c->type->kind) {
        case ANE_T_TENSOR: put_tensor_value(w, c); break;
        case ANE_T_DICT:
            s = ane_wire_begin(o, 4);
            for (int i = 0; i + 1 < c->n; i += 2) {
                size_t pair = ane_wire_begin(o, 1);
                put_value(w, 1, c->items[i]);
                put_value(w, 2, c->items[i + 1]);
                ane_wire_end(o, pair);
            }
            ane_wire_end(o, s);
            break;
        default:
            s = ane_wire_begin(o, c->type->kind == ANE_T_TUPLE ? 2 : 3);
            for (int i = 0; i < c->n; i++) put_value(w, 1, c->items[i]);
            ane_wire_end(o, s);
            break;
        }
        ane_wire_end(o, e);
    }
    ane_wire_end(o, m);
}

static void put_string_value(writer *w, uint32_t field, const char *s) {
    ane_wire_out *o = &w->out;
    size_t m = ane_wire_begin(o, field);
    size_t t = ane_wire_begin(o, 2), e = ane_wire_begin(o, 1);
    ane_wire_put_varint(o, 1, proto_code(ANE_STRING));
    ane_wire_end(o, e);
    ane_wire_end(o, t);
    t = ane_wire_begin(o, 3);
    e = ane_wire_begin(o, 1);
    size_t v = ane_wire_begin(o, 4);
    ane_wire_put_string(o, 1, s);
    ane_wire_end(o, v);
    ane_wire_end(o, e);
    ane_wire_end(o, t);
    ane_wire_end(o, m);
}

static void put_attrs(writer *w, uint32_t field, const ane_attr *attrs, int n) {
    for (int i = 0; i < n; i++) {
        size_t m = ane_wire_begin(&w->out, field);
        ane_wire_put_string(&w->out, 1, attrs[i].name);
        put_value(w, 2, attrs[i].value);
        ane_wire_end(&w->out, m);
    }
}

/* ---------------------------------------------------------------- graph */

static void put_block(writer *w, uint32_t field, const ane_block *b);

static void put_op(writer *w, const ane_op *op) {
    ane_wire_out *o = &w->out;
    if (op->inlined) return;            /* written where it is used */
    size_t m = ane_wire_begin(o, 3);
    ane_wire_put_string(o, 1, op->row->name);
    for (int i = 0; i < op->row->n_params; i++) {
        const ane_arg *a = &op->args[i];
        if (!a->n || op->row->params[i].attribute) continue;
        size_t entry = ane_wire_begin(o, 2);
        ane_wire_put_string(o, 1, op->row->params[i].name);
        size_t arg = ane_wire_begin(o, 2);
        for (int k = 0; k < a->n; k++) {
            size_t bind = ane_wire_begin(o, 1);
            if (a->v[k]->def && a->v[k]->def->inlined) put_value(w, 2, a->v[k]->konst);
            else ane_wire_put_string(o, 1, a->v[k]->name);
            ane_wire_end(o, bind);
        }
        ane_wire_end(o, arg);
        ane_wire_end(o, entry);
    }
    for (int i = 0; i < op->n_results; i++)
        put_named_type(w, 3, op->results[i]->name, op->results[i]->type);
    for (int i = 0; i < op->n_blocks; i++) put_block(w, 4, op->blocks[i]);
    size_t entry = ane_wire_begin(o, 5);
    ane_wire_put_string(o, 1, "name");
    put_string_value(w, 2, op->name ? op->name : op->n_results ? op->results[0]->name : "");
    ane_wire_end(o, entry);
    if (!strcmp(op->row->name, "const")) {
        entry = ane_wire_begin(o, 5);
        ane_wire_put_string(o, 1, "val");
        put_value(w, 2, op->results[0]->konst);
        ane_wire_end(o, entry);
    }
    for (int i = 0; i < op->row->n_params; i++) {
        const ane_arg *a = &op->args[i];
        if (!a->n || !op->row->params[i].attribute) continue;
        entry = ane_wire_begin(o, 5);
        ane_wire_put_string(o, 1, op->row->params[i].name);
        put_value(w, 2, a->v[0]->konst);
        ane_wire_end(o, entry);
    }
    put_attrs(w, 5, op->attrs, op->n_attrs);
    ane_wire_end(o, m);
}

static void put_block(writer *w, uint32_t field, const ane_block *b) {
    ane_wire_out *o = &w->out;
    size_t m = ane_wire_begin(o, field);
    for (int i = 0; i < b->n_params; i++)
        put_named_type(w, 1, b->params[i]->name, b->params[i]->type);
    for (int i = 0; i < b->n_outputs; i++) ane_wire_put_string(o, 2, b->outputs[i]->name);
    for (const ane_op *op = b->first; op; op = op->next) put_op(w, op);
    ane_wire_end(o, m);
}

static void put_function(writer *w, const ane_function *f) {
    ane_wire_out *o = &w->out;
    const char *opset = opset_name(f);
    size_t entry = ane_wire_begin(o, 2);
    ane_wire_put_string(o, 1, f->name);
    size_t m = ane_wire_begin(o, 2);
    for (int i = 0; i < f->n_params; i++)
        put_named_type(w, 1, f->params[i]->name, f->params[i]->type);
    ane_wire_put_string(o, 2, opset);
    size_t spec = ane_wire_begin(o, 3);
    ane_wire_put_string(o, 1, opset);
    put_block(w, 2, f->body);
    ane_wire_end(o, spec);
    put_attrs(w, 4, f->attrs, f->n_attrs);
    ane_wire_end(o, m);
    ane_wire_end(o, entry);
}

/* ---------------------------------------------------------------- the weight file */

static void collect_const(writer *w, const ane_const *c) {
    if (!c) return;
    if (!in_blob(c)) {
        for (int i = 0; i < c->n; i++) collect_const(w, c->items[i]);
        return;
    }
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        ane_blob_record *r = ane_realloc(w->records, cap * sizeof *r);
        if (r) w->records = r;
        const ane_const **k = r ? ane_realloc(w->consts, cap * sizeof *k) : NULL;
        if (!k) {
            stop(w, ane_fail(w->err, ANE_ERR_NOMEM, "out of memory"));
            return;
        }
        w->consts = k;
        w->cap = cap;
    }
    w->consts[w->n] = c;
    w->records[w->n++] = (ane_blob_record){.dtype = c->type->dtype,
                                           .count = (uint64_t)ane_type_count(c->type),
                                           .data = c->data};
}

static void collect_attrs(writer *w, const ane_attr *a, int n) {
    for (int i = 0; i < n; i++) collect_const(w, a[i].value);
}

/* In exactly the order in which put_op writes values. */
static void collect_block(writer *w, const ane_block *b) {
    for (const ane_op *op = b->first; op; op = op->next) {
        if (op->inlined) continue;
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < op->row->n_params; i++) {
                if (op->row->params[i].attribute != (pass == 1)) continue;
                for (int k = 0; k < op->args[i].n; k++) {
                    const ane_value *v = op->args[i].v[k];
                    if (pass || (v->def && v->def->inlined)) collect_const(w, v->konst);
                }
            }
            if (pass) break;
            for (int i = 0; i < op->n_blocks; i++) collect_block(w, op->blocks[i]);
            if (!strcmp(op->row->name, "const")) collect_const(w, op->results[0]->konst);
        }
        collect_attrs(w, op->attrs, op->n_attrs);
    }
}

/* ---------------------------------------------------------------- the description */

static ane_status array_code(writer *w, const char *name, ane_dtype d, uint64_t *code) {
    switch (d) {
    case ANE_F32: *code = 65568; return ANE_OK;
    case ANE_F64: *code = 65600; return ANE_OK;
    case ANE_I32: *code = 131104; return ANE_OK;
    case ANE_I8: *code = 131080; return ANE_OK;
    case ANE_F16: *code = 65552; return ANE_OK;
    default:
        return ane_fail(w->err, ANE_ERR_DTYPE,
                        "'%s' is %s; a Core ML model takes and gives fp16, fp32, fp64, int8 "
                        "and int32 arrays (add a cast)",
                        name, ane_dtype_mil_name(d));
    }
}

static void put_feature(writer *w, uint32_t field, const char *name, const ane_type *t) {
    ane_wire_out *o = &w->out;
    const ane_type *a = t->kind == ANE_T_STATE ? t->elem : t;
    uint64_t code = 0;
    if (a->kind != ANE_T_TENSOR) {
        stop(w, ane_fail(w->err, ANE_ERR_DTYPE, "'%s' is not a tensor", name));
        return;
    }
    ane_status st = array_code(w, name, a->dtype, &code);
    if (st) stop(w, st);
    size_t m = ane_wire_begin(o, field);
    ane_wire_put_string(o, 1, name);
    size_t type = ane_wire_begin(o, 3), state = 0;
    if (t->kind == ANE_T_STATE) state = ane_wire_begin(o, 8);
    size_t array = ane_wire_begin(o, t->kind == ANE_T_STATE ? 1 : 5);
    bool flexible = false;
    size_t shape = ane_wire_begin(o, 1);
    for (int i = 0; i < a->rank; i++) {
        flexible |= !ane_dim_known(a->dims[i]);
        ane_wire_raw_varint(o, ane_dim_known(a->dims[i]) ? (uint64_t)a->dims[i] : 1);
    }
    ane_wire_end(o, shape);
    ane_wire_put_varint(o, 2, code);
    if (flexible) {
        size_t range = ane_wire_begin(o, 31);
        for (int i = 0; i < a->rank; i++) {
            bool known = ane_dim_known(a->dims[i]);
            size_t r = ane_wire_begin(o, 1);
            ane_wire_put_varint(o, 1, known ? (uint64_t)a->dims[i] : 1);
            ane_wire_put_varint(o, 2, (uint64_t)(known ? a->dims[i] : (int64_t)-1));
            ane_wire_end(o, r);
        }
        ane_wire_end(o, range);
    }
    ane_wire_end(o, array);
    if (t->kind == ANE_T_STATE) ane_wire_end(o, state);
    ane_wire_end(o, type);
    ane_wire_end(o, m);
}

static void put_interface(writer *w, const ane_function *f, uint32_t in, uint32_t out,
                          uint32_t state) {
    for (int i = 0; i < f->n_params; i++)
        if (f->params[i]->type->kind != ANE_T_STATE)
            put_feature(w, in, f->params[i]->name, f->params[i]->type);
    for (int i = 0; i < f->body->n_outputs; i++)
        put_feature(w, out, f->body->outputs[i]->name, f->body->outputs[i]->type);
    for (int i = 0; i < f->n_params; i++)
        if (f->params[i]->type->kind == ANE_T_STATE)
            put_feature(w, state, f->params[i]->name, f->params[i]->type);
}

static void put_description(writer *w, const ane_program *p) {
    ane_wire_out *o = &w->out;
    size_t m = ane_wire_begin(o, 2);
    if (!p->functions->next && !strcmp(p->functions->name, "main")) {
        put_interface(w, p->functions, 1, 10, 13);
    } else {
        for (const ane_function *f = p->functions; f; f = f->next) {
            size_t e = ane_wire_begin(o, 20);
            ane_wire_put_string(o, 1, f->name);
            put_interface(w, f, 2, 3, 6);
            ane_wire_end(o, e);
        }
        ane_wire_put_string(o, 21, ane_program_function(p, "main") ? "main"
                                                                   : p->functions->name);
    }
    ane_wire_end(o, m);
}

ane_status ane_coreml_write(const ane_program *p, const ane_description *description,
                            const char *weight_path, ane_coreml_sink *sink, void *arg,
                            void **model, size_t *model_bytes, ane_error *err) {
    writer w = {.weight_path = weight_path, .err = err};
    size_t file_bytes = 0;
    int version = 6;
    if (!p->functions)
        return ane_fail(err, ANE_ERR_INVALID, "a program without functions cannot be saved");
    collect_attrs(&w, p->attrs, p->n_attrs);
    for (const ane_function *f = p->functions; f; f = f->next) {
        int v = spec_version(f->opset);
        if (!strcmp(f->opset_tag, "ios26")) v = 10;
        if (f->next && v < 9) v = 9;    /* several functions came with version 9 */
        if (v > version) version = v;
        collect_block(&w, f->body);
        collect_attrs(&w, f->attrs, f->n_attrs);
    }
    if (!w.status && w.n) stop(&w, ane_blob_layout(w.records, w.n, &file_bytes, err));
    if (w.status) goto done;
    ane_wire_put_varint(&w.out, 1, (uint64_t)version);
    if (description && description->raw)
        ane_wire_put_bytes(&w.out, 2, description->raw, description->raw_bytes);
    else put_description(&w, p);
    size_t m = ane_wire_begin(&w.out, 502);
    ane_wire_put_varint(&w.out, 1, 1);
    /* Attributes first, as collected. */
    put_attrs(&w, 4, p->attrs, p->n_attrs);
    for (const ane_function *f = p->functions; f; f = f->next) put_function(&w, f);
    ane_wire_end(&w.out, m);
    if (w.out.failed) stop(&w, ane_fail(err, ANE_ERR_NOMEM, "out of memory"));
    if (!w.status && w.n) stop(&w, ane_blob_emit(w.records, w.n, sink, arg, err));
done:
    ane_free(w.records);
    ane_free(w.consts);
    if (w.status) {
        ane_wire_out_free(&w.out);
        return w.status;
    }
    *model = w.out.data;
    *model_bytes = w.out.size;
    return ANE_OK;
}
