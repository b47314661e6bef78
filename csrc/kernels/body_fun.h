/* Functions of a vector of the type vf, named by F. Included twice by body_vec.h: over the
 * vectors of a simd_*.h, and over pairs of them (body_pair.h). */

/* exp(r) * 2^n, t = V_MAGIC + n. Degree 6 in r leaves 5e-9 relative; Horner's rounding
 * dominates. */
ALWAYS vf F(exp_rest)(vf r, vf t) {
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set1(1));
    return v_scale_magic(p, t);
}
/* x = n ln2 + r: n ln2_hi is exact (ln2_hi has 9 bits, n at most 8), so r is good to an ulp of
 * itself with or without a fused multiply-add. */
ALWAYS vf F(exp)(vf x) {
    vf magic = v_set1(V_MAGIC);
    x = v_min(v_set1(89.0f), v_max(v_set1(-104.0f), x));     /* NaN passes */
    vf t = v_fma(x, v_set1(1.44269504f), magic), n = v_sub(t, magic);
    vf r = v_fma(n, v_set1(-0.693359375f), x);
    return F(exp_rest)(v_fma(n, v_set1(2.12194440e-4f), r), t);
}
/* exp(x + d), -130 < x <= 0, |d| < 2, as good as the rounding of d to 2^-23 allows. */
ALWAYS vf F(exp_parts)(vf x, vf d) {
    vf magic = v_set1(V_MAGIC);
    vf t = v_fma(v_add(x, d), v_set1(1.44269504f), magic), n = v_sub(t, magic);
    vf r = v_add(v_fma(n, v_set1(-0.693359375f), x), d);
    return F(exp_rest)(v_fma(n, v_set1(2.12194440e-4f), r), t);
}

/* Cephes' logf on [sqrt(1/2), sqrt(2)) - 1. */
ALWAYS vf F(log)(vf x) {
    vf e, m = v_sub(v_split(x, &e), v_set1(1)), z = v_mul(m, m);
    vf p = v_set1(7.0376836292e-2f);
    p = v_fma(p, m, v_set1(-1.1514610310e-1f));
    p = v_fma(p, m, v_set1(1.1676998740e-1f));
    p = v_fma(p, m, v_set1(-1.2420140846e-1f));
    p = v_fma(p, m, v_set1(1.4249322787e-1f));
    p = v_fma(p, m, v_set1(-1.6668057665e-1f));
    p = v_fma(p, m, v_set1(2.0000714765e-1f));
    p = v_fma(p, m, v_set1(-2.4999993993e-1f));
    p = v_fma(p, m, v_set1(3.3333331174e-1f));
    p = v_mul(v_mul(p, m), z);
    p = v_fma(e, v_set1(-2.12194440e-4f), p);
    p = v_fma(z, v_set1(-0.5f), p);
    vf y = v_fma(e, v_set1(0.693359375f), v_add(m, p));
    vf zero = v_set1(0), inf = v_set1(INFINITY);
    y = v_sel(v_lt(zero, x), y, v_set1(-INFINITY));
    y = v_sel(v_lt(x, zero), v_set1(NAN), y);
    y = v_sel(v_lt(x, inf), y, v_sel(v_lt(zero, x), inf, y));
    return v_sel(v_isnan(x), x, y);
}

ALWAYS vf F(sigmoid)(vf x) {
    /* exp of a negative number only: no overflow, and the lower tail keeps its digits. */
    vf e = F(exp)(v_neg(v_abs(x)));
    vf d = v_add(v_set1(1), e);
    return v_div(v_sel(v_lt(x, v_set1(0)), e, v_set1(1)), d);
}
ALWAYS vf F(silu)(vf x) { return v_mul(x, F(sigmoid)(x)); }

ALWAYS vf F(tanh)(vf x) {
    vf a = v_abs(x), z = v_mul(x, x);
    vf p = v_set1(-5.70498872745e-3f);
    p = v_fma(p, z, v_set1(2.06390887954e-2f));
    p = v_fma(p, z, v_set1(-5.37397155531e-2f));
    p = v_fma(p, z, v_set1(1.33314422036e-1f));
    p = v_fma(p, z, v_set1(-3.33332819422e-1f));
    vf small = v_fma(v_mul(p, z), x, x);
    vf e = F(exp)(v_add(a, a));
    vf big = v_sub(v_set1(1), v_div(v_set1(2), v_add(e, v_set1(1))));
    return v_sel(v_lt(a, v_set1(0.625f)), small, v_copysign(big, x));
}

/* erfc(z), z >= 0: t exp(-z^2 + P(t)), t = 1/(1 + z/2): Chebyshev fit, 1.2e-7 relative.
 * z^2 comes as scale x^2 in two parts, the first exact (12 bits squared), else its rounding
 * alone would cost z^2 ulp; z itself may be rounded, P hardly depends on it. */
