/* A program that the engine has loaded: its ports as the engine lays them out. */
#ifndef ANE_APPLE_MODEL_H
#define ANE_APPLE_MODEL_H

#include "objc.h"

#include "../backend.h"

typedef struct ane_engine_port {
    char name[128];
    int64_t symbol;                     /* the index that a request gives its surface */
    ane_dtype dtype;
    int rank;
    int64_t dims[ANE_MAX_RANK], strides[ANE_MAX_RANK];      /* strides in bytes */
    size_t bytes;                       /* that the engine touches */
} ane_engine_port;

typedef struct ane_model {
    char hex[224];
    char folder[1024];
    int refs;                           /* kernels of this process with this text */
    bool loaded;
    ane_id object;                      /* _ANEInMemoryModel, +1 */
    size_t n_in, n_out;
    ane_engine_port *in, *out;          /* in the text's order */
    struct ane_model *next;
} ane_model;

/* Compiles and loads f, or counts one more user of the model that this process already has
 * under the same identifier. */
ane_status ane_model_acquire(const ane_objc *rt, const ane_function *f, ane_model **out,
                             ane_error *err);
/* The last user unloads it and removes the folder. */
void ane_model_release(const ane_objc *rt, ane_model *m);

#endif
