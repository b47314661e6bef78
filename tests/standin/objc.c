/* libobjc's C entry points over plain C structs. */
#include "standin.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIVE 0x0b7ec7edu
#define DEAD 0xdeadc0deu

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static class_t *classes[32];
static int n_classes;
static char *selectors[512];
static int n_selectors;

knobs knob;

_Noreturn void standin_trap(const char *fmt, ...) {
    va_list ap;
    fprintf(stderr, "stand-in: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    abort();
}

/* ---------------------------------------------------------------- knobs */

static const struct {
    const char *name;
    size_t offset;
    long start;
} table[] = {
#define X(name, def) {#name, offsetof(knobs, name), def},
    KNOBS(X)
#undef X
};

static atomic_long *find_knob(const char *name) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name))
            return (atomic_long *)((char *)&knob + table[i].offset);
    standin_trap("no knob '%s'", name);
}

static bool is_counter(size_t i) { return table[i].offset >= offsetof(knobs, compiles); }

void standin_reset(void) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!is_counter(i))
            atomic_store((atomic_long *)((char *)&knob + table[i].offset), table[i].start);
}

void standin_set(const char *name, long value) { atomic_store(find_knob(name), value); }
long standin_get(const char *name) { return atomic_load(find_knob(name)); }

bool standin_fails(atomic_long *fault) {
    long n = atomic_load(fault), skip = n > 0 ? atomic_load(&knob.fault_after) : 0;
    while (skip > 0)
        if (atomic_compare_exchange_weak(&knob.fault_after, &skip, skip - 1)) return false;
    while (n > 0)
        if (atomic_compare_exchange_weak(fault, &n, n - 1)) return true;
    return false;
}

/* ---------------------------------------------------------------- classes */

static void init(void) {
    standin_reset();
    cf_init();
    iosurface_init();
    ane_init();
}
/* Apple's data symbols have their values once the library is loaded. */
__attribute__((constructor)) static void ready(void) { pthread_once(&once, init); }

