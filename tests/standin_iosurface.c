/* A stand-in for the parts of CoreFoundation and IOSurface that csrc/base/dl.h names, with
 * their ownership rules, for tests on systems without them. ANE_STANDIN_FAIL=create|lock|base
 * makes that step fail; standin_live() counts objects that were not released. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct object {
    int refs, kind;                     /* 1 number, 2 string, 3 dictionary, 4 surface */
    int64_t number;
    char text[64];
    struct { const void *key, *value; } pair[16];
    int n;
    char *memory;
    size_t bytes, row;
    uint32_t id;
    int locks, reads;
} object;

static int live;
static object *surfaces[256];
static uint32_t last_id = 7;

int standin_live(void) { return live; }

static object *make(int kind) {
    object *o = calloc(1, sizeof *o);
    o->refs = 1;
    o->kind = kind;
    live++;
    return o;
}

const void *CFRetain(const void *p) {
    if (((object *)p)->kind) ((object *)p)->refs++;
    return p;
}

void CFRelease(const void *p) {
    object *o = (object *)p;
    if (!o) abort();                    /* as the real one crashes */
    if (!o->kind || --o->refs) return;
    if (o->kind == 3)
        for (int i = 0; i < o->n; i++) CFRelease(o->pair[i].value);
    if (o->kind == 4) {
        if (o->locks) abort();
        for (int i = 0; i < 256; i++)
            if (surfaces[i] == o) surfaces[i] = NULL;
        free(o->memory);
    }
    live--;
    free(o);
}

const void *CFNumberCreate(const void *a, int64_t type, const void *value) {
    (void)a;
    if (type != 4) abort();
    object *o = make(1);
    memcpy(&o->number, value, 8);
    return o;
}

const void *CFStringCreateWithCString(const void *a, const char *s, uint32_t encoding) {
    (void)a;
    if (encoding != 0x08000100u) abort();
    object *o = make(2);
    strncpy(o->text, s, sizeof o->text - 1);
    return o;
}

const void *kCFTypeDictionaryKeyCallBacks[6], *kCFTypeDictionaryValueCallBacks[5];
static object true_object;              /* kind 0: immortal */
const void *kCFBooleanTrue = &true_object;

#define KEY(name) static object object_##name; const void *name = &object_##name;
KEY(kIOSurfaceWidth) KEY(kIOSurfaceHeight) KEY(kIOSurfaceBytesPerElement)
KEY(kIOSurfaceBytesPerRow) KEY(kIOSurfaceAllocSize) KEY(kIOSurfacePixelFormat)
KEY(kIOSurfaceName) KEY(kIOSurfaceIsGlobal)

void *CFDictionaryCreateMutable(const void *a, int64_t n, const void *k, const void *v) {
    (void)a, (void)n;
    if (k != kCFTypeDictionaryKeyCallBacks || v != kCFTypeDictionaryValueCallBacks) abort();
    return make(3);
}

void CFDictionarySetValue(void *d, const void *key, const void *value) {
    object *o = d;
    o->pair[o->n].key = key;
    o->pair[o->n++].value = CFRetain(value);
}

static int64_t get(const object *d, const void *key) {
    for (int i = 0; i < d->n; i++)
        if (d->pair[i].key == key) return ((object *)d->pair[i].value)->number;
    return 0;
}

static int fails(const char *what) {
    const char *e = getenv("ANE_STANDIN_FAIL");
    return e && !strcmp(e, what);
}

void *IOSurfaceCreate(const void *d) {
    if (fails("create")) return NULL;
    object *o = make(4);
    o->row = (size_t)get(d, kIOSurfaceBytesPerRow);
    size_t need = o->row * (size_t)get(d, kIOSurfaceHeight);
    o->bytes = (size_t)get(d, kIOSurfaceAllocSize);
    if (o->bytes < need || o->row % 64 || !get(d, kIOSurfacePixelFormat)) abort();
    o->bytes = (o->bytes + 16383) & ~(size_t)16383;
    o->memory = aligned_alloc(16384, o->bytes);
    memset(o->memory, 0, o->bytes);
    o->id = ++last_id;
    surfaces[o->id % 256] = o;
    return o;
}

void *IOSurfaceLookup(uint32_t id) {
    object *o = surfaces[id % 256];
    return o && o->id == id ? (void *)CFRetain(o) : NULL;
}

uint32_t IOSurfaceGetID(void *s) { return ((object *)s)->id; }
size_t IOSurfaceGetAllocSize(void *s) { return ((object *)s)->bytes; }
size_t IOSurfaceGetBytesPerRow(void *s) { return ((object *)s)->row; }

int IOSurfaceLock(void *s, uint32_t options, uint32_t *seed) {
    (void)seed;
    object *o = s;
    if (fails("lock")) return (int)0xe00002c2;
    if (options > 1) abort();
    o->locks++;
    o->reads += options == 1;
    return 0;
}

int IOSurfaceUnlock(void *s, uint32_t options, uint32_t *seed) {
    (void)seed;
    object *o = s;
    o->locks--;
    o->reads -= options == 1;
    return o->locks < 0 || o->reads < 0 || o->reads > o->locks;     /* other options */
}

void *IOSurfaceGetBaseAddress(void *s) {
    object *o = s;
    return o->locks && !fails("base") ? o->memory : NULL;
}
