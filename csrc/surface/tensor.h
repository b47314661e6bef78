/* Internals of views that copy.c, io.c and gqa.c share. */
#ifndef ANE_SURFACE_TENSOR_H
#define ANE_SURFACE_TENSOR_H

#include "surface.h"

#define ANE__SHAPE_TEXT 208

/* "1, 8, 32" into buf; returns buf. */
const char *ane__shape_text(int rank, const int64_t *dims, char *buf, size_t n);

static inline size_t s_bytes(const ane_tensor *t) { return t->surface->bytes; }

/* Bytes of work from which a copy uses the thread pool. */
#define ANE__THREAD_FROM ((size_t)256 << 10)

/* Do two views share an element? Two surfaces may wrap one block of memory, so addresses decide.
 * Exact for boxes of one row-major parent, such as columns beside columns, where
 * ane_tensor_overlap looks at extents and common strides only; assumes the worst of other pairs. */
bool ane__boxes_meet(const ane_tensor *a, const ane_tensor *b);

/* Converts n adjacent elements. Any alignment; src and dst do not overlap. */
typedef void ane__convert_fn(void *dst, const void *src, size_t n);
/* NULL where there is no conversion (strings, sub-byte, fp8). */
ane__convert_fn *ane__convert(ane_dtype dst, ane_dtype src);
/* Whether f uses the thread pool itself, and streaming stores, when n is large. */
bool ane__convert_is_threaded(ane__convert_fn *f);

/* dst[...] = src[...] without any check: shapes equal, no overlap. */
void ane__copy_unchecked(const ane_tensor *dst, const ane_tensor *src,
                         ane__convert_fn *convert);

#endif
