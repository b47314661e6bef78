/* Depthwise convolution of bytes: two taps at a time as pairs of int16 in each channel's lane,
 * so that a dot product of pairs adds both. Written once over qi; included by ukr_*.c after
 * body_qconv.h, which has q_dot and CONV_POST, and body_conv.h. */

/* The first n < VW of each, and zeros. */
static inline qi q_bytes_n(const uint8_t *a, const uint8_t *b, bool sign, size_t n) {
    uint8_t x[VW] = {0}, y[VW] = {0};
    memcpy(x, a, n);
    memcpy(y, b, n);
    return q_bytes(x, y, sign);
}

/* m positions `step` bytes apart by nv vectors of channels. */
static inline __attribute__((always_inline)) void qdw_block(const size_t m, const size_t nv,
                                                            const bool sign,
                                                            const ane_conv_dw8 *d, size_t c,
                                                            size_t tail) {
    qi q[4][2];
    vf s[4][2];
    EACH q[i][j] = q_load(d->init + c + j * VW);
    for (size_t t = 0; t < d->pairs; t++) {
        const uint8_t *a = d->a[2 * t] + c, *b = d->a[2 * t + 1] + c;
        const float *w = d->w + t * d->ldw + c;
        qi k[2];
        UNROLL for (size_t j = 0; j < nv; j++) k[j] = q_load(w + j * VW);
        EACH {
            const uint8_t *x = a + i * d->step + j * VW, *y = b + i * d->step + j * VW;
            qi both = LANES(j) == VW ? q_bytes(x, y, sign) : q_bytes_n(x, y, sign, tail);
            q[i][j] = q_dot(q[i][j], both, k[j]);
        }
    }
    EACH s[i][j] = q_float(q[i][j]);
    dw_put(m, nv, s, &d->post, d->y, d->ldy, c, tail);
}

#define QDW_SIGNED(m, nv, d, c, tail) qdw_block(m, nv, true, d, c, tail)
#define QDW_UNSIGNED(m, nv, d, c, tail) qdw_block(m, nv, false, d, c, tail)
static void qdw_signed(size_t px, const ane_conv_dw8 *d) { DW_ALL(QDW_SIGNED, px, d) }
static void qdw_unsigned(size_t px, const ane_conv_dw8 *d) { DW_ALL(QDW_UNSIGNED, px, d) }
static void qdw(size_t px, const ane_conv_dw8 *d) {
    if (d->sign) qdw_signed(px, d);
    else qdw_unsigned(px, d);
}
