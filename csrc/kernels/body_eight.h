/* Rows of 8-bit values: see vec.h. Included by body_vec.h. */
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
 * NaN, it rounds as the quotient does. Where one of 32 does, all are divided. */
static inline void quantize_eights(uint8_t *to, const float *x, float by, double scale, int zero,
                                   int low, int high) {
    /* Added: an integer in the lowest bits, and its zero point. */
    const vf magic = v_set1(V_MAGIC + (float)zero), factor = v_set1(by);
    const vf least = v_set1((float)(low - zero)), most = v_set1((float)(high - zero));
    vf r[EIGHTS / VW], doubt = v_set1(0);
    UNROLL for (size_t c = 0; c < EIGHTS / VW; c++) {
        vf t = v_mul(v_loadu(x + c * VW), factor);
        t = v_min(most, v_max(least, t));
        r[c] = v_add(t, magic);
        vm sure = v_lt(v_abs(v_sub(t, v_sub(r[c], magic))), v_set1(0.4999f));
        doubt = v_sel(sure, doubt, v_set1(1));
    }
    v_low_bytes(to, r);
    if (v_any(v_lt(v_set1(0), doubt)))
        for (size_t c = 0; c < EIGHTS; c++) to[c] = quantize_one(x[c], scale, zero, low, high);
}

static void vec_quantize(void *dst, bool sign, const float *x, double scale, int zero,
                         size_t n) {
    int low = sign ? -128 : 0, high = low + 255;
    float by = (float)(1 / scale);
    uint8_t *y = dst;
    size_t i = 0;
    bool fast = scale > 1e-30 && scale < 1e30;
    for (; fast && i + EIGHTS <= n; i += EIGHTS)
        quantize_eights(y + i, x + i, by, scale, zero, low, high);
    if (fast && i < n) {
        float rest[EIGHTS] = {0};
        uint8_t out[EIGHTS];
        memcpy(rest, x + i, (n - i) * sizeof *x);
        quantize_eights(out, rest, by, scale, zero, low, high);
        memcpy(y + i, out, n - i);
        return;
    }
    for (; i < n; i++) y[i] = quantize_one(x[i], scale, zero, low, high);
}

static void vec_dequantize(float *y, const void *src, bool sign, float scale, int zero,
                           size_t n) {
    size_t i = 0;
    vf by = v_set1(scale), less = v_set1((float)zero);
    for (; i + VW <= n; i += VW)
        v_storeu(y + i, v_mul(by, v_sub(v_from_bytes((const char *)src + i, sign), less)));
    for (; i < n; i++) y[i] = scale * (float)(eight_at(src, sign, i) - zero);
}

static void vec_widen(int16_t *y, const void *src, bool sign, int zero, size_t n) {
    size_t i = 0;
    for (; i + EIGHTS <= n; i += EIGHTS)
        v_widen_bytes(y + i, (const char *)src + i, sign, zero);
    for (; i < n; i++) y[i] = (int16_t)(eight_at(src, sign, i) - zero);
}
