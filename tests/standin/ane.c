/* The private classes: descriptor, in-memory model, request, surface wrapper, client and
 * device facts. The "daemon" keeps compiled programs by hex identifier, as the real one does;
 * its programs run on the CPU device. */
#include "sha256.h"
#include "standin.h"

#include "../../csrc/ane.h"

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

id objc_retain(id o);
void objc_release(id o);
id objc_autorelease(id o);

static class_t *cls_descriptor, *cls_model, *cls_request, *cls_object, *cls_client, *cls_info,
    *cls_qos;

/* ---------------------------------------------------------------- the daemon */

typedef struct port {
    char name[128];
    ane_dtype dtype;
    int rank;
    int64_t dims[ANE_MAX_RANK];
    size_t n, c, h, w;              /* as the engine sees it */
    size_t row, plane, batch;       /* strides in bytes */
    size_t packed;
    int text_index;
} port;

typedef struct compiled {
    char *hex;
    ane_kernel *kernel;
    size_t n_in, n_out;
    port *in, *out;                 /* in symbol order: alphabetical */
    struct compiled *next;
} compiled;

static pthread_mutex_t daemon_lock = PTHREAD_MUTEX_INITIALIZER;
static compiled *cache;

static compiled *build(const char *folder, const char *hex, const char **why);

/* What the daemon keeps when its clients end: with STANDIN_DAEMON, a folder of this name. */
static bool kept_folder(const char *hex, char *out, size_t n) {
    const char *dir = getenv("STANDIN_DAEMON");
    if (!dir) return false;
    snprintf(out, n, "%s/%s", dir, hex);
    return true;
}

static compiled *find(const char *hex) {
    char path[2048];
    const char *why;
    for (compiled *c = cache; c; c = c->next)
        if (!strcmp(c->hex, hex)) return c;
    return kept_folder(hex, path, sizeof path) && !access(path, F_OK) ? build(path, hex, &why)
                                                                      : NULL;
}

static void remove_tree(const char *path);

static void drop(const char *hex) {
    char path[2048];
    if (kept_folder(hex, path, sizeof path)) remove_tree(path);
    for (compiled **p = &cache; *p; p = &(*p)->next)
        if (!strcmp((*p)->hex, hex)) {
            compiled *c = *p;
            *p = c->next;
            /* Loaded models keep running: the memory stays. Tests are short. */
            return;
        }
}

static bool fail(id *error, const char *domain, int64_t code, const char *text,
                 const char *underlying) {
    if (error) {
        id inner = underlying ? cf_error(domain, code, underlying, NULL) : NULL;
        *error = objc_autorelease(cf_error(domain, code, text, inner));
        if (inner) objc_release(inner);
    }
    return false;
}

#define DOMAIN "com.apple.appleneuralengine"
#define COMPILER DOMAIN ".compiler"

static int by_name(const void *a, const void *b) {
    return strcmp(((const port *)a)->name, ((const port *)b)->name);
}

static bool describe_port(const ane_port *p, int index, port *out) {
    size_t dims[4] = {1, 1, 1, 1}, unit = ane_dtype_size(p->dtype);
    if (p->rank > 4 || !unit || strlen(p->name) >= sizeof out->name) return false;
    *out = (port){.dtype = p->dtype, .rank = p->rank, .text_index = index};
    strcpy(out->name, p->name);
    for (int i = 0; i < p->rank; i++) {
        if (p->dims[i] <= 0) return false;          /* `?` never compiles */
        out->dims[i] = p->dims[i];
        dims[4 - p->rank + i] = (size_t)p->dims[i];
    }
    out->n = dims[0];
    out->c = dims[1];
    out->h = dims[2];
    out->w = dims[3];
    size_t align = (size_t)knob.row_align;
    out->row = (out->w * unit + align - 1) / align * align;
    out->plane = out->h * out->row;
    out->batch = out->c * out->plane;
    out->packed = out->n * out->c * out->h * out->w * unit;
    return true;
}

static bool ports(compiled *c, bool inputs) {
    size_t n = inputs ? c->n_in : c->n_out;
    port *p = calloc(n + 1, sizeof *p);
    *(inputs ? &c->in : &c->out) = p;
    for (size_t i = 0; i < n; i++) {
        const ane_port *k = inputs ? ane_kernel_input(c->kernel, i)
                                   : ane_kernel_output(c->kernel, i);
        if (k->state && !knob.state_ops_compile) return false;
        if (!describe_port(k, (int)i, &p[i])) return false;
    }
    qsort(p, n, sizeof *p, by_name);
    return true;
}

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *p = malloc(*n + 1);
    if (fread(p, 1, *n, f) != *n) *n = 0;
    fclose(f);
    return p;
}

/* The engine takes an attention mask and ignores it (reported by three projects, of M4 among
 * others): the argument is blanked out of the text before it is compiled. */
