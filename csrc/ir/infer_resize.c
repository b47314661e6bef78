/* Shapes of resizing and sampling. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

static const char *const sampling_modes[] = {"DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS",
                                             "OFFSET_CORNERS", "UNALIGN_CORNERS", NULL};

static ane_status positive(ane_infer *in, const char *name, int64_t v) {
    return v >= 1 ? ANE_OK : ane_infer_fail(in, ANE_ERR_INVALID, "'%s' must be 1 or more, got "
                                            "%lld", name, (long long)v);
}

/* Last two dims from two constants. */
static ane_status to_size(ane_infer *in, const char *height, const char *width) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t dims[ANE_MAX_RANK];
    ane_status st = ane__want_rank(in, "x", 3, ANE_MAX_RANK);
    if (st) return st;
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank - 2] = ane_op_i64(in->op, height, 1);
    dims[x->rank - 1] = ane_op_i64(in->op, width, 1);
    st = positive(in, height, dims[x->rank - 2]);
    if (!st) st = positive(in, width, dims[x->rank - 1]);
    return st ? st : ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_resize_bilinear(ane_infer *in) {
    ane_status st = ane__want_one_of(in, "sampling_mode", sampling_modes);
    return st ? st : to_size(in, "target_size_height", "target_size_width");
}

ane_status ane__infer_resize_nearest_neighbor(ane_infer *in) {
    return to_size(in, "target_size_height", "target_size_width");
}

ane_status ane__infer_upsample(ane_infer *in) {
    static const char *const names[] = {"scale_factor_height", "scale_factor_width"};
    const ane_type *x = ane__in_type(in, "x");
    int64_t dims[ANE_MAX_RANK];
    ane_status st = ane__want_rank(in, "x", 3, ANE_MAX_RANK);
    if (st) return st;
    memcpy(dims, x->dims, sizeof dims);
    for (int i = 0; i < 2; i++) {
        double f = ane_op_f64(in->op, names[i], 1);
        int64_t *d = &dims[x->rank - 2 + i];
        if (*d < 0) {
            if (f != 1) *d = ANE_DIM_ANY;
            continue;
        }
        double size = floor((double)*d * f);
        if (!(size >= 1 && size < 0x1p40))
            return ane_infer_fail(in, ANE_ERR_INVALID, "'%s' %g makes %g of %lld", names[i], f,
                                  size, (long long)*d);
        *d = (int64_t)size;
    }
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_resize(ane_infer *in) {
    static const char *const how[] = {"LINEAR", "NEAREST_NEIGHBOR", NULL};
    const ane_type *x = ane__in_type(in, "x");
    int64_t shape[ANE_MAX_RANK], dims[ANE_MAX_RANK], n = ane_op_i64(in->op, "resized_dims", 0);
    int len;
    bool known;
    ane_status st = ane__want_one_of(in, "interpolation_mode", how);
    if (!st) st = ane__want_one_of(in, "sampling_mode", sampling_modes);
    if (!st) st = ane__want_vector_length(in, "shape", &len);
    if (!st) st = ane__want_ints(in, "shape", len, shape, &known);
    if (st) return st;
    if (n < 0 || n > len || len > x->rank)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'resized_dims' is %lld, 'shape' has %d "
                              "elements, 'x' has rank %d; each must be at most the next",
                              (long long)n, len, x->rank);
    memcpy(dims, x->dims, sizeof dims);
    for (int i = 0; i < n; i++) {
        int64_t *d = &dims[x->rank - (int)n + i], want = shape[len - (int)n + i];
        if (!known) *d = ANE_DIM_ANY;
        else if (want < 0)
            return ane_infer_fail(in, ANE_ERR_INVALID, "shape[%d] is %lld", len - (int)n + i,
                                  (long long)want);
        else if (want) *d = want;
    }
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_crop_resize(ane_infer *in) {
    static const char *const boxes[] = {"CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST",
                                        "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST",
                                        NULL};
    const ane_type *x = ane__in_type(in, "x");
    bool modern = in->op->row->opset >= 17;
    int64_t h = ane_op_i64(in->op, "target_height", 1), w = ane_op_i64(in->op, "target_width", 1);
    char text[ANE_TYPE_TEXT];
    ane_status st = ane__want_rank(in, "x", 4, 4);
    if (!st) st = ane__want_one_of(in, "box_coordinate_mode", boxes);
    if (!st) st = ane__want_one_of(in, "sampling_mode", sampling_modes);
    if (!st) st = positive(in, "target_height", h);
    if (!st) st = positive(in, "target_width", w);
    if (st) return st;
    if (!modern) {
        const ane_type *roi = ane__in_type(in, "roi");
        int64_t k = roi->rank == 5 ? roi->dims[2] : 0;
        bool ok = roi->rank == 5 && (k < 0 || k == 4 || k == 5) && ane__dim_fits(roi->dims[1], 1) &&
                  ane__dim_fits(roi->dims[3], 1) && ane__dim_fits(roi->dims[4], 1);
        if (!ok)
            return ane_infer_fail(in, ANE_ERR_SHAPE, "'roi' must be [N, 1, 4 or 5, 1, 1], got "
                                  "%s", ane_type_text(roi, text, sizeof text));
        int64_t dims[5] = {roi->dims[0], k == 5 ? 1 : k == 4 ? x->dims[0] : ANE_DIM_ANY,
                           x->dims[1], h, w};
        return ane_infer_set(in, 0, x->dtype, 5, dims);
    }
    const ane_type *b = ane__in_type(in, "boxes");
    if (b->rank != 2 || !ane__dim_fits(b->dims[1], 4))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'boxes' must be [N, 4], got %s",
                              ane_type_text(b, text, sizeof text));
    if (ane_op_bool(in->op, "normalized_coordinates", false) && b->dtype == ANE_U16)
        return ane_infer_fail(in, ANE_ERR_DTYPE, "normalized coordinates need fp16 or fp32 "
                              "'boxes', got %s", ane_type_text(b, text, sizeof text));
    if (!ane__given(in->op, "box_indices") && b->dims[0] >= 0 && x->dims[0] >= 0 &&
        b->dims[0] > x->dims[0])
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%lld boxes for a batch of %lld need "
                              "'box_indices'", (long long)b->dims[0], (long long)x->dims[0]);
    st = ane__want_vector(in, "box_indices", b->dims[0]);
    int64_t dims[4] = {b->dims[0], x->dims[1], h, w};
    return st ? st : ane_infer_set(in, 0, x->dtype, 4, dims);
}

