/* The Neural Engine as a target: target.def's rows, and what follows from them for the value
 * of one operation. A target is a bit set of ane_chip; 0 is none, plain IEEE arithmetic.
 *
 * With several chips every row of any of them counts, as in lint: a program whose results
 * are right there is right on each. */
#ifndef ANE_TARGET_H
#define ANE_TARGET_H

#include "ops.h"

/* ANE_LIMIT_SMALL_PORT, ...: constants, for array sizes and static tables. */
enum {
#define LIMIT(id, value, what, evidence) ANE_LIMIT_##id = value,
#include "target.def"
};

typedef enum ane_cliff_id {
#define CLIFF(id, value, chips, modelled, what, evidence) ANE_CLIFF_##id,
#include "target.def"
    ANE_CLIFF_COUNT
} ane_cliff_id;

typedef struct ane_cliff {
    const char *name;                   /* "PRODUCT_OVERFLOW" */
    double value;
    unsigned chips;
    bool modelled;
    const char *what, *evidence;
} ane_cliff;

/* NULL past the last. */
const ane_cliff *ane_cliff_at(size_t i);
/* numerics="ane" does this one for a target. */
bool ane_target_models(unsigned target, ane_cliff_id id);

typedef enum ane_verdict {
    ANE_OP_UNTRIED, ANE_OP_RAN, ANE_OP_COMPILED, ANE_OP_REFUSED
} ane_verdict;
/* *evidence (may be NULL) is "" for an operation that nobody tried. */
ane_verdict ane_target_verdict(const char *op, const char **evidence);

/* "m1".."m5", "a14".."a19"; NULL or "": every chip. who begins the message: "lint". */
ane_status ane_target_parse(const char *name, unsigned *target, const char *who,
                            ane_error *err);

/* A slice that leaves out part of the last axis. */
bool ane_op_cuts_last_axis(const ane_op *op);

/* What becomes of every element of a result after IEEE evaluation. */
typedef struct ane_edges {
    bool fp16;                          /* rounded to fp16's values */
    double above, below;                /* beyond these it becomes inf, -inf */
} ane_edges;
/* False: nothing at all happens to the results of this op beyond its declared type. */
bool ane_target_edges(unsigned target, const ane_op *op, ane_edges *out);
double ane_edges_apply(const ane_edges *e, double x);
/* round takes halves away from zero. */
bool ane_target_rounds_away(unsigned target, const ane_op *op);

/* Whether arithmetic takes an operand of this dtype in as fp16. */
static inline bool ane_target_narrows(unsigned target, ane_dtype d) {
    return target && (d == ANE_F32 || d == ANE_BF16);
}
void ane_target_narrow(ane_rt *r);      /* the values, not the dtype */

/* The reference: results of one evaluated op (out as ane_op_eval left it, each owned by the
 * caller alone or shared with an operand) as the target has them. */
ane_status ane_target_results(unsigned target, const ane_op *op,
                              ane_rt *const *const *in, ane_rt **out, ane_error *err);

#endif
