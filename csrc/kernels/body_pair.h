/* Pairs of vectors, and the functions over them (g_): the long functions are chains in which
 * each instruction waits for the last, and a processor's queues hold hardly more than one
 * vector's. Two chains side by side take little longer than one. Included by body_vec.h only. */

typedef struct pair {
    vf a, b;
} pair;
typedef struct pair_mask {
    vm a, b;
} pair_mask;

#define P1(name, out, in)                                                                 \
    ALWAYS out w_##name(in x) { return (out){v_##name(x.a), v_##name(x.b)}; }
#define P2(name, out)                                                                     \
    ALWAYS out w_##name(pair x, pair y) {                                          \
        return (out){v_##name(x.a, y.a), v_##name(x.b, y.b)};                             \
    }
P1(abs, pair, pair)
P1(neg, pair, pair)
P1(sqrt, pair, pair)
P1(isnan, pair_mask, pair)
P1(trunc_low, pair, pair)
P2(add, pair)
P2(sub, pair)
P2(mul, pair)
P2(div, pair)
P2(max, pair)
P2(min, pair)
P2(copysign, pair)
P2(lt, pair_mask)
P2(scale_magic, pair)
#undef P1
#undef P2
ALWAYS pair w_set1(float x) { return (pair){v_set1(x), v_set1(x)}; }
ALWAYS pair w_fma(pair x, pair y, pair z) {
    return (pair){v_fma(x.a, y.a, z.a), v_fma(x.b, y.b, z.b)};
}
ALWAYS pair w_sel(pair_mask m, pair x, pair y) {
    return (pair){v_sel(m.a, x.a, y.a), v_sel(m.b, x.b, y.b)};
}
ALWAYS pair w_split(pair x, pair *e) { return (pair){v_split(x.a, &e->a), v_split(x.b, &e->b)}; }

#define F(name) g_##name
#define vf pair
#define vm pair_mask
#define v_abs w_abs
#define v_add w_add
#define v_copysign w_copysign
#define v_div w_div
#define v_fma w_fma
#define v_isnan w_isnan
#define v_lt w_lt
#define v_max w_max
#define v_min w_min
#define v_mul w_mul
#define v_neg w_neg
#define v_scale_magic w_scale_magic
#define v_sel w_sel
#define v_set1 w_set1
#define v_split w_split
#define v_sqrt w_sqrt
#define v_sub w_sub
#define v_trunc_low w_trunc_low
#include "body_fun.h"
#undef F
#undef vf
#undef vm
#undef v_abs
#undef v_add
#undef v_copysign
#undef v_div
#undef v_fma
#undef v_isnan
#undef v_lt
#undef v_max
#undef v_min
#undef v_mul
#undef v_neg
#undef v_scale_magic
#undef v_sel
#undef v_set1
#undef v_split
#undef v_sqrt
#undef v_sub
#undef v_trunc_low
