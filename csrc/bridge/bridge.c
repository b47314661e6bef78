/* The flat bridge over ane.h. */
#include "ane_bridge.h"

#include "../ane.h"

#include <math.h>
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

static void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, ap);
    va_end(ap);
}

static void clear(void) { last_error[0] = 0; }

const char *ane_bridge_last_error(void) { return last_error; }

static const char *device(void) {
    for (size_t i = 0; i < ane_device_count(); i++)
        if (!strcmp(ane_device_name(i), "ane") && ane_device_available(i)) return "ane";
    return "cpu";
}

int ane_bridge_init(void) {
    ane_error err;
    clear();
    if (atomic_load(&ready)) return 0;
    if (ane_isa_check(&err)) {
        fail("[init] %s", err.message);
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

/* One surface per port, of the caller's size. Its data is packed row-major from the start,
 * whatever the device's own layout is: the request stages a copy where they differ. */
static bool bind_ports(ANEKernelHandle *h, bool inputs, const port_sizes *sizes,
                       ane_tensor *views, ane_error *err) {
    size_t n = inputs ? h->n_in : h->n_out;
    ane_surface **to = inputs ? h->in : h->out;
    for (size_t i = 0; i < n; i++) {
        const ane_port *p = inputs ? ane_kernel_input(h->kernel, i)
                                   : ane_kernel_output(h->kernel, i);
        const char *what = inputs ? "input" : "output";
        size_t first = (size_t)sizes->n_first;
        size_t given = i < first ? sizes->first[i] : sizes->second[i - first], needed;
        for (int d = 0; d < p->rank; d++) {
            if (p->dims[d] >= 0) continue;
            fail("%s %zu ('%s') has no fixed size", what, i, p->name);
            return false;
        }
        if (ane_shape_size(p->dtype, p->rank, p->dims, &needed, err)) {
            fail("%s %zu ('%s'): %s", what, i, p->name, err->message);
            return false;
        }
        if (given < needed || !given) {
            fail("%s %zu ('%s') needs %zu bytes, got %zu", what, i, p->name, needed, given);
            return false;
        }
        if (ane_surface_create(ane_memory_default(), given, NULL, &to[i], err) ||
            ane_tensor_init(&views[i], to[i], 0, p->dtype, p->rank, p->dims, err)) {
            fail("%s", err->message);
            return false;
        }
    }
    return true;
}

static ANEKernelHandle *compile(const char *text, size_t n, const blobs *weights,
                                const port_sizes *in, const port_sizes *out) {
    ane_error err = {0};
    ane_program *program = NULL;
    ANEKernelHandle *h = NULL;
    ane_tensor *views = NULL;
    bool ok = false;
    if (!atomic_load(&ready)) {
        fail("ane_bridge_init was not called, or it failed");
        return NULL;
    }
    if (!text || !n) {
        fail("no program text");
        return NULL;
    }
    if (in->n_first < 1 || in->n_second < 0 || out->n_first < 1 || !in->first ||
        (in->n_second && !in->second) || !out->first) {
        fail("expected at least one input and one output with their sizes, got %d and %d "
             "(and %d runtime weights)", in->n_first, out->n_first, in->n_second);
        return NULL;
    }
    ane_parse_options parse = {.size = sizeof parse, .filename = "model.mil",
                               .open = open_blob, .open_arg = (void *)(uintptr_t)weights};
    ane_compile_options opts = {.size = sizeof opts, .device = device()};
    if (ane_program_parse(text, n, &parse, &program, &err)) {
        fail("%s:%d:%d: %s", err.file, err.line, err.column, err.message);
        goto done;
    }
    h = calloc(1, sizeof *h);
    if (!h) {
        fail("out of memory");
        goto done;
    }
    if (ane_kernel_compile(program, &opts, &h->kernel, &err)) {
        fail("%s", err.message);
        goto done;
    }
    size_t n_in = ane_kernel_input_count(h->kernel), n_out = ane_kernel_output_count(h->kernel);
    size_t given = (size_t)in->n_first + (size_t)in->n_second;
    if (n_in != given || n_out != (size_t)out->n_first) {
        fail("the program has %zu inputs and %zu outputs, %zu and %d were given", n_in, n_out,
             given, out->n_first);
        goto done;
    }
    h->n_in = n_in;
    h->n_out = n_out;
    h->n_acts = (size_t)in->n_first;
    views = calloc(n_in + n_out, sizeof *views);
    h->in = calloc(n_in, sizeof *h->in);
    h->out = calloc(n_out, sizeof *h->out);
    if (!views || !h->in || !h->out) {
        fail("out of memory");
        goto done;
    }
    if (!bind_ports(h, true, in, views, &err) || !bind_ports(h, false, out, views + n_in, &err))
        goto done;
    if (ane_request_create(h->kernel, views, n_in, views + n_in, n_out, &h->request, &err)) {
        fail("%s", err.message);
        goto done;
    }
    atomic_fetch_add(&compiles, 1);
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
    clear();
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
    clear();
    if (n_weights < 0 || (n_weights && (!weight_names || !weight_datas || !weight_lens))) {
        fail("%d weights without names, data or lengths", n_weights);
        return NULL;
    }
    for (int i = 0; i < n_weights; i++) {
        if (!name_ok(weight_names[i])) {
            fail("weight %d: '%s' is not a path below the model's folder", i,
                 weight_names[i] ? weight_names[i] : "NULL");
            return NULL;
        }
        if (!weight_datas[i]) {
            fail("weight %d ('%s') has no data", i, weight_names[i]);
            return NULL;
        }
        for (int j = 0; j < i; j++) {
            if (strcmp(in_folder(weight_names[i]), in_folder(weight_names[j]))) continue;
            fail("weights %d and %d are both named '%s'", j, i, weight_names[i]);
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
    clear();
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
        fail("[eval] NULL kernel");
        return false;
    }
    err.message[0] = 0;
    h->failed = ane_request_run(h->request, NULL, &err) != ANE_OK;
    if (h->failed) fail("[eval] %s", err.message);
    return !h->failed;
}

/* The surface behind an index, or NULL with an error. */
static ane_surface *surface(const char *call, ANEKernelHandle *h, ane_surface **all, size_t n,
                            int idx) {
    if (!h) {
        fail("[%s] NULL kernel", call);
        return NULL;
    }
    if (idx < 0 || (size_t)idx >= n) {
        fail("[%s] index %d is out of range, the kernel has %zu", call, idx, n);
        return NULL;
    }
    return all[idx];
}

static bool fits(const char *call, const ane_surface *s, const void *data, size_t bytes) {
    if (!data && bytes) {
        fail("[%s] NULL data", call);
        return false;
    }
    if (bytes > ane_surface_bytes(s)) {
        fail("[%s] %zu bytes, the surface has %zu", call, bytes, ane_surface_bytes(s));
        return false;
    }
    return true;
}

static void write_bytes(const char *call, ane_surface *s, const void *data, size_t bytes) {
    ane_error err;
    if (!fits(call, s, data, bytes) || !bytes) return;
    if (ane_surface_lock(s, ANE_WRITE, &err)) {
        fail("[%s] %s", call, err.message);
        return;
    }
    memcpy(ane_surface_base(s), data, bytes);
    ane_surface_validate(s, 0, bytes);
    if (ane_surface_unlock(s, ANE_WRITE, &err)) fail("[%s] %s", call, err.message);
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
        fail("[read_output] the last eval failed; output %d holds nothing", idx);
        return;
    }
    if (ane_surface_lock(s, ANE_READ, &err)) {
        memset(data, 0xff, bytes);
        fail("[read_output] %s", err.message);
        return;
    }
    memcpy(data, ane_surface_base(s), bytes);
    if (ane_surface_unlock(s, ANE_READ, &err)) fail("[read_output] %s", err.message);
}

static ane_surface *weight_surface(const char *call, ANEKernelHandle *h, int idx) {
    if (h && !h->dynamic) {
        fail("[%s] this kernel has constant weights (compile_dyn makes runtime ones)", call);
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
        fail("[%s] %zu elements are too many", call, count);
        return;
    }
    const ane_port *port = ane_kernel_input(h->kernel, h->n_acts + (size_t)idx);
    if (port->dtype != ANE_F16) {
        fail("[%s] weight %d ('%s') is %s, not fp16: write its bytes with write_weight", call,
             idx, port->name, ane_dtype_mil_name(port->dtype));
        return;
    }
    if (!fits(call, s, fp32_data, 2 * count) || !count) return;
    if (ane_surface_lock(s, ANE_WRITE, &err)) {
        fail("[%s] %s", call, err.message);
        return;
    }
    ane_f32_to_f16(ane_surface_base(s), fp32_data, count);
    ane_surface_validate(s, 0, 2 * count);
    if (ane_surface_unlock(s, ANE_WRITE, &err)) fail("[%s] %s", call, err.message);
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
        fail("[%s] the last eval of the source failed; nothing was copied", call);
        return;
    }
    if (ane_surface_lock(from, ANE_READ, &err)) {
        fail("[%s] %s", call, err.message);
        return;
    }
    if (ane_surface_lock(to, ANE_WRITE, &err)) {
        fail("[%s] %s", call, err.message);
    } else {
        memcpy(ane_surface_base(to), ane_surface_base(from), bytes);
        ane_surface_validate(to, 0, bytes);
        if (ane_surface_unlock(to, ANE_WRITE, &err)) fail("[%s] %s", call, err.message);
    }
    if (ane_surface_unlock(from, ANE_READ, &err)) fail("[%s] %s", call, err.message);
}

void ane_bridge_begin_realtime(void) {
    fail("[begin_realtime] not granted: the %s device has no real-time mode", device());
}
void ane_bridge_end_realtime(void) { clear(); }

/* ---------------------------------------------------------------- weight blobs */

static bool blob_size(const char *call, const void *src, int rows, int cols,
                      const size_t *out_len, size_t unit,
                      size_t *payload) {
    if (!src || !out_len || rows < 1 || cols < 1) {
        fail("[%s] expected data, a place for the length, rows and cols >= 1; got %d x %d",
             call, rows, cols);
        return false;
    }
    *payload = (size_t)rows * (size_t)cols * unit;      /* below 2^64: ints are 31 bits */
    if (*payload > UINT32_MAX) {
        fail("[%s] payload of %zu bytes; the format holds at most 4294967295", call, *payload);
        return false;
    }
    return true;
}

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static uint8_t *fp16_blob(const char *call, const float *src, int rows, int cols,
                          bool transposed, size_t *out_len) {
    size_t payload;
    clear();
    if (!blob_size(call, src, rows, cols, out_len, 2, &payload)) return NULL;
    uint8_t *blob = calloc(1, 128 + payload);
    if (!blob) {
        fail("[%s] out of memory", call);
        return NULL;
    }
    blob[0] = 1;
    blob[4] = 2;
    put_u32(blob + 64, 0xDEADBEEF);
    blob[68] = 1;
    put_u32(blob + 72, (uint32_t)payload);
    put_u32(blob + 80, 128);
    uint16_t *out = (uint16_t *)(blob + 128);
    size_t r = (size_t)rows, c = (size_t)cols;
    if (!transposed) {
        ane_f32_to_f16(out, src, r * c);
    } else {
        /* Tiles keep both sides in cache; each row of a tile is converted at once. */
        for (size_t j0 = 0; j0 < c; j0 += 64)
            for (size_t i0 = 0; i0 < r; i0 += 64)
                for (size_t j = j0; j < c && j < j0 + 64; j++) {
                    float column[64];
                    size_t m = r - i0 < 64 ? r - i0 : 64;
                    for (size_t i = 0; i < m; i++) column[i] = src[(i0 + i) * c + j];
                    ane_f32_to_f16(out + j * r + i0, column, m);
                }
    }
    *out_len = 128 + payload;
    return blob;
}

uint8_t *ane_bridge_build_weight_blob(const float *src, int rows, int cols,
                                      size_t *out_len) {
    return fp16_blob("build_weight_blob", src, rows, cols, false, out_len);
}

uint8_t *ane_bridge_build_weight_blob_transposed(const float *src, int rows, int cols,
                                                 size_t *out_len) {
    return fp16_blob("build_weight_blob_transposed", src, rows, cols, true, out_len);
}

static uint8_t *int8_blob(const char *call, const void *src, int rows, int cols,
                          size_t *out_len, size_t *payload) {
    if (!blob_size(call, src, rows, cols, out_len, 1, payload)) return NULL;
    uint8_t *blob = calloc(1, 64 + *payload);
    if (!blob) {
        fail("[%s] out of memory", call);
        return NULL;
    }
    put_u32(blob, 0xDEADBEEF);
    blob[4] = 1;
    blob[10] = 8;
    *out_len = 64 + *payload;
    return blob;
}

uint8_t *ane_bridge_build_weight_blob_int8(const int8_t *src, int rows, int cols,
                                           size_t *out_len) {
    size_t n;
    clear();
    uint8_t *blob = int8_blob("build_weight_blob_int8", src, rows, cols, out_len, &n);
    if (blob) memcpy(blob + 64, src, n);
    return blob;
}

uint8_t *ane_bridge_build_weight_blob_quantized(const float *src, int rows, int cols,
                                                float *out_scale, size_t *out_len) {
    static const char call[] = "build_weight_blob_quantized";
    size_t n;
    clear();
    if (!out_scale) {
        fail("[%s] NULL place for the scale", call);
        return NULL;
    }
    uint8_t *blob = int8_blob(call, src, rows, cols, out_len, &n);
    if (!blob) return NULL;
    float top = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(src[i])) {
            fail("[%s] element %zu is not finite", call, i);
            free(blob);
            return NULL;
        }
        if (fabsf(src[i]) > top) top = fabsf(src[i]);
    }
    float scale = top / 127.0f;
    if (scale == 0) scale = 1;
    for (size_t i = 0; i < n; i++) {
        float q = roundf(src[i] / scale);               /* halves away from zero */
        blob[64 + i] = (uint8_t)(int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
    }
    *out_scale = scale;
    return blob;
}

void ane_bridge_free_blob(void *ptr) { free(ptr); }
