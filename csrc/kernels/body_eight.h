/* Rows of 8-bit values: see vec.h. Integers in loops of a constant count over local arrays,
 * which the compiler of each instruction set's file makes vectors of; included by body_vec.h. */
#define EIGHTS 32

static int eight_at(const void *p, bool sign, size_t i) {
    return sign ? ((const int8_t *)p)[i] : ((const uint8_t *)p)[i];
}

static uint8_t quantize_one(float x, double scale, int zero, int low, int high) {
    double v = rint((double)x / scale) + zero;
    if (v != v) return 0;
    return (uint8_t)(int)(v < low ? low : v > high ? high : v);
}

/* A product with 1/scale in fp32 is off by at most 2^-23 of the quotient, 2^-14 where it is
 * not yet beyond every limit: unless it lies that near to the middle of two integers, or is
 * NaN, it rounds as the quotient does. The others are divided. */
static void vec_quantize(void *dst, bool sign, const float *x, double scale, int zero,
                         size_t n) {
    int low = sign ? -128 : 0, high = low + 255;
    float by = (float)(1 / scale);
    uint8_t *y = dst;
    size_t i = 0, whole = scale > 1e-30 && scale < 1e30 ? n / EIGHTS * EIGHTS : 0;
    const vf magic = v_set1(0x1.8p23f);         /* added: an integer in the lowest bits */
    for (; i < whole; i += EIGHTS) {
        float sum[EIGHTS], off[EIGHTS];
        int32_t q[EIGHTS], bits[EIGHTS], doubt = 0;
        uint8_t out[EIGHTS];
        UNROLL for (size_t c = 0; c < EIGHTS; c += VW) {
            vf t = v_mul(v_loadu(x + i + c), v_set1(by));
            t = v_min(v_set1(512), v_max(v_set1(-512), t));
            vf r = v_add(t, magic);
            v_storeu(sum + c, r);
            v_storeu(off + c, v_sub(t, v_sub(r, magic)));
        }
        memcpy(q, sum, sizeof q);
        memcpy(bits, off, sizeof bits);
        /* Below zero where |off| is above 0.4999, or NaN. */
        for (size_t c = 0; c < EIGHTS; c++) {
            bits[c] = 0x3efff2e5 - (bits[c] & INT32_MAX);
            doubt |= bits[c];
        }
        for (size_t c = 0; c < EIGHTS; c++) {
            int32_t k = q[c] - 0x4b400000 + zero;
            k = k < low ? low : k;
            q[c] = k > high ? high : k;
        }
        for (size_t c = 0; c < EIGHTS; c++) out[c] = (uint8_t)q[c];
        for (size_t c = 0; doubt < 0 && c < EIGHTS; c++)
            if (bits[c] < 0) out[c] = quantize_one(x[i + c], scale, zero, low, high);
        memcpy(y + i, out, sizeof out);
    }
    for (; i < n; i++) y[i] = quantize_one(x[i], scale, zero, low, high);
}

static void vec_dequantize(float *y, const void *src, bool sign, float scale, int zero,
                           size_t n) {
    size_t i = 0;
    for (; i + EIGHTS <= n; i += EIGHTS) {
        int8_t s[EIGHTS];
        uint8_t u[EIGHTS];
        float v[EIGHTS];
        memcpy(s, (const char *)src + i, sizeof s);
        memcpy(u, s, sizeof u);
        if (sign)
            for (size_t c = 0; c < EIGHTS; c++) v[c] = scale * (float)(s[c] - zero);
        else
            for (size_t c = 0; c < EIGHTS; c++) v[c] = scale * (float)(u[c] - zero);
        memcpy(y + i, v, sizeof v);
    }
    for (; i < n; i++) y[i] = scale * (float)(eight_at(src, sign, i) - zero);
}

static void vec_widen(int16_t *y, const void *src, bool sign, int zero, size_t n) {
    int16_t by = (int16_t)zero;
    size_t i = 0;
    for (; i + EIGHTS <= n; i += EIGHTS) {
        int8_t s[EIGHTS];
        uint8_t u[EIGHTS];
        int16_t v[EIGHTS];
        memcpy(s, (const char *)src + i, sizeof s);
        memcpy(u, s, sizeof u);
        if (sign)
            for (size_t c = 0; c < EIGHTS; c++) v[c] = (int16_t)(s[c] - by);
        else
            for (size_t c = 0; c < EIGHTS; c++) v[c] = (int16_t)(u[c] - by);
        memcpy(y + i, v, sizeof v);
    }
    for (; i < n; i++) y[i] = (int16_t)(eight_at(src, sign, i) - zero);
}
