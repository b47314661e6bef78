#include "dl.h"

#include "env.h"
#include "sync.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static ane_once once = ANE_ONCE_INIT;
static ane_dl table;
static bool loaded;
static char reason[512];

enum {
#define X(id, path) LIB_##id,
    ANE_DL_LIBRARIES(X)
#undef X
    LIB_COUNT
};

static void load(void) {
    static const char *const paths[] = {
#define X(id, path) path,
        ANE_DL_LIBRARIES(X)
#undef X
    };
    const char *stand_in = ane_env(ANE_ENV_APPLE_RUNTIME);
    void *libs[LIB_COUNT];
    for (int i = 0; i < LIB_COUNT; i++) {
        const char *path = *stand_in ? stand_in : paths[i];
        libs[i] = dlopen(path, RTLD_NOW | RTLD_LOCAL);      /* never closed */
        if (!libs[i]) {
            const char *e = dlerror();
            snprintf(reason, sizeof reason, "cannot load %s: %s", path, e ? e : "no reason");
            return;
        }
    }
    /* dlsym gives an object pointer; memcpy turns it into a function's without a cast. */
    void *p;
#define FIND(lib, name)                                                                  \
    if (!(p = dlsym(libs[LIB_##lib], #name))) {                                          \
        snprintf(reason, sizeof reason, "symbol %s is missing", #name);                  \
        return;                                                                          \
    }
#define X(lib, ret, name, args) FIND(lib, name) memcpy(&table.name, &p, sizeof p);
    ANE_DL_FUNCTIONS(X)
#undef X
#define STRUCT(name) table.name = p;
#define VALUE(name) memcpy(&table.name, p, sizeof table.name);
#define X(lib, name, how) FIND(lib, name) how(name)
    ANE_DL_DATA(X)
#undef X
    table.stand_in = *stand_in != 0;
    loaded = true;
}

const ane_dl *ane_dl_load(const char **why) {
    pthread_once(&once, load);
    if (loaded) return &table;
    if (why) *why = reason;
    return NULL;
}
