/* Reader and writer of MILBlob v2, and the builders of the one-record files. */
#include "blob.h"

#include "../base/f16.h"
#include "../base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weight files are little-endian and are used in place"
#endif

static uint32_t get32(const unsigned char *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static uint64_t get64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static void put32(unsigned char *p, uint32_t v) { memcpy(p, &v, sizeof v); }
static void put64(unsigned char *p, uint64_t v) { memcpy(p, &v, sizeof v); }

unsigned ane_blob_code(ane_dtype dtype) {
    static const unsigned char codes[] = {
#define X(name, mil, numpy, brief, bits, blob, proto) blob,
        ANE_DTYPE_MAP(X)
#undef X
    };
    return (unsigned)dtype < sizeof codes ? codes[dtype] : 0;
}

static const char *code_name(unsigned code) {
    static const struct {
        unsigned code;
        const char *name;
    } names[] = {
#define X(name, mil, numpy, brief, bits, blob, proto) {blob, mil},
        ANE_DTYPE_MAP(X)
#undef X
    };
    for (size_t i = 0; code && i < sizeof names / sizeof *names; i++)
        if (names[i].code == code) return names[i].name;
    return "no known type";
}

bool ane_blob_bytes(ane_dtype dtype, uint64_t count, size_t *out) {
    uint64_t bits = (uint64_t)ane_dtype_bits(dtype), whole, n;
    if (!bits) return false;
    /* count = 8q + r: bytes = q*bits + ceil(r*bits/8), so no product of count overflows
     * before the result does. */
    if (__builtin_mul_overflow(count / 8, bits, &whole)) return false;
    if (__builtin_add_overflow(whole, (count % 8 * bits + 7) / 8, &n)) return false;
    if (n > PTRDIFF_MAX) return false;
    *out = (size_t)n;
    return true;
}

void ane_blob_deviations(unsigned deviations, char *buf, size_t n) {
    size_t at = 0;
    if (n) buf[0] = 0;
#define X(name, bit, text)                                                                 \
    if ((deviations & bit) && at < n) {                                                    \
        int wrote = snprintf(buf + at, n - at, "%s%s", at ? "; " : "", text);              \
        at += wrote > 0 ? (size_t)wrote : 0;                                               \
    }
    ANE_BLOB_DEVIATION_MAP(X)
#undef X
}

/* ---------------------------------------------------------------- reading */

static bool marked(const unsigned char *p, size_t bytes, uint64_t at) {
    return at <= bytes && bytes - at >= 4 && get32(p + at) == ANE_BLOB_MARKER;
}

static ane_status no_marker(const unsigned char *p, size_t bytes, uint64_t offset,
                            ane_error *err) {
    char hint[96] = "the first record of a file is at offset 64";
    if (offset >= 64 && marked(p, bytes, offset - 64))
        snprintf(hint, sizeof hint, "there is one at %" PRIu64
                 ": offset names the record, not its data", offset - 64);
    return ane_fail(err, ANE_ERR_PARSE,
                    "weight file: no record marker (EF BE AD DE) at offset %" PRIu64
                    ", found %02X %02X %02X %02X; %s",
                    offset, p[offset], p[offset + 1], p[offset + 2], p[offset + 3], hint);
}

ane_status ane_blob_find(const void *file, size_t bytes, uint64_t offset, ane_dtype dtype,
                         uint64_t count, unsigned flags, ane_blob *out, ane_error *err) {
    const unsigned char *p = file;
    unsigned code = ane_blob_code(dtype), deviations = 0;
    size_t need;
    if (!code)
        return ane_fail(err, ANE_ERR_DTYPE,
                        "weight file: %s has no type code and cannot be in a blob; write "
                        "the values in the text",
                        ane_dtype_mil_name(dtype));
    if (!ane_blob_bytes(dtype, count, &need))
        return ane_fail(err, ANE_ERR_SHAPE,
                        "weight file: %" PRIu64 " elements of %s overflow a size", count,
                        ane_dtype_mil_name(dtype));
    if (bytes < 64)
        return ane_fail(err, ANE_ERR_PARSE,
                        "weight file: %zu bytes, shorter than a 64-byte header", bytes);
    if (offset > bytes || bytes - offset < 64)
        return ane_fail(err, ANE_ERR_PARSE,
                        "weight file: the record at offset %" PRIu64
                        " (64 bytes) is outside the file of %zu bytes",
                        offset, bytes);
    if (offset < 64) {
        /* Below 64 lies the file header; only a bare record can start at 0. */
        if (offset == 0 && marked(p, bytes, 0)) {
            if (!(flags & ANE_BLOB_ALLOW_BARE))
                return ane_fail(err, ANE_ERR_PARSE,
                                "weight file: it starts with a record and has no file "
                                "header (an int8 blob of the C bridge); write it with a "
                                "header, or allow bare records");
            deviations |= ANE_BLOB_BARE;
        } else {
            return ane_fail(err, ANE_ERR_PARSE,
                            "weight file: offset %" PRIu64 " lies in the 64-byte file "
                            "header; the first record is at 64",
                            offset);
        }
    } else if (!marked(p, bytes, 0)) {
        uint32_t version = get32(p + 4);
        if (version != 2)
            return ane_fail(err, ANE_ERR_PARSE, "weight file: format version %" PRIu32
                            ", expected 2%s", version,
                            version == 1 ? " (1 is the Espresso layout, which MIL does not "
                                           "use)" : "");
        if (get32(p) == 0) deviations |= ANE_BLOB_COUNT;
    } else if (!(flags & ANE_BLOB_ALLOW_BARE)) {
        return ane_fail(err, ANE_ERR_PARSE,
                        "weight file: record marker at offset 0, where the file header "
                        "belongs");
    }
    if (!marked(p, bytes, offset)) return no_marker(p, bytes, offset, err);
    if (offset % 64) deviations |= ANE_BLOB_UNALIGNED;

    const unsigned char *r = p + offset;
    unsigned found = get32(r + 4);
    uint64_t size = get64(r + 8), data = get64(r + 16), unused = get64(r + 24);
    if (found != code) {
        if (dtype != ANE_I8 || found != 1)
            return ane_fail(err, ANE_ERR_DTYPE,
                            "weight file: the record at offset %" PRIu64
                            " holds type code %u (%s), the text declares %s",
                            offset, found, code_name(found), ane_dtype_mil_name(dtype));
        deviations |= ANE_BLOB_CODE;
    }
    /* Writers that set only marker and type leave both fields 0, or the size with byte 10
     * set to 8 or 16 (which by the format is 0x080000 or 0x100000). */
    bool tagged = size == 0x080000 || size == 0x100000;
    if (data == 0 || (size != need && (size == 0 || tagged))) {
        if (data != 0 && data != offset + 64)
            return ane_fail(err, ANE_ERR_PARSE,
                            "weight file: the record at offset %" PRIu64 " has size %" PRIu64
                            " and data offset %" PRIu64 "; expected size %zu",
                            offset, size, data, need);
        deviations |= ANE_BLOB_FIELDS;
        size = need;
        data = offset + 64;
    }
    if (size != need)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "weight file: the record at offset %" PRIu64 " holds %" PRIu64
                        " bytes, the declared type (%" PRIu64 " of %s) needs %zu",
                        offset, size, count, ane_dtype_mil_name(dtype), need);
    if (data > bytes || bytes - data < size)
        return ane_fail(err, ANE_ERR_PARSE,
                        "weight file: the record at offset %" PRIu64 " says %" PRIu64
                        " bytes of data at %" PRIu64 ", outside the file of %zu bytes",
                        offset, size, data, bytes);
    if (data < 64 || (data < offset + 64 && data + size > offset))
        return ane_fail(err, ANE_ERR_PARSE,
                        "weight file: the data of the record at offset %" PRIu64
                        " is at %" PRIu64 ", inside a header",
                        offset, data);
    if (ane_dtype_bits(dtype) < 8 && !(deviations & ANE_BLOB_FIELDS)) {
        uint64_t want = (8 - count % 8 * (uint64_t)ane_dtype_bits(dtype) % 8) % 8;
        if (unused != want)
            return ane_fail(err, ANE_ERR_PARSE,
                            "weight file: the record at offset %" PRIu64 " says %" PRIu64
                            " unused bits, %" PRIu64 " of %s leave %" PRIu64,
                            offset, unused, count, ane_dtype_mil_name(dtype), want);
    }
    *out = (ane_blob){.offset = (size_t)data, .bytes = need, .deviations = deviations};
    return ANE_OK;
}

