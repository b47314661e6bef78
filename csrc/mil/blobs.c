/* Weight files of a text: opened once per parse, mapped, and viewed by constants. */
#include "parse.h"

#include "../weights/blob.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODEL_PATH "@model_path/"

static unsigned bucket(const char *path) {
    uint32_t h = 2166136261u;
    for (; *path; path++) h = (h ^ (unsigned char)*path) * 16777619u;
    return (h ^ h >> 16) % ANE_BLOB_BUCKETS;
}

/* A text must not reach files outside its own folder. */
static bool inside(const char *path) {
    if (*path == '/' || !*path) return false;
    for (const char *s = path; s; s = strchr(s, '/')) {
        if (*s == '/') s++;
        if (!strncmp(s, "..", 2) && (!s[2] || s[2] == '/')) return false;
    }
    return true;
}

typedef struct mapping {
    void *base;
    size_t bytes;
} mapping;

static void unmap(void *arg) {
    mapping *m = arg;
    if (m->bytes) munmap(m->base, m->bytes);
    ane_free(m);
}

/* Maps a whole file read-only. */
static ane_status map_file(const char *path, ane_surface **out, ane_error *err) {
    mapping *m = ane_calloc(1, sizeof *m);
    if (!m) return ane_fail(err, ANE_ERR_NOMEM, "out of memory");
    ane_status st = ANE_OK;
    struct stat s;
    /* O_NONBLOCK: a FIFO in the place of a weight file must not hang the parse. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &s)) {
        st = ane_fail_os(err, errno, "%.200s", path);
        goto done;
    }
    if (!S_ISREG(s.st_mode)) {
        st = ane_fail(err, ANE_ERR_PARSE, "%.200s is not a regular file", path);
        goto done;
    }
    m->bytes = (size_t)s.st_size;
    static char empty[1];
    m->base = empty;
    if (m->bytes) {
        m->base = mmap(NULL, m->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (m->base == MAP_FAILED) {
            st = ane_fail_os(err, errno, "mapping %.200s", path);
            m->bytes = 0;
            goto done;
        }
    }
    st = ane_surface_wrap(m->base, m->bytes, true, unmap, m, out, err);
    if (!st) m = NULL;
done:
    if (fd >= 0) close(fd);
    if (m) unmap(m);
    return st;
}

static ane_status open_file(ane_parser *ps, const char *path, ane_surface **out) {
    const ane_parse_options *o = ps->opts;
    const char *dir = o ? o->weights_dir : NULL;
    if (o && o->open) {
        ane_status st = o->open(o->open_arg, path, out, ps->err);
        if (st != ANE_ERR_NOT_FOUND || !dir) return st;
    }
    if (!dir)
        return ane_fail(ps->err, ANE_ERR_NOT_FOUND,
                        "weight file \"%.200s\": no weights were given", path);
    const char *rest = path;
    if (!strncmp(path, MODEL_PATH, sizeof MODEL_PATH - 1)) rest += sizeof MODEL_PATH - 1;
    if (!inside(rest))
        return ane_fail(ps->err, ANE_ERR_PARSE,
                        "weight file \"%.200s\" lies outside the model's folder", path);
    char *full = ane_arena_printf(ps->tmp, "%s/%s", dir, rest);
    if (!full) return ane__parse_nomem(ps);
    return map_file(full, out, ps->err);
}

static ane_status find_file(ane_parser *ps, const char *path, ane_surface **out) {
    ane_blob_file **head = &ps->files[bucket(path)];
    for (ane_blob_file *f = *head; f; f = f->next)
        if (!strcmp(f->path, path)) {
            *out = f->surface;
            return ANE_OK;
        }
    ane_blob_file *f = ane_arena_alloc(ps->tmp, sizeof *f);
    if (!f) return ane__parse_nomem(ps);
    ane_error local = {0}, *err = ps->err;
    ane_surface *s = NULL;
    ps->err = &local;
    ane_status st = open_file(ps, path, &s);
    ps->err = err;
    if (st) {
        bool absent = st == ANE_ERR_NOT_FOUND || (st == ANE_ERR_OS && local.code == ENOENT);
        if (!absent || !ps->opts || !ps->opts->allow_missing_weights) {
            if (err) *err = local;
            return st;
        }
        ane_program_warn(ps->p, ps->tok.line, ps->tok.column, "%s", local.message);
        s = NULL;
    }
    f->path = ane_arena_strndup(ps->tmp, path, strlen(path));
    if (!f->path) {
        ane_surface_release(s);
        return ane__parse_nomem(ps);
    }
    f->surface = s;
    f->next = *head;
    *head = f;
    *out = s;
    return ANE_OK;
}

void ane__parse_blobs_close(ane_parser *ps) {
    for (int i = 0; i < ANE_BLOB_BUCKETS; i++)
        for (ane_blob_file *f = ps->files[i]; f; f = f->next) ane_surface_release(f->surface);
}

ane_status ane__parse_blob(ane_parser *ps, const ane_token *at, const ane_type *type,
                           const char *path, uint64_t offset, const ane_const **out) {
    char text[ANE_TYPE_TEXT];
    int64_t count = ane_type_count(type);
    if (type->kind != ANE_T_TENSOR || count < 0 || !ane_blob_code(type->dtype))
        return ane__parse_fail(ps, at, "a constant of type %s cannot be in a weight file",
                               ane_type_text(type, text, sizeof text));
    ane_surface *file = NULL;
    ane_status st = find_file(ps, path, &file);
    if (st) return ane__parse_at(ps, at, st);
    ane_blob blob = {0};
    if (file) {
        st = ane_blob_view(file, offset, type->dtype, (uint64_t)count, 0, &blob, ps->err);
        if (st) {
            ane_error_prefix(ps->err, "weight file \"%.200s\": ", path);
            return ane__parse_at(ps, at, st);
        }
        if (blob.deviations) {
            char words[400];
            ane_blob_deviations(blob.deviations, words, sizeof words);
            ane_program_warn(ps->p, at->line, at->column, "weight file \"%.200s\", record at "
                             "%llu: %s", path, (unsigned long long)offset, words);
        }
    }
    size_t size = ane_dtype_size(type->dtype);
    const char *data = file ? (const char *)ane_surface_base(file) + blob.offset : NULL;
    if (data && size && (uintptr_t)data % size) {
        /* An unaligned record: kernels read whole elements, so it is moved once. */
        ane_surface *copy = NULL;
        st = ane_surface_create(ANE_MEM_HEAP, blob.bytes, NULL, &copy, ps->err);
        if (st) return st;
        memcpy(ane_surface_base(copy), data, blob.bytes);
        *out = ane_const_blob(ps->p, type, copy, 0, blob.bytes, path, offset, ps->err);
        ane_surface_release(copy);
    } else {
        *out = ane_const_blob(ps->p, type, file, blob.offset, blob.bytes, path, offset, ps->err);
    }
    return *out ? ANE_OK : ps->err ? ps->err->status : ANE_ERR_NOMEM;
}
