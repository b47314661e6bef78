/* Resizing and sampling. Coordinates follow Core ML's sampling modes; interpolation is in
 * double with one rounding at the end. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* Where output i of n samples the interval [start, end] of a dim. */
static double grid(const char *mode, double start, double end, int64_t i, int64_t n) {
    double len = end - start, k = (double)i, m = (double)n;
    if (!strcmp(mode, "ALIGN_CORNERS") && n == 1) return (start + end) / 2;
    if (!strcmp(mode, "STRICT_ALIGN_CORNERS") || !strcmp(mode, "ALIGN_CORNERS"))
        return n == 1 ? start : start + k * len / (m - 1);
    if (!strcmp(mode, "OFFSET_CORNERS")) return start + (k + 0.5) * (len > 1 ? len : 1) / m;
    if (!strcmp(mode, "UNALIGN_CORNERS")) return start + (k + 0.5) * (len + 1) / m - 0.5;
    return start + k * (len + 1) / m;
}

/* Two neighbours and the second one's weight, for a coordinate clamped into [0, d-1]. */
typedef struct tap {
    int64_t lo, hi;
    double f;
} tap;

static tap tap_at(double c, int64_t d) {
    tap t = {0, 0, 0};
    if (!(c > 0)) return t;
    if (c >= (double)(d - 1)) {
        t.lo = t.hi = d - 1;
        return t;
    }
    t.lo = (int64_t)c;
    t.hi = t.lo + 1;
    t.f = c - (double)t.lo;
    return t;
}

/* The nearest one for output i of n, of d. DEFAULT, whose coordinate is i * d / n, takes the
 * element that this lies in. The others round halves up, so UNALIGN_CORNERS is
 * floor((i + 1/2) * d / n). Both in integers, since a double might fall short of one. */
static tap nearest_at(const char *mode, double c, int64_t i, int64_t d, int64_t n) {
    double v = !strcmp(mode, "DEFAULT") ? (double)(i * d / n)
             : !strcmp(mode, "UNALIGN_CORNERS") ? (double)((2 * i + 1) * d / (2 * n))
                                                : floor(c + 0.5);
    tap t = {0, 0, 0};
    t.lo = v < 0 ? 0 : v > (double)(d - 1) ? d - 1 : (int64_t)v;
    t.hi = t.lo;
    return t;
}

/* Interpolates along one axis: y[outer, n, inner] from x[outer, d, inner]. */
static void along(double *y, const double *x, const tap *t, int64_t outer, int64_t d, int64_t n,
                  int64_t inner) {
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < n; j++) {
            const double *a = x + (o * d + t[j].lo) * inner, *b = x + (o * d + t[j].hi) * inner;
            double *r = y + (o * n + j) * inner, f = t[j].f;
            for (int64_t i = 0; i < inner; i++)
                r[i] = f == 0 ? a[i] : (1 - f) * a[i] + f * b[i];
        }
}

/* Resizes the last `dims` dims of x to `shape`, axis by axis, last first. */
static ane_status resized(ane_eval *ev, const int64_t *shape, int dims, const char *mode,
                          bool nearest) {
    const ane_rt *x = ane_eval_in(ev, "x");
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    if (!y->count) return ANE_OK;
    if (!x->count) return ane_eval_fail(ev, ANE_ERR_SHAPE, "there is nothing to resize");
    int64_t now[ANE_MAX_RANK];
    memcpy(now, x->shape, sizeof now);
    double *cur = NULL;
    ane_status st = ANE_OK;
    for (int a = x->rank - 1; a >= x->rank - dims && !st; a--) {
        int64_t d = now[a], n = shape[a], outer, inner, unused;
        /* Every mode but OFFSET_CORNERS maps i to i. */
        if (d == n && (nearest || strcmp(mode, "OFFSET_CORNERS"))) continue;
        ane__around(x->rank, now, a, &outer, &unused, &inner);
        now[a] = n;
        tap *t = ane__eval_alloc((size_t)n, sizeof *t);
        double *next = t ? ane__scratch(ev, ane__count(x->rank, now)) : NULL;
        if (!t) st = ane_eval_fail(ev, ANE_ERR_NOMEM, "%lld sampling points", (long long)n);
        else if (!next) st = ev->status;
        else {
            for (int64_t i = 0; i < n; i++) {
                double c = grid(mode, 0, (double)(d - 1), i, n);
                t[i] = nearest ? nearest_at(mode, c, i, d, n) : tap_at(c, d);
            }
            along(next, cur ? cur : x->data, t, outer, d, n, inner);
            ane__eval_free(cur);
            cur = next;
        }
        ane__eval_free(t);
    }
    if (!st) memcpy(y->data, cur ? cur : x->data, (size_t)y->count * sizeof *y->data);
    ane__eval_free(cur);
    return st;
}

