/* A program that the engine has loaded: its ports as the engine lays them out. */
#ifndef ANE_APPLE_MODEL_H
#define ANE_APPLE_MODEL_H

#include "claim.h"
#include "objc.h"
#include "source.h"

#include "../backend.h"

typedef struct ane_engine_port {
    char name[128];
    int64_t symbol;                     /* the index that a request gives its surface */
    ane_dtype dtype;
    int rank;
    int64_t dims[ANE_MAX_RANK], strides[ANE_MAX_RANK];      /* strides in bytes */
    size_t bytes;                       /* that the engine touches */
} ane_engine_port;

/* What a kernel goes through, in order; the bindings' own two are not the model's. */
#define ANE_PHASE_MAP(X)                                                                  \
    X(DESCRIBE, "describe") X(WRITE, "write") X(COMPILE, "compile") X(LOAD, "load")
enum {
#define X(id, name) ANE_PHASE_##id,
    ANE_PHASE_MAP(X)
#undef X
    ANE_PHASE_COUNT
};

typedef struct ane_model {
    char hex[224];
    char folder[1024];
    char program[ANE_HASH_TEXT], weights[ANE_HASH_TEXT];        /* see source.h */
    ane_claim claim;
    long pid;                           /* the process that loaded it */
    int refs;                           /* kernels of this process with this text */
    bool loaded, cached;                /* cached: without a compile */
    bool refused;                       /* by the compiler */
    double seconds[ANE_PHASE_COUNT];    /* 0: skipped */
    ane_id object;                      /* _ANEInMemoryModel, +1 */
    size_t n_in, n_out;
    ane_engine_port *in, *out;          /* in the text's order */
    struct ane_model *next;
} ane_model;

/* Compiles and loads f, or counts one more user of the model that this process already has
 * under the same identifier. *refused: it was the engine's compiler that said no. */
ane_status ane_model_acquire(const ane_objc *rt, const ane_function *f, ane_model **out,
                             bool *refused, ane_error *err);
/* An experiment: a model of f, whose text is donor's, that the compiler is not asked for.
 * reload: donor's own, which then runs no more. */
ane_status ane_model_exchange(const ane_objc *rt, const ane_function *f, ane_model *donor,
                              bool reload, ane_model **out, ane_error *err);
/* The last user unloads it; the last of all processes removes the folder. */
void ane_model_release(const ane_objc *rt, ane_model *m);
/* Of the last unload of this process; 0: none yet. */
double ane_model_unload_seconds(void);

/* m's ports as f has them, where the engine can take them at all. */
ane_status ane_ports_check(const ane_function *f, ane_model *m, ane_error *err);
/* Their strides, bytes and symbols, from the loaded model's attributes. */
ane_status ane_ports_read(const ane_objc *rt, ane_model *m, ane_error *err);

#endif
