/* The flat bridge over ane.h. */
#include "ane_bridge.h"
#include "error.h"

#include "../ane.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ANEKernelHandle {
    ane_kernel *kernel;
    ane_request *request;
    size_t n_in, n_out;
    size_t n_acts;              /* inputs before the weights; n_in without runtime weights */
    bool dynamic;
    bool failed;                /* the last eval */
    ane_surface **in, **out;
};

static _Thread_local char last_error[1280];
static atomic_int compiles;
static atomic_bool ready;               /* init has succeeded */

void ane__fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, ap);
    va_end(ap);
}

void ane__no_error(void) { last_error[0] = 0; }

const char *ane_bridge_last_error(void) { return last_error; }

static const char *device(void) {
    for (size_t i = 0; i < ane_device_count(); i++)
        if (!strcmp(ane_device_name(i), "ane") && ane_device_available(i)) return "ane";
    return "cpu";
}

int ane_bridge_init(void) {
    ane_error err;
    ane__no_error();
    if (atomic_load(&ready)) return 0;
    if (ane_isa_check(&err)) {
        ane__fail("[init] %s", err.message);
        return -1;
    }
    atomic_store(&ready, true);
    return 0;
}

int ane_bridge_get_compile_count(void) { return atomic_load(&compiles); }
void ane_bridge_reset_compile_count(void) { atomic_store(&compiles, 0); }

/* ---------------------------------------------------------------- compiling */

/* Sizes in the order of the text's parameters; runtime weights come behind the inputs. */
typedef struct port_sizes {
    const size_t *first, *second;
    int n_first, n_second;
} port_sizes;

typedef struct blobs {
    const char *const *names;
    const uint8_t *const *datas;
    const size_t *lens;
    int n;
} blobs;

static const char model_path[] = "@model_path/";

/* A name that does not begin with @model_path/ is a path in the model's folder as it is. */
static const char *in_folder(const char *name) {
    size_t n = sizeof model_path - 1;
    return strncmp(name, model_path, n) ? name : name + n;
}

/* The caller may free his blobs after the compile: constants keep a copy. */
static void release_copy(void *arg) { free(arg); }

static ane_status open_blob(void *arg, const char *path, ane_surface **out, ane_error *err) {
    const blobs *b = arg;
    for (int i = 0; i < b->n; i++) {
        if (strcmp(in_folder(b->names[i]), in_folder(path))) continue;
        void *copy = malloc(b->lens[i] ? b->lens[i] : 1);
        if (!copy) {
            err->status = ANE_ERR_NOMEM;
            snprintf(err->message, sizeof err->message, "out of memory");
            return ANE_ERR_NOMEM;
        }
        memcpy(copy, b->datas[i], b->lens[i]);
        ane_status st = ane_surface_wrap(copy, b->lens[i], true, release_copy, copy, out, err);
        if (st) free(copy);
        return st;
    }
    err->status = ANE_ERR_NOT_FOUND;
    snprintf(err->message, sizeof err->message,
             "the program names weight file '%.200s', which was not given", path);
    return ANE_ERR_NOT_FOUND;
}

static bool check_value(const ane_program *p, const char *what, size_t i, uint32_t id,
                        size_t given, ane_error *err) {
    ane_value_info v;
    size_t needed;
    if (ane_graph_value(p, id, &v, err)) {
        ane__fail("%s", err->message);
        return false;
    }
    const ane_type *t = v.type->kind == ANE_T_STATE ? v.type->elem : v.type;
    bool fixed = t->kind == ANE_T_TENSOR;
    for (int d = 0; fixed && d < t->rank; d++) fixed = t->dims[d] >= 0;
    if (!fixed) {
        ane__fail("%s %zu ('%s') has no fixed size", what, i, v.name);
        return false;
    }
    if (ane_shape_size(t->dtype, t->rank, t->dims, &needed, err)) {
        ane__fail("%s %zu ('%s'): %s", what, i, v.name, err->message);
        return false;
    }
    if (given < needed || !given) {
        ane__fail("%s %zu ('%s') needs %zu bytes, got %zu", what, i, v.name, needed, given);
        return false;
    }
    return true;
}

static size_t size_of(const port_sizes *s, size_t i) {
    size_t first = (size_t)s->n_first;
    return i < first ? s->first[i] : s->second[i - first];
}