SEL standin_sel(const char *name) {
    pthread_mutex_lock(&lock);
    SEL found = NULL;
    for (int i = 0; i < n_selectors && !found; i++)
        if (!strcmp(selectors[i], name)) found = selectors[i];
    if (!found) {
        if (n_selectors == (int)(sizeof selectors / sizeof *selectors))
            standin_trap("too many selectors");
        found = selectors[n_selectors++] = strdup(name);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

class_t *standin_class(const char *name, void (*dealloc)(id)) {
    class_t *c = calloc(1, sizeof *c), *m = calloc(1, sizeof *m);
    *m = (class_t){.head = {.magic = LIVE, .immortal = true}, .name = name, .meta = true,
                   .methods = calloc(MAX_METHODS, sizeof(method))};
    m->head.isa = m;
    *c = (class_t){.head = {.isa = m, .magic = LIVE, .immortal = true}, .name = name,
                   .dealloc = dealloc, .methods = calloc(MAX_METHODS, sizeof(method))};
    if (n_classes == (int)(sizeof classes / sizeof *classes)) standin_trap("too many classes");
    classes[n_classes++] = c;
    return c;
}

void standin_method(class_t *cls, bool meta, const char *sel, const char *types, IMP imp) {
    class_t *c = meta ? cls->head.isa : cls;
    if (c->n_methods == MAX_METHODS) standin_trap("too many methods of %s", c->name);
    c->methods[c->n_methods++] = (method){standin_sel(sel), imp, types};
}

static void live(const void *obj, const char *what) {
    const object *o = obj;
    if (!o) standin_trap("%s: nil", what);
    if (o->magic == DEAD) standin_trap("%s: object was released before (use after free)", what);
    if (o->magic != LIVE) standin_trap("%s: %p is not an object", what, obj);
}

bool standin_is(const void *obj, const class_t *cls) {
    const object *o = obj;
    return o && o->magic == LIVE && o->isa == cls;
}

void standin_check(const void *obj, const class_t *cls, const char *what) {
    live(obj, what);
    if (((const object *)obj)->isa != cls)
        standin_trap("%s: expected %s, got %s (an Objective-C exception on a Mac)", what,
                     cls->name, ((const object *)obj)->isa->name);
}

id standin_new(class_t *cls, size_t bytes) {
    id o = calloc(1, bytes);
    if (!o) abort();
    o->isa = cls;
    o->magic = LIVE;
    atomic_store(&o->refs, 1);
    atomic_fetch_add(&knob.live_objects, 1);
    return o;
}

EXPORT class_t *objc_getClass(const char *name) {
    ready();
    for (int i = 0; i < n_classes; i++)
        if (!strcmp(classes[i]->name, name))
            return knob.hide_class == i + 1 ? NULL : classes[i];
    return NULL;
}
EXPORT SEL sel_registerName(const char *name) {
    ready();
    return standin_sel(name);
}
EXPORT const char *sel_getName(SEL s) { return s; }
EXPORT const char *class_getName(class_t *c) { return c ? c->name : "nil"; }
EXPORT class_t *object_getClass(id o) {
    if (!o) return NULL;
    live(o, "object_getClass");
    return o->isa;
}

static method *find(class_t *c, SEL s) {
    for (; c; c = c->super)
        for (int i = 0; i < c->n_methods; i++)
            if (c->methods[i].sel == s) return &c->methods[i];
    return NULL;
}

/* Methods are numbered over all classes, metaclass first, for the knobs that touch one. */
static long number_of(const method *m) {
    long n = 0;
    for (int i = 0; i < n_classes; i++)
        for (int meta = 1; meta >= 0; meta--) {
            class_t *c = meta ? classes[i]->head.isa : classes[i];
            for (int k = 0; k < c->n_methods; k++, n++)
                if (&c->methods[k] == m) return n + 1;
        }
    return 0;
}

EXPORT long standin_method_number(const char *cls, int meta, const char *sel) {
    class_t *c = objc_getClass(cls);
    method *m = c ? find(meta ? c->head.isa : c, standin_sel(sel)) : NULL;
    return m ? number_of(m) : 0;
}

static method *visible(class_t *c, SEL s) {
    method *m = c ? find(c, s) : NULL;
    return m && knob.hide_method && number_of(m) == knob.hide_method ? NULL : m;
}
EXPORT method *class_getInstanceMethod(class_t *c, SEL s) { return visible(c, s); }
EXPORT method *class_getClassMethod(class_t *c, SEL s) {
    return visible(c ? c->head.isa : NULL, s);
}
EXPORT const char *method_getTypeEncoding(const method *m) {
    if (!m) return NULL;
    return knob.alter_encoding && number_of(m) == knob.alter_encoding ? "v16@0:8" : m->types;
}
EXPORT IMP method_getImplementation(const method *m) { return m ? m->imp : NULL; }

static void unrecognized(id self, SEL s) {
    standin_trap("-[%s %s]: unrecognized selector", self ? self->isa->name : "nil", s);
}
EXPORT IMP class_getMethodImplementation(class_t *c, SEL s) {
    method *m = visible(c, s);
    return m ? m->imp : (IMP)(void (*)(void))unrecognized;
}
EXPORT signed char class_respondsToSelector(class_t *c, SEL s) { return visible(c, s) != NULL; }
EXPORT method **class_copyMethodList(class_t *c, unsigned *n) {
    method **list = calloc((size_t)c->n_methods + 1, sizeof *list);
    for (int i = 0; i < c->n_methods; i++) list[i] = &c->methods[i];
    if (n) *n = (unsigned)c->n_methods;
    return list;
}
EXPORT signed char class_addMethod(class_t *c, SEL s, IMP imp, const char *types) {
    for (int i = 0; i < c->n_methods; i++)
        if (c->methods[i].sel == s) return 0;
    if (c->n_methods == MAX_METHODS) return 0;
    c->methods[c->n_methods++] = (method){s, imp, strdup(types)};
    return 1;
}
EXPORT const ivar *class_getInstanceVariable(class_t *c, const char *name) {
    for (int i = 0; c && i < c->n_ivars; i++)
        if (!strcmp(c->ivars[i].name, name)) return &c->ivars[i];
    return NULL;
}
EXPORT id object_getIvar(id o, const ivar *v) {
    if (!o || !v) return NULL;
    live(o, "object_getIvar");
    return *(id *)((char *)o + v->offset);
}

/* The one key that is asked for; 0 as the build number: it is absent. */
EXPORT int sysctlbyname(const char *key, void *out, size_t *n, void *set, size_t set_n) {
    char text[16];
    if (set || set_n) standin_trap("sysctlbyname would set something");
    if (strcmp(key, "kern.osversion") || !knob.os_build) return -1;
    size_t w = (size_t)snprintf(text, sizeof text, "%ldA428", (long)knob.os_build) + 1;
    if (*n < w) return -1;
    memcpy(out, text, w);
    *n = w;
    return 0;
}

/* ---------------------------------------------------------------- memory */

EXPORT id objc_retain(id o) {
    if (!o) return o;
    live(o, "objc_retain");
    if (!o->immortal) atomic_fetch_add(&o->refs, 1);
    return o;
}

/* Freed objects wait a while, so that a use after free is seen as one. */
#define QUARANTINE 512
static id waiting[QUARANTINE];
static unsigned next_waiting;

EXPORT void objc_release(id o) {
    if (!o) return;
    live(o, "objc_release");
    if (o->immortal) return;
    long left = atomic_fetch_sub(&o->refs, 1) - 1;
    if (left > 0) return;
    if (left < 0) standin_trap("%s over-released", o->isa->name);
    if (o->isa->dealloc) o->isa->dealloc(o);
    atomic_fetch_sub(&knob.live_objects, 1);
    o->magic = DEAD;
    pthread_mutex_lock(&lock);
    id old = waiting[next_waiting];
    waiting[next_waiting] = o;
    next_waiting = (next_waiting + 1) % QUARANTINE;
    pthread_mutex_unlock(&lock);
    free(old);
}

typedef struct pool {
    struct pool *below;
    id *items;
    size_t n, cap;
} pool;
static _Thread_local pool *top;

EXPORT void *objc_autoreleasePoolPush(void) {
    ready();
    pool *p = calloc(1, sizeof *p);
    p->below = top;
    top = p;
    atomic_fetch_add(&knob.pool_depth, 1);
    return p;
}

EXPORT void objc_autoreleasePoolPop(void *mark) {
    pool *p;
    do {
        p = top;
        if (!p) standin_trap("autorelease pool popped twice");
        top = p->below;
        for (size_t i = p->n; i-- > 0;) objc_release(p->items[i]);
        free(p->items);
        atomic_fetch_sub(&knob.pool_depth, 1);
        bool last = p == mark;
        free(p);
        if (last) return;
    } while (true);
}

EXPORT id objc_autorelease(id o) {
    if (!o) return o;
    live(o, "objc_autorelease");
    if (!top) {
        atomic_fetch_add(&knob.leaked_to_no_pool, 1);
        return o;
    }
    if (top->n == top->cap) {
        top->cap = top->cap ? 2 * top->cap : 16;
        top->items = realloc(top->items, top->cap * sizeof *top->items);
    }
    top->items[top->n++] = o;
    return o;
}
