/* The public face of weight files: finding out what a file is, names to entries, entries
 * to tensors. */
#include "weights.h"

#include "../base/sync.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct handle {
    struct ane_weight_file file;        /* first: the public pointer is to it */
    atomic_long refs;
} handle;

ane_status ane__weight_no_memory(const char *path, ane_error *err) {
    return ane_fail(err, ANE_ERR_NOMEM, "no memory for what '%.200s' lists", path);
}

ane_weight *ane__weight_add(ane_weight_file *f) {
    if (f->n == f->capacity) {
        size_t want = f->capacity ? f->capacity * 2 : 64, bytes;
        if (!ane_mul_size(want, sizeof *f->entries, &bytes)) return NULL;
        ane_weight *p = ane_realloc(f->entries, bytes);
        if (!p) return NULL;
        f->entries = p;
        f->capacity = want;
    }
    ane_weight *w = &f->entries[f->n++];
    memset(w, 0, sizeof *w);
    w->name = "";
    return w;
}

bool ane__weight_add_meta(ane_weight_file *f, const char *key, const char *value) {
    if (f->n_meta == f->cap_meta) {
        size_t want = f->cap_meta ? f->cap_meta * 2 : 16, bytes;
        if (!ane_mul_size(want, sizeof *f->meta, &bytes)) return false;
        ane_weight_meta *p = ane_realloc(f->meta, bytes);
        if (!p) return false;
        f->meta = p;
        f->cap_meta = want;
    }
    f->meta[f->n_meta++] = (ane_weight_meta){key, value};
    return true;
}

/* FNV-like over eight bytes at a time, started where this table lies: a file cannot know which
 * names will meet. */
static size_t hash(const ane_weight_file *f, const char *name, size_t n) {
    const uint64_t prime = 0x9e3779b97f4a7c15u;
    uint64_t h = (uint64_t)(uintptr_t)f->index ^ n * prime, x;
    for (; n >= sizeof x; n -= sizeof x, name += sizeof x) {
        memcpy(&x, name, sizeof x);
        h = (h ^ x) * prime;
        h ^= h >> 29;
    }
    for (; n; n--) h = (h ^ (unsigned char)*name++) * prime;
    h *= prime;
    return (size_t)(h ^ h >> 32);
}

/* The place of name in the index: an entry's, or a free one. */
static uint32_t *place_of(const ane_weight_file *f, const char *name) {
    size_t at = hash(f, name, strlen(name));
    for (;; at++) {
        uint32_t *p = &f->index[at & f->index_mask];
        if (!*p || !strcmp(f->entries[*p - 1].name, name)) return p;
    }
}

ane_status ane__weight_index(ane_weight_file *f, ane_error *err) {
    size_t places = 4, bytes;
    if (f->n >= UINT32_MAX / 2) return ane__weight_no_memory(f->path, err);
    while (places < 2 * f->n) places *= 2;
    f->index = ane_mul_size(places, sizeof *f->index, &bytes) ? ane_calloc(1, bytes) : NULL;
    if (!f->index) return ane__weight_no_memory(f->path, err);
    f->index_mask = places - 1;
    for (size_t i = 0; i < f->n; i++) {
        uint32_t *p = place_of(f, f->entries[i].name);
        if (*p)
            return ane_fail(err, ANE_ERR_PARSE, "'%s': the tensor name '%.200s' is there twice",
                            f->path, f->entries[i].name);
        *p = (uint32_t)i + 1;
    }
    return ANE_OK;
}

const ane_weight *ane__weight_find(const ane_weight_file *f, const char *name) {
    uint32_t at = f->index ? *place_of(f, name) : 0;
    return at ? &f->entries[at - 1] : NULL;
}

const char *ane__weight_at(const ane_weight_file *f, unsigned shard, size_t offset,
                           size_t bytes) {
    for (size_t i = 0; i < f->n; i++) {
        const ane_weight *w = &f->entries[i];
        if (w->shard == shard && w->bytes &&
            (w->offset < offset ? offset - w->offset < w->bytes : w->offset - offset < bytes))
            return w->name;
    }
    return NULL;
}

static void destroy(ane_weight_file *f) {
    for (size_t i = 0; i < f->n_shards; i++) ane_mapping_release(f->shards[i]);
    ane_free(f->shards);
    ane_free(f->entries);
    ane_free(f->index);
    ane_free(f->meta);
    ane_arena_destroy(f->arena);
    ane_free(f);
}

