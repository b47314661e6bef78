/* Private memory of this process. Large blocks come straight from the system, so that they
 * are zero without being touched and leave when released. */
#include "surface.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

#define MAP_FROM ((size_t)256 << 10)
#define HUGE_FROM ((size_t)4 << 20)

static bool available(void) { return true; }

static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    if (bytes < MAP_FROM) {
        s->base = ane_aligned_alloc(bytes);
        if (!s->base)
            return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] no memory for %zu bytes",
                            bytes);
        memset(s->base, 0, bytes);
        s->capacity = bytes;
        return ANE_OK;
    }
    size_t n = ane__round_up(bytes, ane__page_size());
    void *p = n ? mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                : MAP_FAILED;
    if (p == MAP_FAILED)
        return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] no memory for %zu bytes",
                        bytes);
#ifdef MADV_HUGEPAGE
    if (n >= HUGE_FROM) (void)madvise(p, n, MADV_HUGEPAGE);
#endif
    s->base = s->map = p;
    s->capacity = s->map_bytes = n;
    return ANE_OK;
}

static void destroy(ane_surface *s) {
    if (s->map) (void)munmap(s->map, s->map_bytes);
    else ane_aligned_free(s->base);
}

const ane__surface_kind ane__surface_heap = {
    .available = available, .create = create, .destroy = destroy};
