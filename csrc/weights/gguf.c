/* GGUF (versions 2 and 3, little-endian): key-value pairs, tensor directory, aligned data.
 *
 *     "GGUF"  u32 version  u64 tensors  u64 pairs
 *     pair:   string key, u32 type, value          string: u64 length, bytes
 *     tensor: string name, u32 n_dims, u64 dims[] (fastest first), u32 type, u64 offset
 *
 * Offsets count from the first multiple of general.alignment behind the directory. Scalars
 * and strings become metadata; lists (vocabularies) are checked and skipped. */
#include "weights.h"

#include "../base/f16.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct cursor {
    const unsigned char *base;
    size_t n, at;
    const char *path;
    ane_error *err;
    ane_status status;
} cursor;

static bool fail(cursor *c, const char *what) {
    if (!c->status)
        c->status = ane_fail(c->err, ANE_ERR_PARSE, "'%s': %s at byte %zu of %zu", c->path,
                             what, c->at, c->n);
    return false;
}

static bool take(cursor *c, void *out, size_t n) {
    if (c->status) return false;
    if (c->n - c->at < n) return fail(c, "the header is cut");
    memcpy(out, c->base + c->at, n);
    c->at += n;
    return true;
}
static bool u32(cursor *c, uint32_t *v) { return take(c, v, 4); }
static bool u64(cursor *c, uint64_t *v) { return take(c, v, 8); }

typedef struct text {
    const char *at;
    size_t n;
} text;

static bool string(cursor *c, text *out) {
    uint64_t n;
    if (!u64(c, &n)) return false;
    if (n > c->n - c->at) return fail(c, "a string is longer than the file");
    *out = (text){(const char *)c->base + c->at, (size_t)n};
    c->at += (size_t)n;
    return true;
}

/* Value types: sizes of the scalars; 8 is a string, 9 a list. */
static const unsigned char value_bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
enum { V_U8, V_I8, V_U16, V_I16, V_U32, V_I32, V_F32, V_BOOL, V_STRING, V_LIST, V_U64, V_I64,
       V_F64 };

static bool skip_list(cursor *c) {
    uint32_t type;
    uint64_t count;
    text s;
    if (!u32(c, &type) || !u64(c, &count)) return false;
    if (type == V_LIST) return fail(c, "a list of lists is not supported");
    if (type > V_F64) return fail(c, "unknown value type");
    if (type != V_STRING) {
        if (count > (c->n - c->at) / value_bytes[type])
            return fail(c, "a list is longer than the file");
        c->at += (size_t)count * value_bytes[type];
        return true;
    }
    for (uint64_t i = 0; i < count; i++)        /* every turn takes 8 bytes or fails */
        if (!string(c, &s)) return false;
    return true;
}

static bool pair(cursor *c, ane_weight_file *f, uint64_t *alignment) {
    text key, s;
    uint32_t type;
    union {
        uint64_t u;
        double d;
        float f;
        unsigned char bytes[8];
    } v = {0};
    char number[40];
    if (!string(c, &key) || !u32(c, &type)) return false;
    if (!key.n || key.n > 65535 || !ane_utf8_valid(key.at, key.n))
        return fail(c, "a key is empty, too long or not UTF-8");
    if (type > V_F64) return fail(c, "unknown value type");
    if (type == V_LIST) return skip_list(c);
    if (type == V_STRING) {
        if (!string(c, &s)) return false;
        if (!ane_utf8_valid(s.at, s.n)) return true;    /* not text: of no use as metadata */
    } else {
        if (!take(c, v.bytes, value_bytes[type])) return false;
        switch (type) {
        case V_I8: v.u = (uint64_t)(int64_t)(int8_t)v.u; break;
        case V_I16: v.u = (uint64_t)(int64_t)(int16_t)v.u; break;
        case V_I32: v.u = (uint64_t)(int64_t)(int32_t)v.u; break;
        case V_BOOL:
            if (v.u > 1) return fail(c, "a bool is neither 0 nor 1");
            break;
        default: break;
        }
        int n = type == V_F32 ? snprintf(number, sizeof number, "%.9g", (double)v.f)
              : type == V_F64 ? snprintf(number, sizeof number, "%.17g", v.d)
              : type == V_BOOL ? snprintf(number, sizeof number, v.u ? "true" : "false")
              : type == V_I8 || type == V_I16 || type == V_I32 || type == V_I64
                  ? snprintf(number, sizeof number, "%" PRId64, (int64_t)v.u)
                  : snprintf(number, sizeof number, "%" PRIu64, v.u);
        s = (text){number, (size_t)n};
    }
    static const char ALIGN[] = "general.alignment";
    if (key.n == sizeof ALIGN - 1 && !memcmp(key.at, ALIGN, key.n)) {
        if (type != V_U32 || !v.u || v.u > 1u << 20 || (v.u & (v.u - 1)))
            return fail(c, "general.alignment is not a power of two up to 2^20");
        *alignment = v.u;
    }
    char *k = ane_arena_strndup(f->arena, key.at, key.n);
    char *t = k ? ane_arena_strndup(f->arena, s.at, s.n) : NULL;
    if (!t || !ane__weight_add_meta(f, k, t)) {
        c->status = ane__weight_no_memory(c->path, c->err);
        return false;
    }
    return true;
}