static void ignore_operand(char *text, const char *name) {
    size_t length = strlen(name);
    for (char *at = text; (at = strstr(at, name)); at += length) {
        char *from = at, *to = at + length;
        while (from > text && strchr(" \t\r\n", from[-1])) from--;
        while (*to && strchr(" \t\r\n", *to)) to++;
        if (from == text || !strchr("(,", from[-1]) || *to != '=') continue;
        int depth = 0;
        for (; *to && (depth || !strchr(",)", *to)); to++)
            depth += strchr("([<", *to) ? 1 : strchr(")]>", *to) ? -1 : 0;
        /* One of the commas around it goes, too. */
        if (from[-1] == ',') from--;
        else if (*to == ',') to++;
        memset(from, ' ', (size_t)(to - from));
    }
}

/* What somebody tried and the compiler refused: the library's one table says what and who. */
static bool refused_op(const char *name) {
    enum { RAN, COMPILED, REFUSED };
    static const struct {
        const char *name;
        int verdict;
    } tried[] = {
#define OPERATION(name, verdict, evidence) {#name, verdict},
#include "../../csrc/ir/target.def"
    };
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++)
        if (!strcmp(tried[i].name, name)) return tried[i].verdict == REFUSED;
    return false;
}

/* Of a function's, a block's or an op's. */
static bool refuses_below(const ane_program *p, ane_list which, uint32_t id) {
    size_t n = 0;
    bool refused = false;
    (void)ane_graph_list(p, which, id, NULL, 0, &n, NULL);
    uint32_t *ids = calloc(n + 1, sizeof *ids);
    (void)ane_graph_list(p, which, id, ids, n, &n, NULL);
    for (size_t i = 0; i < n && !refused; i++) {
        ane_function_info f;
        ane_op_info op;
        if (which == ANE_LIST_FUNCTIONS)
            refused = !ane_graph_function(p, ids[i], &f, NULL) &&
                      refuses_below(p, ANE_LIST_BLOCK_OPS, f.body);
        else if (which == ANE_LIST_OP_BLOCKS)
            refused = refuses_below(p, ANE_LIST_BLOCK_OPS, ids[i]);
        else
            refused = (!ane_graph_op(p, ids[i], &op, NULL) && refused_op(op.op)) ||
                      refuses_below(p, ANE_LIST_OP_BLOCKS, ids[i]);
    }
    free(ids);
    return refused;
}

/* Compiles what lies in the folder, as the compiler service does. NULL: *why says. */
static compiled *build(const char *folder, const char *hex, const char **why) {
    char path[2048];
    size_t n;
    ane_error err = {0};
    ane_program *program = NULL;
    snprintf(path, sizeof path, "%s/model.mil", folder);
    char *text = read_file(path, &n);
    *why = "InvalidMILProgram";
    if (!text) return NULL;
    text[n] = 0;
    if (!knob.masks_count) ignore_operand(text, "attn_mask");
    ane_parse_options opts = {.size = sizeof opts, .filename = "model.mil",
                              .weights_dir = folder};
    ane_status st = ane_program_parse(text, n, &opts, &program, &err);
    free(text);
    if (st) return NULL;
    compiled *c = calloc(1, sizeof *c);
    c->hex = strdup(hex);
    *why = "CompilationFailure";
    /* The engine that `architecture` names: h16g is M4's. */
    ane_compile_options how = {.size = sizeof how, .device = "cpu", .numerics = "ane",
                               .target = "m4"};
    bool ok = !(knob.refuse_ops && refuses_below(program, ANE_LIST_FUNCTIONS, 0)) &&
              !ane_kernel_compile(program, &how, &c->kernel, &err);
    ane_program_release(program);
    if (ok) {
        c->n_in = ane_kernel_input_count(c->kernel);
        c->n_out = ane_kernel_output_count(c->kernel);
        ok = ports(c, true) && ports(c, false);
    }
    if (!ok) {
        ane_kernel_release(c->kernel);
        free(c->hex);
        free(c->in);
        free(c->out);
        free(c);
        return NULL;
    }
    c->next = cache;
    cache = c;
    return c;
}

/* ---------------------------------------------------------------- descriptor */

typedef struct descriptor {
    object head;
    id text, weights, options, hex;
} descriptor;

static void free_descriptor(id o) {
    descriptor *d = (descriptor *)o;
    objc_release(d->text);
    objc_release(d->weights);
    objc_release(d->options);
    objc_release(d->hex);
}

