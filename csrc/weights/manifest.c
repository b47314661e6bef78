/* The JSON files beside weights: the manifest of a raw binary file, and the index of a
 * model that is sharded over several safetensors files. */
#include "weights.h"

#include <inttypes.h>
#include <string.h>

#define MAX_FILES 1000          /* shards; each holds a descriptor while it is open */

static bool twice(ane_json *r, const char *field, const char *name) {
    return ane_json_fail(r, ANE_ERR_PARSE, "tensor '%.200s' has '%s' twice", name, field);
}

/* {"offset": u64, "size": u64, "shape": [..], "dtype": str, "bits"?: int}. Packed
 * quantized tensors are U32; their shape counts either words or the packed values. */
static bool tensor(ane_json *r, ane_weight *w, size_t file_bytes) {
    bool has_offset = false, has_size = false, has_shape = false, has_type = false;
    bool has_bits = false;
    uint64_t offset = 0, size = 0, count = 0, packed = 0, end = 0;
    int dtype = -1, bits = 0;
    ane_json_str key, text;
    for (ane_json_object(r); ane_json_key(r, &key);) {
        if (ane_json_is(&key, "offset")) {
            if (has_offset) return twice(r, "offset", w->name);
            has_offset = ane_json_u64(r, &offset);
        } else if (ane_json_is(&key, "size")) {
            if (has_size) return twice(r, "size", w->name);
            has_size = ane_json_u64(r, &size);
        } else if (ane_json_is(&key, "shape")) {
            if (has_shape) return twice(r, "shape", w->name);
            has_shape = ane__weight_shape(r, w, &count);
        } else if (ane_json_is(&key, "bits")) {
            if (has_bits) return twice(r, "bits", w->name);
            has_bits = ane_json_u64(r, &packed);
        } else if (ane_json_is(&key, "dtype")) {
            if (has_type) return twice(r, "dtype", w->name);
            if (!ane_json_string(r, &text)) return false;
            has_type = ane__weight_type(&text, &w->type, &dtype, &bits);
            if (!has_type)
                return ane_json_fail(r, ANE_ERR_UNSUPPORTED,
                                     "tensor '%.200s' has the unknown dtype '%.*s'", w->name,
                                     (int)(text.raw < 40 ? text.raw : 40), text.at);
        } else {
            ane_json_skip(r);
        }
        if (r->status) return false;
    }
    if (r->status) return false;
    if (!has_offset || !has_size || !has_shape || !has_type)
        return ane_json_fail(r, ANE_ERR_PARSE, "tensor '%.200s' has no '%s'", w->name,
                             !has_offset ? "offset" : !has_size ? "size"
                             : !has_shape ? "shape" : "dtype");
    if (__builtin_add_overflow(offset, size, &end)) end = UINT64_MAX;
    if (end > file_bytes)
        return ane_json_fail(r, ANE_ERR_PARSE,
                             "tensor '%.200s' is at [%" PRIu64 ", %" PRIu64
                             ") of a file of %zu bytes",
                             w->name, offset, end, file_bytes);
    uint64_t need = count * (uint64_t)bits / 8;         /* count <= 2^57, bits <= 64 */
    if (packed > 64)
        return ane_json_fail(r, ANE_ERR_PARSE,
                             "tensor '%.200s' has values of %" PRIu64 " bits; at most 64 are "
                             "possible", w->name, packed);
    if (dtype == ANE_U32 && !has_bits) packed = 4;
    w->bits = (unsigned char)packed;
    if (dtype == ANE_U32 && need != size) {
        if (packed && packed < 32 && w->rank && count * packed / 8 == size &&
            count * packed % 8 == 0 && w->shape[w->rank - 1] * (int64_t)packed % 32 == 0) {
            w->shape[w->rank - 1] = w->shape[w->rank - 1] * (int64_t)packed / 32;
            need = size;
        }
    }
    if (need != size || count * (uint64_t)bits % 8)
        return ane_json_fail(r, ANE_ERR_PARSE,
                             "tensor '%.200s' needs %" PRIu64 " bytes by its dtype and shape, "
                             "its size is %" PRIu64,
                             w->name, need, size);
    w->offset = (size_t)offset;
    w->bytes = (size_t)size;
    w->code = dtype < 0 ? ANE_WEIGHT_OPAQUE : ANE_WEIGHT_PLAIN;
    w->dtype = dtype < 0 ? ANE_DTYPE_COUNT : (ane_dtype)dtype;
    return true;
}

