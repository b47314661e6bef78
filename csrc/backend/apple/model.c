/* From a function to a loaded model. One lock over all of it: the compiler is one service,
 * and two users of one identifier must not write or remove its folder at the same time. */
#include "model.h"

#include "index.h"

#include "../../base/env.h"
#include "../../base/sync.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static ane_mutex lock = ANE_MUTEX_INIT;
static ane_model *models;               /* one per identifier */
static atomic_int compiles;             /* calls of the compiler by this process */
static _Atomic(double) last_unload;     /* seconds */

static void milliseconds(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* {path: {"offset": 0, "data": bytes}}; never nil, which would give no descriptor. */
static void *weights_retained(const ane_objc *rt, const ane_source *s) {
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
static ane_status describe(const ane_objc *rt, const ane_source *s, ane_model *m, ane_error *err) {
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

/* ---------------------------------------------------------------- budget */

int ane_compile_count(void) { return atomic_load(&compiles); }

static ane_status read_budget(int *out, ane_error *err) {
    const char *text = ane_env(ANE_ENV_COMPILE_BUDGET);
    char *end;
    long n = *text ? strtol(text, &end, 10) : ANE_APPLE_COMPILES;
    if (*text && (*end || n < 0 || n > 1000000))
        return ane_fail(err, ANE_ERR_INVALID, "[compile] ANETORCH_COMPILE_BUDGET is '%.40s'; "
                        "expected a number of compiles a process, or 0 for no limit", text);
    *out = (int)n;
    return ANE_OK;
}

int ane_compile_budget(void) {
    int n = ANE_APPLE_COMPILES;
    (void)read_budget(&n, NULL);
    return n;
}

/* Where the others stop: at 100 of 119. */
int ane_compile_warn_at(void) {
    int64_t n = ane_compile_budget();
    return (int)(n * ANE_APPLE_COMPILES_WARN / ANE_APPLE_COMPILES);
}

/* One more call of the compiler, if there is one left. */
static ane_status spend_compile(ane_error *err) {
    static atomic_bool warned;
    int budget = 0;
    ane_status st = read_budget(&budget, err);
    if (st) return st;
    int used = atomic_load(&compiles);
    if (budget && used >= budget)
        return ane_fail(err, ANE_ERR_RUNTIME, "[compile] the budget of %d compiles of this "
                        "process is used up (about %d are believed to be the engine's limit): "
                        "make weights inputs so that kernels are reused, go on in a new "
                        "process, where what the system still has loads without a compile, or "
                        "set ANETORCH_COMPILE_BUDGET", budget, ANE_APPLE_COMPILES);
    atomic_store(&compiles, used + 1);          /* under the lock */
    if (budget && used + 1 >= ane_compile_warn_at() && !atomic_exchange(&warned, true))
        ane__log("ane: compile %d of this process, whose budget is %d", used + 1, budget);
    return ANE_OK;
}

/* ---------------------------------------------------------------- compile, load */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static ane_status compile(const ane_objc *rt, const ane_source *s, ane_model *m, ane_cf options,
                          ane_error *err) {
    ane_id error = NULL;
    ane_status st = spend_compile(err);
    if (st) return st;
    double start = now();
    st = ane_folder_write(m->folder, s->text, s->n, s->blobs, s->n_blobs, err);
    m->seconds[ANE_PHASE_WRITE] = now() - start;
    if (st) return st;
    start = now();
    bool ok = ane_send_compile(rt, m->object, ANE_APPLE_QOS, options, &error);
    m->seconds[ANE_PHASE_COMPILE] = now() - start;
    if (ok) return ANE_OK;
    st = ane_objc_fail(rt, err, "compile", error, NULL);
    int nth = atomic_load(&compiles);
    m->refused = nth <= ANE_APPLE_COMPILES;     /* beyond, it is not about the program */
    if (nth >= ANE_APPLE_COMPILES_WARN)
        ane_error_prefix(err, "compile %d of this process, about %d are believed to be the "
                         "limit: ", nth, ANE_APPLE_COMPILES);
    return st;
}

static ane_status load(const ane_objc *rt, ane_model *m, ane_cf options, ane_error *err) {
    double start = now();
    ane_status st = ANE_OK;
    for (int attempt = 0; !m->loaded; attempt++) {
        ane_id error = NULL;
        m->loaded = ane_send_load(rt, m->object, ANE_APPLE_QOS, options, &error);
        if (m->loaded) break;
        st = ane_objc_fail(rt, err, "load", error, NULL);
        if (attempt) break;
        milliseconds(ANE_APPLE_RETRY_MS);
        st = ANE_OK;
    }
    m->seconds[ANE_PHASE_LOAD] = now() - start;
    return m->loaded ? ANE_OK : st;
}

static void unload(const ane_objc *rt, ane_model *m) {
    ane_error why;
    ane_id error = NULL;
    if (!m->loaded) return;
    double start = now();
    m->loaded = false;
    if (!ane_send_unload(rt, m->object, ANE_APPLE_QOS, &error)) {
        ane_objc_fail(rt, &why, "unload", error, NULL);
        ane__log("ane: %s", why.message);       /* its release gives the slot back */
    }
    atomic_store(&last_unload, now() - start);
}

double ane_model_unload_seconds(void) { return atomic_load(&last_unload); }

/* A compiled program that the system still has, and that our index knows as made from just
 * this source on this chip and system, needs no folder, no lock and no compile. Where its load
 * fails or its ports are others, the entry was stale, which costs one compile; what was
 * loaded is then still to be unloaded. */
static ane_status use_compiled(const ane_objc *rt, ane_model *m, const ane_index_key *key,
                               ane_cf options, ane_error *err) {
    if (!ane_send_exists(rt, m->object) || !ane_index_find(key)) return ANE_ERR_NOT_FOUND;
    ane_status st = load(rt, m, options, err);
    if (!st) st = ane_ports_read(rt, m, err);
    if (!st && !ane_index_confirm(key, m)) st = ANE_ERR_NOT_FOUND;
    m->cached = !st;
    ane_index_count(st ? ANE_INDEX_STALE : ANE_INDEX_HIT);
    return st;
}

static ane_status compile_and_load(const ane_objc *rt, const ane_source *s, ane_model *m,
                                   const ane_index_key *key, ane_cf options, ane_error *err) {
    ane_index_count(ANE_INDEX_MISS);
    ane_index_remove(m->hex);           /* nothing says what the system has from here on */
    ane_status st = compile(rt, s, m, options, err);
    if (!st) st = load(rt, m, options, err);
    if (!st) st = ane_ports_read(rt, m, err);
    if (!st) ane_index_put(key, m);
    return st;
}

/* With the work claimed: the framework's unload removes the folder, which may be in use. */
static void unload_aside(const ane_objc *rt, ane_model *m) {
    ane_folder_hide(m->folder);
    unload(rt, m);
    ane_folder_show(m->folder);
}

static ane_status bring_up(const ane_objc *rt, const ane_source *s, ane_model *m,
                           ane_error *err) {
    ane_index_key key = {.hex = m->hex, .program = m->program, .weights = m->weights,
                         .chip = rt->chip, .build = rt->build};
    void *options = ane_cf_dict_retained(rt);
    if (!options) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = use_compiled(rt, m, &key, options, err);
    if (!st) goto done;
    st = ane_claim_work(&m->claim, m->folder, err);
    if (st) goto done;
    ane_folder_show(m->folder);         /* a process died while it was hidden */
    unload_aside(rt, m);
    st = ane_claim_use(&m->claim, m->folder, err);
    /* Whoever we waited for has compiled it, most likely. */
    if (!st && m->claim.waited) st = use_compiled(rt, m, &key, options, err);
    if (m->claim.use >= 0 && (st || !m->claim.waited)) {
        unload_aside(rt, m);
        st = compile_and_load(rt, s, m, &key, options, err);
    }
    if (!st) ane_claim_done(&m->claim, m->folder, false);
done:
    ane_cf_release(rt, options);
    return st;
}

/* ---------------------------------------------------------------- lifetime */

static void destroy(const ane_objc *rt, ane_model *m) {
    if (m->object) rt->objc_release(m->object);
    ane_free(m->in);
    ane_free(m->out);
    ane_free(m);
}

/* With the work claimed. The folder goes whatever happens, unless another process uses it. */
static void take_down(const ane_objc *rt, ane_model *m) {
    bool last = ane_claim_leave(&m->claim, m->folder);
    ane_folder_hide(m->folder);
    unload(rt, m);
    if (m->object) rt->objc_release(m->object);
    m->object = NULL;
    ane_folder_show(m->folder);
    if (last) ane_folder_remove(m->folder);
    ane_claim_done(&m->claim, m->folder, last);
    destroy(rt, m);
}

/* The loaded model of m's identifier, which must then be of the same source. */
static ane_status find_same(const ane_model *m, ane_model **out, ane_error *err) {
    ane_model *same = models;
    while (same && (strcmp(same->hex, m->hex) || same->pid != m->pid)) same = same->next;
    *out = same;
    if (!same || (!strcmp(same->program, m->program) && !strcmp(same->weights, m->weights)))
        return ANE_OK;
    return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] device \"ane\": a program with other "
                    "weights is loaded whose identifier is the same (the framework joins all "
                    "weight files before it hashes them); release its kernel first");
}

/* A model that is neither described nor loaded, and what the framework is to get for it. */
static ane_status make_model(const ane_function *f, ane_source *s, ane_model **out,
                             ane_error *err) {
    ane_model *m = ane_calloc(1, sizeof *m);
    *out = m;
    if (!m) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    double start = now();
    m->claim = (ane_claim)ANE_CLAIM_NONE;
    m->pid = (long)getpid();
    ane_status st = ane_ports_check(f, m, err);
    if (!st) st = ane_source_make(s, f, err);
    if (st) return st;
    memcpy(m->program, s->program_hash, sizeof m->program);
    memcpy(m->weights, s->weights_hash, sizeof m->weights);
    m->seconds[ANE_PHASE_DESCRIBE] = now() - start;
    return ANE_OK;
}

/* Under the lock: the new model or the same one that is there already, or nothing of it. */
static void keep(const ane_objc *rt, ane_status st, ane_model *m, ane_model *same,
                 ane_model **out) {
    if (same && !st) {
        same->refs++;
        *out = same;
    } else if (!st) {
        m->refs = 1;
        m->next = models;
        models = m;
        *out = m;
    }
    if (m->claim.work >= 0 || (st && m->loaded)) take_down(rt, m);
    else if (st || same) destroy(rt, m);
}

ane_status ane_model_acquire(const ane_objc *rt, const ane_function *f, ane_model **out,
                             bool *refused, ane_error *err) {
    ane_source s = {0};
    ane_model *same = NULL, *m = NULL;
    ane_status st = make_model(f, &s, &m, err);
    if (!m) return st;
    ane_mutex_lock(&lock);
    double start = now();
    if (!st) st = describe(rt, &s, m, err);
    m->seconds[ANE_PHASE_DESCRIBE] += now() - start;
    if (!st) st = find_same(m, &same, err);
    if (!st && !same) st = bring_up(rt, &s, m, err);
    *refused = st && m->refused;
    keep(rt, st, m, same, out);
    ane_mutex_unlock(&lock);
    ane_source_free(&s);
    return st;
}

/* ---------------------------------------------------------------- experiments */

/* New weight files and the donor's own file of the framework; a load that finds nothing
 * compiled may compile, so it counts as one. */
static ane_status patch(const ane_objc *rt, const ane_source *s, ane_model *m,
                        const ane_model *donor, ane_cf options, ane_error *err) {
    ane_status st = ane_claim_work(&m->claim, m->folder, err);
    if (st) return st;
    ane_folder_show(m->folder);
    st = ane_claim_use(&m->claim, m->folder, err);
    if (!st) st = spend_compile(err);
    ane_index_remove(m->hex);
    if (!st) st = ane_folder_write(m->folder, s->text, s->n, s->blobs, s->n_blobs, err);
    if (!st) ane_folder_copy_network(donor->folder, m->folder);
    if (!st) st = load(rt, m, options, err);
    if (!st) st = ane_ports_read(rt, m, err);
    return st;
}

/* m takes over what is the donor's, and gives it its own that is not loaded: the donor's
 * kernel and requests get the framework's own error from here on. */
static void take_over(ane_model *m, ane_model *donor) {
    ane_model old = *donor;
    ane_model **p = &models;
    donor->object = m->object;
    donor->claim = m->claim;
    donor->loaded = m->loaded;
    memcpy(donor->hex, m->hex, sizeof m->hex);
    memcpy(donor->folder, m->folder, sizeof m->folder);
    m->object = old.object;
    m->claim = old.claim;
    m->loaded = old.loaded;
    memcpy(m->hex, old.hex, sizeof m->hex);
    memcpy(m->folder, old.folder, sizeof m->folder);
    while (*p && *p != donor) p = &(*p)->next;
    if (*p) *p = donor->next;
}

static ane_status reload(const ane_objc *rt, const ane_source *s, ane_model *m, ane_model *donor,
                         ane_cf options, ane_error *err) {
    if (donor->refs != 1 || !donor->loaded)
        return ane_fail(err, ANE_ERR_BUSY, "[compile] reload: the donor's program is %s",
                        donor->loaded ? "another kernel's as well" : "not loaded any more");
    take_over(m, donor);
    ane_status st = ane_claim_work(&m->claim, m->folder, err);
    if (st) return st;
    ane_folder_show(m->folder);
    if (m->claim.use < 0) st = ane_claim_use(&m->claim, m->folder, err);
    if (st) return st;
    ane_index_remove(m->hex);           /* nothing says what the system has from here on */
    unload_aside(rt, m);
    st = ane_folder_write(m->folder, s->text, s->n, s->blobs, s->n_blobs, err);
    if (!st) st = load(rt, m, options, err);
    if (!st) st = ane_ports_read(rt, m, err);
    return st;
}

ane_status ane_model_exchange(const ane_objc *rt, const ane_function *f, ane_model *donor,
                              bool in_place, ane_model **out, ane_error *err) {
    ane_source s = {0};
    ane_model *same = NULL, *m = NULL;
    ane_status st = make_model(f, &s, &m, err);
    if (!m) return st;
    ane_mutex_lock(&lock);
    void *options = ane_cf_dict_retained(rt);
    if (!st && !options) st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    if (!st && strcmp(m->program, donor->program))
        st = ane_fail(err, ANE_ERR_INVALID, "[compile] exchange: the program's text is not the "
                      "donor's; only weights in files may differ");
    if (!st) st = describe(rt, &s, m, err);
    if (!st) st = find_same(m, &same, err);
    if (st && in_place && same && same == donor) {      /* back to what it once was */
        same = NULL;
        st = ANE_OK;
    }
    if (!st && !same)
        st = in_place ? reload(rt, &s, m, donor, options, err)
                      : patch(rt, &s, m, donor, options, err);
    if (!st && !same) ane_claim_done(&m->claim, m->folder, false);
    keep(rt, st, m, same, out);
    ane_cf_release(rt, options);
    ane_mutex_unlock(&lock);
    ane_source_free(&s);
    return st;
}

/* ---------------------------------------------------------------- release */

void ane_model_release(const ane_objc *rt, ane_model *m) {
    ane_error why;
    ane_mutex_lock(&lock);
    if (!--m->refs) {
        ane_model **p = &models;
        while (*p && *p != m) p = &(*p)->next;
        if (*p) *p = m->next;           /* else a reload took what it had */
        if (m->pid != (long)getpid()) {
            /* A forked child: model, folder and locks are the parent's. */
            ane_claim_forget(&m->claim);
            m->object = NULL;
            destroy(rt, m);
        } else {
            if (ane_claim_work(&m->claim, m->folder, &why)) ane__log("ane: %s", why.message);
            take_down(rt, m);
        }
    }
    ane_mutex_unlock(&lock);
}
