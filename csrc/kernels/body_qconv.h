/* The tile of quantised products: see conv_tile.h. Elements are pairs of int16, sums int32,
 * exact while they fit. Written once over qi, whose lanes are those of vf; included by
 * ukr_*.c after body_conv.h (or alone, with body_gemm.h, by an extension of a table with the
 * same CONV_MR and CONV_NV). */

static inline __attribute__((always_inline)) void qconv_rows(const size_t m, const size_t nv,
                                                             const ane_conv_tile *t) {
    qi q[CONV_MR][CONV_NV];
    EACH q[i][j] = q_zero();
    const float *b = t->b;
    const float *const *rows = t->a;
    for (size_t seg = 0; seg < t->segs; seg++, rows += CONV_MR) {
        const float *a[CONV_MR];
        UNROLL for (size_t i = 0; i < m; i++) a[i] = rows[i] + t->skip;
        for (size_t k = 0; k < t->len; k++, b += CONV_NR) {
            qi w[CONV_NV];
            UNROLL for (size_t j = 0; j < nv; j++) w[j] = q_load(b + j * VW);
            UNROLL for (size_t i = 0; i < m; i++) {
                qi v = q_pair(a[i] + k);
                UNROLL for (size_t j = 0; j < nv; j++) q[i][j] = q_dot(q[i][j], v, w[j]);
            }
        }
    }
    size_t tail = t->n - (nv - 1) * VW;
    float *c = t->c;
    if (t->add) {
        EACH q[i][j] = q_add(q_bits(LOAD(c + i * t->ldc, j)), q[i][j]);
    }
    vf s[CONV_MR][CONV_NV];
    if (t->post) {
        EACH s[i][j] = q_float(q[i][j]);
        CONV_POST(s, t->post, m, nv, tail)
    } else {
        EACH s[i][j] = q_raw(q[i][j]);
    }
    EACH {
        if (LANES(j) == VW) v_storeu(c + i * t->ldc + j * VW, s[i][j]);
        else v_store_n(c + i * t->ldc + j * VW, s[i][j], tail);
    }
}

#define QCONV_CASE(m, nv) case (nv) * 16 + (m): qconv_rows(m, nv, t); break;
#undef CONV_CASE
#define CONV_CASE(m, nv) QCONV_CASE(m, nv)
static void qconv_tile(size_t m, const ane_conv_tile *t) {
    switch ((t->n + VW - 1) / VW * 16 + m) {
        CONV_CASES
    default: break;
    }
}