/* Ids of a list, to be freed; NULL with an error. */
static uint32_t *list_ids(const ane_program *p, ane_list which, uint32_t id, size_t *n) {
    ane_error err;
    uint32_t *ids = NULL;
    if (ane_graph_list(p, which, id, NULL, 0, n, &err)) {
        ane__fail("%s", err.message);
        return NULL;
    }
    ids = malloc((*n + 1) * sizeof *ids);
    if (!ids || ane_graph_list(p, which, id, ids, *n, n, &err)) {
        ane__fail("%s", ids ? err.message : "out of memory");
        free(ids);
        return NULL;
    }
    return ids;
}

/* The function that is compiled: "main", or the only one; 0: none. */
static uint32_t main_function(const ane_program *p, ane_function_info *info) {
    ane_error err;
    size_t n;
    uint32_t chosen = 0, *ids = list_ids(p, ANE_LIST_FUNCTIONS, 0, &n);
    for (size_t i = 0; ids && i < n && !chosen; i++)
        if (!ane_graph_function(p, ids[i], info, &err) && (n == 1 || !strcmp(info->name, "main")))
            chosen = ids[i];
    free(ids);
    return chosen;
}

/* Counts and sizes against the function that will be compiled, before a compile is spent. */
static bool check_ports(const ane_program *p, const port_sizes *in, const port_sizes *out,
                        ane_error *err) {
    ane_function_info f = {0};
    size_t n_in = 0, n_out = 0, given = (size_t)in->n_first + (size_t)in->n_second;
    uint32_t id = main_function(p, &f);
    if (!id) {
        if (!last_error[0]) ane__fail("the program has several functions, none of them \"main\"");
        return false;
    }
    uint32_t *ins = list_ids(p, ANE_LIST_FUNCTION_PARAMS, id, &n_in);
    uint32_t *outs = ins ? list_ids(p, ANE_LIST_BLOCK_OUTPUTS, f.body, &n_out) : NULL;
    bool ok = ins && outs;
    if (ok && (n_in != given || n_out != (size_t)out->n_first)) {
        ane__fail("the program has %zu inputs and %zu outputs, %zu and %d were given", n_in, n_out,
             given, out->n_first);
        ok = false;
    }
    for (size_t i = 0; ok && i < n_in; i++)
        ok = check_value(p, "input", i, ins[i], size_of(in, i), err);
    for (size_t i = 0; ok && i < n_out; i++)
        ok = check_value(p, "output", i, outs[i], size_of(out, i), err);
    free(ins);
    free(outs);
    return ok;
}

/* One surface per port, of the caller's size. Its data is packed row-major from the start,
 * whatever the device's own layout is: the request stages a copy where they differ. */
static bool bind_ports(ANEKernelHandle *h, bool inputs, const port_sizes *sizes,
                       ane_tensor *views, ane_error *err) {
    size_t n = inputs ? h->n_in : h->n_out;
    ane_surface **to = inputs ? h->in : h->out;
    for (size_t i = 0; i < n; i++) {
        const ane_port *p = inputs ? ane_kernel_input(h->kernel, i)
                                   : ane_kernel_output(h->kernel, i);
        if (ane_surface_create(ane_memory_default(), size_of(sizes, i), NULL, &to[i], err) ||
            ane_tensor_init(&views[i], to[i], 0, p->dtype, p->rank, p->dims, err)) {
            ane__fail("%s", err->message);
            return false;
        }
    }
    return true;
}

/* A real compile raises the count; on the engine, what its cache has is loaded without one.
 * One at a time, so that each sees its own. */
static ane_status compile_counted(const ane_program *program, const ane_compile_options *opts,
                                  ane_kernel **out, ane_error *err) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    int before = ane_compile_count();
    ane_status st = ane_kernel_compile(program, opts, out, err);
    if (!st && (strcmp(opts->device, "ane") || ane_compile_count() > before))
        atomic_fetch_add(&compiles, 1);
    pthread_mutex_unlock(&lock);
    return st;
}