static ane_status create(const char *path, size_t shards, ane_weight_file **out,
                         ane_error *err) {
    handle *h = ane_calloc(1, sizeof *h);
    if (!h) return ane__weight_no_memory(path, err);
    atomic_init(&h->refs, 1);
    ane_weight_file *f = &h->file;
    f->arena = ane_arena_create();
    f->shards = ane_calloc(shards, sizeof *f->shards);
    f->path = f->arena ? ane_arena_strndup(f->arena, path, strlen(path)) : NULL;
    if (!f->arena || !f->shards || !f->path) {
        destroy(f);
        return ane__weight_no_memory(path, err);
    }
    *out = f;
    return ANE_OK;
}

static ane_status add_shard(ane_weight_file *f, const char *path, ane_error *err) {
    ane_status st = ane_mapping_open(path, &f->shards[f->n_shards], err);
    if (!st) f->n_shards++;
    return st;
}

/* ---------------------------------------------------------------- opening */

static ane_status open_manifest(const char *bin, const char *json, ane_weight_file **out,
                                ane_error *err) {
    ane_weight_file *f = NULL;
    ane_mapping *text = NULL;
    ane_status st = create(bin, 1, &f, err);
    if (!st) st = add_shard(f, bin, err);
    if (!st) st = ane_mapping_open(json, &text, err);
    if (!st) {
        f->format = "manifest";
        st = ane__manifest_read(f, (const char *)ane_mapping_base(text),
                                ane_mapping_bytes(text), json,
                                ane_mapping_bytes(f->shards[0]), err);
    }
    if (!st) st = ane__weight_index(f, err);
    ane_mapping_release(text);
    if (st && f) destroy(f);
    if (!st) *out = f;
    return st;
}

/* path with its last component replaced by name. */
static char *beside(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    size_t head = slash ? (size_t)(slash - path) + 1 : 0, n = strlen(name);
    char *p = ane_malloc(head + n + 1);
    if (!p) return NULL;
    if (head) memcpy(p, path, head);
    memcpy(p + head, name, n + 1);
    return p;
}

static int place_by_name(const void *a, const void *b) {
    return strcmp(((const struct ane_weight_place *)a)->name,
                  ((const struct ane_weight_place *)b)->name);
}

/* Keeps the entries that the index puts where they were found; every name of the index
 * must be there. Entries of other shards under the same name are not part of the model. */
static ane_status apply_index(ane_weight_file *f, ane_weight_index *x, ane_error *err) {
    qsort(x->places, x->n_places, sizeof *x->places, place_by_name);
    for (size_t i = 1; i < x->n_places; i++)
        if (!strcmp(x->places[i - 1].name, x->places[i].name))
            return ane_fail(err, ANE_ERR_PARSE, "'%s': the tensor name '%.200s' is there twice",
                            f->path, x->places[i].name);
    size_t kept = 0;
    for (size_t i = 0; i < f->n; i++) {
        struct ane_weight_place want = {f->entries[i].name, 0}, *p;
        p = bsearch(&want, x->places, x->n_places, sizeof *x->places, place_by_name);
        if (p && p->file == f->entries[i].shard) f->entries[kept++] = f->entries[i];
    }
    f->n = kept;
    ane_status st = ane__weight_index(f, err);
    for (size_t i = 0; !st && i < x->n_places; i++)
        if (!ane__weight_find(f, x->places[i].name))
            st = ane_fail(err, ANE_ERR_PARSE, "'%s': tensor '%.200s' is not in '%s'", f->path,
                          x->places[i].name, x->files[x->places[i].file]);
    return st;
}

static ane_status open_index(const char *path, const ane_mapping *text,
                             ane_weight_file **out, ane_error *err) {
    ane_weight_file *f = NULL;
    ane_weight_index x = {0};
    ane_arena *arena = ane_arena_create();
    ane_status st = arena ? ANE_OK : ane__weight_no_memory(path, err);
    if (!st) st = ane__index_read(arena, (const char *)ane_mapping_base(text),
                                  ane_mapping_bytes(text), path, &x, err);
    if (!st) st = create(path, x.n_files, &f, err);
    for (size_t i = 0; !st && i < x.n_files; i++) {
        char *shard = beside(path, x.files[i]);
        st = shard ? add_shard(f, shard, err) : ane__weight_no_memory(path, err);
        if (!st) st = ane__safetensors_read(f, ane_mapping_base(f->shards[i]),
                                            ane_mapping_bytes(f->shards[i]), shard,
                                            (unsigned)i, err);
        ane_free(shard);
    }
    if (!st) {
        f->format = "safetensors";
        st = apply_index(f, &x, err);
    }
    ane__index_free(&x);
    ane_arena_destroy(arena);
    if (st && f) destroy(f);
    if (!st) *out = f;
    return st;
}

