/* The CoreFoundation calls and the Foundation function that a C program of ours uses. */
#include "standin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef const void *CFTypeRef;
typedef long CFIndex;

class_t *cls_string, *cls_data, *cls_number, *cls_boolean, *cls_array, *cls_dict, *cls_error,
    *cls_uuid;

typedef struct string_t { object head; char *utf8; } string_t;
typedef struct data_t { object head; size_t n; unsigned char *bytes; } data_t;
typedef struct number_t { object head; int64_t value; } number_t;
typedef struct array_t { object head; size_t n, cap; id *items; } array_t;
typedef struct dict_t { object head; size_t n, cap; id *keys, *values; } dict_t;
typedef struct error_t { object head; id domain, text, info; int64_t code; } error_t;

id objc_retain(id o);
void objc_release(id o);
id objc_autorelease(id o);

static void free_string(id o) { free(((string_t *)o)->utf8); }
static void free_data(id o) { free(((data_t *)o)->bytes); }
static void free_array(id o) {
    array_t *a = (array_t *)o;
    for (size_t i = 0; i < a->n; i++) objc_release(a->items[i]);
    free(a->items);
}
static void free_dict(id o) {
    dict_t *d = (dict_t *)o;
    for (size_t i = 0; i < d->n; i++) {
        objc_release(d->keys[i]);
        objc_release(d->values[i]);
    }
    free(d->keys);
    free(d->values);
}
static void free_error(id o) {
    error_t *e = (error_t *)o;
    objc_release(e->domain);
    objc_release(e->text);
    objc_release(e->info);
}

/* Data symbols: callback structs are passed by address, the others dereferenced once. */
EXPORT const char kCFTypeDictionaryKeyCallBacks[48], kCFTypeDictionaryValueCallBacks[40],
    kCFTypeArrayCallBacks[40];
EXPORT CFTypeRef kCFBooleanTrue, kCFBooleanFalse;

void cf_init(void) {
    cls_string = standin_class("__NSCFString", free_string);
    cls_data = standin_class("__NSCFData", free_data);
    cls_number = standin_class("__NSCFNumber", NULL);
    cls_boolean = standin_class("__NSCFBoolean", NULL);
    cls_array = standin_class("__NSCFArray", free_array);
    cls_dict = standin_class("__NSCFDictionary", free_dict);
    cls_error = standin_class("NSError", free_error);
    cls_uuid = standin_class("NSUUID", NULL);
    for (int i = 0; i < 2; i++) {
        number_t *b = (number_t *)standin_new(cls_boolean, sizeof *b);
        b->value = i;
        b->head.immortal = true;
        atomic_fetch_sub(&knob.live_objects, 1);
        *(i ? &kCFBooleanTrue : &kCFBooleanFalse) = b;
    }
}

/* ---------------------------------------------------------------- values */

id cf_string(const char *utf8) {
    string_t *s = (string_t *)standin_new(cls_string, sizeof *s);
    s->utf8 = strdup(utf8);
    return &s->head;
}
const char *cf_utf8(const void *s) {
    standin_check(s, cls_string, "string");
    return ((const string_t *)s)->utf8;
}
id cf_data(const void *bytes, size_t n) {
    data_t *d = (data_t *)standin_new(cls_data, sizeof *d);
    d->n = n;
    d->bytes = malloc(n ? n : 1);
    if (n) memcpy(d->bytes, bytes, n);
    return &d->head;
}
const void *cf_bytes(const void *data, size_t *n) {
    standin_check(data, cls_data, "data");
    *n = ((const data_t *)data)->n;
    return ((const data_t *)data)->bytes;
}
id cf_int(int64_t v) {
    number_t *n = (number_t *)standin_new(cls_number, sizeof *n);
    n->value = v;
    return &n->head;
}
int64_t cf_int_value(const void *n) {
    if (!standin_is(n, cls_boolean)) standin_check(n, cls_number, "number");
    return ((const number_t *)n)->value;
}
id cf_array(void) { return standin_new(cls_array, sizeof(array_t)); }
void cf_append_owned(id array, id item) {
    array_t *a = (array_t *)array;
    if (!item) standin_trap("nil in an array");
    if (a->n == a->cap) {
        a->cap = a->cap ? 2 * a->cap : 4;
        a->items = realloc(a->items, a->cap * sizeof *a->items);
    }
    a->items[a->n++] = item;
}
void cf_append(id array, id item) { cf_append_owned(array, objc_retain(item)); }
size_t cf_count(const void *array) {
    standin_check(array, cls_array, "array");
    return ((const array_t *)array)->n;
}
id cf_at(const void *array, size_t i) {
    standin_check(array, cls_array, "array");
    if (i >= ((const array_t *)array)->n) standin_trap("index %zu beyond the array", i);
    return ((const array_t *)array)->items[i];
}
id cf_dict(void) { return standin_new(cls_dict, sizeof(dict_t)); }

