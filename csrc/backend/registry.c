/* The devices, in order of preference, and the poll that all of them share. */
#include "backend.h"

#include <string.h>
#include <time.h>

/* Holds the engine's place until backend/apple exists. */
static bool apple_available(void) { return false; }
static const char *apple_detail(void) {
#if defined(__APPLE__)
    return "not built: this version of anetorch has no Apple device yet";
#else
    return "absent: the Neural Engine is reached through macOS frameworks, and this is "
           "not macOS";
#endif
}
static const ane_backend apple = {
    .name = "ane", .available = apple_available, .detail = apple_detail};

static const ane_backend *const backends[] = {&ane_backend_cpu, &apple};

size_t ane_backend_count(void) { return sizeof backends / sizeof *backends; }
const ane_backend *ane_backend_at(size_t i) { return backends[i]; }

size_t ane_device_count(void) { return ane_backend_count(); }
const char *ane_device_name(size_t i) {
    return i < ane_backend_count() ? backends[i]->name : NULL;
}
bool ane_device_available(size_t i) {
    return i < ane_backend_count() && backends[i]->available();
}
const char *ane_device_detail(size_t i) {
    return i < ane_backend_count() ? backends[i]->detail() : NULL;
}

ane_status ane_backend_find(const char *name, const ane_backend **out, ane_error *err) {
    if (!name) name = "cpu";
    for (size_t i = 0; i < ane_backend_count(); i++) {
        if (strcmp(backends[i]->name, name)) continue;
        if (!backends[i]->available())
            return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] device \"%s\": %s", name,
                            backends[i]->detail());
        *out = backends[i];
        return ANE_OK;
    }
    return ane_fail(err, ANE_ERR_INVALID,
                    "[compile] unknown device \"%s\"; expected \"cpu\" or \"ane\"", name);
}

/* ---------------------------------------------------------------- poll */

#define POLL_NS 25000000                /* decision 13 says 50 ms; steps take time too */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void ane_run_clock_start(ane_run_clock *c, const ane_run_options *opts) {
    static const ane_run_options none = {.size = sizeof none};
    c->opts = opts ? opts : &none;
    c->next_poll = c->opts->poll ? now_ns() + POLL_NS : 0;
}

ane_status ane_run_clock_check(ane_run_clock *c, ane_error *err) {
    const ane_run_options *o = c->opts;
    if (o->cancel && *o->cancel)
        return ane_fail(err, ANE_ERR_CANCELLED, "[run] cancelled by its flag");
    if (!o->poll) return ANE_OK;
    int64_t now = now_ns();
    if (now < c->next_poll) return ANE_OK;
    c->next_poll = now + POLL_NS;
    if (o->poll(o->poll_arg))
        return ane_fail(err, ANE_ERR_CANCELLED, "[run] cancelled by its poll function");
    return ANE_OK;
}