static ANEKernelHandle *compile(const char *text, size_t n, const blobs *weights,
                                const port_sizes *in, const port_sizes *out) {
    ane_error err = {0};
    ane_program *program = NULL;
    ANEKernelHandle *h = NULL;
    ane_tensor *views = NULL;
    bool ok = false;
    if (!atomic_load(&ready)) {
        ane__fail("ane_bridge_init was not called, or it failed");
        return NULL;
    }
    if (!text || !n) {
        ane__fail("no program text");
        return NULL;
    }
    if (in->n_first < 1 || in->n_second < 0 || out->n_first < 1 || !in->first ||
        (in->n_second && !in->second) || !out->first) {
        ane__fail("expected at least one input and one output with their sizes, got %d and %d "
             "(and %d runtime weights)", in->n_first, out->n_first, in->n_second);
        return NULL;
    }
    ane_parse_options parse = {.size = sizeof parse, .filename = "model.mil",
                               .open = open_blob, .open_arg = (void *)(uintptr_t)weights};
    ane_compile_options opts = {.size = sizeof opts, .device = device()};
    if (ane_program_parse(text, n, &parse, &program, &err)) {
        ane__fail("%s:%d:%d: %s", err.file, err.line, err.column, err.message);
        goto done;
    }
    if (!check_ports(program, in, out, &err)) goto done;
    h = calloc(1, sizeof *h);
    if (!h) {
        ane__fail("out of memory");
        goto done;
    }
    if (compile_counted(program, &opts, &h->kernel, &err)) {
        ane__fail("%s", err.message);
        goto done;
    }
    size_t n_in = ane_kernel_input_count(h->kernel), n_out = ane_kernel_output_count(h->kernel);
    h->n_in = n_in;
    h->n_out = n_out;
    h->n_acts = (size_t)in->n_first;
    views = calloc(n_in + n_out, sizeof *views);
    h->in = calloc(n_in, sizeof *h->in);
    h->out = calloc(n_out, sizeof *h->out);
    if (!views || !h->in || !h->out) {
        ane__fail("out of memory");
        goto done;
    }
    if (!bind_ports(h, true, in, views, &err) || !bind_ports(h, false, out, views + n_in, &err))
        goto done;
    if (ane_request_create(h->kernel, views, n_in, views + n_in, n_out, &h->request, &err)) {
        ane__fail("%s", err.message);
        goto done;
    }
    ok = true;
done:
    free(views);
    ane_program_release(program);
    if (ok) return h;
    ane_bridge_free(h);
    return NULL;
}

ANEKernelHandle *ane_bridge_compile(const char *mil_text, size_t mil_len,
                                    const uint8_t *weight_data, size_t weight_len,
                                    int n_inputs, const size_t *input_sizes, int n_outputs,
                                    const size_t *output_sizes) {
    static const char *const name[] = {"@model_path/weights/weight.bin"};
    ane__no_error();
    blobs b = {.names = name, .datas = &weight_data, .lens = &weight_len,
               .n = weight_data && weight_len};
    port_sizes in = {.first = input_sizes, .n_first = n_inputs};
    port_sizes out = {.first = output_sizes, .n_first = n_outputs};
    return compile(mil_text, mil_len, &b, &in, &out);
}

/* Names become files below the model's folder on a Mac: none may leave it. */
static bool name_ok(const char *name) {
    if (!name) return false;
    const char *p = in_folder(name);
    if (!*p || *p == '/' || *p == '@') return false;
    for (; *p; p += strcspn(p, "/"), p += *p == '/')
        if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2])) return false;
    return true;
}

ANEKernelHandle *ane_bridge_compile_multi_weights(
    const char *mil_text, size_t mil_len, const char **weight_names,
    const uint8_t **weight_datas, const size_t *weight_lens, int n_weights, int n_inputs,
    const size_t *input_sizes, int n_outputs, const size_t *output_sizes) {
    ane__no_error();
    if (n_weights < 0 || (n_weights && (!weight_names || !weight_datas || !weight_lens))) {
        ane__fail("%d weights without names, data or lengths", n_weights);
        return NULL;
    }
    for (int i = 0; i < n_weights; i++) {
        if (!name_ok(weight_names[i])) {
            ane__fail("weight %d: '%s' is not a path below the model's folder", i,
                 weight_names[i] ? weight_names[i] : "NULL");
            return NULL;
        }
        if (!weight_datas[i]) {
            ane__fail("weight %d ('%s') has no data", i, weight_names[i]);
            return NULL;
        }
        for (int j = 0; j < i; j++) {
            if (strcmp(in_folder(weight_names[i]), in_folder(weight_names[j]))) continue;
            ane__fail("weights %d and %d are both named '%s'", j, i, weight_names[i]);
            return NULL;
        }
    }
    blobs b = {.names = weight_names, .datas = weight_datas, .lens = weight_lens,
               .n = n_weights};
    port_sizes in = {.first = input_sizes, .n_first = n_inputs};
    port_sizes out = {.first = output_sizes, .n_first = n_outputs};
    return compile(mil_text, mil_len, &b, &in, &out);
}

