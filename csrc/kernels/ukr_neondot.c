/* FEAT_DotProd: four int8 products in one instruction. Tiles are those of ukr_neon.c. */
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define ISA_NAME "neondot"
#include "simd_neon.h"

#include "tables.h"

#include "conv_neon.h"
#include "conv_post.h"

#include "qi_neon.h"
static inline qi q_dot(qi s, qi a, qi b) {
    return vdotq_s32(s, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#include "body_qconv.h"

const ane_kernels ane_kernels__neondot = {
    .name = ISA_NAME, .quad = qconv_tile, .quad_x = ANE_I8, .quad_name = "int8_8x8__" ISA_NAME,
};
#endif
