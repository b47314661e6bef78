/* Streaming, atomic writer of safetensors.
 *
 * The layout is known from names, dtypes and shapes before the first byte of data, so data
 * is written in place as it comes and nothing is held. The file is made under a temporary
 * name in the same folder (".NAME.PID.tmp"), so a crash leaves the old file alone and at
 * most one such leftover; commit makes data, name and folder durable in this order. */
#include "weights.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAYLOAD_ALIGN ANE_MAPPING_UNIT
#define MAX_HEADER 100000000u

typedef struct slot {
    const char *name;
    size_t bytes, offset, done;
    int align;
} slot;

struct ane_weight_writer {
    ane_arena *arena;
    const char *path;                   /* as given, for messages */
    const char *name, *temporary;       /* in the folder */
    slot *slots;
    size_t n;
    int fd, folder;                     /* -1: none; by descriptor, chdir does not matter */
    bool created, committed;
};

/* ---------------------------------------------------------------- header text */

typedef struct out {
    char *p;
    size_t n, capacity;
    bool failed;
} out;

static void put(out *o, const char *s, size_t n) {
    if (o->failed) return;
    if (o->capacity - o->n < n) {
        size_t want = (o->n + n) * 2 + 256;
        char *p = want > MAX_HEADER * 4ull ? NULL : ane_realloc(o->p, want);
        if (!p) {
            o->failed = true;
            return;
        }
        o->p = p;
        o->capacity = want;
    }
    memcpy(o->p + o->n, s, n);
    o->n += n;
}
static void puts_(out *o, const char *s) { put(o, s, strlen(s)); }

static void quote(out *o, const char *s) {
    char code[8];
    put(o, "\"", 1);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            put(o, "\\", 1);
            put(o, s, 1);
        } else if (c < 0x20) {
            snprintf(code, sizeof code, "\\u%04x", c);
            puts_(o, code);
        } else {
            put(o, s, 1);
        }
    }
    put(o, "\"", 1);
}

static const char *type_name(ane_dtype d) {
    switch (d) {
    case ANE_F16: return "F16";
    case ANE_F32: return "F32";
    case ANE_F64: return "F64";
    case ANE_BF16: return "BF16";
    case ANE_BOOL: return "BOOL";
    case ANE_I8: return "I8";
    case ANE_I16: return "I16";
    case ANE_I32: return "I32";
    case ANE_I64: return "I64";
    case ANE_U8: return "U8";
    case ANE_U16: return "U16";
    case ANE_U32: return "U32";
    case ANE_U64: return "U64";
    case ANE_F8E4M3: return "F8_E4M3";
    case ANE_F8E5M2: return "F8_E5M2";
    default: return NULL;
    }
}

static int by_align_then_name(const void *a, const void *b) {
    const slot *x = *(const slot *const *)a, *y = *(const slot *const *)b;
    return x->align != y->align ? (x->align > y->align ? -1 : 1) : strcmp(x->name, y->name);
}

