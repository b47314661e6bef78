/* Kernels: everything about compiling and describing them that no device differs in. */
#include "kernel.h"

#include "base/env.h"
#include "ir/target.h"
#include "surface/surface.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ane_status pick_function(const ane_program *p, const char *name,
                                const ane_function **out, ane_error *err) {
    const ane_function *f = ane_program_function(p, name ? name : "main");
    if (!f && !name && p->functions && !p->functions->next) f = p->functions;
    if (!f && !p->functions)
        return ane_fail(err, ANE_ERR_INVALID, "[compile] the program has no function");
    if (!f) {
        char list[512] = "";
        size_t n = 0;
        for (const ane_function *g = p->functions; g && n < sizeof list; g = g->next) {
            int w = snprintf(list + n, sizeof list - n, "%s\"%s\"", n ? ", " : "", g->name);
            n += w > 0 ? (size_t)w : 0;
        }
        return ane_fail(err, ANE_ERR_NOT_FOUND,
                        "[compile] no function \"%s\"; the program has %s",
                        name ? name : "main", list);
    }
    *out = f;
    return ANE_OK;
}

static ane_status fill_port(ane_port *port, const ane_value *v, ane_error *err) {
    const ane_type *t = v->type;
    *port = (ane_port){.name = v->name, .dtype = ANE_STRING};
    if (t->kind == ANE_T_STATE) {
        port->state = true;
        t = t->elem;
    }
    if (t->kind != ANE_T_TENSOR) return ANE_OK;         /* shape by running, if at all */
    port->dtype = t->dtype;
    port->rank = t->rank;
    for (int i = 0; i < t->rank; i++) port->dims[i] = t->dims[i] < 0 ? -1 : t->dims[i];
    size_t unit = ane_dtype_size(t->dtype);
    if (!ane_type_static(t)) return ANE_OK;
    if (!ane_shape_bytes(t->rank, t->dims, unit, &port->bytes))
        return ane_fail(err, ANE_ERR_NOMEM, "[compile] %s is larger than memory", v->name);
    int64_t stride = (int64_t)unit;
    for (int i = t->rank - 1; i >= 0; i--) {
        port->strides[i] = stride;
        stride *= t->dims[i] ? t->dims[i] : 1;
    }
    return ANE_OK;
}

static ane_status precision_of(const char *name, ane_precision *out, ane_error *err) {
    static const char *const names[] = {"highest", "high", "medium"};
    for (int i = 0; i < 3; i++)
        if (!name || !strcmp(name, names[i])) {
            *out = (ane_precision)i;
            return ANE_OK;
        }
    return ane_fail(err, ANE_ERR_INVALID,
                    "[compile] unknown precision \"%s\"; expected \"highest\", \"high\" or "
                    "\"medium\"", name);
}

static ane_status lowering_of(const ane_compile_options *opts, ane_lowering *out,
                              ane_error *err) {
    static const char *const names[] = {"auto", "inputs", "packed"};
    const char *name = opts->lowering;
    if (!name) return ANE_OK;
    if (!opts->device || strcmp(opts->device, "ane"))
        return ane_fail(err, ANE_ERR_INVALID, "[compile] lowering goes with device=\"ane\"; "
                        "ane_program_pack (mil.pack) gives the packed program for any device");
    for (int i = 1; i < 3; i++)
        if (!strcmp(name, names[i])) {
            *out = (ane_lowering)i;
            return ANE_OK;
        }
    return ane_fail(err, ANE_ERR_INVALID, "[compile] unknown lowering \"%.40s\"; expected "
                    "\"inputs\" or \"packed\"", name);
}

/* "512M", "2g", "1000000"; empty: 0. */
static ane_status env_limit(size_t *out, ane_error *err) {
    const char *text = ane_env(ANE_ENV_MEMORY_LIMIT);
    *out = 0;
    if (!*text) return ANE_OK;
    char *end = NULL;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    const char *units = "KMGT", *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    size_t bytes = (size_t)n;
    for (const char *u = units; unit && u <= unit; u++)
        if (!ane_mul_size(bytes, 1024, &bytes)) errno = ERANGE;
    if (unit) end++;
    if (errno || *end || !n || !isdigit((unsigned char)*text))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[compile] ANETORCH_MEMORY_LIMIT: expected bytes such as 512M or 2G, "
                        "got '%.40s'", text);
    *out = bytes;
    return ANE_OK;
}

/* The experiment that is asked for, which must be allowed. */
static ane_status exchange_of(const ane_compile_options *opts, const ane_backend *backend,
                              ane_backend_options *out, ane_error *err) {
    const char *how = opts->exchange ? opts->exchange : "";
    if (strcmp(how, "patch") && strcmp(how, "reload"))
        return ane_fail(err, ANE_ERR_INVALID, "[compile] unknown exchange \"%.40s\"; expected "
                        "\"patch\" or \"reload\"", how);
    if (!opts->donor || opts->donor->backend != backend || backend == &ane_backend_cpu)
        return ane_fail(err, ANE_ERR_INVALID, "[compile] exchange goes with device=\"ane\" and "
                        "a donor that runs there");
    if (!ane_env_lists(ANE_ENV_EXPERIMENTS, how))
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] \"%s\" is an experiment: set "
                        "ANETORCH_EXPERIMENTS=%s to allow it", how, how);
    out->donor = opts->donor->exe;
    out->reload = !strcmp(how, "reload");
    return ANE_OK;
}

