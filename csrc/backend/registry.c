/* The devices, in order of preference, and what all of them share. */
#include "apple/apple.h"
#include "backend.h"

#include "../base/sync.h"

#include <string.h>

static const ane_backend *const backends[] = {&ane_backend_cpu, &ane_backend_apple};

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

ane_status ane_run_check(ane_error *err) {
    if (!ane_poll_check()) return ANE_OK;
    return ane_fail(err, ANE_ERR_CANCELLED, "[run] cancelled");
}
