/* What becomes of a tile's sums while they are in registers: shared by body_conv.h and
 * body_qconv.h. */
#ifndef ANE_CONV_POST_H
#define ANE_CONV_POST_H

#define CONV_NR (CONV_NV * VW)

/* Scale, shift, and where `whole` is set all of it, on m x nv vectors from channel 0; the
 * last vector has `tail` lanes. One pass per function, so that each is one branch a tile. */
#define LANES(j) ((j) + 1 == nv ? tail : VW)
#define LOAD(p, j) (LANES(j) == VW ? v_loadu((p) + (j) * VW) : v_load_n((p) + (j) * VW, tail))
#define EACH UNROLL for (size_t j = 0; j < nv; j++) UNROLL for (size_t i = 0; i < m; i++)
#define CONV_POST(s, p, m, nv, tail)                                                      \
    if ((p)->scale)                                                                       \
        UNROLL for (size_t j = 0; j < nv; j++) {                                          \
            vf v = LOAD((p)->scale, j);                                                   \
            UNROLL for (size_t i = 0; i < m; i++) s[i][j] = v_mul(s[i][j], v);            \
        }                                                                                 \
    if ((p)->shift)                                                                       \
        UNROLL for (size_t j = 0; j < nv; j++) {                                          \
            vf v = LOAD((p)->shift, j);                                                   \
            UNROLL for (size_t i = 0; i < m; i++) s[i][j] = v_add(s[i][j], v);            \
        }                                                                                 \
    if ((p)->whole) {                                                                     \
        if ((p)->before.limits) {                                                         \
            vf low = v_set1((p)->before.low), high = v_set1((p)->before.high);            \
            EACH s[i][j] = v_min(high, v_max(low, s[i][j]));                              \
        }                                                                                 \
        if ((p)->res) {                                                                   \
            EACH {                                                                        \
                const float *r = (const float *)(const void *)                            \
                                 ((p)->res + (int64_t)i * (p)->res_s);                    \
                s[i][j] = v_add(s[i][j], LOAD(r, j));                                     \
            }                                                                             \
        }                                                                                 \
        if ((p)->after.limits) {                                                          \
            vf low = v_set1((p)->after.low), high = v_set1((p)->after.high);              \
            EACH s[i][j] = v_min(high, v_max(low, s[i][j]));                              \
        }                                                                                 \
    }

#endif
