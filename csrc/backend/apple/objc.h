/* The Objective-C run-time from plain C: classes and methods are looked up once and compared
 * with table.def; a method is called through its IMP, cast by a generated sender. Nothing
 * here is Apple's, so the same file compiles, and is tested, everywhere. */
#ifndef ANE_APPLE_OBJC_H
#define ANE_APPLE_OBJC_H

#include "../../base/dl.h"
#include "../../ir/target.h"

typedef void *ane_id;
typedef void *ane_sel;
typedef signed char ane_bool;           /* one byte on both ABIs: test against 0 */
typedef void (*ane_imp)(void);

#include "table.def"

enum {
#define X(id, name, need) ANE_CLASS_##id,
    ANE_APPLE_CLASSES(X)
#undef X
    ANE_CLASS_COUNT
};
enum {
#define X(kind, name, cls, sel, enc, need, ret, params, args) ANE_METHOD_##name,
    ANE_APPLE_METHODS(X)
#undef X
    ANE_METHOD_COUNT
};

typedef struct ane_objc {
#define X(lib, ret, name, args) ret(*name) args;
    ANE_APPLE_FUNCTIONS(X)
#undef X
    const void *kCFTypeArrayCallBacks;
    const ane_dl *cf;                   /* the rest of CoreFoundation, and IOSurface */
    ane_id classes[ANE_CLASS_COUNT];
    ane_sel selectors[ANE_METHOD_COUNT];
    ane_imp imps[ANE_METHOD_COUNT];     /* NULL: an optional method that is absent */
    char detail[256];
    char chip[64], build[64];           /* "h16g", "26A428"; "unknown" */
    bool stand_in;
} ane_objc;

/* Everything, probed once, or NULL; *why (may be NULL) then says what is wrong. */
const ane_objc *ane_objc_load(const char **why);

/* False, and a line in the log, for NULL, an object of another class, an absent method. */
bool ane_objc_may_send(const ane_objc *rt, int method, int cls, ane_id self);

/* ane_send_NAME(rt, [self,] arguments): 0 when the message may not be sent. */
#define ANE_UNPACK(...) __VA_ARGS__
#define ANE_SENDER_CLASS(name, cls, ret, params, args)                                   \
    static inline ret ane_send_##name(const ane_objc *rt ANE_UNPACK params) {            \
        ane_id self = rt->classes[ANE_CLASS_##cls];                                      \
        if (!self || !rt->imps[ANE_METHOD_##name]) return 0;                             \
        return ((ret(*)(ane_id, ane_sel ANE_UNPACK params))rt->imps[ANE_METHOD_##name])( \
            self, rt->selectors[ANE_METHOD_##name] ANE_UNPACK args);                     \
    }
#define ANE_SENDER_INSTANCE(name, cls, ret, params, args)                                \
    static inline ret ane_send_##name(const ane_objc *rt, ane_id self ANE_UNPACK params) { \
        if (!ane_objc_may_send(rt, ANE_METHOD_##name, ANE_CLASS_##cls, self)) return 0;  \
        return ((ret(*)(ane_id, ane_sel ANE_UNPACK params))rt->imps[ANE_METHOD_##name])( \
            self, rt->selectors[ANE_METHOD_##name] ANE_UNPACK args);                     \
    }
#define X(kind, name, cls, sel, enc, need, ret, params, args)                            \
    ANE_SENDER_##kind(name, cls, ret, params, args)
ANE_APPLE_METHODS(X)
#undef X

/* Values out of dictionaries: NULL or false for an absent key and for another type. */
typedef enum ane_cf_kind { ANE_CF_STRING, ANE_CF_NUMBER, ANE_CF_ARRAY, ANE_CF_DICT } ane_cf_kind;
bool ane_cf_is(const ane_objc *rt, ane_cf v, ane_cf_kind kind);
ane_cf ane_cf_get(const ane_objc *rt, ane_cf dict, const char *key, ane_cf_kind kind);
bool ane_cf_number(const ane_objc *rt, ane_cf dict, const char *key, int64_t *out);
bool ane_cf_text(const ane_objc *rt, ane_cf string, char *buf, size_t n);
size_t ane_cf_count(const ane_objc *rt, ane_cf array);
/* Item i, of the kind, or NULL. */
ane_cf ane_cf_item(const ane_objc *rt, ane_cf array, size_t i, ane_cf_kind kind);

/* +1, or NULL without memory. */
ane_cf ane_cf_string_retained(const ane_objc *rt, const char *s);
ane_cf ane_cf_int_retained(const ane_objc *rt, int64_t v);
void *ane_cf_dict_retained(const ane_objc *rt);
void ane_cf_release(const ane_objc *rt, ane_cf v);      /* NULL is fine */

/* Domain, code, text and believed meaning of an NSError (NULL: none was given). *status
 * (may be NULL) gets the engine's own `status=`, or 0. */
ane_status ane_objc_fail(const ane_objc *rt, ane_error *err, const char *what, ane_id error,
                         unsigned long *status);

#endif