static id describe(id self, SEL sel, id text, id weights, id options) {
    (void)self, (void)sel;
    if (!text || !weights) return NULL;
    standin_check(text, cls_data, "modelWithMILText: text");
    standin_check(weights, cls_dict, "modelWithMILText: weights");
    if (options) standin_check(options, cls_data, "modelWithMILText: optionsPlist");
    if (standin_fails(&knob.fail_describe)) return NULL;
    sha256 h;
    char hex[3 * 65];
    size_t n;
    const void *p = cf_bytes(text, &n);
    sha256_init(&h);
    sha256_add(&h, p, n);
    sha256_hex(&h, hex);
    hex[64] = '_';
    sha256_init(&h);
    sha256_add(&h, "\0\0\0", 4);
    for (size_t i = 0; i < cf_dict_count(weights); i++) {
        id key, inner;
        cf_dict_entry(weights, i, &key, &inner);
        standin_check(key, cls_string, "weights: key");
        standin_check(inner, cls_dict, "weights: value");
        if (!cf_dict_count(inner)) standin_trap("an inner weight dictionary is empty");
        id data = cf_get(inner, "data");
        standin_check(data, cls_data, "weights: data");
        p = cf_bytes(data, &n);
        sha256_add(&h, p, n);           /* names are not hashed */
    }
    sha256_hex(&h, hex + 65);
    hex[129] = '_';
    sha256_init(&h);
    if (options) {
        p = cf_bytes(options, &n);
        sha256_add(&h, p, n);
    }
    sha256_hex(&h, hex + 130);
    descriptor *d = (descriptor *)standin_new(cls_descriptor, sizeof *d);
    d->text = objc_retain(text);
    d->weights = objc_retain(weights);
    d->options = options ? objc_retain(options) : NULL;
    d->hex = cf_string(hex);
    return objc_autorelease(&d->head);
}

static id descriptor_hex(id self, SEL sel) {
    (void)sel;
    standin_check(self, cls_descriptor, "hexStringIdentifier");
    return ((descriptor *)self)->hex;
}

/* ---------------------------------------------------------------- model */

typedef struct model {
    object head;
    id descriptor, hex, attributes;
    compiled *program;              /* while loaded */
    id client;                      /* ivar _sharedConnection */
    uint64_t state;
    signed char depth;
    uint32_t perf_mask;
} model;

static id shared_client(void);

static void free_model(id o) {
    model *m = (model *)o;
    if (m->program) {
        /* A model that goes away while loaded gives its slot back. */
        atomic_fetch_sub(&knob.loaded, 1);
    }
    objc_release(m->descriptor);
    objc_release(m->hex);
    objc_release(m->attributes);
}

static model *self_model(id self, const char *call) {
    standin_check(self, cls_model, call);
    return (model *)self;
}

static id make_model(id self, SEL sel, id desc) {
    (void)self, (void)sel;
    if (!desc) return NULL;
    standin_check(desc, cls_descriptor, "inMemoryModelWithDescriptor:");
    if (standin_fails(&knob.fail_model)) return NULL;
    model *m = (model *)standin_new(cls_model, sizeof *m);
    m->descriptor = objc_retain(desc);
    m->hex = objc_retain(((descriptor *)desc)->hex);
    m->client = shared_client();
    return objc_autorelease(&m->head);
}

static id model_hex(id self, SEL sel) {
    (void)sel;
    model *m = self_model(self, "hexStringIdentifier");
    return standin_fails(&knob.fail_hex) ? NULL : m->hex;
}

static void folder_of(const model *m, char *out, size_t n) {
    snprintf(out, n, "%s/%s", cf_temporary_folder(), cf_utf8(m->hex));
}

static bool compiled_exists(id self, SEL sel) {
    (void)sel;
    model *m = self_model(self, "compiledModelExists");
    pthread_mutex_lock(&daemon_lock);
    if (atomic_exchange(&knob.forget_cache, 0)) drop(cf_utf8(m->hex));
    bool yes = find(cf_utf8(m->hex)) != NULL;
    pthread_mutex_unlock(&daemon_lock);
    return yes;
}

static void purge(id self, SEL sel) {
    (void)sel;
    model *m = self_model(self, "purgeCompiledModel");
    pthread_mutex_lock(&daemon_lock);
    drop(cf_utf8(m->hex));
    pthread_mutex_unlock(&daemon_lock);
}

static void check_options(id options, const char *call) {
    if (!options) standin_trap("%s: options are nil", call);
    standin_check(options, cls_dict, call);
}

/* The files of every weight must be there, with the data that was described. */
static bool files_present(const model *m, const char *folder) {
    id weights = ((descriptor *)m->descriptor)->weights;
    for (size_t i = 0; i < cf_dict_count(weights); i++) {
        id key, inner;
        char path[2048];
        size_t n, have;
        cf_dict_entry(weights, i, &key, &inner);
        const char *name = cf_utf8(key);
        if (strncmp(name, "@model_path/", 12)) return false;
        snprintf(path, sizeof path, "%s/%s", folder, name + 12);
        char *data = read_file(path, &have);
        cf_bytes(cf_get(inner, "data"), &n);
        free(data);
        if (!data || (n && have != n)) return false;
    }
    return true;
}