ane_status ane_kernel_compile(const ane_program *p, const ane_compile_options *opts,
                              ane_kernel **out, ane_error *err) {
    static const ane_compile_options defaults = {.size = sizeof defaults};
    ane_error local;
    if (!err) err = &local;
    ane_error_clear(err);
    if (!opts) opts = &defaults;
    if (opts->size != sizeof *opts)
        return ane_fail(err, ANE_ERR_INVALID, "[compile] options of size %zu; expected %zu",
                        opts->size, sizeof *opts);
    const ane_backend *backend = NULL;
    const ane_function *f = NULL;
    ane_backend_options bo = {.prepack = opts->prepack};
    const char *numerics = opts->numerics ? opts->numerics : "ieee";
    ane_status st = precision_of(opts->precision, &bo.precision, err);
    if (!st && strcmp(numerics, "ieee") && strcmp(numerics, "ane"))
        st = ane_fail(err, ANE_ERR_INVALID,
                      "[compile] unknown numerics \"%s\"; expected \"ieee\" or \"ane\"",
                      numerics);
    if (!st && opts->target && strcmp(numerics, "ane"))
        st = ane_fail(err, ANE_ERR_INVALID,
                      "[compile] target \"%.40s\" goes with numerics=\"ane\"", opts->target);
    if (!st && !strcmp(numerics, "ane"))
        st = ane_target_parse(opts->target, &bo.target, "compile", err);
    if (!st) st = lowering_of(opts, &bo.lowering, err);
    bo.memory_limit = opts->memory_limit;
    if (!st && !bo.memory_limit) st = env_limit(&bo.memory_limit, err);
    if (!st) st = ane_backend_find(opts->device, &backend, err);
    if (!st) st = pick_function(p, opts->function, &f, err);
    if (!st && (opts->donor || opts->exchange)) st = exchange_of(opts, backend, &bo, err);
    if (st) return st;

    ane_kernel *k = ane_calloc(1, sizeof *k);
    if (!k) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    atomic_init(&k->refs, 1);
    k->backend = backend;
    k->engine = bo.target || backend != &ane_backend_cpu;
    k->limited = bo.memory_limit != 0;
    st = ane_function_specialize(f, NULL, &k->program, err);
    if (st) goto done;
    k->fn = k->program->functions;
    k->n_in = (size_t)k->fn->n_params;
    k->n_out = (size_t)k->fn->body->n_outputs;
    k->in = ane_calloc(k->n_in, sizeof *k->in);
    k->out = ane_calloc(k->n_out, sizeof *k->out);
    if (!k->in || !k->out) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    st = backend->compile(k->fn, &bo, &k->exe, err);
    for (size_t i = 0; i < k->n_in && !st; i++) {
        st = fill_port(&k->in[i], k->fn->params[i], err);
        if (!st && backend->port) st = backend->port(k->exe, false, i, &k->in[i], err);
    }
    for (size_t i = 0; i < k->n_out && !st; i++) {
        st = fill_port(&k->out[i], k->fn->body->outputs[i], err);
        if (!st && backend->port) st = backend->port(k->exe, true, i, &k->out[i], err);
        for (int d = 0; d < k->out[i].rank; d++)
            if (k->out[i].dims[d] < 0) k->open_shapes = true;
    }
done:
    if (st) {
        ane_kernel_release(k);
        return st;
    }
    *out = k;
    return ANE_OK;
}

ane_kernel *ane_kernel_retain(ane_kernel *k) {
    atomic_fetch_add(&k->refs, 1);
    return k;
}

void ane_kernel_release(ane_kernel *k) {
    if (!k || atomic_fetch_sub(&k->refs, 1) > 1) return;
    if (k->exe) k->backend->destroy(k->exe);
    ane_program_release(k->program);
    ane_free(k->in);
    ane_free(k->out);
    ane_free(k);
}

const ane_function *ane__kernel_function(const ane_kernel *k) { return k->fn; }
size_t ane_kernel_input_count(const ane_kernel *k) { return k->n_in; }
size_t ane_kernel_output_count(const ane_kernel *k) { return k->n_out; }
const ane_port *ane_kernel_input(const ane_kernel *k, size_t i) {
    return i < k->n_in ? &k->in[i] : NULL;
}
const ane_port *ane_kernel_output(const ane_kernel *k, size_t i) {
    return i < k->n_out ? &k->out[i] : NULL;
}
const char *ane_kernel_device(const ane_kernel *k) { return k->backend->name; }
const char *ane_kernel_numerics(const ane_kernel *k) { return k->engine ? "ane" : "ieee"; }

