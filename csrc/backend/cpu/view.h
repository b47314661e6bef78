/* Arithmetic of strided views. */
#ifndef ANE_CPU_VIEW_H
#define ANE_CPU_VIEW_H

#include "cpu.h"

/* The same elements in row-major order under another shape; false: only a copy can. */
bool ane_view_reshape(const ane_view *v, int rank, const int64_t *shape, ane_view *out);
void ane_view_permute(const ane_view *v, const int *perm, ane_view *out);
/* size elements from begin along axis, step apart (step may be negative). */
void ane_view_slice(ane_view *v, int axis, int64_t begin, int64_t size, int64_t step);
/* NumPy's broadcasting: missing and unit dims step by 0. */
bool ane_view_broadcast(const ane_view *v, int rank, const int64_t *shape, ane_view *out);
/* Removes the dims that are 1 in `shape` (v has its rank). */
void ane_view_drop_ones(ane_view *v, const int64_t *shape, int rank);
bool ane_view_same(const ane_view *a, const ane_view *b);
bool ane_view_contiguous(const ane_view *v);
/* Row-major over a buffer of its own. */
void ane_view_of_type(const ane_type *t, int buf, ane_view *out);
/* Of a plan's key: offset 0 in its buffer. */
void ane_view_of_tensor(const ane_tensor *t, int buf, ane_view *out);
/* Views of one shape: drops ones and merges neighbouring dims that step alike in all.
 * Returns the rank that is left. */
int ane_views_merge(int n, ane_view *const *v);

#endif