/* A JSON text is an index or a manifest; the latter's data is beside it as STEM.bin. */
static ane_status open_json(const char *path, const ane_mapping *m, ane_weight_file **out,
                            ane_error *err) {
    bool index = false, manifest = false;
    ane_json r;
    ane_json_str key;
    ane_json_init(&r, (const char *)ane_mapping_base(m), ane_mapping_bytes(m), path, err);
    for (ane_json_object(&r); ane_json_key(&r, &key); ane_json_skip(&r)) {
        index |= ane_json_is(&key, "weight_map");
        manifest |= ane_json_is(&key, "tensors");
    }
    ane_json_end(&r);
    if (r.status) return r.status;
    if (index == manifest)
        return ane_fail(err, ANE_ERR_PARSE,
                        "'%s' is JSON with %s: expected either 'weight_map' (an index of "
                        "shards) or 'tensors' (a manifest)",
                        path, index ? "both 'weight_map' and 'tensors'" : "neither");
    if (index) return open_index(path, m, out, err);
    size_t n = strlen(path);
    if (n > 5 && !strcmp(path + n - 5, ".json")) n -= 5;
    char *bin = ane_malloc(n + 5);
    if (!bin) return ane__weight_no_memory(path, err);
    memcpy(bin, path, n);
    memcpy(bin + n, ".bin", 5);
    ane_status st = open_manifest(bin, path, out, err);
    ane_free(bin);
    return st;
}

ane_status ane_weight_open(const char *path, const char *manifest, ane_weight_file **out,
                           ane_error *err) {
    ane_weight_file *f = NULL;
    if (manifest) return open_manifest(path, manifest, out, err);
    ane_status st = create(path, 1, &f, err);
    if (!st) st = add_shard(f, path, err);
    if (st) goto fail;
    const unsigned char *base = ane_mapping_base(f->shards[0]);
    size_t n = ane_mapping_bytes(f->shards[0]), i = 0;
    if (n >= 4 && !memcmp(base, "GGUF", 4)) {
        f->format = "gguf";
        st = ane__gguf_read(f, base, n, path, err);
    } else {
        /* safetensors has '{' at byte 8, behind a length that is never blanks and '{'. */
        while (i < n && i < 4096 && (base[i] == ' ' || base[i] == '\n' || base[i] == '\r' ||
                                     base[i] == '\t'))
            i++;
        if (i < n && base[i] == '{' && !(n > 8 && base[8] == '{' && !base[7])) {
            st = open_json(path, f->shards[0], out, err);
            destroy(f);
            return st;
        }
        f->format = "safetensors";
        st = ane__safetensors_read(f, base, n, path, 0, err);
    }
    if (!st) st = ane__weight_index(f, err);
    if (st) goto fail;
    *out = f;
    return ANE_OK;
fail:
    if (f) destroy(f);
    return st;
}

/* ---------------------------------------------------------------- handles, entries */

ane_weight_file *ane_weight_retain(ane_weight_file *f) {
    if (f) atomic_fetch_add_explicit(&((handle *)(void *)f)->refs, 1, memory_order_relaxed);
    return f;
}

void ane_weight_release(ane_weight_file *f) {
    handle *h = (handle *)(void *)f;
    if (f && atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) == 1) destroy(f);
}

size_t ane_weight_count(const ane_weight_file *f) { return f->n; }
const char *ane_weight_format(const ane_weight_file *f) { return f->format; }
const char *ane_weight_path(const ane_weight_file *f) { return f->path; }

bool ane_weight_find(const ane_weight_file *f, const char *name, size_t *index) {
    const ane_weight *w = ane__weight_find(f, name);
    if (w) *index = (size_t)(w - f->entries);
    return w != NULL;
}

