/* Loading, probing, CoreFoundation values and errors. */
#include "objc.h"

#include "../../base/env.h"
#include "../../base/sync.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ane_once once = ANE_ONCE_INIT;
static ane_objc table;
static bool loaded;
static char reason[640];

enum {
#define X(id, path) LIB_##id,
    ANE_APPLE_LIBRARIES(X)
#undef X
    LIB_COUNT
};

enum { REQUIRED, OPTIONAL };
enum { CLASS, INSTANCE };

static const char *const class_names[] = {
#define X(id, name, need) name,
    ANE_APPLE_CLASSES(X)
#undef X
};

static const struct {
    int kind, cls, need;
    const char *selector, *encoding;
} methods[] = {
#define X(kind, name, cls, sel, enc, need, ret, params, args)                            \
    {kind, ANE_CLASS_##cls, need, sel, enc},
    ANE_APPLE_METHODS(X)
#undef X
};

/* The offsets in an encoding are nominal and differ between ABIs: digits do not count. */
static bool same_encoding(const char *want, const char *got) {
    for (;; want++, got++) {
        while (*got >= '0' && *got <= '9') got++;
        bool boolean = *want == 'B' && *got == 'c';
        if (*want != *got && !boolean) return false;
        if (!*want) return true;
    }
}

static bool find_symbols(const char *stand_in) {
    static const char *const paths[] = {
#define X(id, path) path,
        ANE_APPLE_LIBRARIES(X)
#undef X
    };
    void *libs[LIB_COUNT], *p;
    for (int i = 0; i < LIB_COUNT; i++) {
        const char *path = *stand_in ? stand_in : paths[i];
        libs[i] = dlopen(path, RTLD_NOW | RTLD_LOCAL);      /* never closed */
        if (libs[i]) continue;
        const char *e = dlerror();
        snprintf(reason, sizeof reason, "cannot load %s: %s", path, e ? e : "no reason");
        return false;
    }
#define FIND(lib, name)                                                                  \
    if (!(p = dlsym(libs[LIB_##lib], #name))) {                                          \
        snprintf(reason, sizeof reason, "function %s is missing", #name);        \
        return false;                                                                    \
    }
    /* dlsym gives an object pointer; memcpy turns it into a function's without a cast. */
#define X(lib, ret, name, args) FIND(lib, name) memcpy(&table.name, &p, sizeof p);
    ANE_APPLE_FUNCTIONS(X)
#undef X
    FIND(COREFOUNDATION, kCFTypeArrayCallBacks)
    table.kCFTypeArrayCallBacks = p;
    return true;
}

/* Any difference from the table refuses the device: an exception that crosses C frames ends
 * the process, so nothing is tried. */
static bool probe_methods(void) {
    for (int m = 0; m < ANE_METHOD_COUNT; m++) {
        const char *cls = class_names[methods[m].cls];
        ane_id c = table.classes[methods[m].cls];
        if (!c) continue;
        bool meta = methods[m].kind == CLASS;
        ane_sel sel = table.sel_registerName(methods[m].selector);
        void *method = meta ? table.class_getClassMethod(c, sel)
                            : table.class_getInstanceMethod(c, sel);
        if (!method && methods[m].need == OPTIONAL) continue;
        if (!method) {
            snprintf(reason, sizeof reason, "%c[%s %s] is missing; this macOS is not "
                     "known to anetorch", meta ? '+' : '-', cls, methods[m].selector);
            return false;
        }
        const char *got = table.method_getTypeEncoding(method);
        if (!got || !same_encoding(methods[m].encoding, got)) {
            snprintf(reason, sizeof reason, "%c[%s %s] has the encoding \"%.80s\", "
                     "expected \"%s\" (digits aside); this macOS is not known to anetorch",
                     meta ? '+' : '-', cls, methods[m].selector, got ? got : "",
                     methods[m].encoding);
            return false;
        }
        table.selectors[m] = sel;
        table.imps[m] = table.method_getImplementation(method);
    }
    return true;
}

/* Chip and system, which compiled code depends on. */
static void find_machine(void) {
    strcpy(table.chip, "unknown");
    strcpy(table.build, "unknown");
    ane_id name = ane_send_architecture(&table);
    int64_t number;
    if (name && ane_cf_is(&table, name, ANE_CF_STRING)) {
        if (!ane_cf_text(&table, name, table.chip, sizeof table.chip) || !*table.chip)
            strcpy(table.chip, "unknown");
    } else if (name && ane_cf_is(&table, name, ANE_CF_NUMBER) &&        /* on some releases */
               table.CFNumberGetValue(name, ANE_CF_SINT64, &number)) {
        snprintf(table.chip, sizeof table.chip, "type %lld", (long long)number);
    }
    size_t n = sizeof table.build;
    if (table.sysctlbyname("kern.osversion", table.build, &n, NULL, 0) || !*table.build)
        strcpy(table.build, "unknown");
    table.build[sizeof table.build - 1] = 0;
    /* Both stand on a line of the index. */
    for (char *p = table.chip; *p; p++) if ((unsigned char)*p < ' ') *p = '?';
    for (char *p = table.build; *p; p++) if ((unsigned char)*p < ' ') *p = '?';
}

static void load(void) {
    const char *stand_in = ane_env(ANE_ENV_APPLE_RUNTIME), *why = "";
    if (!find_symbols(stand_in)) {
#if !defined(__APPLE__)
        char why_not[sizeof reason];
        memcpy(why_not, reason, sizeof reason);
        if (!*stand_in)
            snprintf(reason, sizeof reason, "the Neural Engine is reached through macOS "
                     "frameworks, and this is not macOS: %.480s", why_not);
#endif
        return;
    }
    table.cf = ane_dl_load(&why);
    if (!table.cf) {
        snprintf(reason, sizeof reason, "%s", why);
        return;
    }
    static const int needs[] = {
#define X(id, name, need) need,
        ANE_APPLE_CLASSES(X)
#undef X
    };
    void *pool = table.objc_autoreleasePoolPush();
    for (int i = 0; i < ANE_CLASS_COUNT; i++) {
        table.classes[i] = table.objc_getClass(class_names[i]);
        if (table.classes[i] || needs[i] == OPTIONAL) continue;
        snprintf(reason, sizeof reason, "class %s is missing; this macOS is not known "
                 "to anetorch", class_names[i]);
        goto done;
    }
    if (!probe_methods()) goto done;
    if (table.imps[ANE_METHOD_has_engine] && !ane_send_has_engine(&table)) {
        snprintf(reason, sizeof reason, "macOS says that there is no Neural Engine "
                 "(a virtual machine?)");
        goto done;
    }
    find_machine();
    table.stand_in = *stand_in != 0;
    snprintf(table.detail, sizeof table.detail, "%s: %s, system build %s",
             *stand_in ? "stand-in, not hardware" : "Apple Neural Engine", table.chip,
             table.build);
    loaded = true;
done:
    table.objc_autoreleasePoolPop(pool);
}

const ane_objc *ane_objc_load(const char **why) {
    pthread_once(&once, load);
    if (loaded) return &table;
    if (why) *why = reason;
    return NULL;
}

bool ane_objc_may_send(const ane_objc *rt, int method, int cls, ane_id self) {
    if (!rt->imps[method]) return false;
    if (self && rt->object_getClass(self) == rt->classes[cls]) return true;
    ane__log("ane: [%s %s] not sent to %s", class_names[cls], methods[method].selector,
             self ? "an object of another class" : "nil");
    return false;
}

/* ---------------------------------------------------------------- values */

bool ane_cf_is(const ane_objc *rt, ane_cf v, ane_cf_kind kind) {
    if (!v) return false;
    unsigned long t = rt->CFGetTypeID(v);
    switch (kind) {
    case ANE_CF_STRING: return t == rt->CFStringGetTypeID();
    case ANE_CF_NUMBER: return t == rt->CFNumberGetTypeID();
    case ANE_CF_ARRAY: return t == rt->CFArrayGetTypeID();
    case ANE_CF_DICT: return t == rt->CFDictionaryGetTypeID();
    }
    return false;
}

ane_cf ane_cf_get(const ane_objc *rt, ane_cf dict, const char *key, ane_cf_kind kind) {
    if (!ane_cf_is(rt, dict, ANE_CF_DICT)) return NULL;
    ane_cf k = ane_cf_string_retained(rt, key);
    ane_cf v = k ? rt->CFDictionaryGetValue(dict, k) : NULL;
    ane_cf_release(rt, k);
    return ane_cf_is(rt, v, kind) ? v : NULL;
}

bool ane_cf_number(const ane_objc *rt, ane_cf dict, const char *key, int64_t *out) {
    ane_cf n = ane_cf_get(rt, dict, key, ANE_CF_NUMBER);
    return n && rt->CFNumberGetValue(n, ANE_CF_SINT64, out);
}

bool ane_cf_text(const ane_objc *rt, ane_cf s, char *buf, size_t n) {
    return ane_cf_is(rt, s, ANE_CF_STRING) &&
           rt->CFStringGetCString(s, buf, (int64_t)n, ANE_CF_UTF8);
}

size_t ane_cf_count(const ane_objc *rt, ane_cf array) {
    return array ? (size_t)rt->CFArrayGetCount(array) : 0;
}

ane_cf ane_cf_item(const ane_objc *rt, ane_cf array, size_t i, ane_cf_kind kind) {
    if (i >= ane_cf_count(rt, array)) return NULL;
    ane_cf v = rt->CFArrayGetValueAtIndex(array, (int64_t)i);
    return ane_cf_is(rt, v, kind) ? v : NULL;
}

ane_cf ane_cf_string_retained(const ane_objc *rt, const char *s) {
    return rt->cf->CFStringCreateWithCString(NULL, s, ANE_CF_UTF8);
}
ane_cf ane_cf_int_retained(const ane_objc *rt, int64_t v) {
    return rt->cf->CFNumberCreate(NULL, ANE_CF_SINT64, &v);
}
void *ane_cf_dict_retained(const ane_objc *rt) {
    return rt->cf->CFDictionaryCreateMutable(NULL, 0, rt->cf->kCFTypeDictionaryKeyCallBacks,
                                             rt->cf->kCFTypeDictionaryValueCallBacks);
}
void ane_cf_release(const ane_objc *rt, ane_cf v) {
    if (v) rt->cf->CFRelease(v);
}

/* ---------------------------------------------------------------- errors */

enum { DOMAIN, COMPILER, STATUS, LOAD };

static const char *meaning(int kind, unsigned long value) {
    static const struct {
        int kind;
        unsigned long value;
        const char *text;
    } rows[] = {
#define X(kind, value, text, source) {kind, value, text},
        ANE_APPLE_CODES(X)
#undef X
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].kind == kind && rows[i].value == value) return rows[i].text;
    return NULL;
}

/* The hexadecimal number behind `mark`, or 0. */
static unsigned long number_after(const char *text, const char *mark) {
    const char *p = strstr(text, mark);
    return p ? strtoul(p + strlen(mark), NULL, 16) : 0;
}

static void describe(const ane_objc *rt, ane_cf e, char *domain, size_t nd, char *text, size_t nt) {
    if (!ane_cf_text(rt, rt->CFErrorGetDomain(e), domain, nd)) snprintf(domain, nd, "?");
    ane_cf s = rt->CFErrorCopyDescription(e);
    if (!ane_cf_text(rt, s, text, nt)) snprintf(text, nt, "(no text, or too long)");
    ane_cf_release(rt, s);
}

ane_status ane_objc_fail(const ane_objc *rt, ane_error *err, const char *what, ane_id error,
                         unsigned long *status) {
    if (status) *status = 0;
    if (!error || rt->CFGetTypeID(error) != rt->CFErrorGetTypeID())
        return ane_fail(err, ANE_ERR_RUNTIME, "[%s] the framework refused and gave no error",
                        what);
    char domain[128], text[400], inner[200] = "", inner_domain[128];
    describe(rt, error, domain, sizeof domain, text, sizeof text);
    long long code = rt->CFErrorGetCode(error);
    ane_cf info = rt->CFErrorCopyUserInfo(error);
    ane_cf key = ane_cf_string_retained(rt, "NSUnderlyingError");
    ane_cf under = key && ane_cf_is(rt, info, ANE_CF_DICT) ? rt->CFDictionaryGetValue(info, key)
                                                          : NULL;
    if (under && rt->CFGetTypeID(under) == rt->CFErrorGetTypeID())
        describe(rt, under, inner_domain, sizeof inner_domain, inner, sizeof inner);
    bool compiler = strstr(domain, ".compiler") != NULL;
    unsigned long st = number_after(text, "status=0x"), word = number_after(text, "(0x");
    /* Newer systems put the numbers beside the text. */
    int64_t beside = 0, stage = 0;
    char numbers[64] = "";
    if (info && ane_cf_number(rt, info, "_ANEErrorUnderlyingStatus", &beside) && !st && !word) {
        bool staged = ane_cf_number(rt, info, "_ANEErrorLoadStage", &stage);
        if (staged) word = (unsigned long)beside << 16 | (unsigned long)stage;
        else st = (unsigned long)beside;
        snprintf(numbers, sizeof numbers, staged ? ", load status 0x%lx" : ", status 0x%lx",
                 staged ? word : st);
    }
    ane_cf_release(rt, key);
    ane_cf_release(rt, info);
    const char *means = st ? meaning(STATUS, st) : word ? meaning(LOAD, word) : NULL;
    if (!means && code > 0) means = meaning(compiler ? COMPILER : DOMAIN, (unsigned long)code);
    if (status) *status = st;
    ane_fail(err, ANE_ERR_RUNTIME, "[%s] %s%s%s%s (%s, code %lld%s; believed to mean: %s)", what,
             text, *inner ? " (" : "", inner, *inner ? ")" : "", domain, code, numbers,
             means ? means : "unknown");
    if (err) err->code = code;
    return ANE_ERR_RUNTIME;
}