static bool same_key(const void *a, const void *b) {
    if (a == b) return true;
    return standin_is(a, cls_string) && standin_is(b, cls_string) &&
           !strcmp(cf_utf8(a), cf_utf8(b));
}
static void set_owned(dict_t *d, id key, id value) {
    for (size_t i = 0; i < d->n; i++)
        if (same_key(d->keys[i], key)) {
            objc_release(d->values[i]);
            objc_release(key);
            d->values[i] = value;
            return;
        }
    if (d->n == d->cap) {
        d->cap = d->cap ? 2 * d->cap : 8;
        d->keys = realloc(d->keys, d->cap * sizeof *d->keys);
        d->values = realloc(d->values, d->cap * sizeof *d->values);
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
}
void cf_put(id dict, const char *key, id value) {
    set_owned((dict_t *)dict, cf_string(key), value);
}
id cf_get(const void *dict, const char *key) {
    standin_check(dict, cls_dict, "dictionary");
    const dict_t *d = dict;
    for (size_t i = 0; i < d->n; i++)
        if (standin_is(d->keys[i], cls_string) && !strcmp(cf_utf8(d->keys[i]), key))
            return d->values[i];
    return NULL;
}
size_t cf_dict_count(const void *dict) {
    standin_check(dict, cls_dict, "dictionary");
    return ((const dict_t *)dict)->n;
}
void cf_dict_entry(const void *dict, size_t index, id *key, id *value) {
    const dict_t *d = dict;
    for (size_t i = 0; i < d->n; i++) {
        size_t below = 0;
        for (size_t k = 0; k < d->n; k++)
            below += strcmp(cf_utf8(d->keys[k]), cf_utf8(d->keys[i])) < 0;
        if (below == index) {
            *key = d->keys[i];
            *value = d->values[i];
            return;
        }
    }
    standin_trap("entry %zu beyond the dictionary", index);
}
id cf_error(const char *domain, int64_t code, const char *text, id underlying) {
    error_t *e = (error_t *)standin_new(cls_error, sizeof *e);
    e->domain = cf_string(domain);
    e->text = cf_string(text);
    e->code = code;
    e->info = cf_dict();
    cf_put(e->info, "NSLocalizedDescription", objc_retain(e->text));
    if (underlying) cf_put(e->info, "NSUnderlyingError", objc_retain(underlying));
    return &e->head;
}

void cf_error_put(id error, const char *key, id value) {
    cf_put(((error_t *)error)->info, key, value);
}

/* ---------------------------------------------------------------- exported */

EXPORT CFTypeRef CFRetain(CFTypeRef o) {
    if (!o) standin_trap("CFRetain(NULL)");
    return objc_retain((id)(uintptr_t)o);
}
EXPORT void CFRelease(CFTypeRef o) {
    if (!o) standin_trap("CFRelease(NULL)");
    objc_release((id)(uintptr_t)o);
}
EXPORT unsigned long CFStringGetTypeID(void) { return 7; }
EXPORT unsigned long CFDataGetTypeID(void) { return 20; }
EXPORT unsigned long CFNumberGetTypeID(void) { return 22; }
EXPORT unsigned long CFBooleanGetTypeID(void) { return 21; }
EXPORT unsigned long CFArrayGetTypeID(void) { return 19; }
EXPORT unsigned long CFDictionaryGetTypeID(void) { return 18; }
EXPORT unsigned long CFErrorGetTypeID(void) { return 27; }
EXPORT unsigned long CFGetTypeID(CFTypeRef o) {
    if (standin_is(o, cls_string)) return CFStringGetTypeID();
    if (standin_is(o, cls_data)) return CFDataGetTypeID();
    if (standin_is(o, cls_number)) return CFNumberGetTypeID();
    if (standin_is(o, cls_boolean)) return CFBooleanGetTypeID();
    if (standin_is(o, cls_array)) return CFArrayGetTypeID();
    if (standin_is(o, cls_dict)) return CFDictionaryGetTypeID();
    if (standin_is(o, cls_error)) return CFErrorGetTypeID();
    if (!o) standin_trap("CFGetTypeID(NULL)");
    return 1;
}

#define UTF8 0x08000100u
EXPORT CFTypeRef CFStringCreateWithCString(CFTypeRef alloc, const char *s, uint32_t enc) {
    (void)alloc;
    if (!s || enc != UTF8) standin_trap("CFStringCreateWithCString(%p, 0x%x)", (const void *)s,
                                        enc);
    if (standin_fails(&knob.fail_cf)) return NULL;
    return cf_string(s);
}
EXPORT unsigned char CFStringGetCString(CFTypeRef s, char *buf, CFIndex n, uint32_t enc) {
    const char *utf8 = cf_utf8(s);
    if (enc != UTF8 || n <= (CFIndex)strlen(utf8)) return 0;
    strcpy(buf, utf8);
    return 1;
}
EXPORT CFIndex CFStringGetLength(CFTypeRef s) {
    CFIndex n = 0;              /* UTF-16 units */
    for (const unsigned char *p = (const unsigned char *)cf_utf8(s); *p; p++)
        n += (*p & 0xc0) != 0x80 ? 1 + (*p >= 0xf0) : 0;
    return n;
}
EXPORT CFTypeRef CFDataCreate(CFTypeRef alloc, const uint8_t *p, CFIndex n) {
    (void)alloc;
    if (standin_fails(&knob.fail_cf)) return NULL;
    if (n < 0 || (!p && n)) standin_trap("CFDataCreate(%p, %ld)", (const void *)p, n);
    return cf_data(p, (size_t)n);
}
EXPORT const uint8_t *CFDataGetBytePtr(CFTypeRef d) {
    size_t n;
    return cf_bytes(d, &n);
}
EXPORT CFIndex CFDataGetLength(CFTypeRef d) {
    size_t n;
    cf_bytes(d, &n);
    return (CFIndex)n;
}
EXPORT CFTypeRef CFNumberCreate(CFTypeRef alloc, CFIndex type, const void *value) {
    (void)alloc;
    int32_t i;
    int64_t q;
    if (standin_fails(&knob.fail_cf)) return NULL;
    if (type == 3) {
        memcpy(&i, value, sizeof i);
        return cf_int(i);
    }
    if (type != 4 && type != 10) standin_trap("CFNumberCreate of type %ld", type);
    memcpy(&q, value, sizeof q);
    return cf_int(q);
}
EXPORT unsigned char CFNumberGetValue(CFTypeRef n, CFIndex type, void *out) {
    int64_t v = cf_int_value(n);
    int32_t i = (int32_t)v;
    if (type == 3) {
        memcpy(out, &i, sizeof i);
        return i == v;
    }
    if (type != 4 && type != 10) standin_trap("CFNumberGetValue of type %ld", type);
    memcpy(out, &v, sizeof v);
    return 1;
}
EXPORT unsigned char CFBooleanGetValue(CFTypeRef b) {
    standin_check(b, cls_boolean, "CFBooleanGetValue");
    return ((const number_t *)b)->value != 0;
}
EXPORT CFIndex CFErrorGetCode(CFTypeRef e) {
    standin_check(e, cls_error, "CFErrorGetCode");
    return (CFIndex)((const error_t *)e)->code;
}
EXPORT CFTypeRef CFErrorGetDomain(CFTypeRef e) {
    standin_check(e, cls_error, "CFErrorGetDomain");
    return ((const error_t *)e)->domain;
}
EXPORT CFTypeRef CFErrorCopyDescription(CFTypeRef e) {
    standin_check(e, cls_error, "CFErrorCopyDescription");
    return objc_retain(((const error_t *)e)->text);
}
EXPORT CFTypeRef CFErrorCopyUserInfo(CFTypeRef e) {
    standin_check(e, cls_error, "CFErrorCopyUserInfo");
    return objc_retain(((const error_t *)e)->info);
}
EXPORT CFTypeRef CFDictionaryCreateMutable(CFTypeRef alloc, CFIndex cap, const void *k,
                                           const void *v) {
    (void)alloc, (void)cap;
    if (k != kCFTypeDictionaryKeyCallBacks || v != kCFTypeDictionaryValueCallBacks)
        standin_trap("CFDictionaryCreateMutable without the CFType callbacks");
    if (standin_fails(&knob.fail_cf)) return NULL;
    return cf_dict();
}
EXPORT void CFDictionarySetValue(CFTypeRef d, const void *k, const void *v) {
    standin_check(d, cls_dict, "CFDictionarySetValue");
    if (!k || !v) standin_trap("CFDictionarySetValue with NULL");
    set_owned((dict_t *)(uintptr_t)d, objc_retain((id)(uintptr_t)k),
              objc_retain((id)(uintptr_t)v));
}
EXPORT const void *CFDictionaryGetValue(CFTypeRef d, const void *k) {
    return cf_get(d, cf_utf8(k));
}
EXPORT CFIndex CFDictionaryGetCount(CFTypeRef d) { return (CFIndex)cf_dict_count(d); }
EXPORT CFTypeRef CFArrayCreate(CFTypeRef alloc, const void **v, CFIndex n, const void *cb) {
    (void)alloc;
    if (cb != kCFTypeArrayCallBacks) standin_trap("CFArrayCreate without the CFType callbacks");
    if (standin_fails(&knob.fail_cf)) return NULL;
    id a = cf_array();
    for (CFIndex i = 0; i < n; i++) cf_append(a, (id)(uintptr_t)v[i]);
    return a;
}
EXPORT CFIndex CFArrayGetCount(CFTypeRef a) { return (CFIndex)cf_count(a); }
EXPORT const void *CFArrayGetValueAtIndex(CFTypeRef a, CFIndex i) {
    return cf_at(a, (size_t)i);
}

const char *cf_temporary_folder(void) {
    const char *dir = getenv("STANDIN_TMPDIR");
    return dir ? dir : "/tmp";
}
EXPORT id NSTemporaryDirectory(void) {
    char path[1024];
    if (standin_fails(&knob.fail_tmpdir)) return NULL;
    snprintf(path, sizeof path, "%s/", cf_temporary_folder());
    return objc_autorelease(cf_string(path));
}
