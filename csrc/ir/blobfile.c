#include "blobfile.h"

#include "../weights/blob.h"
#include "../weights/weights.h"

#include <string.h>

#define BUCKETS 1024

typedef struct entry {
    struct entry *next;
    char *path;                 /* as written */
    ane_surface *file;          /* NULL: could not be opened, and that is allowed */
} entry;

struct ane_weight_files {
    const ane_parse_options *opts;
    entry *buckets[BUCKETS];    /* the ANE projects write one file per tensor */
};

ane_status ane_weight_files_create(const ane_parse_options *opts, ane_weight_files **out,
                                   ane_error *err) {
    ane_weight_files *f = ane_calloc(1, sizeof *f);
    if (!f) return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    f->opts = opts;
    *out = f;
    return ANE_OK;
}

void ane_weight_files_destroy(ane_weight_files *f) {
    if (!f) return;
    for (size_t i = 0; i < BUCKETS; i++)
        for (entry *e = f->buckets[i], *next; e; e = next) {
            next = e->next;
            ane_free(e->path);
            ane_surface_release(e->file);
            ane_free(e);
        }
    ane_free(f);
}

/* "@model_path/weights/x.bin" below weights_dir. Paths that would leave it are refused. */
static ane_status resolve(const char *dir, const char *path, char *out, size_t n,
                          ane_error *err) {
    static const char prefix[] = "@model_path/";
    const char *rest = path;
    if (!strncmp(path, prefix, sizeof prefix - 1)) rest = path + sizeof prefix - 1;
    for (const char *p = rest; *p; p += strcspn(p, "/"), p += *p == '/')
        if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2]))
            return ane_fail(err, ANE_ERR_INVALID,
                            "weight file '%s' lies outside the model's folder", path);
    if (*rest == '/' || !*rest)
        return ane_fail(err, ANE_ERR_INVALID,
                        "weight file '%s' is not a path below @model_path/", path);
    size_t a = strlen(dir), b = strlen(rest);
    if (a + b + 2 > n)
        return ane_fail(err, ANE_ERR_INVALID, "path of weight file '%.200s' is too long",
                        path);
    memcpy(out, dir, a);
    out[a] = '/';
    memcpy(out + a + 1, rest, b + 1);
    return ANE_OK;
}

static ane_status open_file(const ane_weight_files *f, const char *path, ane_surface **out,
                            ane_error *err) {
    const ane_parse_options *o = f->opts;
    char full[4096];
    if (o && o->open) {
        ane_status st = o->open(o->open_arg, path, out, err);
        if (st != ANE_ERR_NOT_FOUND || !o->weights_dir) return st;
    }
    if (!o || !o->weights_dir)
        return ane_fail(err, ANE_ERR_NOT_FOUND,
                        "weight file '%s' is needed and no weights were given (weights= "
                        "takes a folder or a mapping from path to bytes)",
                        path);
    ane_status st = resolve(o->weights_dir, path, full, sizeof full, err);
    return st ? st : ane_mapping_file(full, out, err);
}

static unsigned bucket_of(const char *path) {
    uint32_t h = 2166136261u;
    for (; *path; path++) h = (h ^ (unsigned char)*path) * 16777619u;
    return (h ^ h >> 16) % BUCKETS;
}

static ane_status find_file(ane_weight_files *f, const char *path, ane_surface **out,
                            ane_error *err) {
    entry **head = &f->buckets[bucket_of(path)];
    for (entry *e = *head; e; e = e->next)
        if (!strcmp(e->path, path)) {
            *out = e->file;
            return ANE_OK;
        }
    ane_status st;
    entry *e = ane_calloc(1, sizeof *e);
    if (!e || !(e->path = ane_strdup(path))) {
        ane_free(e);
        return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    }
    st = open_file(f, path, &e->file, err);
    bool absent = st == ANE_ERR_NOT_FOUND || st == ANE_ERR_OS;
    if (st && !(absent && f->opts && f->opts->allow_missing_weights)) {
        ane_free(e->path);
        ane_free(e);
        return st;
    }
    e->next = *head;
    *head = e;
    *out = e->file;
    return ANE_OK;
}

ane_status ane_weight_files_const(ane_weight_files *f, ane_program *p, const ane_type *type,
                                  const char *path, uint64_t offset, int line, int column,
                                  const ane_const **out, ane_error *err) {
    ane_surface *file = NULL;
    ane_blob blob = {0};
    int64_t count = type->kind == ANE_T_TENSOR ? ane_type_count(type) : -1;
    if (count < 0 || !ane_blob_code(type->dtype)) {
        char text[ANE_TYPE_TEXT];
        return ane_fail(err, ANE_ERR_INVALID,
                        "a weight file cannot hold a constant of type %s",
                        ane_type_text(type, text, sizeof text));
    }
    ane_status st = find_file(f, path, &file, err);
    if (st) return st;
    if (!file) {
        *out = ane_const_blob(p, type, NULL, 0, 0, path, offset, err);
        return *out ? ANE_OK : ANE_ERR_NOMEM;
    }
    st = ane_blob_view(file, offset, type->dtype, (uint64_t)count, 0, &blob, err);
    if (st) {
        ane_error_prefix(err, "weight file '%.200s': ", path);
        return st;
    }
    size_t size = ane_dtype_size(type->dtype);
    const char *data = (const char *)ane_surface_base(file) + blob.offset;
    ane_surface *copy = NULL;
    if (size && (uintptr_t)data % size) {
        /* An unaligned record: kernels read whole elements, so it is moved once. */
        st = ane_surface_create(ANE_MEM_HEAP, blob.bytes, NULL, &copy, err);
        if (st) return st;
        memcpy(ane_surface_base(copy), data, blob.bytes);
    }
    *out = ane_const_blob(p, type, copy ? copy : file, copy ? 0 : blob.offset, blob.bytes, path,
                          offset, err);
    ane_surface_release(copy);
    if (!*out) return ANE_ERR_NOMEM;
    if (blob.deviations) {
        char text[400];
        ane_blob_deviations(blob.deviations, text, sizeof text);
        ane_program_warn(p, line, column, "weight file '%.200s', record at %llu: %s", path,
                         (unsigned long long)offset, text);
    }
    return ANE_OK;
}