const char *ane_kernel_lowering(const ane_kernel *k, const char **why) {
    const char *unused;
    if (!why) why = &unused;
    *why = "";
    if (!k->backend->lowering) return "inputs";
    return k->backend->lowering(k->exe, why) == ANE_LOWER_PACKED ? "packed" : "inputs";
}

/* "fp16 [1, 8, ?]" */
static const char *shape_text(ane_dtype dtype, int rank, const int64_t *dims, char *buf,
                              size_t n) {
    size_t k = (size_t)snprintf(buf, n, "%s [", ane_dtype_mil_name(dtype));
    for (int i = 0; i < rank && k < n; i++) {
        if (i) k += (size_t)snprintf(buf + k, n - k, ", ");
        if (k >= n) break;
        if (dims[i] < 0) k += (size_t)snprintf(buf + k, n - k, "?");
        else k += (size_t)snprintf(buf + k, n - k, "%lld", (long long)dims[i]);
    }
    if (k < n) snprintf(buf + k, n - k, "]");
    return buf;
}

ane_status ane__check_operand(const ane_port *port, const ane_tensor *t, const char *what,
                              ane_error *err) {
    bool fits = port->rank == t->rank && port->dtype == t->dtype;
    for (int i = 0; fits && i < t->rank; i++)
        fits = port->dims[i] < 0 || port->dims[i] == t->shape[i];
    if (fits) return ANE_OK;
    char want[256], got[256];
    shape_text(port->dtype, port->rank, port->dims, want, sizeof want);
    shape_text(t->dtype, t->rank, t->shape, got, sizeof got);
    return ane_fail(err, port->dtype == t->dtype ? ANE_ERR_SHAPE : ANE_ERR_DTYPE,
                    "[bind] %s %s: expected %s, got %s", what, port->name, want, got);
}

ane_status ane_kernel_infer(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                            ane_port *outputs, size_t n_out, ane_error *err) {
    if (n_in != k->n_in || n_out != k->n_out)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[infer] the kernel has %zu inputs and %zu outputs; got %zu and %zu",
                        k->n_in, k->n_out, n_in, n_out);
    for (size_t i = 0; i < n_in; i++) {
        ane_status st = ane__check_operand(&k->in[i], &inputs[i], "input", err);
        if (st) return st;
    }
    memcpy(outputs, k->out, n_out * sizeof *outputs);
    if (!k->open_shapes || !k->backend->infer) return ANE_OK;
    return k->backend->infer(k->exe, inputs, outputs, err);
}

static ane_status plan_memory(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                              bool limited, ane_memory_info *info,
                              void (*each)(void *arg, const ane_buffer_info *buffer),
                              void *arg, ane_error *err) {
    ane_port *ports = ane_calloc(k->n_out + 1, sizeof *ports);
    ane_tensor *in = ane_calloc(k->n_in + 1, sizeof *in);
    ane_tensor *out = ane_calloc(k->n_out + 1, sizeof *out);
    ane_surface *fake = ane_calloc(k->n_in + k->n_out + 1, sizeof *fake);
    ane_status st = ANE_ERR_NOMEM;
    *info = (ane_memory_info){0};
    if (!ports || !in || !out || !fake) {
        ane_fail(err, st, "[memory] out of memory");
        goto done;
    }
    st = ane_kernel_infer(k, inputs, n_in, ports, k->n_out, err);
    /* Nothing looks behind these addresses: they differ, so nothing is an alias of anything. */
    for (size_t i = 0; i < k->n_in + k->n_out; i++) fake[i].base = (unsigned char *)&fake[i];
    for (size_t i = 0; i < k->n_in && !st; i++) {
        in[i] = inputs[i];
        in[i].surface = &fake[i];
        in[i].offset = 0;
    }
    for (size_t i = 0; i < k->n_out && !st; i++) {
        bool open = ports[i].dtype == ANE_STRING;
        out[i] = (ane_tensor){.dtype = ports[i].dtype, .rank = ports[i].rank};
        int64_t stride = (int64_t)ane_dtype_size(ports[i].dtype);
        for (int d = ports[i].rank - 1; d >= 0 && !open; d--) {
            open = ports[i].dims[d] < 0;
            out[i].shape[d] = ports[i].dims[d];
            out[i].strides[d] = stride;
            stride *= ports[i].dims[d] > 0 ? ports[i].dims[d] : 1;
        }
        if (!open) out[i].surface = &fake[k->n_in + i];
    }
    if (!st && k->backend->plan_memory)
        st = k->backend->plan_memory(k->exe, in, out, limited, info, each, arg, err);
done:
    ane_free(ports);
    ane_free(in);
    ane_free(out);
    ane_free(fake);
    return st;
}

ane_status ane_kernel_memory(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                             ane_memory_info *info,
                             void (*each)(void *arg, const ane_buffer_info *buffer),
                             void *arg, ane_error *err) {
    return plan_memory(k, inputs, n_in, false, info, each, arg, err);
}

ane_status ane_kernel_check_memory(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                                   ane_error *err) {
    ane_memory_info info;
    if (!k->limited) return ANE_OK;
    return plan_memory(k, inputs, n_in, true, &info, NULL, NULL, err);
}