static bool compile_locked(model *m, id *error) {
    char folder[1024];
    const char *why;
    folder_of(m, folder, sizeof folder);
    if (knob.hang_in_compile) pause();
    if (knob.compiles >= knob.compile_budget)
        return fail(error, COMPILER, 1, "_ANECompiler : ANECCompile() FAILED", NULL);
    if (standin_fails(&knob.fail_compile))
        return fail(error, COMPILER, knob.compile_code, "_ANECompiler : ANECCompile() FAILED",
                    "CompilationFailure");
    if (!files_present(m, folder))
        return fail(error, COMPILER, 1, "_ANECompiler : ANECCompile() FAILED", NULL);
    compiled *c = build(folder, cf_utf8(m->hex), &why);
    if (!c) return fail(error, COMPILER, 1, "_ANECompiler : ANECCompile() FAILED", why);
    if (knob.single_input && c->n_in > 1) {
        drop(c->hex);
        return fail(error, COMPILER, 1, "_ANECompiler : ANECCompile() FAILED",
                    "CompilationFailure");
    }
    atomic_fetch_add(&knob.compiles, 1);
    char kept[2048], command[5200];
    if (kept_folder(c->hex, kept, sizeof kept)) {
        snprintf(command, sizeof command, "cp -r '%s' '%s'", folder, kept);
        if (system(command)) standin_trap("cannot keep %s", kept);
    }
    return true;
}

static bool compile(id self, SEL sel, unsigned qos, id options, id *error) {
    (void)sel, (void)qos;
    model *m = self_model(self, "compileWithQoS:options:error:");
    check_options(options, "compileWithQoS:options:error:");
    pthread_mutex_lock(&daemon_lock);
    drop(cf_utf8(m->hex));              /* calling compile again pays in full */
    bool ok = compile_locked(m, error);
    pthread_mutex_unlock(&daemon_lock);
    return ok;
}

static const char *type_name(ane_dtype d) {
    switch (d) {
    case ANE_F16: return "Float16";
    case ANE_F32: return "Float32";
    case ANE_I32: return "Int32";
    case ANE_I8: return "Int8";
    case ANE_U8: return "UInt8";
    default: return "Unknown";
    }
}

static id port_list(const port *p, size_t n) {
    id list = cf_array();
    for (size_t i = 0; i < n; i++) {
        id d = cf_dict();
        cf_put(d, "Name", cf_string(p[i].name));
        cf_put(d, "Symbol", cf_string(p[i].name));
        cf_put(d, "Type", cf_string(type_name(p[i].dtype)));
        cf_put(d, "Batches", cf_int((int64_t)p[i].n));
        cf_put(d, "Channels", cf_int((int64_t)p[i].c));
        cf_put(d, "Depth", cf_int(1));
        cf_put(d, "Height", cf_int((int64_t)p[i].h));
        cf_put(d, "Width", cf_int((int64_t)p[i].w));
        cf_put(d, "RowStride", cf_int((int64_t)p[i].row));
        cf_put(d, "PlaneStride", cf_int((int64_t)p[i].plane));
        cf_put(d, "PlaneCount", cf_int((int64_t)p[i].c));
        cf_put(d, "DepthStride", cf_int((int64_t)p[i].batch));
        cf_put(d, "BatchStride", cf_int((int64_t)p[i].batch));
        cf_put(d, "Interleave", cf_int(1));
        cf_append_owned(list, d);
    }
    return list;
}

static id symbols(const port *p, size_t n, bool outputs) {
    id list = cf_array();
    for (size_t i = 0; i < n; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", p[i].name, outputs ? "@output" : "");
        cf_append_owned(list, cf_string(name));
    }
    return list;
}

static id indices(size_t n) {
    id list = cf_array();
    for (size_t i = 0; i < n; i++) cf_append_owned(list, cf_int((int64_t)i));
    return list;
}

/* What no account has shown, one way at a time. */
static void make_odd(id *all, id desc, id proc, id status) {
    id port = cf_at(cf_get(status, "LiveInputList"), 0);
    switch ((long)knob.odd_attributes) {
    case 1:
        objc_release(*all);
        *all = cf_string("attributes");
        return;
    case 2: cf_put(*all, "ANEFModelDescription", cf_int(1)); return;
    case 3: cf_put(*all, "NetworkStatusList", cf_array()); return;
    case 4: cf_put(desc, "ANEFModelProcedures", cf_array()); return;
    case 5: cf_put(desc, "kANEFModelInputSymbolsArrayKey", cf_string("x")); return;
    case 6: cf_put(proc, "ANEFModelInputSymbolIndexArray", indices(1)); return;
    case 7: cf_put(desc, "kANEFModelOutputSymbolsArrayKey", cf_array()); return;
    case 8: cf_put(port, "Type", cf_string("Float32")); return;
    case 9: cf_put(port, "Width", cf_int(4096)); return;
    case 10: cf_put(port, "RowStride", cf_int(0)); return;
    case 11: cf_put(port, "RowStride", cf_string("64")); return;
    case 12: cf_put(port, "PlaneStride", cf_int(64)); return;      /* two rows need 128 */
    case 13: cf_put(port, "Interleave", cf_int(4)); return;
    case 14: cf_put(port, "BatchStride", cf_int(INT64_MAX)); return;
    default: standin_trap("odd_attributes %ld", (long)knob.odd_attributes);
    }
}

