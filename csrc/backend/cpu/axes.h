/* Views whose dims may each step in several strides: what a reshape, a transposition or
 * copies along a dim make of a strided view without moving anything. A product of heads and
 * positions, say, is one dim of two factors. */
#ifndef ANE_CPU_AXES_H
#define ANE_CPU_AXES_H

#include "cpu.h"

typedef struct ane_axes {
    int buf;
    ane_dtype dtype;
    int64_t offset;
    int rank;
    int first[ANE_MAX_RANK + 1];        /* dim i has factors first[i] .. first[i + 1] - 1,
                                           outermost first; none: its size is 1 */
    int64_t size[ANE_MAX_RANK], stride[ANE_MAX_RANK];
} ane_axes;

/* Where an operand is, shape ops and repeats in front of it looked through; what cannot be
 * had that way is copied. */
ane_status ane_plan_axes(ane_planner *pl, const ane_value *v, ane_axes *out);
/* The same with a copy where a dim has several factors. */
ane_status ane_plan_axes_dense(ane_planner *pl, const ane_axes *x, ane_axes *out);
/* Where to write `v` so that the shape ops behind it leave `last` where it belongs. *after:
 * whether the result has to be moved there in the end, by ane_plan_axes_finish. Calls
 * ane_plan_dest(last). */
typedef struct ane_axes_dest {
    ane_axes at;                        /* of v */
    bool after;
    ane_view whole;                     /* of last */
    const ane_value *v, *last;
} ane_axes_dest;
ane_status ane_plan_axes_dest(ane_planner *pl, const ane_value *v, const ane_value *last,
                              ane_axes_dest *out);
/* Writes to a buffer of its own instead. */
ane_status ane_plan_axes_detour(ane_planner *pl, ane_axes_dest *d);
ane_status ane_plan_axes_finish(ane_planner *pl, const ane_axes_dest *d);

void ane_axes_of_view(const ane_view *v, ane_axes *out);
/* Every factor a dim: for lifetimes, and for copies. */
void ane_axes_as_view(const ane_axes *x, ane_view *out);
void ane_axes_swap(ane_axes *x);                        /* the last two dims */
/* False: the factors do not fit (or are too many). */
bool ane_axes_broadcast(const ane_axes *x, int rank, const int64_t *shape, ane_axes *out);
int64_t ane_axes_dim(const ane_axes *x, int dim);

/* One axis that several operands share: common factors, outermost first, joined where all
 * of them step alike. */
typedef struct ane_axis {
    int n;
    int64_t size[ANE_MAX_RANK], stride[ANE_MAX_RANK][10];   /* [factor][operand] */
} ane_axis;
/* Dims first .. last - 1 of every operand that is not NULL, as one; false as above. */
bool ane_axes_align(int n, const ane_axes *const *x, const int *first, const int *last,
                    ane_axis *out);

#endif