ANEKernelHandle *ane_bridge_compile_dyn(const char *mil_text, size_t mil_len, int n_inputs,
                                        const size_t *input_sizes, int n_weights,
                                        const size_t *weight_sizes, size_t output_size) {
    ane__no_error();
    blobs none = {0};
    port_sizes in = {.first = input_sizes, .n_first = n_inputs, .second = weight_sizes,
                     .n_second = n_weights};
    port_sizes out = {.first = &output_size, .n_first = 1};
    ANEKernelHandle *h = compile(mil_text, mil_len, &none, &in, &out);
    if (h) h->dynamic = true;
    return h;
}

void ane_bridge_free(ANEKernelHandle *h) {
    if (!h) return;
    ane_request_release(h->request);
    for (size_t i = 0; h->in && i < h->n_in; i++) ane_surface_release(h->in[i]);
    for (size_t i = 0; h->out && i < h->n_out; i++) ane_surface_release(h->out[i]);
    ane_kernel_release(h->kernel);
    free(h->in);
    free(h->out);
    free(h);
}

/* ---------------------------------------------------------------- running */

bool ane_bridge_eval(ANEKernelHandle *h) {
    ane_error err;
    if (!h) {
        ane__fail("[eval] NULL kernel");
        return false;
    }
    err.message[0] = 0;
    h->failed = ane_request_run(h->request, NULL, &err) != ANE_OK;
    if (h->failed) ane__fail("[eval] %s", err.message);
    return !h->failed;
}

/* The surface behind an index, or NULL with an error. */
static ane_surface *surface(const char *call, ANEKernelHandle *h, ane_surface **all, size_t n,
                            int idx) {
    if (!h) {
        ane__fail("[%s] NULL kernel", call);
        return NULL;
    }
    if (idx < 0 || (size_t)idx >= n) {
        ane__fail("[%s] index %d is out of range, the kernel has %zu", call, idx, n);
        return NULL;
    }
    return all[idx];
}

static bool fits(const char *call, const ane_surface *s, const void *data, size_t bytes) {
    if (!data && bytes) {
        ane__fail("[%s] NULL data", call);
        return false;
    }
    if (bytes > ane_surface_bytes(s)) {
        ane__fail("[%s] %zu bytes, the surface has %zu", call, bytes, ane_surface_bytes(s));
        return false;
    }
    return true;
}

static void write_bytes(const char *call, ane_surface *s, const void *data, size_t bytes) {
    ane_error err;
    if (!fits(call, s, data, bytes) || !bytes) return;
    if (ane_surface_lock(s, ANE_WRITE, &err)) {
        ane__fail("[%s] %s", call, err.message);
        return;
    }
    memcpy(ane_surface_base(s), data, bytes);
    ane_surface_validate(s, 0, bytes);
    if (ane_surface_unlock(s, ANE_WRITE, &err)) ane__fail("[%s] %s", call, err.message);
}

void ane_bridge_write_input(ANEKernelHandle *h, int idx, const void *data, size_t bytes) {
    ane_surface *s = surface("write_input", h, h ? h->in : NULL, h ? h->n_in : 0, idx);
    if (s) write_bytes("write_input", s, data, bytes);
}

void ane_bridge_read_output(ANEKernelHandle *h, int idx, void *data, size_t bytes) {
    ane_error err;
    ane_surface *s = surface("read_output", h, h ? h->out : NULL, h ? h->n_out : 0, idx);
    if (!s || !fits("read_output", s, data, bytes) || !bytes) return;
    if (h->failed) {
        /* All ones is a NaN in fp16, bf16, fp32 and fp64: nothing old looks new. */
        memset(data, 0xff, bytes);
        ane__fail("[read_output] the last eval failed; output %d holds nothing", idx);
        return;
    }
    if (ane_surface_lock(s, ANE_READ, &err)) {
        memset(data, 0xff, bytes);
        ane__fail("[read_output] %s", err.message);
        return;
    }
    memcpy(data, ane_surface_base(s), bytes);
    if (ane_surface_unlock(s, ANE_READ, &err)) ane__fail("[read_output] %s", err.message);
}