/* ---------------------------------------------------------------- writing */

ane_status ane_blob_layout(ane_blob_record *records, size_t n, size_t *file_bytes,
                           ane_error *err) {
    size_t at = 64;
    if (n > UINT32_MAX)
        return ane_fail(err, ANE_ERR_INVALID, "weight file: %zu records, at most %u", n,
                        UINT32_MAX);
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        if (!ane_blob_code(records[i].dtype))
            return ane_fail(err, ANE_ERR_DTYPE, "weight file: %s cannot be in a blob",
                            ane_dtype_mil_name(records[i].dtype));
        if (!ane_blob_bytes(records[i].dtype, records[i].count, &bytes) ||
            !ane_add_size(at, 64, &at) || !ane_add_size(at, bytes, &bytes) ||
            !ane_add_size(bytes, 63, &bytes))
            return ane_fail(err, ANE_ERR_SHAPE,
                            "weight file: record %zu (%" PRIu64 " of %s) overflows a size",
                            i, records[i].count, ane_dtype_mil_name(records[i].dtype));
        records[i].offset = at - 64;
        at = bytes & ~(size_t)63;
    }
    *file_bytes = at;
    return ANE_OK;
}

static void describe(unsigned char head[64], ane_dtype dtype, uint64_t count, size_t bytes,
                     uint64_t data) {
    memset(head, 0, 64);
    put32(head, ANE_BLOB_MARKER);
    put32(head + 4, ane_blob_code(dtype));
    put64(head + 8, bytes);
    put64(head + 16, data);
    put64(head + 24, (8 - count % 8 * (uint64_t)ane_dtype_bits(dtype) % 8) % 8);
}

