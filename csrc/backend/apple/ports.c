/* A model's ports: what the text says of them, and how the loaded model's attributes say that
 * the engine lays them out. */
#include "model.h"

#include <string.h>

static ane_status odd(ane_error *err, const char *port, const char *what) {
    return ane_fail(err, ANE_ERR_RUNTIME, "[compile] the model's attributes are not as "
                    "expected: %s%s%s", port ? port : "", port ? ": " : "", what);
}

static bool same_name(const char *port, const char *symbol) {
    size_t n = strlen(port);        /* outputs are called "out@output" */
    return !strncmp(port, symbol, n) && (!symbol[n] || symbol[n] == '@');
}

/* Index of the symbol of this name; -1: none. */
static int64_t symbol_of(const ane_objc *rt, ane_cf symbols, const char *port) {
    char name[256];
    for (size_t i = 0; i < ane_cf_count(rt, symbols); i++)
        if (ane_cf_text(rt, ane_cf_item(rt, symbols, i, ANE_CF_STRING), name, sizeof name) &&
            same_name(port, name))
            return (int64_t)i;
    return -1;
}

static bool has_index(const ane_objc *rt, ane_cf list, int64_t index) {
    for (size_t i = 0; i < ane_cf_count(rt, list); i++) {
        int64_t v = -1;
        ane_cf n = ane_cf_item(rt, list, i, ANE_CF_NUMBER);
        if (n && rt->CFNumberGetValue(n, ANE_CF_SINT64, &v) && v == index) return true;
    }
    return false;
}

static ane_cf live_entry(const ane_objc *rt, ane_cf list, const char *port) {
    char name[256];
    for (size_t i = 0; i < ane_cf_count(rt, list); i++) {
        ane_cf e = ane_cf_item(rt, list, i, ANE_CF_DICT);
        if (e && ane_cf_text(rt, ane_cf_get(rt, e, "Name", ANE_CF_STRING), name, sizeof name) &&
            same_name(port, name))
            return e;
    }
    return NULL;
}

static const char *type_name(ane_dtype d) {
    switch (d) {
    case ANE_F16: return "Float16";
    case ANE_F32: return "Float32";
    case ANE_I32: return "Int32";
    case ANE_I64: return "Int64";
    case ANE_U8: return "UInt8";
    case ANE_I8: return "Int8";
    default: return NULL;
    }
}

/* Lower ranks are taken for the last dimensions of (batch, channel, height, width); what the
 * attributes say must agree. */
static ane_status fill_port(const ane_objc *rt, ane_cf e, ane_engine_port *p, ane_error *err) {
    static const char *const sizes[] = {"Batches", "Channels", "Height", "Width"};
    static const char *const steps[] = {"BatchStride", "PlaneStride", "RowStride"};
    int64_t stride[4] = {0}, unit = (int64_t)ane_dtype_size(p->dtype), one = 1, last = 0;
    char type[32];
    if (!ane_cf_text(rt, ane_cf_get(rt, e, "Type", ANE_CF_STRING), type, sizeof type) ||
        strcmp(type, type_name(p->dtype)))
        return odd(err, p->name, "another element type");
    for (int i = 0; i < 4; i++) {
        int64_t have, want = i >= 4 - p->rank ? p->dims[i - (4 - p->rank)] : 1;
        if (!ane_cf_number(rt, e, sizes[i], &have) || have != want)
            return odd(err, p->name, "another shape");
        if (i < 3 && (!ane_cf_number(rt, e, steps[i], &stride[i]) || stride[i] <= 0))
            return odd(err, p->name, "a stride is missing");
    }
    stride[3] = unit;
    if ((ane_cf_number(rt, e, "Depth", &one) && one != 1) ||
        (ane_cf_number(rt, e, "Interleave", &one) && one != 1))
        return odd(err, p->name, "a depth or interleave");
    /* Each stride must hold what lies below it, or elements would overlap. */
    int64_t inner = unit;
    for (int i = 3; i >= 0; i--) {
        int64_t want = i >= 4 - p->rank ? p->dims[i - (4 - p->rank)] : 1;
        if (stride[i] < inner || stride[i] % unit ||
            __builtin_mul_overflow(stride[i], want, &inner))
            return odd(err, p->name, "strides overlap");
        last = inner;
    }
    for (int i = 0; i < p->rank; i++) p->strides[i] = stride[i + 4 - p->rank];
    p->bytes = (size_t)last;            /* batches * BatchStride */
    return ANE_OK;
}