static int by_key(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static ane_status check_text(const char *what, const char *s, ane_error *err) {
    return ane_utf8_valid(s, strlen(s))
               ? ANE_OK
               : ane_fail(err, ANE_ERR_INVALID, "[safetensors] %s is not UTF-8", what);
}

/* Sizes and offsets into w->slots, the header's bytes (padded, length in front) into *o. */
static ane_status layout(ane_weight_writer *w, const ane_weight_spec *specs,
                         const char *const (*metadata)[2], size_t n_metadata, out *o,
                         size_t *total, ane_error *err) {
    const slot **order = ane_malloc(w->n * sizeof *order);
    const char *(*meta)[2] = ane_malloc(n_metadata * sizeof *meta);
    ane_status st = order && meta ? ANE_OK : ane__weight_no_memory(w->path, err);
    char text[96];
    size_t at = 0;
    for (size_t i = 0; !st && i < w->n; i++) {
        slot *s = &w->slots[i];
        order[i] = s;
        s->align = (int)ane_dtype_size(specs[i].dtype);
        if (!type_name(specs[i].dtype))
            st = ane_fail(err, ANE_ERR_DTYPE, "[safetensors] '%.200s': %s cannot be stored",
                          s->name, ane_dtype_name(specs[i].dtype));
        else if (specs[i].rank < 0 || specs[i].rank > ANE_MAX_RANK ||
                 !ane_shape_bytes(specs[i].rank, specs[i].shape, (size_t)s->align, &s->bytes))
            st = ane_fail(err, ANE_ERR_SHAPE, "[safetensors] '%.200s': the shape is not valid",
                          s->name);
        else if (!strcmp(s->name, "__metadata__"))
            st = ane_fail(err, ANE_ERR_INVALID, "[safetensors] '__metadata__' is no name for a "
                          "tensor");
        else st = check_text("a tensor's name", s->name, err);
    }
    if (!st) qsort(order, w->n, sizeof *order, by_align_then_name);
    for (size_t i = 0; !st && i < w->n; i++) {
        slot *s = &w->slots[order[i] - w->slots];
        if (i && !strcmp(order[i - 1]->name, s->name))
            st = ane_fail(err, ANE_ERR_INVALID, "[safetensors] the name '%.200s' is there twice",
                          s->name);
        s->offset = at;
        if (!st && !ane_add_size(at, s->bytes, &at))
            st = ane_fail(err, ANE_ERR_SHAPE, "[safetensors] the tensors overflow a size");
    }
    for (size_t i = 0; !st && i < n_metadata; i++) {
        meta[i][0] = metadata[i][0], meta[i][1] = metadata[i][1];
        st = check_text("a metadata key", meta[i][0], err);
        if (!st) st = check_text("a metadata value", meta[i][1], err);
    }
    if (st) goto done;
    if (n_metadata) qsort(meta, n_metadata, sizeof *meta, by_key);
    put(o, "\0\0\0\0\0\0\0\0{", 9);
    if (n_metadata) puts_(o, "\"__metadata__\":{");
    for (size_t i = 0; i < n_metadata; i++) {
        if (i) put(o, ",", 1);
        quote(o, meta[i][0]);
        put(o, ":", 1);
        quote(o, meta[i][1]);
    }
    if (n_metadata) put(o, "}", 1);
    for (size_t i = 0; i < w->n; i++) {
        const slot *s = order[i];
        const ane_weight_spec *spec = &specs[s - w->slots];
        if (i || n_metadata) put(o, ",", 1);
        quote(o, s->name);
        snprintf(text, sizeof text, ":{\"dtype\":\"%s\",\"shape\":[", type_name(spec->dtype));
        puts_(o, text);
        for (int d = 0; d < spec->rank; d++) {
            snprintf(text, sizeof text, "%s%" PRId64, d ? "," : "", spec->shape[d]);
            puts_(o, text);
        }
        snprintf(text, sizeof text, "],\"data_offsets\":[%zu,%zu]}", s->offset,
                 s->offset + s->bytes);
        puts_(o, text);
    }
    put(o, "}", 1);
    while (!o->failed && o->n % PAYLOAD_ALIGN) put(o, " ", 1);
    if (o->failed) {
        st = ane__weight_no_memory(w->path, err);
    } else if (o->n - 8 > MAX_HEADER) {
        st = ane_fail(err, ANE_ERR_INVALID, "[safetensors] a header of %zu bytes; readers accept "
                      "%u", o->n - 8, MAX_HEADER);
    } else {
        uint64_t length = o->n - 8;
        memcpy(o->p, &length, 8);
        for (size_t i = 0; i < w->n; i++) w->slots[i].offset += o->n;
        if (!ane_add_size(o->n, at, total))
            st = ane_fail(err, ANE_ERR_SHAPE, "[safetensors] the tensors overflow a size");
    }
done:
    ane_free(order);
    ane_free(meta);
    return st;
}

/* ---------------------------------------------------------------- file */

static ane_status write_at(ane_weight_writer *w, const char *p, size_t n, size_t at,
                           ane_error *err) {
    while (n) {
        ssize_t k = pwrite(w->fd, p, n > 1u << 30 ? 1u << 30 : n, (off_t)at);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0)
            return ane_fail_os(err, k < 0 ? errno : ENOSPC, "cannot write '%s'", w->path);
        p += k;
        n -= (size_t)k;
        at += (size_t)k;
    }
    return ANE_OK;
}

/* Takes the space now: a full disk is found before minutes of writing, not after. File
 * systems that cannot are asked nothing (the portable emulation would write it all). */
static ane_status reserve(ane_weight_writer *w, size_t total, ane_error *err) {
    (void)w, (void)total, (void)err;
#ifdef __linux__
    if (total && fallocate(w->fd, 0, 0, (off_t)total) && (errno == ENOSPC || errno == EDQUOT ||
                                                         errno == EFBIG))
        return ane_fail_os(err, errno, "no room for the %zu bytes of '%s'", total, w->path);
#endif
    return ANE_OK;
}

