/* Every ANETORCH_* variable, read once. docs/environment.md lists them for users. */
#ifndef ANE_BASE_ENV_H
#define ANE_BASE_ENV_H

#include "status.h"

/*   name            default   what */
#define ANE_ENV_MAP(X)                                                                   \
    X(ISA, "", "kernel table to use: scalar, avx2, avx512, ..., neon")                    \
    X(NUM_THREADS, "", "worker threads; default: the CPUs this process may use")          \
    X(DUMP, "", "comma list of passes whose result is logged; plan, all")                  \
    X(FUSION, "1", "0 turns every fusion off")                                            \
    X(NO_FUSE, "", "comma list of single fusions to turn off")                            \
    X(NO_KERNELS, "", "comma list of kernel families left to plain evaluation")            \
    X(NO_VIEWS, "0", "1 makes shape ops copy instead of view")                             \
    X(MEMORY_LIMIT, "", "bytes that one run of a kernel may need; 512M, 2G; default: no limit") \
    X(LOG, "0", "1 logs choices once each")                                               \
    X(BLAS, "", "off, or the path of a library whose cblas_sgemm runs large products")     \
    X(APPLE_RUNTIME, "", "path of a stand-in for Apple's frameworks (testing)")            \
    X(COMPILE_BUDGET, "", "compiles a process on the engine; 0: no limit")                 \
    X(UNIFORM_PORTS, "0", "1 gives all surfaces of an engine's request one size")          \
    X(SURFACE_MIN, "", "smallest surface that the engine gets, in bytes")                  \
    X(EXPERIMENTS, "", "comma list of experiments with the engine to allow: patch, reload") \
    X(CACHE_DIR, "", "folder of the compile cache and of the collected corpus")

typedef enum ane_env_id {
#define X(name, def, doc) ANE_ENV_##name,
    ANE_ENV_MAP(X)
#undef X
    ANE_ENV_COUNT
} ane_env_id;

const char *ane_env(ane_env_id id);     /* never NULL */
bool ane_env_flag(ane_env_id id);       /* "", "0", "no", "off", "false": false */
/* True when the comma list of this variable names `item` (or "all"). */
bool ane_env_lists(ane_env_id id, const char *item);

#endif
