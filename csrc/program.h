/* What the testing rooms may see of kernels. */
#ifndef ANE_PROGRAM_H
#define ANE_PROGRAM_H

#include "backend/backend.h"

/* The kernel's own copy of its function, shapes as declared. */
const ane_function *ane__kernel_function(const ane_kernel *k);

/* Double evaluation of pipelines: every surface has a shadow of doubles, keyed by surface
 * and byte offset, which requests read and write instead of the rounded storage. */
typedef struct ane_shadow ane_shadow;
ane_shadow *ane_shadow_create(void);
void ane_shadow_destroy(ane_shadow *s);
/* data: dense, row-major. */
ane_status ane_shadow_write(ane_shadow *s, const ane_tensor *t, const double *data,
                            ane_error *err);
/* Places never written are read from the surface itself. */
ane_status ane_shadow_read(ane_shadow *s, const ane_tensor *t, double *data,
                           ane_error *err);
ane_status ane_shadow_run(ane_shadow *s, ane_pipeline *p, ane_error *err);

#endif