static void last_two(const ane_rt *x, int64_t *shape, int64_t h, int64_t w) {
    memcpy(shape, x->shape, sizeof *shape * ANE_MAX_RANK);
    shape[x->rank - 2] = h;
    shape[x->rank - 1] = w;
}

ane_status ane__eval_resize_bilinear(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    last_two(ane_eval_in(ev, "x"), shape, ane_eval_i64(ev, "target_size_height", 1),
             ane_eval_i64(ev, "target_size_width", 1));
    return resized(ev, shape, 2, ane_eval_str(ev, "sampling_mode", "DEFAULT"), false);
}

/* coremltools lowers TensorFlow's resizing with half-pixel centres to this and to `resize`, and
 * the one without to upsample_nearest_neighbor. */
ane_status ane__eval_resize_nearest_neighbor(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    last_two(ane_eval_in(ev, "x"), shape, ane_eval_i64(ev, "target_size_height", 1),
             ane_eval_i64(ev, "target_size_width", 1));
    return resized(ev, shape, 2, "UNALIGN_CORNERS", true);
}

static void scaled(ane_eval *ev, int64_t *shape) {
    const ane_rt *x = ane_eval_in(ev, "x");
    last_two(x, shape,
             (int64_t)floor((double)x->shape[x->rank - 2] *
                            ane_eval_f64(ev, "scale_factor_height", 1)),
             (int64_t)floor((double)x->shape[x->rank - 1] *
                            ane_eval_f64(ev, "scale_factor_width", 1)));
}

ane_status ane__eval_upsample_nearest_neighbor(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    scaled(ev, shape);
    return resized(ev, shape, 2, "DEFAULT", true);
}

ane_status ane__eval_upsample_bilinear(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    bool corners = ane_eval_bool(ev, "align_corners", true);
    bool half = ane_op_param_index(ev->op->row, "half_pixel_centers") < 0
                    ? !corners : ane_eval_bool(ev, "half_pixel_centers", !corners);
    scaled(ev, shape);
    return resized(ev, shape, 2, corners ? "STRICT_ALIGN_CORNERS" : half ? "UNALIGN_CORNERS"
                                                                      : "DEFAULT", false);
}

ane_status ane__eval_resize(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t shape[ANE_MAX_RANK], want[ANE_MAX_RANK], n = ane_eval_i64(ev, "resized_dims", 0);
    int len = ane_eval_ints(ev, "shape", want, ANE_MAX_RANK);
    if (n < 0 || n > len || len > x->rank)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "%lld dimensions of a shape of %d for rank %d",
                             (long long)n, len, x->rank);
    memcpy(shape, x->shape, sizeof shape);
    for (int i = 0; i < n; i++)
        if (want[len - (int)n + i]) shape[x->rank - (int)n + i] = want[len - (int)n + i];
    const char *mode = ane_eval_str(ev, "sampling_mode", "DEFAULT");
    bool nearest = !strcmp(ane_eval_str(ev, "interpolation_mode", "LINEAR"), "NEAREST_NEIGHBOR");
    if (nearest && !strcmp(mode, "DEFAULT")) mode = "UNALIGN_CORNERS";
    return resized(ev, shape, (int)n, mode, nearest);
}

/* ---------------------------------------------------------------- sampling at points */

/* Pixel (i, j), `value` outside. */
static double pixel(const double *p, int64_t h, int64_t w, double i, double j, double value) {
    bool in = i >= 0 && i < (double)h && j >= 0 && j < (double)w;
    return in ? p[(int64_t)i * w + (int64_t)j] : value;
}

