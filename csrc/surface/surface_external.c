/* Memory that somebody else owns: a NumPy array, a DLPack capsule, a mapped file. */
#include "surface.h"

static bool available(void) { return true; }

static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    (void)s, (void)bytes;
    return ane_fail(err, ANE_ERR_INVALID, "[surface_create] external memory is wrapped");
}

static void destroy(ane_surface *s) {
    if (s->release) s->release(s->release_arg);
}

const ane__surface_kind ane__surface_external = {
    .available = available, .create = create, .destroy = destroy};

ane_status ane_surface_wrap(void *base, size_t bytes, bool readonly,
                            void (*release)(void *arg), void *arg, ane_surface **out,
                            ane_error *err) {
    if (!base && bytes)
        return ane_fail(err, ANE_ERR_INVALID, "[surface_wrap] null address for %zu bytes",
                        bytes);
    if (bytes > (size_t)INT64_MAX)
        return ane_fail(err, ANE_ERR_INVALID, "[surface_wrap] %zu bytes is beyond 2^63-1",
                        bytes);
    static unsigned char nothing;       /* a base that is never NULL, never touched */
    ane_surface *s = ane__surface_new(ANE_MEM_EXTERNAL, bytes, NULL, err);
    if (!s) return ANE_ERR_NOMEM;
    s->base = base ? base : &nothing;
    s->capacity = bytes;
    s->readonly = readonly;
    s->release = release;
    s->release_arg = arg;
    *out = s;
    return ANE_OK;
}
