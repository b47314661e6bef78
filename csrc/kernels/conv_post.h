/* The loop over taps and channels of a tile, and what becomes of its sums while they are in
 * registers: shared by body_conv.h and body_qconv.h. */
#ifndef ANE_CONV_POST_H
#define ANE_CONV_POST_H

#define CONV_NR (CONV_NV * VW)

/* Scale, shift, and where `whole` is set all of it, on m x nv vectors from channel 0; the
 * last vector has `tail` lanes; r0 is the residual's place. One pass per function, so that each
 * is one branch a tile. */
#define LANES(j) ((j) + 1 == nv ? tail : VW)
#define LOAD(p, j) (LANES(j) == VW ? v_loadu((p) + (j) * VW) : v_load_n((p) + (j) * VW, tail))
#define EACH UNROLL for (size_t j = 0; j < nv; j++) UNROLL for (size_t i = 0; i < m; i++)
#define CONV_POST(s, p, r0, m, nv, tail)                                                  \
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
                                 ((r0) + (int64_t)i * (p)->res_s);                        \
                s[i][j] = v_add(s[i][j], LOAD(r, j));                                     \
            }                                                                             \
        }                                                                                 \
        if ((p)->after.limits) {                                                          \
            vf low = v_set1((p)->after.low), high = v_set1((p)->after.high);              \
            EACH s[i][j] = v_min(high, v_max(low, s[i][j]));                              \
        }                                                                                 \
    }

/* The lines that a tile at `spot` needs: its stores, and its residual. */
#define CONV_FETCH(t, spot, m)                                                            \
    UNROLL for (size_t i = 0; i < (m); i++)                                               \
        __builtin_prefetch((spot)->c + (t)->at + i * (t)->ldc, 1);                        \
    if ((t)->post && (t)->post->res)                                                      \
        UNROLL for (size_t i = 0; i < (m); i++)                                           \
            __builtin_prefetch((spot)->res + (t)->at * sizeof(float) +                    \
                               (int64_t)i * (t)->post->res_s);

/* s += one k of t, in vectors of type V: load(row of weights), spread(an element of an
 * operand), dot(sum, operand, weights). */
#define CONV_STEP(m, nv, s, V, load, spread, dot, k, b)                                   \
    {                                                                                     \
        V w[CONV_NV];                                                                     \
        UNROLL for (size_t j = 0; j < (nv); j++) w[j] = load((b) + j * VW);               \
        __builtin_prefetch((b) + 12 * CONV_NR);                                           \
        UNROLL for (size_t i = 0; i < (m); i++) {                                         \
            V v = spread(a[i] + (k));                                                     \
            UNROLL for (size_t j = 0; j < (nv); j++) s[i][j] = dot(s[i][j], v, w[j]);     \
        }                                                                                 \
    }

/* All taps of one tile, whose operands `rows` points at; moves on to the next one's. Two k at
 * a time: tiles of five rows gain 4 % by it; four spill sums. */
#define CONV_TAPS(t, rows, ahead, m, nv, s, V, load, spread, dot)                         \
    {                                                                                     \
        const float *b = (t)->b;                                                          \
        for (size_t seg = 0; seg < (t)->segs; seg++, rows += CONV_MR) {                   \
            const float *a[CONV_MR];                                                      \
            size_t k = 0;                                                                 \
            UNROLL for (size_t i = 0; i < (m); i++) a[i] = rows[i] + (t)->skip;           \
            for (; k + 2 <= (t)->len; k += 2, b += 2 * CONV_NR) {                         \
                __builtin_prefetch(ahead, 0, 2);                                          \
                ahead += 2 * (t)->ahead_step;                                             \
                CONV_STEP(m, nv, s, V, load, spread, dot, k, b)                           \
                CONV_STEP(m, nv, s, V, load, spread, dot, k + 1, b + CONV_NR)             \
            }                                                                             \
            if (k < (t)->len) {                                                           \
                CONV_STEP(m, nv, s, V, load, spread, dot, k, b)                           \
                b += CONV_NR;                                                             \
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
