/* The element-wise parts of streaming attention over one block of scores stored key by key,
 * `w` queries side by side: everything is vertical, no lane ever meets its neighbour.
 * Included by ukr_*.c after body_vec.h. */

/* 2^x for x <= 0 (or a rounding above): Cephes' exp2f on [-1/2, 1/2], 2 units of the last
 * place; 0 where a weight is below the smallest normal number. */
static inline vf attn_exp2(vf x) {
    vf least = v_set1(-126.0f), magic = v_set1(V_MAGIC);
    vf y = v_max(least, x);                                 /* NaN passes */
    vf t = v_add(y, magic), r = v_sub(y, v_sub(t, magic));
    vf p = v_set1(1.535336188319500e-4f);
    p = v_fma(p, r, v_set1(1.339887440266574e-3f));
    p = v_fma(p, r, v_set1(9.618437357674640e-3f));
    p = v_fma(p, r, v_set1(5.550332471162809e-2f));
    p = v_fma(p, r, v_set1(2.402264791363012e-1f));
    p = v_fma(p, r, v_set1(6.931472028550421e-1f));
    p = v_pow2_magic(v_fma(p, r, v_set1(1)), t);
    return v_sel(v_lt(least, x), p, v_max(v_set1(0), x));   /* and here: 0 or NaN */
}
#define ATTN_LOG2E 1.44269504f

/* What scale makes the largest of a column of scores. */
static inline vf attn_extreme(const float *col, size_t keys, size_t w, float scale) {
    vf ext[4];
    size_t i = 0;
    UNROLL for (int k = 0; k < 4; k++) ext[k] = v_set1(scale < 0 ? INFINITY : -INFINITY);
    if (scale < 0) {
        for (; i < keys; i++) ext[0] = v_min(ext[0], v_loadu(col + i * w));
        return ext[0];
    }
    for (; i + 4 <= keys; i += 4)
        UNROLL for (int k = 0; k < 4; k++)
            ext[k] = v_max(ext[k], v_loadu(col + (i + (size_t)k) * w));
    for (; i < keys; i++) ext[0] = v_max(ext[0], v_loadu(col + i * w));
    return v_max(v_max(ext[0], ext[1]), v_max(ext[2], ext[3]));
}

/* In: scores s[key][w], running maxima m and sums l. Out: s = exp(scale s - max), the new m
 * and l, and fix = what earlier sums and outputs are to be multiplied by. scale is not 0. */
static void attn_forward(float *s, size_t keys, size_t w, float scale, float *m, float *l,
                         float *fix) {
    vf least = v_set1(-INFINITY), zero = v_set1(0);
    for (size_t j = 0; j < w && keys; j += VW) {
        float *col = s + j;
        vf before = v_loadu(m + j);
        vf top = v_max(before, v_mul(attn_extreme(col, keys, w, scale), v_set1(scale)));
        /* Nothing but masked keys so far: exp(-inf - 0) = 0, not exp(-inf + inf). */
        vf safe = v_sel(v_lt(least, top), top, v_sel(v_isnan(top), top, zero));
        vf scale_old = f_exp(v_sub(before, safe)), a = zero, b = zero;
        vf by = v_set1(scale), shift = v_neg(safe), log2e = v_set1(ATTN_LOG2E);
        size_t i = 0;
        for (; i + 2 <= keys; i += 2) {
            vf p = attn_exp2(v_mul(v_fma(v_loadu(col + i * w), by, shift), log2e));
            vf q = attn_exp2(v_mul(v_fma(v_loadu(col + i * w + w), by, shift), log2e));
            v_storeu(col + i * w, p);
            v_storeu(col + i * w + w, q);
            a = v_add(a, p);
            b = v_add(b, q);
        }
        if (i < keys) {
            vf p = attn_exp2(v_mul(v_fma(v_loadu(col + i * w), by, shift), log2e));
            v_storeu(col + i * w, p);
            a = v_add(a, p);
        }
        v_storeu(l + j, v_fma(v_loadu(l + j), scale_old, v_add(a, b)));
        v_storeu(fix + j, scale_old);
        v_storeu(m + j, top);
    }
}

/* s = scale s + by m: scores under an explicit mask. */
static void attn_mask(float *s, const float *mask, size_t n, float scale, float by) {
    vf a = v_set1(scale), b = v_set1(by);
    size_t i = 0;
    for (; i + VW <= n; i += VW)
        v_storeu(s + i, v_add(v_mul(v_loadu(s + i), a), v_mul(v_loadu(mask + i), b)));
    for (; i < n; i++) s[i] = s[i] * scale + mask[i] * by;
}

/* o[row][w] *= fix[w] */
static void attn_rescale(float *o, size_t rows, size_t w, const float *fix) {
    for (size_t j = 0; j < w; j += VW) {
        vf f = v_loadu(fix + j);
        for (size_t i = 0; i < rows; i++)
            v_storeu(o + i * w + j, v_mul(v_loadu(o + i * w + j), f));
    }
}

/* In: all scores s of w queries and dp = dL/dP. Out: s = P, the softmax of scale s down the
 * columns, dp = dL/dscores: `by` times P (dp - sum(P dp)). scale is not 0. */
static void attn_backward(float *s, float *dp, size_t keys, size_t w, float scale, float by) {
    vf zero = v_set1(0), log2e = v_set1(ATTN_LOG2E);
    for (size_t j = 0; j < w && keys; j += VW) {
        float *x = s + j, *y = dp + j;
        vf a = v_set1(scale), top = v_mul(attn_extreme(x, keys, w, scale), a);
        vf shift = v_neg(v_sel(v_lt(v_set1(-INFINITY), top), top,
                               v_sel(v_isnan(top), top, zero)));
        vf sum[2] = {zero, zero}, dot[2] = {zero, zero};
        for (size_t i = 0; i < keys; i++) {
            vf p = attn_exp2(v_mul(v_fma(v_loadu(x + i * w), a, shift), log2e));
            v_storeu(x + i * w, p);
            sum[1] = v_add(sum[1], p);
            dot[1] = v_fma(p, v_loadu(y + i * w), dot[1]);
            /* Chains of 64, so that the error of a long sum stays small. */
            if (i % 64 == 63 || i + 1 == keys) {
                sum[0] = v_add(sum[0], sum[1]);
                dot[0] = v_add(dot[0], dot[1]);
                sum[1] = dot[1] = zero;
            }
        }
        vf inv = v_div(v_set1(1), sum[0]), delta = v_mul(dot[0], inv), b = v_set1(by);
        for (size_t i = 0; i < keys; i++) {
            vf p = v_mul(v_loadu(x + i * w), inv);
            v_storeu(x + i * w, p);
            v_storeu(y + i * w, v_mul(v_mul(p, b), v_sub(v_loadu(y + i * w), delta)));
        }
    }
}