static ane_status open_folder(ane_weight_writer *w, const char *path, ane_error *err) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (!*name) return ane_fail(err, ANE_ERR_INVALID, "'%s' names no file", path);
    const char *folder = slash == path ? "/"
                       : slash ? ane_arena_strndup(w->arena, path, (size_t)(slash - path))
                               : ".";
    w->path = ane_arena_strndup(w->arena, path, strlen(path));
    w->name = ane_arena_strndup(w->arena, name, strlen(name));
    w->temporary = ane_arena_printf(w->arena, ".%s.%ld.tmp", name, (long)getpid());
    if (!folder || !w->path || !w->name || !w->temporary)
        return ane__weight_no_memory(path, err);
    w->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return w->folder < 0 ? ane_fail_os(err, errno, "cannot create '%s'", path) : ANE_OK;
}

ane_status ane_weight_writer_create(const char *path, const ane_weight_spec *specs, size_t n,
                                    const char *const (*metadata)[2], size_t n_metadata,
                                    ane_weight_writer **result, ane_error *err) {
    out header = {0};
    size_t total = 0;
    ane_weight_writer *w = ane_calloc(1, sizeof *w);
    if (!w) return ane__weight_no_memory(path, err);
    w->fd = w->folder = -1;
    w->n = n;
    w->arena = ane_arena_create();
    w->slots = ane_calloc(n, sizeof *w->slots);
    ane_status st = w->arena && w->slots ? open_folder(w, path, err)
                                         : ane__weight_no_memory(path, err);
    for (size_t i = 0; !st && i < n; i++)
        if (!(w->slots[i].name = ane_arena_strndup(w->arena, specs[i].name,
                                                   strlen(specs[i].name))))
            st = ane__weight_no_memory(path, err);
    if (!st) st = layout(w, specs, metadata, n_metadata, &header, &total, err);
    if (!st) {
        unlinkat(w->folder, w->temporary, 0);   /* of an earlier process with our number */
        w->fd = openat(w->folder, w->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        w->created = w->fd >= 0;
        if (w->fd < 0) st = ane_fail_os(err, errno, "cannot create '%s'", path);
    }
    if (!st) st = reserve(w, total, err);
    if (!st && ftruncate(w->fd, (off_t)total))
        st = ane_fail_os(err, errno, "cannot set the size of '%s' to %zu bytes", path, total);
    if (!st) st = write_at(w, header.p, header.n, 0, err);
    ane_free(header.p);
    if (st) ane_weight_writer_destroy(w);
    else *result = w;
    return st;
}

ane_status ane_weight_writer_append(ane_weight_writer *w, size_t i, const void *data,
                                    size_t bytes, ane_error *err) {
    if (i >= w->n)
        return ane_fail(err, ANE_ERR_INDEX, "[safetensors] entry %zu of %zu", i, w->n);
    slot *s = &w->slots[i];
    if (bytes > s->bytes - s->done)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[safetensors] '%.200s' has %zu bytes, %zu are written and %zu more were "
                        "given",
                        s->name, s->bytes, s->done, bytes);
    ane_status st = write_at(w, data, bytes, s->offset + s->done, err);
    if (!st) s->done += bytes;
    return st;
}

static ane_status sync_folder(const ane_weight_writer *w, ane_error *err) {
    /* Some file systems have no fsync for folders; there the rename is all one can do. */
    if (fsync(w->folder) && errno != EINVAL && errno != ENOTSUP && errno != EROFS)
        return ane_fail_os(err, errno, "'%s' is written, but its folder cannot be synced",
                           w->path);
    return ANE_OK;
}

ane_status ane_weight_writer_commit(ane_weight_writer *w, ane_error *err) {
    if (w->committed)
        return ane_fail(err, ANE_ERR_INVALID, "[safetensors] '%s' is already written", w->path);
    for (size_t i = 0; i < w->n; i++)
        if (w->slots[i].done != w->slots[i].bytes)
            return ane_fail(err, ANE_ERR_INVALID,
                            "[safetensors] '%.200s' is not complete: %zu of %zu bytes are written",
                            w->slots[i].name, w->slots[i].done, w->slots[i].bytes);
    int bad;
    do bad = fsync(w->fd);
    while (bad && errno == EINTR);
    if (bad) return ane_fail_os(err, errno, "cannot sync '%s'", w->path);
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) && errno != EINTR)
        return ane_fail_os(err, errno, "cannot close '%s'", w->path);
    if (renameat(w->folder, w->temporary, w->folder, w->name))
        return ane_fail_os(err, errno, "cannot move the finished file to '%s'", w->path);
    w->committed = true;
    return sync_folder(w, err);
}

void ane_weight_writer_destroy(ane_weight_writer *w) {
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->created && !w->committed) unlinkat(w->folder, w->temporary, 0);
    if (w->folder >= 0) close(w->folder);
    ane_arena_destroy(w->arena);
    ane_free(w->slots);
    ane_free(w);
}