ane_status ane_blob_emit(const ane_blob_record *records, size_t n, ane_blob_sink *sink,
                         void *arg, ane_error *err) {
    static const unsigned char zeros[64];
    unsigned char head[64] = {0};
    put32(head, (uint32_t)n);
    put32(head + 4, 2);
    ane_status st = sink(arg, head, 64, err);
    for (size_t i = 0; !st && i < n; i++) {
        size_t bytes;
        if (!ane_blob_bytes(records[i].dtype, records[i].count, &bytes))
            return ane_fail(err, ANE_ERR_SHAPE, "weight file: record %zu overflows", i);
        describe(head, records[i].dtype, records[i].count, bytes, records[i].offset + 64);
        st = sink(arg, head, 64, err);
        if (!st && bytes) st = sink(arg, records[i].data, bytes, err);
        if (!st && bytes % 64) st = sink(arg, zeros, 64 - bytes % 64, err);
    }
    return st;
}

/* ---------------------------------------------------------------- one-record files */

/* 128 bytes of header and room for `payload` bytes, all zero: the caller fills them. */
static ane_status one_record(const char *fn, ane_dtype dtype, size_t rows, size_t cols,
                             uint8_t **out, size_t *count, size_t *n, ane_error *err) {
    size_t payload = 0;
    if (!ane_mul_size(rows, cols, count) || !ane_blob_bytes(dtype, *count, &payload) ||
        payload > UINT32_MAX)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[%s] %zu x %zu of %s: a blob holds at most %u bytes", fn, rows,
                        cols, ane_dtype_mil_name(dtype), UINT32_MAX);
    uint8_t *blob = ane_calloc(1, 128 + payload);
    if (!blob)
        return ane_fail(err, ANE_ERR_NOMEM, "[%s] no memory for %zu bytes", fn,
                        128 + payload);
    put32(blob, 1);
    put32(blob + 4, 2);
    describe(blob + 64, dtype, *count, payload, 128);
    *out = blob;
    *n = 128 + payload;
    return ANE_OK;
}

ane_status ane_blob_build_f32(const float *src, size_t rows, size_t cols, bool transpose,
                              uint8_t **out, size_t *n, ane_error *err) {
    uint8_t *blob = NULL;
    size_t count = 0;
    ane_status st = one_record("build_blob", ANE_F16, rows, cols, &blob, &count, n, err);
    if (st) return st;
    uint8_t *dst = blob + 128;
    for (size_t k = 0, i = 0, j = 0; k < count; k++) {
        /* (i, j) walks the source row by row. */
        size_t at = transpose ? j * rows + i : k;
        uint16_t h = ane_f16_from_f32(src[k]);
        memcpy(dst + 2 * at, &h, 2);
        if (++j == cols) j = 0, i++;
    }
    *out = blob;
    return ANE_OK;
}

ane_status ane_blob_build_f16(const uint16_t *src, size_t count, uint8_t **out, size_t *n,
                              ane_error *err) {
    uint8_t *blob = NULL;
    ane_status st = one_record("build_blob_fp16", ANE_F16, 1, count, &blob, &count, n, err);
    if (st) return st;
    if (count) memcpy(blob + 128, src, 2 * count);
    *out = blob;
    return ANE_OK;
}

ane_status ane_blob_build_i8(const int8_t *src, size_t rows, size_t cols, bool bare,
                             uint8_t **out, size_t *n, ane_error *err) {
    uint8_t *blob = NULL;
    size_t count = 0;
    ane_status st = one_record("build_blob_int8", ANE_I8, rows, cols, &blob, &count, n, err);
    if (st) return st;
    if (bare) {
        /* The C bridge's form: the record alone, type 1, byte 10 set to 8 bits, no other
         * field. It is shorter, so it fits in place. */
        memset(blob, 0, 128);
        put32(blob, ANE_BLOB_MARKER);
        blob[4] = 1;
        blob[10] = 8;
        *n -= 64;
    }
    if (count) memcpy(blob + (bare ? 64 : 128), src, count);
    *out = blob;
    return ANE_OK;
}

float ane_quantize_i8(int8_t *dst, const float *src, size_t count) {
    float top = 0;
    for (size_t i = 0; i < count; i++) {
        float a = fabsf(src[i]);
        if (a > top) top = a;           /* a NaN compares false and is skipped */
    }
    float scale = top > 0 && isfinite(top) ? top / 127.0f : 1.0f;
    if (!(scale > 0)) scale = 1.0f;     /* top/127 underflowed */
    for (size_t i = 0; i < count; i++) {
        float q = roundf(src[i] / scale);               /* half away from zero */
        dst[i] = (int8_t)(q != q ? 0 : q > 127 ? 127 : q < -128 ? -128 : q);
    }
    return scale;
}