/* Bilinear where what lies outside the image is `value`; a tap of weight 0 is not read, so
 * that an inf beside the point does no harm. */
static double bilinear(const double *p, int64_t h, int64_t w, double y, double x,
                       double value) {
    if (!(fabs(y) < 0x1p40 && fabs(x) < 0x1p40)) return value;  /* also NaN */
    double i = floor(y), j = floor(x), fy = y - i, fx = x - j, sum = 0;
    for (int k = 0; k < 4; k++) {
        double a = k & 2 ? fy : 1 - fy, b = k & 1 ? fx : 1 - fx;
        if (a * b != 0) sum += a * b * pixel(p, h, w, i + (k >> 1), j + (k & 1), value);
    }
    return sum;
}

ane_status ane__eval_crop_resize(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool modern = ev->op->row->opset >= 17, pads = ev->op->row->opset >= 16;
    const ane_rt *boxes = ane_eval_in(ev, modern ? "boxes" : "roi");
    const ane_rt *index = modern ? ane_eval_in(ev, "box_indices") : NULL;
    const char *mode = ane_eval_str(ev, "sampling_mode", "DEFAULT");
    const char *form = ane_eval_str(ev, "box_coordinate_mode", "CORNERS_HEIGHT_FIRST");
    bool centre = !strncmp(form, "CENTER", 6), width_first = strstr(form, "WIDTH_FIRST") != NULL;
    bool normal = ane_eval_bool(ev, "normalized_coordinates", false);
    double scale = ane_eval_f64(ev, "spatial_scale", 1),
           value = pads ? ane_eval_f64(ev, "pad_value", 0) : 0;
    int64_t h = ane_eval_i64(ev, "target_height", 1), w = ane_eval_i64(ev, "target_width", 1);
    int64_t n = boxes->shape[0], b = x->shape[0], c = x->shape[1], xh = x->shape[2],
            xw = x->shape[3], k = modern ? 4 : boxes->shape[2];
    int64_t each = !modern && k == 4 ? b : 1;   /* crops of one box */
    int64_t shape5[5] = {n, each, c, h, w}, shape4[4] = {n, c, h, w};
    ane_rt *y = ANE__OUT(0, modern ? 4 : 5, modern ? shape4 : shape5);
    double *o = y->data;
    for (int64_t i = 0; i < n; i++) {
        const double *v = boxes->data + i * k + (k == 5);
        double at[2][2];                /* [height, width][start, end] */
        for (int d = 0; d < 2; d++) {
            int from = d ^ width_first;
            double lo = v[from], hi = v[from + 2];
            if (centre) {
                lo = v[from] - v[from + 2] / 2;
                hi = v[from] + v[from + 2] / 2;
            }
            double unit = scale * (normal ? (double)((d ? xw : xh) - 1) : 1);
            at[d][0] = lo * unit;
            at[d][1] = hi * unit;
        }
        for (int64_t q = 0; q < each; q++) {
            double image = k == 5 ? boxes->data[i * 5] : index ? index->data[i]
                           : each > 1 || !modern ? (double)q : (double)i;
            if (!(image >= 0 && image < (double)b))
                return ane_eval_fail(ev, ANE_ERR_INDEX, "box %lld names image %g of %lld",
                                     (long long)i, image, (long long)b);
            for (int64_t ch = 0; ch < c; ch++) {
                const double *p = x->data + ((int64_t)image * c + ch) * xh * xw;
                for (int64_t r = 0; r < h; r++)
                    for (int64_t s = 0; s < w; s++) {
                        double gy = grid(mode, at[0][0], at[0][1], r, h);
                        double gx = grid(mode, at[1][0], at[1][1], s, w);
                        bool out = !(gy >= 0 && gy <= (double)(xh - 1) && gx >= 0 &&
                                     gx <= (double)(xw - 1));
                        if (out && pads) {
                            *o++ = value;
                            continue;
                        }
                        gy = gy > 0 ? fmin(gy, (double)(xh - 1)) : 0;
                        gx = gx > 0 ? fmin(gx, (double)(xw - 1)) : 0;
                        *o++ = bilinear(p, xh, xw, gy, gx, 0);
                    }
            }
        }
    }
    return ANE_OK;
}

