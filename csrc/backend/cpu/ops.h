/* The op families of the CPU device: each plans a step (or only moves a view). */
#ifndef ANE_CPU_OPS_H
#define ANE_CPU_OPS_H

#include "../../pass/group.h"
#include "../../kernels/conv.h"
#include "cpu.h"

/* "mul+add+tanh" in the plan's arena. */
const char *ane_group_label(ane_planner *pl, const ane_graph *g, const ane_group *grp);

/* An [n, c, ...] view without its address. */
ane_planes ane_planes_of(const ane_view *v);

ane_status ane_plan_chain(ane_planner *pl, const ane_graph *g, const ane_group *grp);
ane_status ane_plan_reduce(ane_planner *pl, const ane_graph *g, const ane_group *grp);
ane_status ane_plan_softmax(ane_planner *pl, const ane_graph *g, const ane_group *grp);
ane_status ane_plan_product(ane_planner *pl, const ane_graph *g, const ane_group *grp);
ane_status ane_plan_attention(ane_planner *pl, const ane_graph *g, const ane_group *grp);
ane_status ane_plan_conv(ane_planner *pl, const ane_graph *g, const ane_group *grp);
/* A forward convolution of 1x1 windows that move by one: a matrix product. */
bool ane_conv_is_product(const ane_op *op);
/* max_pool, avg_pool, l2_pool. */
ane_status ane_plan_pool(ane_planner *pl, const ane_op *op, bool *done);
/* quantize, dequantize. */
ane_status ane_plan_quant(ane_planner *pl, const ane_op *op, bool *done);
/* layer_norm, instance_norm, l2_norm. */
ane_status ane_plan_norm(ane_planner *pl, const ane_op *op, bool *done);
/* batch_norm of channel c is x * scale + shift. */
void ane_batch_norm_of(const ane_op *op, int64_t c, double *scale, double *shift);
/* gather, scatter: *done is false when the op is left to the reference. */
ane_status ane_plan_index(ane_planner *pl, const ane_op *op, bool *done);
/* tile, fill: copies that step 0. */
ane_status ane_plan_spread(ane_planner *pl, const ane_op *op, bool *done);

/* ops_edges.c: all do nothing without a target (opts->target). What the target makes of the
 * results that a step has just written; of a shape op's, which then get memory of their own;
 * of a parameter, in front of everything that reads it. */
ane_status ane_plan_edges(ane_planner *pl, const ane_op *op);
ane_status ane_plan_move_edges(ane_planner *pl, const ane_op *op, bool *done);
ane_status ane_plan_narrow(ane_planner *pl, const ane_value *param);
/* *data becomes the plan's own copy of a constant where the target takes it in narrowed. */
ane_status ane_plan_narrow_const(ane_planner *pl, const ane_value *v, const void **data);
float ane_plan_scalar(const ane_planner *pl, const ane_value *v);       /* of one element */

/* Shape ops. The result as a view of the operand's; false: not a view op, or not without a
 * copy. */
bool ane_move_view(const ane_op *op, int result, const ane_view *x, ane_view *out);
/* Which ops may be views at all, from names and constants alone. */
bool ane_op_is_move(const ane_op *op);
/* The other way: where the operand must be for `out` to be where it is. Only for ops that
 * keep every element. */
bool ane_move_back(const ane_op *op, const ane_view *out, ane_view *x);
/* concat and stack: part i of the result. */
bool ane_op_is_join(const ane_op *op);
void ane_join_part(const ane_op *op, int i, const ane_view *whole, ane_view *part);

#endif
