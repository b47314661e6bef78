/* Foreign libraries by dlopen, so that nothing of Apple's is needed to build or load us. One
 * table: a row names a library, a function's type and its name; a data symbol is a row of
 * the second table. ANETORCH_APPLE_RUNTIME=path replaces all libraries by one stand-in. */
#ifndef ANE_BASE_DL_H
#define ANE_BASE_DL_H

#include "status.h"

/*   id               path for dlopen (in the shared cache: the file need not exist) */
#define ANE_DL_LIBRARIES(X)                                                              \
    X(CF, "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation")          \
    X(IOSURFACE, "/System/Library/Frameworks/IOSurface.framework/IOSurface")

typedef const void *ane_cf;             /* CFTypeRef and all that derive from it */
typedef void *ane_iosurface;            /* IOSurfaceRef */

/*   library    result         name                        arguments */
#define ANE_DL_FUNCTIONS(X)                                                              \
    X(CF, ane_cf, CFRetain, (ane_cf))                                                    \
    X(CF, void, CFRelease, (ane_cf))                                                     \
    X(CF, ane_cf, CFNumberCreate, (ane_cf, int64_t, const void *))                       \
    X(CF, ane_cf, CFStringCreateWithCString, (ane_cf, const char *, uint32_t))           \
    X(CF, void *, CFDictionaryCreateMutable,                                             \
      (ane_cf, int64_t, const void *, const void *))                                     \
    X(CF, void, CFDictionarySetValue, (void *, const void *, const void *))              \
    X(IOSURFACE, ane_iosurface, IOSurfaceCreate, (ane_cf))                               \
    X(IOSURFACE, ane_iosurface, IOSurfaceLookup, (uint32_t))                             \
    X(IOSURFACE, uint32_t, IOSurfaceGetID, (ane_iosurface))                              \
    X(IOSURFACE, int, IOSurfaceLock, (ane_iosurface, uint32_t, uint32_t *))              \
    X(IOSURFACE, int, IOSurfaceUnlock, (ane_iosurface, uint32_t, uint32_t *))            \
    X(IOSURFACE, void *, IOSurfaceGetBaseAddress, (ane_iosurface))                       \
    X(IOSURFACE, size_t, IOSurfaceGetAllocSize, (ane_iosurface))                         \
    X(IOSURFACE, size_t, IOSurfaceGetBytesPerRow, (ane_iosurface))

/*   library    symbol                          VALUE: a pointer variable; STRUCT: its address */
#define ANE_DL_DATA(X)                                                                   \
    X(CF, kCFTypeDictionaryKeyCallBacks, STRUCT)                                         \
    X(CF, kCFTypeDictionaryValueCallBacks, STRUCT)                                       \
    X(CF, kCFBooleanTrue, VALUE)                                                         \
    X(IOSURFACE, kIOSurfaceWidth, VALUE)                                                 \
    X(IOSURFACE, kIOSurfaceHeight, VALUE)                                                \
    X(IOSURFACE, kIOSurfaceBytesPerElement, VALUE)                                       \
    X(IOSURFACE, kIOSurfaceBytesPerRow, VALUE)                                           \
    X(IOSURFACE, kIOSurfaceAllocSize, VALUE)                                             \
    X(IOSURFACE, kIOSurfacePixelFormat, VALUE)                                           \
    X(IOSURFACE, kIOSurfaceName, VALUE)                                                  \
    X(IOSURFACE, kIOSurfaceIsGlobal, VALUE)

typedef struct ane_dl {
#define X(lib, ret, name, args) ret(*name) args;
    ANE_DL_FUNCTIONS(X)
#undef X
#define X(lib, name, how) const void *name;
    ANE_DL_DATA(X)
#undef X
    bool stand_in;                      /* not Apple's */
} ane_dl;

enum { ANE_CF_SINT64 = 4 };
#define ANE_CF_UTF8 0x08000100u

/* Everything, resolved once, or NULL; *why (may be NULL) then says what is missing. */
const ane_dl *ane_dl_load(const char **why);

#endif
