/* The safetensors header: u64 length, a JSON object, then the tensors' bytes.
 *
 *     {"__metadata__": {"k": "v"}, "name": {"dtype": "F32", "shape": [2, 3],
 *      "data_offsets": [0, 24]}, ...}
 *
 * Refused, as in the reference implementation: a header above 100 MB, tensors that overlap
 * or leave holes, bytes after the last one, sizes that do not follow from dtype and shape,
 * a name or a field that is there twice. */
#include "weights.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 100000000u

bool ane__weight_type(const ane_json_str *name, const char **canonical, int *dtype,
                      int *bits) {
    static const struct {
        const char *name;
        int dtype, bits;
    } types[] = {
        {"F32", ANE_F32, 32},  {"F16", ANE_F16, 16},   {"BF16", ANE_BF16, 16},
        {"F64", ANE_F64, 64},  {"I8", ANE_I8, 8},      {"U8", ANE_U8, 8},
        {"I16", ANE_I16, 16},  {"U16", ANE_U16, 16},   {"I32", ANE_I32, 32},
        {"U32", ANE_U32, 32},  {"I64", ANE_I64, 64},   {"U64", ANE_U64, 64},
        {"BOOL", ANE_BOOL, 8}, {"F8_E4M3", ANE_F8E4M3, 8}, {"F8_E5M2", ANE_F8E5M2, 8},
        {"F8_E8M0", -1, 8},    {"F4", -1, 4},          {"F6_E2M3", -1, 6},
        {"F6_E3M2", -1, 6},    {"C64", -1, 64},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (ane_json_is(name, types[i].name)) {
            *canonical = types[i].name;
            *dtype = types[i].dtype;
            *bits = types[i].bits;
            return true;
        }
    return false;
}

bool ane__weight_shape(ane_json *r, ane_weight *w, uint64_t *count) {
    uint64_t n = 1;
    bool zero = false;
    int rank = 0;
    for (ane_json_array(r); ane_json_item(r); rank++) {
        uint64_t d;
        if (!ane_json_u64(r, &d)) return false;
        if (rank == ANE_MAX_RANK)
            return ane_json_fail(r, ANE_ERR_UNSUPPORTED,
                                 "tensor '%.200s' has more than %d dimensions", w->name,
                                 ANE_MAX_RANK);
        /* Each dim is bounded even beside a zero, where the product would hide it. */
        if (d > INT64_MAX / 64 || (d && __builtin_mul_overflow(n, d, &n)) || n > INT64_MAX / 64)
            return ane_json_fail(r, ANE_ERR_PARSE,
                                 "the shape of tensor '%.200s' overflows a size", w->name);
        zero |= d == 0;
        w->shape[rank] = (int64_t)d;
    }
    w->rank = (unsigned char)rank;
    *count = zero ? 0 : n;
    return !r->status;
}

static bool twice(ane_json *r, const char *field, const char *name) {
    return ane_json_fail(r, ANE_ERR_PARSE, "tensor '%.200s' has '%s' twice", name, field);
}

/* One tensor's object. data: bytes behind the header. */
static bool tensor(ane_json *r, ane_weight *w, size_t data) {
    bool has_type = false, has_shape = false, has_offsets = false;
    int dtype = -1, bits = 0;
    uint64_t count = 0, lo = 0, hi = 0;
    ane_json_str key, text;
    for (ane_json_object(r); ane_json_key(r, &key);) {
        if (ane_json_is(&key, "dtype")) {
            if (has_type) return twice(r, "dtype", w->name);
            has_type = true;
            if (!ane_json_string(r, &text)) return false;
            if (!ane__weight_type(&text, &w->type, &dtype, &bits))
                return ane_json_fail(r, ANE_ERR_UNSUPPORTED,
                                     "tensor '%.200s' has the unknown dtype '%.*s'", w->name,
                                     (int)(text.raw < 40 ? text.raw : 40), text.at);
        } else if (ane_json_is(&key, "shape")) {
            if (has_shape) return twice(r, "shape", w->name);
            has_shape = true;
            if (!ane__weight_shape(r, w, &count)) return false;
        } else if (ane_json_is(&key, "data_offsets")) {
            if (has_offsets) return twice(r, "data_offsets", w->name);
            has_offsets = true;
            uint64_t at[2] = {0, 0};
            int n = 0;
            for (ane_json_array(r); ane_json_item(r); n++) {
                if (n == 2)
                    return ane_json_fail(r, ANE_ERR_PARSE, "data_offsets of tensor '%.200s' "
                                         "has more than two numbers", w->name);
                if (!ane_json_u64(r, &at[n])) return false;
            }
            if (r->status) return false;
            if (n != 2)
                return ane_json_fail(r, ANE_ERR_PARSE,
                                     "data_offsets of tensor '%.200s' needs two numbers",
                                     w->name);
            lo = at[0], hi = at[1];
        } else {
            return ane_json_fail(r, ANE_ERR_PARSE,
                                 "tensor '%.200s' has the unknown field '%.*s'", w->name,
                                 (int)(key.raw < 40 ? key.raw : 40), key.at);
        }
    }
    if (r->status) return false;
    if (!has_type || !has_shape || !has_offsets)
        return ane_json_fail(r, ANE_ERR_PARSE, "tensor '%.200s' has no '%s'", w->name,
                             !has_type ? "dtype" : !has_shape ? "shape" : "data_offsets");
    if (lo > hi || hi > data)
        return ane_json_fail(r, ANE_ERR_PARSE,
                             "tensor '%.200s' is at [%" PRIu64 ", %" PRIu64
                             ") of %zu bytes of data",
                             w->name, lo, hi, data);
    /* count <= 2^57, bits <= 64 */
    uint64_t total = count * (uint64_t)bits;
    if (total % 8 || total / 8 != hi - lo)
        return ane_json_fail(r, ANE_ERR_PARSE,
                             "tensor '%.200s' needs %" PRIu64 " bytes by its dtype and shape, "
                             "data_offsets give %" PRIu64,
                             w->name, (total + 7) / 8, hi - lo);
    w->offset = (size_t)lo;
    w->bytes = (size_t)(hi - lo);
    w->code = dtype < 0 ? ANE_WEIGHT_OPAQUE : ANE_WEIGHT_PLAIN;
    w->dtype = dtype < 0 ? ANE_DTYPE_COUNT : (ane_dtype)dtype;
    return true;
}

static bool metadata(ane_json *r, ane_weight_file *f) {
    ane_json_str key, value;
    for (ane_json_object(r); ane_json_key(r, &key);) {
        if (!ane_json_string(r, &value)) return false;
        char *k = ane_json_dup(f->arena, &key), *v = k ? ane_json_dup(f->arena, &value) : NULL;
        if (!v || !ane__weight_add_meta(f, k, v))
            return ane_json_fail(r, ANE_ERR_NOMEM, "no memory for the metadata");
        if (strlen(k) != key.n || strlen(v) != value.n)
            return ane_json_fail(r, ANE_ERR_PARSE, "NUL in the metadata");
    }
    return !r->status;
}

static int by_offset(const void *a, const void *b) {
    const ane_weight *x = *(const ane_weight *const *)a, *y = *(const ane_weight *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;      /* empty ones first */
}

/* Entries [first, f->n) tile [0, data) exactly. */
static ane_status check_tiling(ane_weight_file *f, size_t first, size_t data,
                               const char *path, ane_error *err) {
    size_t n = f->n - first, at = 0;
    const ane_weight **order = ane_malloc(n * sizeof *order);
    if (!order) return ane__weight_no_memory(path, err);
    bool ordered = true;                /* as nearly every writer leaves them */
    for (size_t i = 0; i < n; i++) {
        order[i] = &f->entries[first + i];
        ordered = ordered && (!i || by_offset(&order[i - 1], &order[i]) <= 0);
    }
    if (!ordered) qsort(order, n, sizeof *order, by_offset);
    ane_status st = ANE_OK;
    for (size_t i = 0; i < n && !st; i++) {
        const ane_weight *w = order[i];
        if (w->offset < at)
            st = ane_fail(err, ANE_ERR_PARSE,
                          "'%s': tensors '%.200s' and '%.200s' overlap at byte %zu of the data",
                          path, order[i - 1]->name, w->name, w->offset);
        else if (w->offset > at)
            st = ane_fail(err, ANE_ERR_PARSE,
                          "'%s': a hole of %zu bytes at byte %zu of the data, before tensor "
                          "'%.200s'",
                          path, w->offset - at, at, w->name);
        at = w->offset + w->bytes;
    }
    if (!st && at != data)
        st = ane_fail(err, ANE_ERR_PARSE,
                      "'%s': the tensors end at byte %zu of the data, the file has %zu (cut or "
                      "lengthened?)",
                      path, at, data);
    ane_free(order);
    return st;
}

ane_status ane__safetensors_read(ane_weight_file *f, const unsigned char *base, size_t n,
                                 const char *path, unsigned shard, ane_error *err) {
    uint64_t length = 0;
    if (n < 8)
        return ane_fail(err, ANE_ERR_PARSE, "'%s': %zu bytes, too short for safetensors",
                        path, n);
    memcpy(&length, base, 8);
    if (length > MAX_HEADER)
        return ane_fail(err, ANE_ERR_PARSE,
                        "'%s': a header of %" PRIu64 " bytes; at most %u are accepted", path,
                        length, MAX_HEADER);
    if (length > n - 8)
        return ane_fail(err, ANE_ERR_PARSE,
                        "'%s': the header needs %" PRIu64 " bytes, the file has %zu (cut?)",
                        path, length + 8, n);
    const char *text = (const char *)base + 8;
    if (!length || text[0] != '{')
        return ane_fail(err, ANE_ERR_PARSE, "'%s': the header does not start with '{'; not a "
                        "safetensors file", path);
    size_t first = f->n, data = n - 8 - (size_t)length;
    bool has_metadata = false;
    ane_json r;
    ane_json_str key;
    ane_json_init(&r, text, (size_t)length, path, err);
    for (ane_json_object(&r); ane_json_key(&r, &key);) {
        if (ane_json_is(&key, "__metadata__")) {
            if (has_metadata) return ane_json_fail(&r, ANE_ERR_PARSE, "__metadata__ is there "
                                                   "twice"), r.status;
            has_metadata = true;
            metadata(&r, f);
            continue;
        }
        ane_weight *w = ane__weight_add(f);
        char *name = w ? ane_json_dup(f->arena, &key) : NULL;
        if (!name) return ane__weight_no_memory(path, err);
        if (key.raw != key.n && strlen(name) != key.n) {   /* only an escape can make one */
            ane_json_fail(&r, ANE_ERR_PARSE, "a tensor name contains NUL");
            break;
        }
        w->name = name;
        w->shard = shard;
        tensor(&r, w, data);
    }
    ane_json_end(&r);
    if (r.status) return r.status;
    ane_status st = check_tiling(f, first, data, path, err);
    for (size_t i = first; !st && i < f->n; i++) f->entries[i].offset += 8 + (size_t)length;
    return st;
}