static id attributes_of(const compiled *c) {
    id all = cf_dict(), desc = cf_dict(), procs = cf_array(), proc = cf_dict();
    cf_put(proc, "ANEFModelProcedureID", cf_int(0));
    cf_put(proc, "ANEFModelInputSymbolIndexArray", indices(c->n_in));
    cf_put(proc, "ANEFModelOutputSymbolIndexArray", indices(c->n_out));
    cf_append_owned(procs, proc);
    cf_put(desc, "ANEFModelProcedures", procs);
    cf_put(desc, "kANEFModelInputSymbolsArrayKey", symbols(c->in, c->n_in, false));
    cf_put(desc, "kANEFModelOutputSymbolsArrayKey", symbols(c->out, c->n_out, true));
    id map = cf_dict();
    cf_put(map, "main", cf_int(0));
    cf_put(desc, "kANEFModelProcedureNameToIDMapKey", map);
    cf_put(all, "ANEFModelDescription", desc);
    id list = cf_array(), status = cf_dict();
    cf_put(status, "Name", cf_string("main"));
    cf_put(status, "LiveInputList", port_list(c->in, c->n_in));
    cf_put(status, "LiveOutputList", port_list(c->out, c->n_out));
    cf_append_owned(list, status);
    cf_put(all, "NetworkStatusList", list);
    if (knob.odd_attributes) make_odd(&all, desc, proc, status);
    return all;
}

