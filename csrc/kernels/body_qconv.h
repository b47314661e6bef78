/* A tile of quantised products: see conv_tile.h. Elements are 32 bits, pairs of int16 or quads
 * of bytes as the dot product takes them; sums are int32, exact while they fit. Written once
 * over qi, whose lanes are those of vf; included by ukr_*.c after body_conv.h (or alone, with
 * conv_post.h, by an extension of a table with the same CONV_MR and CONV_NV), and again for
 * a second dot product under other names. */
#ifndef QCONV_TILE
#define QCONV_TILE qconv_tile
#define QCONV_ROWS qconv_rows
#define QCONV_DOT q_dot
#endif

static inline __attribute__((always_inline)) void QCONV_ROWS(const size_t m, const size_t nv,
                                                             const ane_conv_tile *t) {
    size_t tail = t->n - (nv - 1) * VW;
    const float *const *rows = t->a;
    const char *ahead = t->ahead;
    for (const ane_conv_spot *spot = t->spots, *end = spot + t->count; spot < end; spot++) {
        qi q[CONV_MR][CONV_NV];
        EACH q[i][j] = t->init ? q_load(t->init + j * VW) : q_zero();
        CONV_FETCH(t, spot + t->soon, m)
        CONV_TAPS(t, rows, ahead, m, nv, q, qi, q_load, q_pair, QCONV_DOT)
        float *c = spot->c + t->at;
        if (t->add) {
            EACH q[i][j] = q_add(q_bits(LOAD(c + i * t->ldc, j)), q[i][j]);
        }
        vf s[CONV_MR][CONV_NV];
        if (t->post) {
            EACH s[i][j] = q_float(q[i][j]);
            CONV_POST(s, t->post, spot->res + t->at * sizeof(float), m, nv, tail)
        } else {
            EACH s[i][j] = q_raw(q[i][j]);
        }
        CONV_STORE(s, c, t->ldc, m, nv, tail)
    }
}

#undef QCONV_CASE
#define QCONV_CASE(m, nv) case (nv) * 16 + (m): QCONV_ROWS(m, nv, t); break;
#undef CONV_CASE
#define CONV_CASE(m, nv) QCONV_CASE(m, nv)
static void QCONV_TILE(size_t m, const ane_conv_tile *t) {
    switch ((t->n + VW - 1) / VW * 16 + m) {
        CONV_CASES
    default: break;
    }
}
#undef QCONV_TILE
#undef QCONV_ROWS
#undef QCONV_DOT