static ane_surface *weight_surface(const char *call, ANEKernelHandle *h, int idx) {
    if (h && !h->dynamic) {
        ane__fail("[%s] this kernel has constant weights (compile_dyn makes runtime ones)", call);
        return NULL;
    }
    return surface(call, h, h ? h->in + h->n_acts : NULL, h ? h->n_in - h->n_acts : 0, idx);
}

void ane_bridge_write_weight(ANEKernelHandle *h, int idx, const void *fp16_data,
                             size_t bytes) {
    ane_surface *s = weight_surface("write_weight", h, idx);
    if (s) write_bytes("write_weight", s, fp16_data, bytes);
}

void ane_bridge_write_weight_f32(ANEKernelHandle *h, int idx, const float *fp32_data,
                                 size_t count) {
    static const char call[] = "write_weight_f32";
    ane_error err;
    ane_surface *s = weight_surface(call, h, idx);
    if (!s) return;
    if (count > SIZE_MAX / 2) {
        ane__fail("[%s] %zu elements are too many", call, count);
        return;
    }
    const ane_port *port = ane_kernel_input(h->kernel, h->n_acts + (size_t)idx);
    if (port->dtype != ANE_F16) {
        ane__fail("[%s] weight %d ('%s') is %s, not fp16: write its bytes with write_weight", call,
             idx, port->name, ane_dtype_mil_name(port->dtype));
        return;
    }
    if (!fits(call, s, fp32_data, 2 * count) || !count) return;
    if (ane_surface_lock(s, ANE_WRITE, &err)) {
        ane__fail("[%s] %s", call, err.message);
        return;
    }
    ane_f32_to_f16(ane_surface_base(s), fp32_data, count);
    ane_surface_validate(s, 0, 2 * count);
    if (ane_surface_unlock(s, ANE_WRITE, &err)) ane__fail("[%s] %s", call, err.message);
}

void ane_bridge_copy_io(ANEKernelHandle *src, int src_out_idx, ANEKernelHandle *dst,
                        int dst_in_idx) {
    static const char call[] = "copy_io";
    ane_error err;
    ane_surface *from = surface(call, src, src ? src->out : NULL, src ? src->n_out : 0,
                                src_out_idx);
    ane_surface *to = from ? surface(call, dst, dst ? dst->in : NULL, dst ? dst->n_in : 0,
                                     dst_in_idx)
                           : NULL;
    if (!to) return;
    size_t bytes = ane_surface_bytes(from);
    if (!fits(call, to, ane_surface_base(from), bytes)) return;
    if (src->failed) {
        ane_surface_invalidate(to, 0, bytes, "copied from the output of a failed eval");
        ane__fail("[%s] the last eval of the source failed; nothing was copied", call);
        return;
    }
    if (ane_surface_lock(from, ANE_READ, &err)) {
        ane__fail("[%s] %s", call, err.message);
        return;
    }
    if (ane_surface_lock(to, ANE_WRITE, &err)) {
        ane__fail("[%s] %s", call, err.message);
    } else {
        memcpy(ane_surface_base(to), ane_surface_base(from), bytes);
        ane_surface_validate(to, 0, bytes);
        if (ane_surface_unlock(to, ANE_WRITE, &err)) ane__fail("[%s] %s", call, err.message);
    }
    if (ane_surface_unlock(from, ANE_READ, &err)) ane__fail("[%s] %s", call, err.message);
}

void ane_bridge_begin_realtime(void) {
    ane_error err = {0};
    bool granted = false;
    if (ane_realtime_begin(&granted, &err))
        ane__fail("[begin_realtime] not granted: %s", err.message);
    else
        ane__fail("[begin_realtime] %s by the system", granted ? "granted" : "not granted");
}

void ane_bridge_end_realtime(void) {
    ane_error err = {0};
    bool ended = false;
    ane__no_error();
    if (ane_realtime_end(&ended, &err)) ane__fail("[end_realtime] %s", err.message);
}
