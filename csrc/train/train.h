/* The optimizer's arithmetic over flat fp32 blocks: everything of a training step that is
 * not MIL. ane.h has the contract; this header is what the room's files share.
 *
 * Every element goes through the same IEEE operations in the same order in every table
 * (no fused multiply-add, -ffp-contract=off), so tables and thread counts agree bit for
 * bit. Loops run in tiles of ANE_TRAIN_TILE elements: a constant trip count lets the
 * compiler vectorise at -O2, and four tiles stay in the first-level cache while the
 * staged copy is converted from them. */
#ifndef ANE_TRAIN_H
#define ANE_TRAIN_H

#include "../base/status.h"

#define ANE_TRAIN_TILE 1024
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
    void (*adamw)(float *p, const float *g, float *m, float *v, size_t n,
                  const ane_adamw_consts *k);
    /* lanes[i % 16] += (double)x[i]^2; exact squares, so fused or not gives equal bits. */
    void (*squares)(double lanes[ANE_NORM_LANES], const float *x, size_t n);
    void (*to_f16)(uint16_t *dst, const float *src, size_t n);
    void (*to_bf16)(uint16_t *dst, const float *src, size_t n);
} ane_train_loops;

extern const ane_train_loops ane_train_loops__scalar;
/* The chosen table. */
const ane_train_loops *ane_train_table(void);

#endif
