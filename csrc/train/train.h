/* The optimizer's arithmetic over flat fp32 blocks: everything of a training step that is
 * not MIL. ane.h has the contract; this header is what the room's files share.
 *
 * Every element goes through the same IEEE operations in the same order in every table
 * (no fused multiply-add, -ffp-contract=off), so tables and thread counts agree bit for
 * bit. */
#ifndef ANE_TRAIN_H
#define ANE_TRAIN_H

#include "../base/status.h"

#define ANE_NORM_LANES 16

typedef struct ane_adamw_consts {
    float scale;                /* of the gradient */
    float b1, c1, b2, c2;       /* beta1, 1-beta1, beta2, 1-beta2 */
    float root;                 /* 1/sqrt(1 - beta2^t) */
    float eps;
    float rate;                 /* lr / (1 - beta1^t) */
    float keep;                 /* 1 - lr*weight_decay, or 1 */
} ane_adamw_consts;

typedef struct ane_train_loops {
    const char *name;
    /* staged: the new p as `dtype` (F16, BF16, F32), or NULL. */
    void (*adamw)(float *p, const float *g, float *m, float *v, void *staged,
                  ane_dtype dtype, size_t n, const ane_adamw_consts *k);
    /* lanes[i % 16] += (double)x[i]^2; the squares are exact, so that fusing the addition
     * gives equal bits. */
    void (*squares)(double lanes[ANE_NORM_LANES], const float *x, size_t n);
} ane_train_loops;

extern const ane_train_loops ane_train_loops__scalar, ane_train_loops__avx2,
    ane_train_loops__avx512;
/* The one for the kernel table that this process uses. */
const ane_train_loops *ane_train_table(void);
/* Testing: these loops from now on; NULL: the process's own. */
void ane_train_force(const ane_train_loops *t);
const ane_train_loops *ane_train_at(size_t i);          /* NULL past the last one */

#endif
