/* The element-wise parts of streaming attention over one block of scores stored key by key,
 * `w` queries side by side: everything is vertical, no lane ever meets its neighbour.
 * Included by ukr_*.c after body_vec.h. */

/* In: scores s[key][w], running maxima m and sums l. Out: s = exp(scale s - max), the new m
 * and l, and fix = what earlier sums and outputs are to be multiplied by. */
static void attn_forward(float *s, size_t keys, size_t w, float scale, float *m, float *l,
                         float *fix) {
    vf by = v_set1(scale), least = v_set1(-INFINITY), zero = v_set1(0);
    for (size_t j = 0; j < w; j += VW) {
        float *col = s + j;
        vf before = v_loadu(m + j), a = before, b = before;
        size_t i = 0;
        for (; i + 2 <= keys; i += 2) {
            a = v_max(a, v_mul(v_loadu(col + i * w), by));
            b = v_max(b, v_mul(v_loadu(col + i * w + w), by));
        }
        if (i < keys) a = v_max(a, v_mul(v_loadu(col + i * w), by));
        vf top = v_max(a, b);
        /* Nothing but masked keys so far: exp(-inf - 0) = 0, not exp(-inf + inf). */
        vf safe = v_sel(v_lt(least, top), top, v_sel(v_isnan(top), top, zero));
        vf scale_old = f_exp(v_sub(before, safe)), sum = zero;
        for (i = 0; i < keys; i++) {
            vf p = f_exp(v_sub(v_mul(v_loadu(col + i * w), by), safe));
            v_storeu(col + i * w, p);
            sum = v_add(sum, p);
        }
        v_storeu(l + j, v_add(v_mul(v_loadu(l + j), scale_old), sum));
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

/* In: scores s and dp = dL/dP. Out: s = P = exp(scale s - lse), dp = dL/dscores, which are
 * `by` times P (dp - delta). */
static void attn_backward(float *s, float *dp, size_t keys, size_t w, float scale, float by,
                          const float *lse, const float *delta) {
    vf a = v_set1(scale), b = v_set1(by);
    for (size_t j = 0; j < w; j += VW) {
        vf top = v_loadu(lse + j), d = v_loadu(delta + j);
        for (size_t i = 0; i < keys; i++) {
            size_t at = i * w + j;
            vf p = f_exp(v_sub(v_mul(v_loadu(s + at), a), top));
            v_storeu(s + at, p);
            v_storeu(dp + at, v_mul(v_mul(p, b), v_sub(v_loadu(dp + at), d)));
        }
    }
}
