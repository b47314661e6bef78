/* Large products by the system's BLAS: Accelerate on macOS, whose matrix unit no kernel of
 * ours reaches. Found at run time; ANETORCH_BLAS=off turns it off, a path names another
 * library with a cblas_sgemm of 32-bit sizes. Its sums are its own: results may differ from
 * ours within the bound of fp32 sums, and may depend on its threads. */
#ifndef ANE_KERNELS_BLAS_H
#define ANE_KERNELS_BLAS_H

#include "gemm.h"

/* (ane_blas_kernel of ane.h names it, or is NULL.)
 * Whether it would run this product: there is one, and the product is large and has strides
 * that it can take. */
bool ane_blas_takes(const ane_gemm_args *args);
ane_status ane_blas_gemm(const ane_gemm_args *args, ane_error *err);
/* States what that takes. */
void ane_blas_room(const ane_gemm_args *args, struct ane_room *room);

#endif
