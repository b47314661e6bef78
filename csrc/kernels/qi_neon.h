/* Four int32 sums, for body_qconv.h: what ukr_neon.c and ukr_neondot.c share. */
#ifndef ANE_QI_NEON_H
#define ANE_QI_NEON_H

typedef int32x4_t qi;
static inline qi q_zero(void) { return vdupq_n_s32(0); }
static inline qi q_load(const void *p) { return vreinterpretq_s32_f32(v_loadu(p)); }
static inline qi q_pair(const void *p) { return vreinterpretq_s32_f32(vld1q_dup_f32(p)); }
static inline qi q_add(qi a, qi b) { return vaddq_s32(a, b); }
static inline qi q_bits(vf x) { return vreinterpretq_s32_f32(x); }
static inline vf q_raw(qi x) { return vreinterpretq_f32_s32(x); }
static inline vf q_float(qi x) { return vcvtq_f32_s32(x); }

#endif