void ane_weight_info(const ane_weight_file *f, size_t i, ane_weight_entry *out) {
    const ane_weight *w = &f->entries[i];
    *out = (ane_weight_entry){.name = w->name, .type = w->type, .dtype = w->dtype,
                              .rank = w->rank, .file = w->shard, .offset = w->offset,
                              .bytes = w->bytes, .bits = w->bits};
    memcpy(out->shape, w->shape, sizeof out->shape);
}

bool ane_weight_metadata(const ane_weight_file *f, size_t i, const char **key,
                         const char **value) {
    if (i >= f->n_meta) return false;
    *key = f->meta[i].key;
    *value = f->meta[i].value;
    return true;
}

size_t ane_weight_file_count(const ane_weight_file *f) { return f->n_shards; }
const char *ane_weight_file_path(const ane_weight_file *f, size_t i) {
    return ane_mapping_path(f->shards[i]);
}
size_t ane_weight_file_bytes(const ane_weight_file *f, size_t i) {
    return ane_mapping_bytes(f->shards[i]);
}

ane_status ane_weight_check(const ane_weight_file *f, size_t i, ane_error *err) {
    return ane_mapping_check(f->shards[f->entries[i].shard], f->entries[i].name, err);
}

ane_status ane_weight_surface(const ane_weight_file *f, size_t i, ane_surface **out,
                              ane_error *err) {
    ane_status st = ane_mapping_check(f->shards[i], NULL, err);
    return st ? st : ane__weight_wrap(f, (unsigned)i, true, out, err);
}

/* ---------------------------------------------------------------- tensors */

typedef struct dequant {
    float *dst;
    const unsigned char *src;
    size_t n, block;
    ane_weight_code code;
} dequant;

static void dequant_block(void *arg, size_t i) {
    const dequant *d = arg;
    size_t lo = i * d->block, n = d->n - lo > d->block ? d->block : d->n - lo;
    ane_gguf_dequant(d->dst + lo, d->src + lo / 32 * (d->code == ANE_WEIGHT_Q8_0 ? 34 : 18), n,
                     d->code);
}

/* Memory of its own: quantized entries, and plain ones whose file puts them at an address
 * that their type must not have. */
static ane_status copied(const ane_weight *w, const unsigned char *src, ane_surface **out,
                         ane_error *err) {
    size_t bytes;
    ane_surface *s = NULL;
    if (!ane_shape_bytes(w->rank, w->shape, ane_dtype_size(w->dtype), &bytes))
        return ane_fail(err, ANE_ERR_SHAPE, "tensor '%.200s' overflows a size", w->name);
    ane_status st = ane_surface_create(ANE_MEM_HEAP, bytes, w->name, &s, err);
    if (st) return st;
    if (w->code == ANE_WEIGHT_PLAIN) {
        if (bytes) memcpy(ane_surface_base(s), src, bytes);
    } else {
        dequant d = {ane_surface_base(s), src, bytes / 4, 32 * 2048, (ane_weight_code)w->code};
        ane_parallel_for((d.n + d.block - 1) / d.block, dequant_block, &d);
    }
    *out = s;
    return ANE_OK;
}

ane_status ane_weight_get(const ane_weight_file *f, size_t i, ane_tensor *out,
                          ane_error *err) {
    const ane_weight *w = &f->entries[i];
    ane_mapping *m = f->shards[w->shard];
    ane_status st = ane_mapping_check(m, w->name, err);
    if (st) return st;
    if (w->code == ANE_WEIGHT_OPAQUE)
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "tensor '%.200s' of '%s' is stored as %s, which is not supported",
                        w->name, ane_mapping_path(m), w->type);
    ane_surface *s = NULL;
    size_t size = ane_dtype_size(w->dtype), offset = w->offset;
    if (w->code != ANE_WEIGHT_PLAIN || offset % size) {
        st = copied(w, ane_mapping_base(m) + offset, &s, err);
        offset = 0;
        /* It may have been cut under the copy (with the handler of guard.c). */
        if (!st && (st = ane_mapping_check(m, w->name, err))) ane_surface_release(s);
    } else {
        st = ane__weight_wrap(f, w->shard, false, &s, err);
    }
    if (st) return st;
    if ((st = ane_tensor_init(out, s, offset, w->dtype, w->rank, w->shape, err)))
        ane_surface_release(s);
    return st;
}
