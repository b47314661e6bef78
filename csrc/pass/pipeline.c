#include "pass.h"

#include "../base/env.h"

static const ane_pass passes[] = {
    {"fold", ane_pass_fold},
    {"dce", ane_pass_dce},
};

static void dump(const char *name, const ane_function *f) {
    char *text = NULL;
    size_t n;
    if (ane_program_print(f->program, NULL, &text, &n, NULL)) return;
    ane__log("after pass %s:\n%s", name, text);
    ane_free(text);
}

ane_status ane_passes_run(ane_function *f, unsigned target, ane_error *err) {
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        ane_status st = passes[i].run(f, target, err);
        if (st) {
            ane_error_prefix(err, "pass %s: ", passes[i].name);
            return st;
        }
#ifdef ANE_DEBUG
        st = ane_program_verify(f->program, err);
        if (st) {
            ane_error_prefix(err, "after pass %s: ", passes[i].name);
            return st;
        }
#endif
        if (ane_env_lists(ANE_ENV_DUMP, passes[i].name)) dump(passes[i].name, f);
    }
    return ANE_OK;
}