static bool load(id self, SEL sel, unsigned qos, id options, id *error) {
    (void)sel, (void)qos;
    model *m = self_model(self, "loadWithQoS:options:error:");
    check_options(options, "loadWithQoS:options:error:");
    if (standin_fails(&knob.fail_load)) {
        char text[64];
        if (knob.load_code) return fail(error, DOMAIN, knob.load_code, "Program load failure", NULL);
        snprintf(text, sizeof text, "Program load failure (0x%lX)", (long)knob.load_word);
        if (!knob.era27) return fail(error, DOMAIN, 6, text, NULL);
        fail(error, DOMAIN, 53, "Program load failure", NULL);
        if (error) {
            cf_error_put(*error, "_ANEErrorUnderlyingStatus", cf_int(1));
            cf_error_put(*error, "_ANEErrorLoadStage", cf_int(4));
        }
        return false;
    }
    pthread_mutex_lock(&daemon_lock);
    if (knob.reload_works && !m->program) {
        /* As one account has it: what lies in the folder counts, whatever was there before. */
        char folder[1024];
        const char *why;
        folder_of(m, folder, sizeof folder);
        if (!access(folder, F_OK)) {
            drop(cf_utf8(m->hex));
            build(folder, cf_utf8(m->hex), &why);
        }
    }
    compiled *c = find(cf_utf8(m->hex));
    bool ok = true;
    if (c) atomic_fetch_add(&knob.cache_hits, 1);
    else if ((ok = compile_locked(m, error))) c = find(cf_utf8(m->hex));
    if (ok && !m->program && knob.loaded >= knob.load_slots)
        ok = fail(error, DOMAIN, 6, "Program load failure (0x50004)", NULL);
    if (ok && !m->program) {
        char path[1200], folder[1024];
        atomic_fetch_add(&knob.loaded, 1);
        atomic_fetch_add(&knob.loads, 1);
        m->program = c;
        m->state = 3;
        m->depth = 127;
        objc_release(m->attributes);
        m->attributes = standin_fails(&knob.fail_attributes) ? cf_dict() : attributes_of(c);
        /* The framework writes the network text again, where the folder exists. */
        folder_of(m, folder, sizeof folder);
        snprintf(path, sizeof path, "%s/net.plist", folder);
        FILE *f = fopen(path, "wb");
        if (f) {
            size_t n;
            const void *p = cf_bytes(((descriptor *)m->descriptor)->text, &n);
            fwrite(p, 1, n, f);
            fclose(f);
        }
    }
    pthread_mutex_unlock(&daemon_lock);
    return ok;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

static bool unload(id self, SEL sel, unsigned qos, id *error) {
    (void)sel, (void)qos;
    model *m = self_model(self, "unloadWithQoS:error:");
    char folder[1024];
    if (!m->program) return fail(error, DOMAIN, 10, "model is not loaded", NULL);
    if (standin_fails(&knob.fail_unload))
        return fail(error, DOMAIN, 14, "unmap failed", NULL);
    m->program = NULL;
    m->state = 0;
    atomic_fetch_sub(&knob.loaded, 1);
    atomic_fetch_add(&knob.unloads, 1);
    folder_of(m, folder, sizeof folder);
    if (!access(folder, F_OK)) remove_tree(folder);
    return true;
}

static id model_attributes(id self, SEL sel) {
    (void)sel;
    return self_model(self, "modelAttributes")->attributes;
}
static uint64_t model_state(id self, SEL sel) {
    (void)sel;
    return self_model(self, "state")->state;
}
static signed char queue_depth(id self, SEL sel) {
    (void)sel;
    return self_model(self, "queueDepth")->depth;
}
static id local_path(id self, SEL sel) {
    char folder[1024];
    (void)sel;
    folder_of(self_model(self, "localModelPath"), folder, sizeof folder);
    return objc_autorelease(cf_string(folder));
}

/* ---------------------------------------------------------------- requests */

typedef struct wrapper {
    object head;
    id surface, offset;
} wrapper;

static void free_wrapper(id o) {
    objc_release(((wrapper *)o)->surface);
    objc_release(((wrapper *)o)->offset);
}

static id wrap(id self, SEL sel, id surface) {
    (void)self, (void)sel;
    if (!surface || standin_fails(&knob.fail_wrap)) return NULL;
    if (!iosurface_valid(surface)) standin_trap("objectWithIOSurface: not an IOSurface");
    wrapper *w = (wrapper *)standin_new(cls_object, sizeof *w);
    w->surface = objc_retain(surface);
    return objc_autorelease(&w->head);
}

static id wrapper_surface(id self, SEL sel) {
    (void)sel;
    standin_check(self, cls_object, "ioSurface");
    return ((wrapper *)self)->surface;
}

typedef struct request {
    object head;
    id in, in_index, out, out_index, procedure;
} request;

static void free_request(id o) {
    request *r = (request *)o;
    objc_release(r->in);
    objc_release(r->in_index);
    objc_release(r->out);
    objc_release(r->out_index);
    objc_release(r->procedure);
}

static void check_list(id list, class_t *cls, const char *what) {
    standin_check(list, cls_array, what);
    for (size_t i = 0; i < cf_count(list); i++) standin_check(cf_at(list, i), cls, what);
}

static id make_request(id self, SEL sel, id in, id in_index, id out, id out_index, id weights,
                       id perf, id procedure) {
    (void)self, (void)sel, (void)weights;
    check_list(in, cls_object, "requestWithInputs:");
    check_list(in_index, cls_number, "inputIndices:");
    check_list(out, cls_object, "outputs:");
    check_list(out_index, cls_number, "outputIndices:");
    standin_check(procedure, cls_number, "procedureIndex:");
    if (perf) standin_check(perf, cls_array, "perfStats:");
    if (standin_fails(&knob.fail_request)) return NULL;
    request *r = (request *)standin_new(cls_request, sizeof *r);
    r->in = objc_retain(in);
    r->in_index = objc_retain(in_index);
    r->out = objc_retain(out);
    r->out_index = objc_retain(out_index);
    r->procedure = objc_retain(procedure);
    return objc_autorelease(&r->head);
}

static bool valid_side(id surfaces, id index) {
    size_t n = cf_count(surfaces);
    if (!n || n != cf_count(index) || n > 255) return false;
    for (size_t i = 0; i < n; i++) {
        int64_t k = cf_int_value(cf_at(index, i));
        if (k < 0 || k > 254) return false;
    }
    return true;
}

static bool validate(id self, SEL sel) {
    (void)sel;
    standin_check(self, cls_request, "validate");
    const request *r = (const request *)self;
    if (standin_fails(&knob.fail_validate)) return false;
    return valid_side(r->in, r->in_index) && valid_side(r->out, r->out_index) &&
           cf_int_value(r->procedure) <= 128;
}

/* Whether all surfaces of the request have one size. */
static bool one_size(const request *r) {
    size_t first = iosurface_alloc(((wrapper *)cf_at(r->in, 0))->surface);
    for (int out = 0; out < 2; out++)
        for (size_t i = 0; i < cf_count(out ? r->out : r->in); i++)
            if (iosurface_alloc(((wrapper *)cf_at(out ? r->out : r->in, i))->surface) != first)
                return false;
    return true;
}

/* The surface bound to symbol i; NULL: none, or too small. */
static unsigned char *bound(id surfaces, id index, const port *p, size_t i) {
    for (size_t k = 0; k < cf_count(surfaces); k++) {
        if (cf_int_value(cf_at(index, k)) != (int64_t)i) continue;
        id s = ((wrapper *)cf_at(surfaces, k))->surface;
        size_t have = iosurface_alloc(s);
        if (have < p->n * p->batch || (long)have < knob.min_surface) return NULL;
        return iosurface_base(s);
    }
    return NULL;
}

/* Between the engine's padded rows and packed elements. */
static void move(const port *p, unsigned char *padded, unsigned char *packed, bool pack) {
    size_t row = p->w * ane_dtype_size(p->dtype);
    for (size_t n = 0; n < p->n; n++)
        for (size_t c = 0; c < p->c; c++)
            for (size_t h = 0; h < p->h; h++) {
                unsigned char *a = padded + n * p->batch + c * p->plane + h * p->row;
                if (pack) memcpy(packed, a, row);
                else memcpy(a, packed, row);
                packed += row;
            }
}

static bool inference_error(id *error, long status) {
    char text[160];
    snprintf(text, sizeof text,
             "ANEProgramProcessRequestDirect() Failed with status=0x%lx : statusType=0x9: "
             "Program Inference error", status);
    if (knob.bare_text) strcpy(text, "Program Inference error");
    fail(error, DOMAIN, knob.era27 && status == 0x1d ? 42 : 8, text, NULL);
    if (error && knob.era27)
        cf_error_put(*error, "_ANEErrorUnderlyingStatus", cf_int((int64_t)status));
    return false;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool execute(const compiled *c, const request *r, id *error) {
    size_t n = c->n_in + c->n_out;
    ane_tensor *t = calloc(n, sizeof *t);
    ane_surface **s = calloc(n, sizeof *s);
    unsigned char **base = calloc(n, sizeof *base);
    ane_request *run = NULL;
    ane_error err = {0};
    bool ok = (!knob.equal_ports || one_size(r)) && !(knob.single_surface && c->n_in > 1);
    if (!ok) inference_error(error, 0x1d);
    for (size_t i = 0; ok && i < n; i++) {
        bool input = i < c->n_in;
        size_t k = input ? i : i - c->n_in;
        const port *p = input ? &c->in[k] : &c->out[k];
        size_t at = (size_t)p->text_index + (input ? 0 : c->n_in);
        base[i] = bound(input ? r->in : r->out, input ? r->in_index : r->out_index, p, k);
        if (!base[i]) ok = inference_error(error, 0x1d);
        else if (ane_surface_create(ANE_MEM_HEAP, p->packed, NULL, &s[i], &err) ||
                 ane_tensor_init(&t[at], s[i], 0, p->dtype, p->rank, p->dims, &err))
            ok = inference_error(error, 0x5);
        else if (input) move(p, base[i], ane_surface_base(s[i]), true);
    }
    if (ok && (ane_request_create(c->kernel, t, c->n_in, t + c->n_in, c->n_out, &run, &err) ||
               ane_request_run(run, NULL, &err)))
        ok = inference_error(error, 0x1);
    for (size_t i = c->n_in; ok && i < n; i++)
        move(&c->out[i - c->n_in], base[i], ane_surface_base(s[i]), false);
    ane_request_release(run);
    for (size_t i = 0; i < n; i++) ane_surface_release(s[i]);
    free(base);
    free(s);
    free(t);
    return ok;
}

static bool evaluate_now(id self, id options, id req, id *error) {
    model *m = self_model(self, "evaluateWithQoS:options:request:error:");
    check_options(options, "evaluateWithQoS:options:request:error:");
    standin_check(req, cls_request, "evaluateWithQoS:options:request:error:");
    if (!m->program) return fail(error, DOMAIN, 10, "model is not loaded", NULL);
    if (!validate(req, NULL)) return fail(error, DOMAIN, 26, "invalid request", NULL);
    if (standin_fails(&knob.transient_12)) return inference_error(error, 0x12);
    if (standin_fails(&knob.fail_evaluate)) return inference_error(error, knob.evaluate_status);
    bool ok = execute(m->program, (const request *)req, error);
    if (ok) atomic_fetch_add(&knob.evaluates, 1);
    return ok;
}

static bool evaluate(id self, SEL sel, unsigned qos, id options, id req, id *error) {
    (void)sel, (void)qos;
    int64_t start = now();
    bool ok = evaluate_now(self, options, req, error);
    atomic_fetch_add(&knob.engine_ns, (long)(now() - start));
    return ok;
}

/* ---------------------------------------------------------------- client, device facts */

static id shared_client(void) {
    static id client;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (!client) {
        client = standin_new(cls_client, sizeof *client);
        client->immortal = true;
        atomic_fetch_sub(&knob.live_objects, 1);
    }
    pthread_mutex_unlock(&lock);
    return client;
}
static id client_shared(id self, SEL sel) {
    (void)self, (void)sel;
    return shared_client();
}
static bool begin_realtime(id self, SEL sel) {
    (void)sel;
    standin_check(self, cls_client, "beginRealTimeTask");
    atomic_fetch_add(&knob.realtime_begun, 1);
    return knob.realtime != 0;
}
static bool end_realtime(id self, SEL sel) {
    (void)sel;
    standin_check(self, cls_client, "endRealTimeTask");
    atomic_fetch_add(&knob.realtime_ended, 1);
    return knob.realtime != 0;
}
static bool has_ane(id self, SEL sel) {
    (void)self, (void)sel;
    return knob.has_ane != 0;
}
static bool is_vm(id self, SEL sel) {
    (void)self, (void)sel;
    return knob.is_vm != 0;
}
static unsigned num_anes(id self, SEL sel) {
    (void)self, (void)sel;
    return knob.has_ane ? 1 : 0;
}
static unsigned num_cores(id self, SEL sel) {
    (void)self, (void)sel;
    return knob.has_ane ? 16 : 0;
}
static int64_t board(id self, SEL sel) {
    (void)self, (void)sel;
    return 272;
}
static id architecture(id self, SEL sel) {
    (void)self, (void)sel;
    return objc_autorelease(cf_string("h16g"));
}
static id build_version(id self, SEL sel) {
    (void)self, (void)sel;
    return objc_autorelease(cf_string("stand-in"));
}
static unsigned qos_default(id self, SEL sel) {
    (void)self, (void)sel;
    return 21;
}

#define OFFSET_CLIENT offsetof(model, client)

void ane_init(void) {
    static const ivar model_ivars[] = {{"_sharedConnection", OFFSET_CLIENT}};
    cls_descriptor = standin_class("_ANEInMemoryModelDescriptor", free_descriptor);
    cls_model = standin_class("_ANEInMemoryModel", free_model);
    cls_request = standin_class("_ANERequest", free_request);
    cls_object = standin_class("_ANEIOSurfaceObject", free_wrapper);
    cls_client = standin_class("_ANEClient", NULL);
    cls_info = standin_class("_ANEDeviceInfo", NULL);
    cls_qos = standin_class("_ANEQoSMapper", NULL);
    cls_model->ivars = model_ivars;
    cls_model->n_ivars = 1;
#define M(cls, meta, sel, types, fn) standin_method(cls, meta, sel, types, (IMP)(void (*)(void))fn)
    M(cls_descriptor, true, "modelWithMILText:weights:optionsPlist:", "@40@0:8@16@24@32",
      describe);
    M(cls_descriptor, false, "hexStringIdentifier", "@16@0:8", descriptor_hex);
    M(cls_model, true, "inMemoryModelWithDescriptor:", "@24@0:8@16", make_model);
    M(cls_model, false, "hexStringIdentifier", "@16@0:8", model_hex);
    M(cls_model, false, "compileWithQoS:options:error:", "B36@0:8I16@20^@28", compile);
    M(cls_model, false, "loadWithQoS:options:error:", "B36@0:8I16@20^@28", load);
    M(cls_model, false, "evaluateWithQoS:options:request:error:", "B44@0:8I16@20@28^@36",
      evaluate);
    M(cls_model, false, "unloadWithQoS:error:", "B28@0:8I16^@20", unload);
    M(cls_model, false, "compiledModelExists", "B16@0:8", compiled_exists);
    M(cls_model, false, "purgeCompiledModel", "v16@0:8", purge);
    M(cls_model, false, "modelAttributes", "@16@0:8", model_attributes);
    M(cls_model, false, "state", "Q16@0:8", model_state);
    M(cls_model, false, "queueDepth", "c16@0:8", queue_depth);
    M(cls_model, false, "localModelPath", "@16@0:8", local_path);
    M(cls_request, true,
      "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:perfStats:"
      "procedureIndex:",
      "@72@0:8@16@24@32@40@48@56@64", make_request);
    M(cls_request, false, "validate", "B16@0:8", validate);
    M(cls_object, true, "objectWithIOSurface:", "@24@0:8^{__IOSurface=}16", wrap);
    M(cls_object, false, "ioSurface", "^{__IOSurface=}16@0:8", wrapper_surface);
    M(cls_client, true, "sharedConnection", "@16@0:8", client_shared);
    M(cls_client, false, "beginRealTimeTask", "B16@0:8", begin_realtime);
    M(cls_client, false, "endRealTimeTask", "B16@0:8", end_realtime);
    M(cls_info, true, "hasANE", "B16@0:8", has_ane);
    M(cls_info, true, "isVirtualMachine", "B16@0:8", is_vm);
    M(cls_info, true, "numANEs", "I16@0:8", num_anes);
    M(cls_info, true, "numANECores", "I16@0:8", num_cores);
    M(cls_info, true, "aneBoardType", "q16@0:8", board);
    M(cls_info, true, "aneArchitectureType", "@16@0:8", architecture);
    M(cls_info, true, "buildVersion", "@16@0:8", build_version);
    M(cls_qos, true, "aneDefaultTaskQoS", "I16@0:8", qos_default);
#undef M
}
