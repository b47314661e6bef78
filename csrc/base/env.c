#include "env.h"

#include "sync.h"

#include <stdlib.h>
#include <string.h>

static ane_once once = ANE_ONCE_INIT;
static char *values[ANE_ENV_COUNT];

static void load(void) {
    static const char *const names[] = {
#define X(name, def, doc) "ANETORCH_" #name,
        ANE_ENV_MAP(X)
#undef X
    };
    static const char *const defaults[] = {
#define X(name, def, doc) def,
        ANE_ENV_MAP(X)
#undef X
    };
    for (int i = 0; i < ANE_ENV_COUNT; i++) {
        const char *v = getenv(names[i]);
        /* Copied: setenv elsewhere may move the original. Never freed. */
        values[i] = strdup(v ? v : defaults[i]);
    }
}

const char *ane_env(ane_env_id id) {
    pthread_once(&once, load);
    return values[id] ? values[id] : "";
}

bool ane_env_flag(ane_env_id id) {
    const char *v = ane_env(id);
    return *v && strcmp(v, "0") && strcmp(v, "no") && strcmp(v, "off") && strcmp(v, "false");
}

bool ane_env_lists(ane_env_id id, const char *item) {
    const char *v = ane_env(id);
    size_t n = strlen(item);
    while (*v) {
        size_t m = strcspn(v, ",");
        if ((m == n && !strncmp(v, item, n)) || (m == 3 && !strncmp(v, "all", 3))) return true;
        v += m;
        v += *v == ',';
    }
    return false;
}
