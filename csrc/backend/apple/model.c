/* From a function to a loaded model. One lock over all of it: the compiler is one service,
 * and two users of one identifier must not write or remove its folder at the same time. */
#include "model.h"

#include "folder.h"

#include "../../base/sync.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static ane_mutex lock = ANE_MUTEX_INIT;
static ane_model *models;               /* one per identifier */
static int compiles;                    /* real ones of this process */

static void milliseconds(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* ---------------------------------------------------------------- text and weights */

typedef struct source {
    char *text;
    size_t n;
    ane_weight_blob *blobs;
    size_t n_blobs, cap;
} source;

/* The weight file behind a constant is handed over whole, as the text's offsets count from
 * its beginning: what the constant views must still be that file. */
static ane_status add_blob(source *s, const ane_const *c, ane_error *err) {
    if (!c->blob_path) return ANE_OK;
    for (size_t i = 0; i < s->n_blobs; i++)
        if (!strcmp(s->blobs[i].path, c->blob_path)) return ANE_OK;
    if (!ane_folder_relative(c->blob_path))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[compile] weight file '%.200s' is not a path below @model_path/",
                        c->blob_path);
    uint32_t mark = 0;
    const char *base = c->owner ? ane_surface_base(c->owner) : NULL;
    size_t have = c->owner ? ane_surface_bytes(c->owner) : 0;
    if (have >= 64 && c->blob_offset <= have - 64) memcpy(&mark, base + c->blob_offset, sizeof mark);
    if (mark != 0xDEADBEEF)
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[compile] weight file '%.200s' is %s; the engine needs it whole, "
                        "with aligned records", c->blob_path,
                        c->data ? "held in parts" : "missing");
    if (s->n_blobs == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        ane_weight_blob *more = ane_realloc(s->blobs, cap * sizeof *more);
        if (!more) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        s->blobs = more;
        s->cap = cap;
    }
    s->blobs[s->n_blobs++] = (ane_weight_blob){c->blob_path, base, have};
    return ANE_OK;
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static ane_status find_blobs(source *s, const ane_block *b, ane_error *err) {
    ane_status st = ANE_OK;
    for (const ane_op *op = b->first; op && !st; op = op->next) {
        for (int i = 0; i < op->n_results && !st; i++)
            if (op->results[i]->konst) st = add_blob(s, op->results[i]->konst, err);
        for (int i = 0; i < op->n_blocks && !st; i++) st = find_blobs(s, op->blocks[i], err);
    }
    return st;
}

/* {path: {"offset": 0, "data": bytes}}; never nil, which would give no descriptor. */
static void *weights_retained(const ane_objc *rt, const source *s) {
    void *all = ane_cf_dict_retained(rt);
    bool ok = all != NULL;
    for (size_t i = 0; i < s->n_blobs && ok; i++) {
        void *inner = ane_cf_dict_retained(rt);
        ane_cf path = ane_cf_string_retained(rt, s->blobs[i].path);
        ane_cf offset_key = ane_cf_string_retained(rt, "offset");
        ane_cf data_key = ane_cf_string_retained(rt, "data");
        ane_cf zero = ane_cf_int_retained(rt, 0);
        ane_cf data = rt->CFDataCreate(NULL, s->blobs[i].data, (int64_t)s->blobs[i].bytes);
        ok = inner && path && offset_key && data_key && zero && data;
        if (ok) {
            rt->cf->CFDictionarySetValue(inner, offset_key, zero);
            rt->cf->CFDictionarySetValue(inner, data_key, data);
            rt->cf->CFDictionarySetValue(all, path, inner);
        }
        ane_cf_release(rt, data);
        ane_cf_release(rt, zero);
        ane_cf_release(rt, data_key);
        ane_cf_release(rt, offset_key);
        ane_cf_release(rt, path);
        ane_cf_release(rt, inner);
    }
    if (ok) return all;
    ane_cf_release(rt, all);
    return NULL;
}

/* ---------------------------------------------------------------- model */

/* What later becomes a path: 194 characters of [0-9A-F_] in every report. */
static bool plain(const char *hex) {
    return *hex && !hex[strspn(hex, "0123456789ABCDEFabcdef_")];
}

/* The model object, +1, with its identifier and folder. */
static ane_status describe(const ane_objc *rt, const source *s, ane_model *m, ane_error *err) {
    char temp[768];
    ane_cf text = rt->CFDataCreate(NULL, (const uint8_t *)s->text, (int64_t)s->n);
    void *weights = weights_retained(rt, s);
    ane_id d = text && weights ? ane_send_describe(rt, text, weights, NULL) : NULL;
    bool memory = text && weights;
    ane_cf_release(rt, weights);
    ane_cf_release(rt, text);
    if (!memory) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    if (!d) return ane_fail(err, ANE_ERR_RUNTIME, "[compile] the framework gave no descriptor "
                            "for the program");
    m->object = rt->objc_retain(ane_send_model(rt, d));
    if (!m->object)
        return ane_fail(err, ANE_ERR_RUNTIME, "[compile] the framework gave no model for the "
                        "descriptor");
    ane_id hex = ane_send_hex(rt, m->object);
    if (!ane_cf_text(rt, hex, m->hex, sizeof m->hex) || !plain(m->hex)) {
        m->hex[0] = 0;
        return ane_fail(err, ANE_ERR_RUNTIME, "[compile] the model has no usable identifier");
    }
    ane_id dir = rt->NSTemporaryDirectory();
    if (!ane_cf_text(rt, dir, temp, sizeof temp) || temp[0] != '/')
        return ane_fail(err, ANE_ERR_RUNTIME, "[compile] there is no temporary folder");
    size_t n = strlen(temp);
    snprintf(m->folder, sizeof m->folder, "%s%s%s", temp, temp[n - 1] == '/' ? "" : "/", m->hex);
    return ANE_OK;
}