/* Folds a coordinate back into [lo, lo + span], mirrored at both ends. */
static double mirror(double c, double lo, double span) {
    if (span <= 0) return lo;
    double t = fmod(fabs(c - lo), 2 * span);
    return lo + (t > span ? 2 * span - t : t);
}

typedef struct sampler {
    bool nearest, corners;
    char pad, coords;                   /* first letters that tell the modes apart */
    double value;
} sampler;

static double unnormalised(const sampler *s, double c, int64_t d) {
    if (s->coords == 'u') return c;
    double t = s->coords == 'm' ? (c + 1) / 2 : c;
    return s->corners ? t * (double)(d - 1) : t * (double)d - 0.5;
}

static double inside(const sampler *s, double c, int64_t d) {
    if (s->pad == 'c') return c;
    if (s->pad == 'r') c = mirror(c, 0, (double)(d - 1));
    else if (s->pad == 's') c = mirror(c, -0.5, (double)d);
    return c > 0 ? fmin(c, (double)(d - 1)) : 0;
}

static double sample(const sampler *s, const double *p, int64_t h, int64_t w, double y,
                     double x) {
    y = inside(s, y, h);
    x = inside(s, x, w);
    if (s->nearest) return pixel(p, h, w, rint(y), rint(x), s->value);
    return bilinear(p, h, w, y, x, s->value);
}

ane_status ane__eval_resample(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *at = ane_eval_in(ev, "coordinates");
    const char *coords = ane_eval_str(ev, "coordinates_mode", "unnormalized");
    sampler s = {.nearest = !strcmp(ane_eval_str(ev, "sampling_mode", "bilinear"), "nearest"),
                 .corners = ane_eval_bool(ev, "align_corners", true),
                 .pad = ane_eval_str(ev, "padding_mode", "constant")[0],
                 .value = ane_eval_f64(ev, "padding_value", 0)};
    s.coords = *coords == 'u' ? 'u' : coords[strlen("normalized_")];    /* m or z */
    int64_t n = x->shape[0], c = x->shape[1], h = x->shape[2], w = x->shape[3],
            oh = at->shape[1], ow = at->shape[2], shape[4] = {n, c, oh, ow};
    if (at->shape[0] != n || at->shape[3] != 2)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'coordinates' does not fit 'x'");
    ane_rt *y = ANE__OUT(0, 4, shape);
    double *o = y->data;
    for (int64_t q = 0; q < n * c; q++) {
        const double *g = at->data + q / c * oh * ow * 2;
        for (int64_t i = 0; i < oh * ow; i++)
            *o++ = sample(&s, x->data + q * h * w, h, w, unnormalised(&s, g[2 * i + 1], h),
                          unnormalised(&s, g[2 * i], w));
    }
    return ANE_OK;
}

ane_status ane__eval_affine(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *m = ane_eval_in(ev, "transform_matrix");
    sampler s = {.corners = true, .pad = 'c', .coords = 'm'};
    int64_t n = x->shape[0], c = x->shape[1], h = x->shape[2], w = x->shape[3],
            oh = ane_eval_i64(ev, "output_height", 1), ow = ane_eval_i64(ev, "output_width", 1),
            shape[4] = {n, c, oh, ow};
    ane_rt *y = ANE__OUT(0, 4, shape);
    double *o = y->data;
    for (int64_t q = 0; q < n * c; q++) {
        const double *a = m->data + (m->shape[0] == 1 ? 0 : q / c) * 6;
        for (int64_t i = 0; i < oh; i++)
            for (int64_t j = 0; j < ow; j++) {
                double v = oh > 1 ? 2 * (double)i / (double)(oh - 1) - 1 : 0;
                double u = ow > 1 ? 2 * (double)j / (double)(ow - 1) - 1 : 0;
                *o++ = sample(&s, x->data + q * h * w, h, w,
                              unnormalised(&s, a[3] * u + a[4] * v + a[5], h),
                              unnormalised(&s, a[0] * u + a[1] * v + a[2], w));
            }
    }
    return ANE_OK;
}
