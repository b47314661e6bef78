/* IOSurface: counted blocks with an id, locks and a seed. Flat surfaces and images alike. */
#include "standin.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

id objc_retain(id o);
void objc_release(id o);

typedef struct surface_t {
    object head;
    size_t width, height, row, element, alloc;
    uint32_t format, number, seed;
    long readers, writers, uses;
    pthread_mutex_t mutex;
    unsigned char *base;
    struct surface_t *next;         /* all live ones, for lookup */
} surface_t;

static class_t *cls;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static surface_t *all;
static uint32_t last_number = 100;

/* Their string values are the names without the k. */
#define KEYS(X)                                                                           \
    X(Width) X(Height) X(BytesPerElement) X(BytesPerRow) X(AllocSize) X(PixelFormat)       \
    X(CacheMode) X(Name) X(IsGlobal)
#define X(name) EXPORT const void *kIOSurface##name;
KEYS(X)
#undef X

static void destroy(id o) {
    surface_t *s = (surface_t *)o;
    if (s->readers || s->writers) standin_trap("IOSurface freed while locked");
    pthread_mutex_lock(&list_lock);
    for (surface_t **p = &all; *p; p = &(*p)->next)
        if (*p == s) {
            *p = s->next;
            break;
        }
    pthread_mutex_unlock(&list_lock);
    free(s->base);
    atomic_fetch_sub(&knob.live_surfaces, 1);
}

void iosurface_init(void) {
    cls = standin_class("IOSurface", destroy);
#define X(name)                                                                            \
    {                                                                                      \
        id key = cf_string("IOSurface" #name);                                             \
        key->immortal = true;                                                              \
        atomic_fetch_sub(&knob.live_objects, 1);                                           \
        kIOSurface##name = key;                                                            \
    }
    KEYS(X)
#undef X
}

static surface_t *check(const void *s, const char *call) {
    standin_check(s, cls, call);
    return (surface_t *)(uintptr_t)s;
}

static size_t number(const void *dict, const char *key, size_t otherwise) {
    id n = cf_get(dict, key);
    return n ? (size_t)cf_int_value(n) : otherwise;
}

EXPORT void *IOSurfaceCreate(const void *dict) {
    if (!cf_dict_count(dict)) return NULL;
    if (standin_fails(&knob.fail_surface)) return NULL;
    size_t width = number(dict, "IOSurfaceWidth", 0), height = number(dict, "IOSurfaceHeight", 1);
    size_t element = number(dict, "IOSurfaceBytesPerElement", 1);
    size_t row = number(dict, "IOSurfaceBytesPerRow", width * element);
    size_t alloc = number(dict, "IOSurfaceAllocSize", row * height);
    if (!width || !height || row < width * element || alloc < row * height ||
        alloc > ((size_t)1 << 40))
        return NULL;
    size_t round = (size_t)knob.alloc_round;
    if (round > 1) alloc = (alloc + round - 1) / round * round;
    surface_t *s = (surface_t *)standin_new(cls, sizeof *s);
    s->width = width;
    s->height = height;
    s->row = row;
    s->element = element;
    s->alloc = alloc;
    s->format = (uint32_t)number(dict, "IOSurfacePixelFormat", 0);
    pthread_mutex_init(&s->mutex, NULL);
    if (posix_memalign((void **)&s->base, 16384, alloc)) abort();
    memset(s->base, 0, alloc);
    pthread_mutex_lock(&list_lock);
    s->number = ++last_number;
    s->next = all;
    all = s;
    pthread_mutex_unlock(&list_lock);
    atomic_fetch_add(&knob.live_surfaces, 1);
    return s;
}

EXPORT int IOSurfaceLock(void *p, uint32_t options, uint32_t *seed) {
    surface_t *s = check(p, "IOSurfaceLock");
    if (standin_fails(&knob.fail_lock)) return (int)0xe00002bd;     /* no memory */
    if (options & ~3u) standin_trap("IOSurfaceLock with options %u", options);
    pthread_mutex_lock(&s->mutex);
    if (options & 1) s->readers++;
    else {
        s->writers++;
        s->seed++;
    }
    if (seed) *seed = s->seed;
    pthread_mutex_unlock(&s->mutex);
    return 0;
}
EXPORT int IOSurfaceUnlock(void *p, uint32_t options, uint32_t *seed) {
    surface_t *s = check(p, "IOSurfaceUnlock");
    pthread_mutex_lock(&s->mutex);
    long *count = options & 1 ? &s->readers : &s->writers;
    if (!*count) standin_trap("IOSurfaceUnlock with other options than the lock");
    --*count;
    if (seed) *seed = s->seed;
    pthread_mutex_unlock(&s->mutex);
    return standin_fails(&knob.fail_unlock) ? (int)0xe00002bc : 0;
}
EXPORT void *IOSurfaceGetBaseAddress(void *p) {
    surface_t *s = check(p, "IOSurfaceGetBaseAddress");
    return standin_fails(&knob.fail_base) ? NULL : s->base;
}
EXPORT size_t IOSurfaceGetAllocSize(void *p) { return check(p, "GetAllocSize")->alloc; }
EXPORT size_t IOSurfaceGetWidth(void *p) { return check(p, "GetWidth")->width; }
EXPORT size_t IOSurfaceGetHeight(void *p) { return check(p, "GetHeight")->height; }
EXPORT size_t IOSurfaceGetBytesPerRow(void *p) { return check(p, "GetBytesPerRow")->row; }
EXPORT size_t IOSurfaceGetBytesPerElement(void *p) {
    return check(p, "GetBytesPerElement")->element;
}
EXPORT uint32_t IOSurfaceGetPixelFormat(void *p) { return check(p, "GetPixelFormat")->format; }
EXPORT uint32_t IOSurfaceGetID(void *p) { return check(p, "GetID")->number; }
EXPORT uint32_t IOSurfaceGetSeed(void *p) { return check(p, "GetSeed")->seed; }
EXPORT void *IOSurfaceLookup(uint32_t n) {
    pthread_mutex_lock(&list_lock);
    surface_t *s = all;
    while (s && s->number != n) s = s->next;
    if (s) objc_retain(&s->head);
    pthread_mutex_unlock(&list_lock);
    return s;
}
EXPORT void IOSurfaceIncrementUseCount(void *p) { check(p, "IncrementUseCount")->uses++; }
EXPORT void IOSurfaceDecrementUseCount(void *p) { check(p, "DecrementUseCount")->uses--; }
EXPORT int32_t IOSurfaceGetUseCount(void *p) { return (int32_t)check(p, "GetUseCount")->uses; }
EXPORT unsigned char IOSurfaceIsInUse(void *p) { return check(p, "IsInUse")->uses > 0; }

void *iosurface_base(void *p) { return check(p, "surface")->base; }
size_t iosurface_alloc(void *p) { return check(p, "surface")->alloc; }
bool iosurface_valid(const void *p) { return standin_is(p, cls); }
