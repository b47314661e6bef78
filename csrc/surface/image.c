/* Images: one table of formats, so that producer and consumer cannot disagree, and the
 * layout that follows: rows padded to 64 bytes. */
#include "tensor.h"

#include <inttypes.h>
#include <string.h>

/* fourcc: IOSurface's, big-endian in the number (24 is CoreVideo's code of packed RGB).
 * align: what width (and for NV12 height) must be a multiple of. */
static const struct {
    const char *name;
    uint32_t fourcc;
    int bytes_per_pixel, align_w, align_h;
} formats[] = {
    [ANE_IMAGE_YUYV] = {"YUYV", 0x32433038u, 2, 2, 1},      /* '2C08' */
    [ANE_IMAGE_NV12] = {"NV12", 0x34323076u, 1, 2, 2},      /* '420v' */
    [ANE_IMAGE_RGBA] = {"RGBA", 0x52474241u, 4, 1, 1},      /* 'RGBA' */
    [ANE_IMAGE_BGRA] = {"BGRA", 0x42475241u, 4, 1, 1},      /* 'BGRA' */
    [ANE_IMAGE_RGB] = {"RGB", 24u, 3, 1, 1},
    [ANE_IMAGE_GREY] = {"GREY", 0x4C303038u, 1, 1, 1},      /* 'L008' */
};
#define N_FORMATS ((int)(sizeof formats / sizeof *formats))

const char *ane_image_name(ane_image format) {
    return format > ANE_IMAGE_NONE && (int)format < N_FORMATS ? formats[format].name : "";
}

ane_status ane_image_layout_init(ane_image_layout *out, const char *format, int64_t width,
                                 int64_t height, ane_error *err) {
    int f = 1;
    while (f < N_FORMATS && strcmp(formats[f].name, format)) f++;
    if (f == N_FORMATS)
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[image] format '%.40s' is none of YUYV, NV12, RGBA, BGRA, RGB, GREY",
                        format);
    int unit = formats[f].bytes_per_pixel;
    if (width < 1 || height < 1 || width % formats[f].align_w || height % formats[f].align_h)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[image] %" PRId64 " x %" PRId64 " is no size for %s: width must be a "
                        "positive multiple of %d, height of %d",
                        width, height, format, formats[f].align_w, formats[f].align_h);
    size_t row, rows = (size_t)height, bytes;
    /* NV12: the rows of half-height interleaved chroma follow those of luma. */
    if (f == ANE_IMAGE_NV12) rows += rows / 2;
    if (!ane_mul_size((size_t)width, (size_t)unit, &row) || !(row = ane__round_up(row, 64)) ||
        !ane_mul_size(row, rows, &bytes) || bytes > (size_t)INT64_MAX)
        return ane_fail(err, ANE_ERR_SHAPE, "[image] %" PRId64 " x %" PRId64 " overflows", width,
                        height);
    *out = (ane_image_layout){.format = (ane_image)f,
                              .fourcc = formats[f].fourcc,
                              .bytes_per_pixel = unit,
                              .width = width,
                              .height = height,
                              .row_bytes = row,
                              .bytes = bytes,
                              .rank = unit > 1 ? 3 : 2,
                              .shape = {(int64_t)rows, width, unit},
                              .strides = {(int64_t)row, unit, 1}};
    return ANE_OK;
}

ane_status ane_image_create(ane_memory kind, const ane_image_layout *layout, const char *name,
                            ane_tensor *out, ane_error *err) {
    if (kind == ANE_MEM_IOSURFACE &&
        (layout->format == ANE_IMAGE_RGB || layout->format == ANE_IMAGE_NV12))
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[image] an IOSurface of format %s is not implemented; use mem=\"shm\", "
                        "or RGBA, BGRA, YUYV, GREY",
                        ane_image_name(layout->format));
    ane_surface *s;
    ane_status st = ane__surface_create_image(kind, layout, name, &s, err);
    if (st) return st;
    *out = (ane_tensor){.surface = s, .dtype = ANE_U8, .rank = layout->rank};
    memcpy(out->shape, layout->shape, sizeof layout->shape);
    memcpy(out->strides, layout->strides, sizeof layout->strides);
    return ANE_OK;
}