ane_status ane__infer_resample(ane_infer *in) {
    static const char *const how[] = {"bilinear", "nearest", NULL};
    static const char *const pads[] = {"constant", "border", "reflection", "symmetric", NULL};
    static const char *const coords[] = {"unnormalized", "normalized_minus_one_to_one",
                                         "normalized_zero_to_one", NULL};
    const ane_type *x = ane__in_type(in, "x"), *c = ane__in_type(in, "coordinates");
    char text[ANE_TYPE_TEXT];
    ane_status st = ane__want_rank(in, "x", 4, 4);
    if (!st) st = ane__want_one_of(in, "sampling_mode", how);
    if (!st) st = ane__want_one_of(in, "padding_mode", pads);
    if (!st) st = ane__want_one_of(in, "coordinates_mode", coords);
    if (st) return st;
    if (c->rank != 4 || !ane__dim_fits(c->dims[3], 2) || !ane__dim_fits(c->dims[0], x->dims[0]))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'coordinates' must be [%lld, H, W, 2], got %s",
                              (long long)x->dims[0], ane_type_text(c, text, sizeof text));
    int64_t dims[4] = {x->dims[0], x->dims[1], c->dims[1], c->dims[2]};
    return ane_infer_set(in, 0, x->dtype, 4, dims);
}

ane_status ane__infer_affine(ane_infer *in) {
    static const char *const how[] = {"bilinear", NULL};
    static const char *const pads[] = {"constant", NULL};
    static const char *const coords[] = {"normalized_minus_one_to_one", NULL};
    const ane_type *x = ane__in_type(in, "x"), *m = ane__in_type(in, "transform_matrix");
    char text[ANE_TYPE_TEXT];
    ane_status st = ane__want_rank(in, "x", 4, 4);
    if (!st) st = ane__want_one_of(in, "sampling_mode", how);
    if (!st) st = ane__want_one_of(in, "padding_mode", pads);
    if (!st) st = ane__want_one_of(in, "coordinates_mode", coords);
    if (st) return st;
    if (m->rank != 2 || !ane__dim_fits(m->dims[1], 6) ||
        (m->dims[0] != 1 && !ane__dim_fits(m->dims[0], x->dims[0])))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'transform_matrix' must be [%lld or 1, 6], got "
                              "%s", (long long)x->dims[0], ane_type_text(m, text, sizeof text));
    if (ane_op_f64(in->op, "padding_value", 0) != 0 ||
        !ane_op_bool(in->op, "align_corners", true))
        return ane_infer_fail(in, ANE_ERR_UNSUPPORTED, "only a padding_value of 0 and "
                              "align_corners = true exist");
    int64_t h = ane_op_i64(in->op, "output_height", 0), w = ane_op_i64(in->op, "output_width", 0);
    st = positive(in, "output_height", h);
    if (!st) st = positive(in, "output_width", w);
    int64_t dims[4] = {x->dims[0], x->dims[1], h, w};
    return st ? st : ane_infer_set(in, 0, x->dtype, 4, dims);
}
