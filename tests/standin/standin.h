/* A test-only stand-in for what the engine's backend loads on a Mac: the Objective-C
 * run-time's C entry points, a subset of CoreFoundation, IOSurface and the private classes.
 * Written from apple-runtime's documented behaviour alone; it shares no table with the
 * library, so a slip on either side shows.
 *
 * Programs are executed by the CPU device through the public header. Misuse that would end
 * a process on a Mac (an argument of the wrong class, an over-release, an unknown selector,
 * NULL into CFRelease) traps: a line on stderr and abort().
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct object object;
typedef struct class_t class_t;
typedef object *id;
typedef const char *SEL;            /* interned: equal names are equal pointers */
typedef void (*IMP)(void);

struct object {
    class_t *isa;
    atomic_long refs;
    uint32_t magic;
    bool immortal;
};

typedef struct method {
    SEL sel;
    IMP imp;
    const char *types;
} method;

typedef struct ivar {
    const char *name;
    size_t offset;
} ivar;

struct class_t {
    object head;                    /* isa: the metaclass */
    const char *name;
    class_t *super;
    bool meta;
    void (*dealloc)(id self);
    method *methods;                /* room for MAX_METHODS */
    int n_methods;
    const ivar *ivars;
    int n_ivars;
    long live;                      /* instances not yet deallocated */
};
#define MAX_METHODS 48

_Noreturn void standin_trap(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* objc.c */
id standin_new(class_t *cls, size_t bytes);         /* zeroed, one reference */
SEL standin_sel(const char *name);
void standin_check(const void *obj, const class_t *cls, const char *what);
bool standin_is(const void *obj, const class_t *cls);
class_t *standin_class(const char *name, void (*dealloc)(id));
void standin_method(class_t *cls, bool meta, const char *sel, const char *types, IMP imp);

/* cf.c */
extern class_t *cls_string, *cls_data, *cls_number, *cls_boolean, *cls_array, *cls_dict,
    *cls_error, *cls_uuid;
void cf_init(void);
id cf_string(const char *utf8);                     /* +1 */
const char *cf_utf8(const void *s);
id cf_data(const void *bytes, size_t n);            /* +1 */
id cf_int(int64_t v);                               /* +1 */
int64_t cf_int_value(const void *n);
id cf_array(void);                                  /* +1, mutable */
void cf_append(id array, id item);                  /* retains */
void cf_append_owned(id array, id item);            /* takes the +1 */
size_t cf_count(const void *array);
id cf_at(const void *array, size_t i);
id cf_dict(void);                                   /* +1, mutable */
void cf_put(id dict, const char *key, id value_owned);
id cf_get(const void *dict, const char *key);       /* +0 or NULL */
size_t cf_dict_count(const void *dict);
void cf_dict_entry(const void *dict, size_t i, id *key, id *value);  /* sorted by key */
const char *cf_temporary_folder(void);
const void *cf_bytes(const void *data, size_t *n);
/* +1: domain, code, text; underlying may be NULL (borrowed). */
id cf_error(const char *domain, int64_t code, const char *text, id underlying);
void cf_error_put(id error, const char *key, id value_owned);       /* into its userInfo */

/* iosurface.c */
void iosurface_init(void);
void *iosurface_base(void *surface);
size_t iosurface_alloc(void *surface);
bool iosurface_valid(const void *surface);

/* ane.c */
void ane_init(void);

/* The engine's limits, from the library's one table of facts about it. */
enum {
#define LIMIT(id, value, what, evidence) LIMIT_##id = value,
#include "../../csrc/ir/target.def"
};

/* Every limit, fault and counter by name. standin_set(name, v), standin_get(name);
 * an unknown name traps. */
#define KNOBS(X)                                                                          \
    /* limits */                                                                           \
    X(compile_budget, LIMIT_COMPILES) X(load_slots, LIMIT_LOADED) X(min_surface, 0)        \
    X(row_align, LIMIT_ROW_ALIGN)                                                          \
    X(alloc_round, 1) X(has_ane, 1) X(os_build, 26) X(is_vm, 0) X(state_ops_compile, 0) X(masks_count, 0)                     \
    X(single_input, 0) X(equal_ports, 0) X(single_surface, 0)                               \
    X(refuse_ops, 1)                                                                       \
    /* faults: the next n calls fail, once `fault_after` calls with an armed fault passed */ \
    X(fault_after, 0)                                                                       \
    X(fail_describe, 0) X(fail_model, 0) X(fail_hex, 0) X(fail_compile, 0) X(hang_in_compile, 0)                  \
    X(fail_load, 0) X(fail_attributes, 0) X(fail_evaluate, 0) X(fail_unload, 0)             \
    X(fail_request, 0) X(fail_wrap, 0) X(fail_surface, 0) X(fail_lock, 0)                   \
    X(fail_unlock, 0) X(fail_base, 0) X(transient_12, 0) X(forget_cache, 0)                 \
    X(fail_validate, 0) X(fail_cf, 0) X(fail_tmpdir, 0) X(odd_attributes, 0)               \
    X(load_word, 0x20004) X(load_code, 0) X(compile_code, 1) X(bare_text, 0) X(reload_works, 0)                \
    X(evaluate_status, 0x1d) X(realtime, 0) X(era27, 0)                                     \
    /* 1 + index of the method whose encoding is altered; class that is missing */          \
    X(alter_encoding, 0) X(hide_class, 0) X(hide_method, 0)                                 \
    /* counters */                                                                          \
    X(compiles, 0) X(cache_hits, 0) X(loads, 0) X(unloads, 0) X(evaluates, 0)               \
    X(live_objects, 0) X(live_surfaces, 0) X(loaded, 0) X(pool_depth, 0)                    \
    X(leaked_to_no_pool, 0) X(realtime_begun, 0) X(realtime_ended, 0)                       \
    X(engine_ns, 0)

typedef struct knobs {
#define X(name, def) atomic_long name;
    KNOBS(X)
#undef X
} knobs;
extern knobs knob;
/* True, and one less to go, while a fault is armed. */
bool standin_fails(atomic_long *fault);

EXPORT void standin_set(const char *name, long value);
EXPORT long standin_get(const char *name);
EXPORT void standin_reset(void);                    /* limits and faults to their defaults */

#endif