static ane_status compile(const ane_objc *rt, const source *s, ane_model *m, ane_cf options,
                          ane_error *err) {
    ane_id error = NULL;
    ane_status st = ane_folder_write(m->folder, s->text, s->n, s->blobs, s->n_blobs, err);
    if (st) return st;
    int nth = compiles + 1;
    if (nth >= ANE_APPLE_COMPILES_WARN)
        ane__log("ane: compile %d of this process; about %d are believed to be the limit "
                 "(compiled programs that the system still has do not count)", nth,
                 ANE_APPLE_COMPILES);
    if (!ane_send_compile(rt, m->object, ANE_APPLE_QOS, options, &error)) {
        st = ane_objc_fail(rt, err, "compile", error, NULL);
        if (nth > ANE_APPLE_COMPILES_WARN)
            ane_error_prefix(err, "compile %d of this process, about %d are believed to be "
                             "the limit: ", nth, ANE_APPLE_COMPILES);
        return st;
    }
    compiles = nth;
    return ANE_OK;
}

static ane_status load(const ane_objc *rt, ane_model *m, ane_cf options, ane_error *err) {
    for (int attempt = 0;; attempt++) {
        ane_id error = NULL;
        if (ane_send_load(rt, m->object, ANE_APPLE_QOS, options, &error)) {
            m->loaded = true;
            return ANE_OK;
        }
        ane_status st = ane_objc_fail(rt, err, "load", error, NULL);
        if (attempt) return st;
        milliseconds(ANE_APPLE_RETRY_MS);
    }
}

/* A compiled program that the system still has needs no folder and no compile; where its
 * load fails, the entry was stale, which costs one compile. */
static ane_status compile_and_load(const ane_objc *rt, const source *s, ane_model *m,
                                   ane_error *err) {
    void *options = ane_cf_dict_retained(rt);
    if (!options) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = ANE_ERR_NOT_FOUND;
    if (ane_send_exists(rt, m->object)) st = load(rt, m, options, err);
    if (st) {
        st = compile(rt, s, m, options, err);
        if (!st) st = load(rt, m, options, err);
    }
    ane_cf_release(rt, options);
    return st;
}

/* ---------------------------------------------------------------- ports */

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

static ane_status read_attributes(const ane_objc *rt, ane_model *m, ane_error *err) {
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
    bool ok = t->kind == ANE_T_TENSOR && type_name(t->dtype) && t->rank <= 4 &&
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

static ane_status check_function(const ane_function *f, ane_model *m, ane_error *err) {
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

/* ---------------------------------------------------------------- lifetime */

/* Unloads what is loaded; the folder goes whatever happens. */
static void discard(const ane_objc *rt, ane_model *m, bool own_folder) {
    ane_error why;
    ane_id error = NULL;
    if (m->loaded && !ane_send_unload(rt, m->object, ANE_APPLE_QOS, &error)) {
        ane_objc_fail(rt, &why, "unload", error, NULL);
        ane__log("ane: %s", why.message);       /* its release gives the slot back */
    }
    if (m->object) rt->objc_release(m->object);
    if (own_folder) ane_folder_remove(m->folder);
    ane_free(m->in);
    ane_free(m->out);
    ane_free(m);
}

ane_status ane_model_acquire(const ane_objc *rt, const ane_function *f, ane_model **out,
                             ane_error *err) {
    source s = {0};
    ane_model *m = ane_calloc(1, sizeof *m);
    if (!m) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = check_function(f, m, err);
    if (!st) st = ane_program_print(f->program, NULL, &s.text, &s.n, err);
    if (!st) st = find_blobs(&s, f->body, err);
    ane_mutex_lock(&lock);
    if (!st) st = describe(rt, &s, m, err);
    ane_model *same = st ? NULL : models;
    while (same && strcmp(same->hex, m->hex)) same = same->next;
    if (same) {
        same->refs++;
        discard(rt, m, false);
        m = same;
    } else if (!st) {
        st = compile_and_load(rt, &s, m, err);
        if (!st) st = read_attributes(rt, m, err);
        if (!st) {
            m->refs = 1;
            m->next = models;
            models = m;
        }
    }
    if (st) discard(rt, m, true);
    else *out = m;
    ane_mutex_unlock(&lock);
    ane_free(s.text);
    ane_free(s.blobs);
    return st;
}

void ane_model_release(const ane_objc *rt, ane_model *m) {
    ane_mutex_lock(&lock);
    if (!--m->refs) {
        ane_model **p = &models;
        while (*p != m) p = &(*p)->next;
        *p = m->next;
        discard(rt, m, true);
    }
    ane_mutex_unlock(&lock);
}
