#include "surface.h"

static bool available(void) { return false; }
static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    (void)s, (void)bytes;
    return ane_fail(err, ANE_ERR_UNSUPPORTED, "[surface_create] not built");
}
static void destroy(ane_surface *s) { (void)s; }
const ane__surface_kind ane__surface_iosurface = {
    .available = available, .create = create, .destroy = destroy};