/* ggml's tensor types: elements and bytes of a block. */
static const struct {
    const char *name;
    unsigned char block, bytes, code;
    signed char dtype;
} types[] = {
    [0] = {"F32", 1, 4, ANE_WEIGHT_PLAIN, ANE_F32},
    [1] = {"F16", 1, 2, ANE_WEIGHT_PLAIN, ANE_F16},
    [2] = {"Q4_0", 32, 18, ANE_WEIGHT_Q4_0, ANE_F32},
    [3] = {"Q4_1", 32, 20, ANE_WEIGHT_OPAQUE, -1},
    [6] = {"Q5_0", 32, 22, ANE_WEIGHT_OPAQUE, -1},
    [7] = {"Q5_1", 32, 24, ANE_WEIGHT_OPAQUE, -1},
    [8] = {"Q8_0", 32, 34, ANE_WEIGHT_Q8_0, ANE_F32},
    [9] = {"Q8_1", 32, 36, ANE_WEIGHT_OPAQUE, -1},
    [10] = {"Q2_K", 0, 84, ANE_WEIGHT_OPAQUE, -1},      /* block 0: 256 */
    [11] = {"Q3_K", 0, 110, ANE_WEIGHT_OPAQUE, -1},
    [12] = {"Q4_K", 0, 144, ANE_WEIGHT_OPAQUE, -1},
    [13] = {"Q5_K", 0, 176, ANE_WEIGHT_OPAQUE, -1},
    [14] = {"Q6_K", 0, 210, ANE_WEIGHT_OPAQUE, -1},
    [24] = {"I8", 1, 1, ANE_WEIGHT_PLAIN, ANE_I8},
    [25] = {"I16", 1, 2, ANE_WEIGHT_PLAIN, ANE_I16},
    [26] = {"I32", 1, 4, ANE_WEIGHT_PLAIN, ANE_I32},
    [27] = {"I64", 1, 8, ANE_WEIGHT_PLAIN, ANE_I64},
    [28] = {"F64", 1, 8, ANE_WEIGHT_PLAIN, ANE_F64},
    [30] = {"BF16", 1, 2, ANE_WEIGHT_PLAIN, ANE_BF16},
};

