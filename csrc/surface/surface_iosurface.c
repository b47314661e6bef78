/* IOSurface, through base/dl.h. Compiled everywhere; absent where the frameworks are. */
#include "iosurface.h"

#include "../base/dl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define L008 0x4C303038u                /* 'L008': one byte per element */

static bool available(void) { return ane_dl_load(NULL) != NULL; }

static ane_status absent(const char *who, ane_error *err) {
    const char *why = "";
    (void)ane_dl_load(&why);
    return ane_fail(err, ANE_ERR_UNSUPPORTED, "[%s] there is no IOSurface here: %s", who, why);
}

static uint32_t options(ane_access access) { return access == ANE_READ ? 1u : 0u; }

/* A number under a key; false without memory. */
static bool put(const ane_dl *dl, void *dict, const void *key, int64_t value) {
    ane_cf n = dl->CFNumberCreate(NULL, ANE_CF_SINT64, &value);
    if (!n) return false;
    dl->CFDictionarySetValue(dict, key, n);
    dl->CFRelease(n);
    return true;
}

/* The base address is the surface's own while it is locked; it is read once here and must
 * be the same at every later lock. */
static ane_status find_base(const ane_dl *dl, ane_iosurface ref, unsigned char **base,
                            ane_error *err) {
    int code = dl->IOSurfaceLock(ref, 1, NULL);
    if (code)
        return ane_fail(err, ANE_ERR_RUNTIME, "[iosurface] IOSurfaceLock failed with code %d",
                        code);
    *base = dl->IOSurfaceGetBaseAddress(ref);
    (void)dl->IOSurfaceUnlock(ref, 1, NULL);
    if (!*base)
        return ane_fail(err, ANE_ERR_RUNTIME, "[iosurface] the base address is null");
    return ANE_OK;
}

static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    const ane_dl *dl = ane_dl_load(NULL);
    if (!dl) return absent("surface_create", err);
    const ane_image_layout *image = s->image;
    int64_t width = image ? image->width : (int64_t)bytes, height = image ? image->height : 1;
    int64_t unit = image ? image->bytes_per_pixel : 1;
    size_t row = image ? image->row_bytes : ane__round_up(bytes, 64);
    size_t total = image ? image->bytes : row;
    if (!row) return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] %zu bytes overflow", bytes);
    void *dict = dl->CFDictionaryCreateMutable(NULL, 0, dl->kCFTypeDictionaryKeyCallBacks,
                                               dl->kCFTypeDictionaryValueCallBacks);
    ane_status st = ANE_ERR_NOMEM;
    ane_iosurface ref = NULL;
    if (!dict || !put(dl, dict, dl->kIOSurfaceWidth, width) ||
        !put(dl, dict, dl->kIOSurfaceHeight, height) ||
        !put(dl, dict, dl->kIOSurfaceBytesPerElement, unit) ||
        !put(dl, dict, dl->kIOSurfaceBytesPerRow, (int64_t)row) ||
        !put(dl, dict, dl->kIOSurfaceAllocSize, (int64_t)total) ||
        !put(dl, dict, dl->kIOSurfacePixelFormat, image ? image->fourcc : L008)) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[surface_create] no memory for a description");
        goto done;
    }
    /* Lookup by id works across processes for global surfaces only. */
    dl->CFDictionarySetValue(dict, dl->kIOSurfaceIsGlobal, dl->kCFBooleanTrue);
    if (s->name) {
        ane_cf name = dl->CFStringCreateWithCString(NULL, s->name, ANE_CF_UTF8);
        if (name) {
            dl->CFDictionarySetValue(dict, dl->kIOSurfaceName, name);
            dl->CFRelease(name);
        }
    }
    ref = dl->IOSurfaceCreate(dict);
    if (!ref) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[surface_create] IOSurfaceCreate returned null for "
                                          "%zu bytes",
                      total);
        goto done;
    }
    size_t got = dl->IOSurfaceGetAllocSize(ref);
    if (got < bytes || (image && dl->IOSurfaceGetBytesPerRow(ref) != row)) {
        st = ane_fail(err, ANE_ERR_RUNTIME,
                      "[surface_create] IOSurface gave %zu bytes in rows of %zu, asked for %zu "
                      "in rows of %zu",
                      got, dl->IOSurfaceGetBytesPerRow(ref), bytes, row);
        goto done;
    }
    st = find_base(dl, ref, &s->base, err);
    if (st) goto done;
    s->capacity = got;
    s->handle = ref;
    ref = NULL;
done:
    if (ref) dl->CFRelease(ref);
    if (dict) dl->CFRelease(dict);
    return st;
}

static void destroy(ane_surface *s) {
    const ane_dl *dl = ane_dl_load(NULL);
    if (dl && s->handle) dl->CFRelease(s->handle);
}