static ane_status fill_ports(const ane_objc *rt, ane_cf desc, ane_cf procedure, ane_cf status,
                             bool output, ane_engine_port *ports, size_t n, ane_error *err) {
    ane_cf symbols = ane_cf_get(rt, desc, output ? "kANEFModelOutputSymbolsArrayKey"
                                                 : "kANEFModelInputSymbolsArrayKey", ANE_CF_ARRAY);
    ane_cf indices = ane_cf_get(rt, procedure, output ? "ANEFModelOutputSymbolIndexArray"
                                                      : "ANEFModelInputSymbolIndexArray",
                                ANE_CF_ARRAY);
    ane_cf live = ane_cf_get(rt, status, output ? "LiveOutputList" : "LiveInputList", ANE_CF_ARRAY);
    if (!symbols || !indices || !live) return odd(err, NULL, "no lists of symbols");
    if (ane_cf_count(rt, indices) != n) return odd(err, NULL, "another number of ports");
    for (size_t i = 0; i < n; i++) {
        ane_engine_port *p = &ports[i];
        p->symbol = symbol_of(rt, symbols, p->name);
        ane_cf e = live_entry(rt, live, p->name);
        if (p->symbol < 0 || !has_index(rt, indices, p->symbol) || !e)
            return odd(err, p->name, "no symbol of this name");
        ane_status st = fill_port(rt, e, p, err);
        if (st) return st;
    }
    return ANE_OK;
}

ane_status ane_ports_read(const ane_objc *rt, ane_model *m, ane_error *err) {
    ane_cf all = ane_send_attributes(rt, m->object);
    ane_cf desc = ane_cf_get(rt, all, "ANEFModelDescription", ANE_CF_DICT);
    ane_cf procedures = ane_cf_get(rt, desc, "ANEFModelProcedures", ANE_CF_ARRAY);
    ane_cf procedure = ane_cf_item(rt, procedures, 0, ANE_CF_DICT);
    ane_cf list = ane_cf_get(rt, all, "NetworkStatusList", ANE_CF_ARRAY);
    if (!list) list = ane_cf_get(rt, all, "networkStatusList", ANE_CF_ARRAY);
    ane_cf status = ane_cf_item(rt, list, 0, ANE_CF_DICT);
    if (!desc || !procedure || !status) return odd(err, NULL, "a list is missing");
    ane_status st = fill_ports(rt, desc, procedure, status, false, m->in, m->n_in, err);
    return st ? st : fill_ports(rt, desc, procedure, status, true, m->out, m->n_out, err);
}

/* What the text says of a port, and what the engine can take at all. */
static ane_status check_value(const ane_value *v, const char *what, ane_engine_port *p,
                              ane_error *err) {
    char text[ANE_TYPE_TEXT];
    const ane_type *t = v->type;
    bool ok = t->kind == ANE_T_TENSOR && type_name(t->dtype) && t->rank <= ANE_LIMIT_PORT_RANK &&
              strlen(v->name) < sizeof p->name;
    for (int i = 0; ok && i < t->rank; i++) ok = t->dims[i] > 0;
    if (!ok)
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[compile] device \"ane\": %s %.80s is %s; the engine takes tensors of "
                        "known, non-zero size, at most rank 4, of fp16, fp32, int8, uint8, "
                        "int32 or int64", what, v->name, ane_type_text(t, text, sizeof text));
    *p = (ane_engine_port){.dtype = t->dtype, .rank = t->rank};
    strcpy(p->name, v->name);
    memcpy(p->dims, t->dims, (size_t)t->rank * sizeof *t->dims);
    return ANE_OK;
}

ane_status ane_ports_check(const ane_function *f, ane_model *m, ane_error *err) {
    const ane_block *b = f->body;
    m->n_in = (size_t)f->n_params;
    m->n_out = (size_t)b->n_outputs;
    if (!m->n_in || !m->n_out || m->n_in > ANE_APPLE_PORTS || m->n_out > ANE_APPLE_PORTS)
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] device \"ane\": the engine takes 1 "
                        "to %d inputs and outputs; the function has %zu and %zu",
                        ANE_APPLE_PORTS, m->n_in, m->n_out);
    m->in = ane_calloc(m->n_in, sizeof *m->in);
    m->out = ane_calloc(m->n_out, sizeof *m->out);
    if (!m->in || !m->out) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = ANE_OK;
    for (size_t i = 0; i < m->n_in && !st; i++)
        st = check_value(f->params[i], "input", &m->in[i], err);
    for (size_t i = 0; i < m->n_out && !st; i++) {
        st = check_value(b->outputs[i], "output", &m->out[i], err);
        for (size_t k = 0; k < i && !st; k++)
            if (b->outputs[k] == b->outputs[i])
                st = ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] device \"ane\": output %s is "
                              "given twice", m->out[i].name);
    }
    return st;
}