ane_status ane__manifest_read(ane_weight_file *f, const char *json, size_t n,
                              const char *json_path, size_t file_bytes, ane_error *err) {
    bool has_tensors = false;
    ane_json r;
    ane_json_str key;
    ane_json_init(&r, json, n, json_path, err);
    for (ane_json_object(&r); ane_json_key(&r, &key);) {
        if (!ane_json_is(&key, "tensors")) {
            ane_json_skip(&r);
            continue;
        }
        if (has_tensors) {
            ane_json_fail(&r, ANE_ERR_PARSE, "'tensors' is there twice");
            break;
        }
        has_tensors = true;
        for (ane_json_object(&r); ane_json_key(&r, &key);) {
            ane_weight *w = ane__weight_add(f);
            char *name = w ? ane_json_dup(f->arena, &key) : NULL;
            if (!name) return ane__weight_no_memory(json_path, err);
            if (strlen(name) != key.n) {
                ane_json_fail(&r, ANE_ERR_PARSE, "a tensor name contains NUL");
                break;
            }
            w->name = name;
            if (!tensor(&r, w, file_bytes)) break;
        }
    }
    ane_json_end(&r);
    if (!r.status && !has_tensors)
        ane_json_fail(&r, ANE_ERR_PARSE, "the manifest has no 'tensors'");
    return r.status;
}

/* ---------------------------------------------------------------- index of shards */

/* A file beside the index: no folder, nothing hidden, nothing that climbs. */
static bool plain(const char *name) { return name[0] && name[0] != '.' && !strchr(name, '/'); }

/* The list with room for one more; NULL without memory, the list as it was. */
static void *grow(void *list, size_t *capacity, size_t n, size_t size) {
    size_t want = *capacity ? *capacity * 2 : 64, bytes;
    if (n < *capacity) return list;
    if (!ane_mul_size(want, size, &bytes)) return NULL;
    void *p = ane_realloc(list, bytes);
    if (p) *capacity = want;
    return p;
}

void ane__index_free(ane_weight_index *x) {
    ane_free(x->files);
    ane_free(x->places);
    *x = (ane_weight_index){0};
}

/* {"metadata": {..}, "weight_map": {name: file}} */
ane_status ane__index_read(ane_arena *arena, const char *json, size_t n, const char *path,
                           ane_weight_index *out, ane_error *err) {
    bool has_map = false;
    ane_weight_index x = {0};
    ane_json r;
    ane_json_str key, value;
    ane_json_init(&r, json, n, path, err);
    for (ane_json_object(&r); ane_json_key(&r, &key);) {
        if (!ane_json_is(&key, "weight_map")) {
            ane_json_skip(&r);
            continue;
        }
        if (has_map) {
            ane_json_fail(&r, ANE_ERR_PARSE, "'weight_map' is there twice");
            break;
        }
        has_map = true;
        for (ane_json_object(&r); ane_json_key(&r, &key);) {
            if (!ane_json_string(&r, &value)) break;
            size_t k = x.n_files;
            /* The shards of a name list come in runs: look from the last one. */
            while (k > 0 && !ane_json_is(&value, x.files[k - 1])) k--;
            if (!k) {
                char *file = ane_json_dup(arena, &value);
                const char **files = grow(x.files, &x.cap_files, x.n_files, sizeof *files);
                if (files) x.files = files;
                if (!file || !files) {
                    ane_json_fail(&r, ANE_ERR_NOMEM, "no memory for the index");
                    break;
                }
                if (strlen(file) != value.n || !plain(file)) {
                    ane_json_fail(&r, ANE_ERR_PARSE, "'%.200s' is not the plain name of a file "
                                  "beside the index", file);
                    break;
                }
                if (x.n_files == MAX_FILES) {
                    ane_json_fail(&r, ANE_ERR_UNSUPPORTED, "more than %d shards", MAX_FILES);
                    break;
                }
                x.files[x.n_files++] = file;
                k = x.n_files;
            }
            char *name = ane_json_dup(arena, &key);
            struct ane_weight_place *places =
                grow(x.places, &x.cap_places, x.n_places, sizeof *places);
            if (places) x.places = places;
            if (!name || !places) {
                ane_json_fail(&r, ANE_ERR_NOMEM, "no memory for the index");
                break;
            }
            if (strlen(name) != key.n) {
                ane_json_fail(&r, ANE_ERR_PARSE, "a tensor name contains NUL");
                break;
            }
            x.places[x.n_places].name = name;
            x.places[x.n_places++].file = (unsigned)(k - 1);
        }
    }
    ane_json_end(&r);
    if (!r.status && !has_map)
        ane_json_fail(&r, ANE_ERR_PARSE, "the index has no 'weight_map'");
    if (r.status) ane__index_free(&x);
    else *out = x;
    return r.status;
}