ALWAYS vf F(erfc_pos)(vf z, vf x, vf scale) {
    vf one = v_set1(1), t = v_div(one, v_fma(z, v_set1(0.5f), one));
    vf p = v_set1(0.17087277f);
    p = v_fma(p, t, v_set1(-0.82215223f));
    p = v_fma(p, t, v_set1(1.48851587f));
    p = v_fma(p, t, v_set1(-1.13520398f));
    p = v_fma(p, t, v_set1(0.27886807f));
    p = v_fma(p, t, v_set1(-0.18628806f));
    p = v_fma(p, t, v_set1(0.09678418f));
    p = v_fma(p, t, v_set1(0.37409196f));
    p = v_fma(p, t, v_set1(1.00002368f));
    p = v_fma(p, t, v_set1(-1.26551223f));
    vf hi = v_trunc_low(x), lo = v_mul(scale, v_mul(v_sub(hi, x), v_add(hi, x)));
    return v_mul(t, F(exp_parts)(v_neg(v_mul(scale, v_mul(hi, hi))), v_add(lo, p)));
}
ALWAYS vf F(erf)(vf x) {
    vf a = v_abs(x), z = v_mul(x, x), c = v_min(v_set1(11.0f), a);
    /* Taylor-like minimax of erf(x)/x on [0, 1) (Cephes' erff). */
    vf p = v_set1(7.853861353153693e-5f);
    p = v_fma(p, z, v_set1(-8.010193625184903e-4f));
    p = v_fma(p, z, v_set1(5.188327685732524e-3f));
    p = v_fma(p, z, v_set1(-2.685381193529856e-2f));
    p = v_fma(p, z, v_set1(1.128358514861418e-1f));
    p = v_fma(p, z, v_set1(-3.761262582423300e-1f));
    p = v_fma(p, z, v_set1(1.128379165726710f));
    vf small = v_mul(x, p);
    vf big = v_copysign(v_sub(v_set1(1), F(erfc_pos)(c, c, v_set1(1))), x);
    vf y = v_sel(v_lt(a, v_set1(1)), small, big);
    return v_sel(v_isnan(x), x, y);
}
/* x Phi(x). The lower tail is x erfc(-x/sqrt2)/2 and so keeps its digits. */
ALWAYS vf F(gelu)(vf x) {
    vf a = v_abs(x), c = v_min(v_set1(15.0f), a), half = v_set1(0.5f);
    vf h = v_mul(v_mul(half, c), F(erfc_pos)(v_mul(c, v_set1(0.70710678f)), c, half));
    vf y = v_sel(v_lt(x, v_set1(0)), v_neg(h), v_sub(x, h));
    return v_sel(v_isnan(x), x, y);
}
ALWAYS vf F(gelu_tanh)(vf x) {
    /* x/2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi)(x + 0.044715 x^3) */
    vf u = v_mul(x, v_fma(v_mul(x, x), v_set1(0.0713548163f), v_set1(1.59576912f)));
    return v_mul(x, F(sigmoid)(u));
}
ALWAYS vf F(gelu_sigmoid)(vf x) {
    return v_mul(x, F(sigmoid)(v_mul(x, v_set1(1.702f))));
}
ALWAYS vf F(relu)(vf x) { return v_max(v_set1(0), x); }
ALWAYS vf F(sqrt)(vf x) { return v_sqrt(x); }
ALWAYS vf F(rsqrt)(vf x) { return v_div(v_set1(1), v_sqrt(x)); }
ALWAYS vf F(recip)(vf x) { return v_div(v_set1(1), x); }
ALWAYS vf F(abs)(vf x) { return v_abs(x); }
ALWAYS vf F(neg)(vf x) { return v_neg(x); }
ALWAYS vf F(square)(vf x) { return v_mul(x, x); }
/* log(1 + e^x) = max(x, 0) + log1p(e^-|x|), log1p by one correction step. */
ALWAYS vf F(softplus)(vf x) {
    vf e = F(exp)(v_neg(v_abs(x))), one = v_set1(1), u = v_add(one, e);
    vf l = v_add(F(log)(u), v_div(v_sub(e, v_sub(u, one)), u));
    return v_add(v_max(v_set1(0), x), l);
}

ALWAYS vf F(add)(vf a, vf b) { return v_add(a, b); }
ALWAYS vf F(sub)(vf a, vf b) { return v_sub(a, b); }
ALWAYS vf F(mul)(vf a, vf b) { return v_mul(a, b); }
ALWAYS vf F(div)(vf a, vf b) { return v_div(a, b); }
/* v_max and v_min give the second where either is NaN; put a NaN first operand back. Of two
 * zeros the result is a. */
ALWAYS vf F(max)(vf a, vf b) { return v_sel(v_isnan(b), b, v_max(b, a)); }
ALWAYS vf F(min)(vf a, vf b) { return v_sel(v_isnan(b), b, v_min(b, a)); }