static bool tensor(cursor *c, ane_weight_file *f, uint64_t alignment) {
    text name;
    uint32_t rank, type;
    uint64_t dims[ANE_MAX_RANK] = {0}, offset, count = 1;
    if (!string(c, &name)) return false;
    if (!name.n || name.n > 65535 || !ane_utf8_valid(name.at, name.n))
        return fail(c, "a tensor name is empty, too long or not UTF-8");
    ane_weight *w = ane__weight_add(f);
    char *own = w ? ane_arena_strndup(f->arena, name.at, name.n) : NULL;
    if (!own) {
        c->status = ane__weight_no_memory(c->path, c->err);
        return false;
    }
    w->name = own;
    if (!u32(c, &rank)) return false;
    if (rank > ANE_MAX_RANK) return fail(c, "a tensor has more than 8 dimensions");
    bool zero = false;
    for (uint32_t i = 0; i < rank; i++) {
        if (!u64(c, &dims[i])) return false;
        zero |= !dims[i];
        if (dims[i] > INT64_MAX / 64 ||
            (dims[i] && __builtin_mul_overflow(count, dims[i], &count)) ||
            count > INT64_MAX / 64)
            return fail(c, "the shape of a tensor overflows a size");
    }
    if (zero) count = 0;
    if (!u32(c, &type) || !u64(c, &offset)) return false;
    w->rank = (unsigned char)rank;
    for (uint32_t i = 0; i < rank; i++) w->shape[rank - 1 - i] = (int64_t)dims[i];
    if (offset % alignment) return fail(c, "a tensor's offset is not aligned");
    w->offset = (size_t)offset;
    if (type >= sizeof types / sizeof *types || !types[type].name) {
        w->type = ane_arena_printf(f->arena, "type %" PRIu32, type);
        if (!w->type) {
            c->status = ane__weight_no_memory(c->path, c->err);
            return false;
        }
        w->code = ANE_WEIGHT_OPAQUE;
        w->dtype = ANE_DTYPE_COUNT;
        return true;
    }
    uint64_t block = types[type].block ? types[type].block : 256;
    uint64_t row = rank ? dims[0] : 1;
    if (row % block) return fail(c, "a row of a tensor is not whole blocks of its type");
    /* count <= 2^57, bytes per element <= 8 */
    w->bytes = (size_t)(count / block * types[type].bytes);
    w->type = types[type].name;
    w->code = types[type].code;
    w->dtype = types[type].dtype < 0 ? ANE_DTYPE_COUNT : (ane_dtype)types[type].dtype;
    return true;
}

ane_status ane__gguf_read(ane_weight_file *f, const unsigned char *base, size_t n,
                          const char *path, ane_error *err) {
    cursor c = {base, n, 0, path, err, ANE_OK};
    unsigned char magic[4] = {0};
    uint32_t version = 0;
    uint64_t tensors = 0, pairs = 0, alignment = 32;
    if (!take(&c, magic, 4) || memcmp(magic, "GGUF", 4)) {
        fail(&c, "no GGUF file: the first bytes differ");
        return c.status;
    }
    if (!u32(&c, &version)) return c.status;
    if (version != 2 && version != 3) {
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "'%s': GGUF version %" PRIu32
                        ", 2 and 3 are supported%s", path, version,
                        version >> 24 ? " (a big-endian file?)" : "");
    }
    if (!u64(&c, &tensors) || !u64(&c, &pairs)) return c.status;
    /* A pair takes at least 13 bytes, a tensor 24: refuse before looping. */
    if (pairs > (n - c.at) / 13 || tensors > (n - c.at) / 24) {
        fail(&c, "more pairs or tensors than the file has room for");
        return c.status;
    }
    for (uint64_t i = 0; i < pairs; i++)
        if (!pair(&c, f, &alignment)) return c.status;
    for (uint64_t i = 0; i < tensors; i++)
        if (!tensor(&c, f, alignment)) return c.status;
    size_t data;
    if (!ane_add_size(c.at, (size_t)alignment - 1, &data)) return fail(&c, "too large"), c.status;
    data &= ~((size_t)alignment - 1);
    for (size_t i = 0; i < f->n; i++) {
        ane_weight *w = &f->entries[i];
        size_t end;
        if (!ane_add_size(data, w->offset, &w->offset) ||
            !ane_add_size(w->offset, w->bytes, &end) || end > n)
            return ane_fail(err, ANE_ERR_PARSE,
                            "'%s': tensor '%.200s' (%zu bytes at %zu) is outside the file of "
                            "%zu bytes",
                            path, w->name, w->bytes, w->offset, n);
    }
    return ANE_OK;
}

void ane_gguf_dequant(float *dst, const unsigned char *src, size_t n, ane_weight_code code) {
    size_t step = code == ANE_WEIGHT_Q8_0 ? 34 : 18;
    for (size_t i = 0; i + 32 <= n; i += 32, src += step) {
        uint16_t h;
        memcpy(&h, src, 2);
        float d = ane_f32_from_f16(h);
        if (code == ANE_WEIGHT_Q8_0) {
            for (int j = 0; j < 32; j++) dst[i + j] = d * (float)(int8_t)src[2 + j];
        } else {
            for (int j = 0; j < 16; j++) {
                dst[i + j] = d * (float)((src[2 + j] & 15) - 8);
                dst[i + j + 16] = d * (float)((src[2 + j] >> 4) - 8);
            }
        }
    }
}