static ane_status lock(ane_surface *s, ane_access access, ane_error *err) {
    const ane_dl *dl = ane_dl_load(NULL);
    int code = dl->IOSurfaceLock(s->handle, options(access), NULL);
    if (code)
        return ane_fail(err, ANE_ERR_RUNTIME, "[lock] IOSurfaceLock failed with code %d", code);
    void *base = dl->IOSurfaceGetBaseAddress(s->handle);
    if (base == s->base) return ANE_OK;
    (void)dl->IOSurfaceUnlock(s->handle, options(access), NULL);
    return ane_fail(err, ANE_ERR_RUNTIME, base ? "[lock] the surface moved in memory"
                                               : "[lock] the base address is null");
}

static ane_status unlock(ane_surface *s, ane_access access, ane_error *err) {
    const ane_dl *dl = ane_dl_load(NULL);
    int code = dl->IOSurfaceUnlock(s->handle, options(access), NULL);
    return code ? ane_fail(err, ANE_ERR_RUNTIME, "[unlock] IOSurfaceUnlock failed with code %d",
                           code)
                : ANE_OK;
}

const ane__surface_kind ane__surface_iosurface = {.available = available,
                                                  .create = create,
                                                  .destroy = destroy,
                                                  .lock = lock,
                                                  .unlock = unlock};

/* ---------------------------------------------------------------- import, ids */

/* Takes the caller's reference to ref, also on failure. bytes is SIZE_MAX: all of it. */
static ane_status adopt(const char *who, const ane_dl *dl, ane_iosurface ref, size_t bytes,
                        ane_surface **out, ane_error *err) {
    size_t have = dl->IOSurfaceGetAllocSize(ref);
    ane_status st = ANE_OK;
    if (bytes == SIZE_MAX) bytes = have;
    if (bytes > have)
        st = ane_fail(err, ANE_ERR_INVALID, "[%s] %zu bytes asked for, the surface has %zu",
                      who, bytes, have);
    ane_surface *s = st ? NULL : ane__surface_new(ANE_MEM_IOSURFACE, bytes, NULL, err);
    if (!st && !s) st = ANE_ERR_NOMEM;
    if (!st) st = find_base(dl, ref, &s->base, err);
    if (st) {
        ane__surface_free(s);
        dl->CFRelease(ref);
        return st;
    }
    s->capacity = have;
    s->handle = ref;
    atomic_store(&s->shared, true);
    *out = s;
    return ANE_OK;
}

ane_status ane_surface_from_iosurface(void *ref, size_t bytes, ane_surface **out,
                                      ane_error *err) {
    const ane_dl *dl = ane_dl_load(NULL);
    if (!dl) return absent("from_iosurface", err);
    if (!ref) return ane_fail(err, ANE_ERR_INVALID, "[from_iosurface] the pointer is null");
    (void)dl->CFRetain(ref);
    return adopt("from_iosurface", dl, ref, bytes, out, err);
}

uint32_t ane_surface_iosurface_id(const ane_surface *s) {
    return s->memory == ANE_MEM_IOSURFACE ? ane_dl_load(NULL)->IOSurfaceGetID(s->handle) : 0;
}

void *ane_surface_iosurface_ref(const ane_surface *s) {
    return s->memory == ANE_MEM_IOSURFACE ? s->handle : NULL;
}

ane_status ane__iosurface_handle(ane_surface *s, char *text, size_t n, ane_error *err) {
    int need = snprintf(text, n, "iosurface:%" PRIu32, ane_surface_iosurface_id(s));
    if (need > 0 && (size_t)need < n) {
        atomic_store(&s->shared, true);
        return ANE_OK;
    }
    return ane_fail(err, ANE_ERR_INVALID, "[id] needs %d bytes, got %zu", need + 1, n);
}

bool ane__iosurface_is_handle(const char *text) {
    return strncmp(text, "iosurface:", 10) == 0;
}

ane_status ane__iosurface_lookup(const char *text, ane_surface **out, ane_error *err) {
    const ane_dl *dl = ane_dl_load(NULL);
    if (!dl) return absent("lookup", err);
    uint32_t id;
    int used = 0;
    if (sscanf(text, "iosurface:%" SCNu32 "%n", &id, &used) != 1 || text[used])
        return ane_fail(err, ANE_ERR_INVALID, "[lookup] '%.80s' is no IOSurface id", text);
    ane_iosurface ref = dl->IOSurfaceLookup(id);
    if (!ref)
        return ane_fail(err, ANE_ERR_NOT_FOUND,
                        "[lookup] no IOSurface has the id %" PRIu32 ": it is gone, or this "
                        "system keeps surfaces private to a process; share tensors made with "
                        "mem=\"shm\" instead",
                        id);
    return adopt("lookup", dl, ref, SIZE_MAX, out, err);
}
