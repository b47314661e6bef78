/* The flat bridge's weight blobs, over the builders of ane.h. */
#include "ane_bridge.h"
#include "error.h"

#include "../ane.h"

#include <math.h>
#include <stdlib.h>

/* What the builders of ane.h do not ask: ints that may be negative, and NULL. */
static bool matrix(const char *call, const void *src, int rows, int cols,
                   const size_t *out_len) {
    ane__no_error();
    if (src && out_len && rows > 0 && cols > 0) return true;
    ane__fail("[%s] expected data, a place for the length, rows and cols >= 1; got %d x %d", call,
         rows, cols);
    return false;
}

static uint8_t *built(const char *call, ane_status st, uint8_t **blob, const ane_error *err) {
    if (!st) return *blob;
    ane__fail("[%s] %s", call, err->message);
    return NULL;
}

uint8_t *ane_bridge_build_weight_blob(const float *src, int rows, int cols,
                                      size_t *out_len) {
    static const char call[] = "build_weight_blob";
    ane_error err;
    uint8_t *blob = NULL;
    if (!matrix(call, src, rows, cols, out_len)) return NULL;
    return built(call, ane_blob_build_f32(src, (size_t)rows, (size_t)cols, false, &blob,
                                          out_len, &err), &blob, &err);
}

uint8_t *ane_bridge_build_weight_blob_transposed(const float *src, int rows, int cols,
                                                 size_t *out_len) {
    static const char call[] = "build_weight_blob_transposed";
    ane_error err;
    uint8_t *blob = NULL;
    if (!matrix(call, src, rows, cols, out_len)) return NULL;
    return built(call, ane_blob_build_f32(src, (size_t)rows, (size_t)cols, true, &blob,
                                          out_len, &err), &blob, &err);
}

uint8_t *ane_bridge_build_weight_blob_int8(const int8_t *src, int rows, int cols,
                                           size_t *out_len) {
    static const char call[] = "build_weight_blob_int8";
    ane_error err;
    uint8_t *blob = NULL;
    if (!matrix(call, src, rows, cols, out_len)) return NULL;
    return built(call, ane_blob_build_i8(src, (size_t)rows, (size_t)cols, true, &blob, out_len,
                                         &err), &blob, &err);
}

uint8_t *ane_bridge_build_weight_blob_quantized(const float *src, int rows, int cols,
                                                float *out_scale, size_t *out_len) {
    static const char call[] = "build_weight_blob_quantized";
    ane_error err;
    uint8_t *blob = NULL;
    if (!matrix(call, src, rows, cols, out_len)) return NULL;
    size_t n = (size_t)rows * (size_t)cols;             /* below 2^62 */
    if (!out_scale) {
        ane__fail("[%s] NULL place for the scale", call);
        return NULL;
    }
    if (n > UINT32_MAX) {
        ane__fail("[%s] %zu bytes; the format holds at most 4294967295", call, n);
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        if (!isfinite(src[i])) {
            ane__fail("[%s] element %zu is not finite", call, i);
            return NULL;
        }
    int8_t *q = malloc(n);
    if (!q) {
        ane__fail("[%s] out of memory", call);
        return NULL;
    }
    float scale = ane_quantize_i8(q, src, n);
    blob = built(call, ane_blob_build_i8(q, (size_t)rows, (size_t)cols, true, &blob, out_len,
                                         &err), &blob, &err);
    free(q);
    if (blob) *out_scale = scale;
    return blob;
}

/* As the builders' memory is malloc's, clients that call free() are right, too. */
void ane_bridge_free_blob(void *ptr) { ane_free(ptr); }
