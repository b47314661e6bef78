/* The loop over taps and channels of a tile, and what becomes of its sums while they are in
 * registers: shared by body_conv.h and body_qconv.h. */
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

/* The lines that the next tile needs: its stores, and its residual. */
#define CONV_FETCH(t, m)                                                                  \
    UNROLL for (size_t i = 0; i < (m); i++)                                               \
        __builtin_prefetch((t)->next_c + i * (t)->ldc, 1);                                \
    if ((t)->post && (t)->post->res)                                                      \
        UNROLL for (size_t i = 0; i < (m); i++)                                           \
            __builtin_prefetch((t)->next_res + (int64_t)i * (t)->post->res_s);

/* s += taps of t, in vectors of type V: load(row of weights), spread(an element of an
 * operand), dot(sum, operand, weights). */
#define CONV_TAPS(t, m, nv, s, V, load, spread, dot)                                      \
    {                                                                                     \
        const float *b = (t)->b;                                                          \
        const char *ahead = (t)->ahead;                                                   \
        const float *const *rows = (t)->a;                                                \
        for (size_t seg = 0; seg < (t)->segs; seg++, rows += CONV_MR) {                   \
            const float *a[CONV_MR];                                                      \
            UNROLL for (size_t i = 0; i < (m); i++) a[i] = rows[i] + (t)->skip;           \
            for (size_t k = 0; k < (t)->len; k++, b += CONV_NR) {                         \
                V w[CONV_NV];                                                             \
                UNROLL for (size_t j = 0; j < (nv); j++) w[j] = load(b + j * VW);         \
                __builtin_prefetch(b + 12 * CONV_NR);                                     \
                __builtin_prefetch(ahead, 0, 2);                                          \
                ahead += (t)->ahead_step;                                                 \
                UNROLL for (size_t i = 0; i < (m); i++) {                                 \
                    V v = spread(a[i] + k);                                               \
                    UNROLL for (size_t j = 0; j < (nv); j++) s[i][j] = dot(s[i][j], v, w[j]); \
                }                                                                         \
            }                                                                             \
        }                                                                                 \
    }

#define CONV_STORE(s, c, ldc, m, nv, tail)                                                \
    if ((tail) == VW) {                                                                   \
        EACH v_storeu((c) + i * (ldc) + j * VW, s[i][j]);                                 \
    } else {                                                                              \
        EACH {                                                                            \
            if (j + 1 < nv) v_storeu((c) + i * (ldc) + j * VW, s[i][j]);                  \
            else v_store_n((c) + i * (ldc) + j * VW, s[i][j], tail);                      \
        }                                                                                 \
    }

#endif
