/* A file mapped read-only, and what can happen to it while it is mapped.
 *
 * The whole range up to the next 16 KiB is reserved with zero pages first and the file is
 * mapped over its start, so that a kernel that binds whole 16 KiB pages can read the tail
 * on a host with smaller pages too.
 *
 * The descriptor stays open: fstat on it sees a cut or rewritten file, stat on the path
 * sees a replaced one. A deleted file is whole as long as it is mapped, and is no error.
 * Between a check and a read the file can still be cut; then the read raises SIGBUS, which
 * only the opt-in handler of guard.c survives. */
#include "mapping.h"

#include "../surface/surface.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

struct ane_mapping {
    atomic_long refs;
    unsigned char *base;
    size_t bytes, rounded;
    int fd;
    dev_t dev;
    ino_t ino;
    struct timespec written;
    ane__guard_slot *slot;
    char *path;                 /* as given, for messages */
    char *place;                /* absolute, so that chdir does not matter */
};

static struct timespec written(const struct stat *s) {
#ifdef __APPLE__
    return s->st_mtimespec;
#else
    return s->st_mtim;
#endif
}

static char *absolute(const char *path) {
    char cwd[PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof cwd)) return ane_strdup(path);
    size_t a = strlen(cwd), b = strlen(path);
    char *p = ane_malloc(a + b + 2);
    if (!p) return NULL;
    memcpy(p, cwd, a);
    p[a] = '/';
    memcpy(p + a + 1, path, b + 1);
    return p;
}

static ane_status map(ane_mapping *m, ane_error *err) {
    size_t unit = ANE_MAPPING_UNIT, page = (size_t)sysconf(_SC_PAGESIZE), n;
    if (page > unit) unit = page;
    if (!ane_add_size(m->bytes ? m->bytes : 1, unit - 1, &n))
        return ane_fail(err, ANE_ERR_SHAPE, "'%s': %zu bytes overflow a size", m->path,
                        m->bytes);
    m->rounded = n & ~(unit - 1);
    void *p = mmap(NULL, m->rounded, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return ane_fail_os(err, errno, "cannot reserve %zu bytes of address space for '%s'",
                           m->rounded, m->path);
    m->base = p;
    if (m->bytes && mmap(p, m->bytes, PROT_READ, MAP_SHARED | MAP_FIXED, m->fd, 0) ==
                        MAP_FAILED)
        return ane_fail_os(err, errno, "cannot map '%s'", m->path);
    m->slot = ane__guard_add(p, m->rounded);
    return ANE_OK;
}

static void destroy(ane_mapping *m) {
    ane__guard_remove(m->slot);
    if (m->base) munmap(m->base, m->rounded);
    if (m->fd >= 0) close(m->fd);
    ane_free(m->path);
    ane_free(m->place);
    ane_free(m);
}

ane_status ane_mapping_open(const char *path, ane_mapping **out, ane_error *err) {
    ane_mapping *m = ane_calloc(1, sizeof *m);
    if (!m) return ane__weight_no_memory(path, err);
    atomic_init(&m->refs, 1);
    m->fd = -1;
    m->path = ane_strdup(path);
    m->place = absolute(path);
    struct stat s;
    ane_status st = ANE_OK;
    if (!m->path || !m->place) {
        st = ane__weight_no_memory(path, err);
        goto fail;
    }
    /* Not blocking: opening a pipe must fail below, not wait for a writer. */
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (m->fd < 0 || fstat(m->fd, &s)) {
        st = ane_fail_os(err, errno, "cannot open '%s'", path);
        goto fail;
    }
    if (!S_ISREG(s.st_mode)) {
        st = S_ISDIR(s.st_mode)
                 ? ane_fail_os(err, EISDIR, "cannot open '%s'", path)
                 : ane_fail(err, ANE_ERR_INVALID, "'%s' is not a regular file", path);
        goto fail;
    }
    if ((uintmax_t)s.st_size > PTRDIFF_MAX) {
        st = ane_fail(err, ANE_ERR_SHAPE, "'%s' is too large for this machine", path);
        goto fail;
    }
    m->bytes = (size_t)s.st_size;
    m->dev = s.st_dev;
    m->ino = s.st_ino;
    m->written = written(&s);
    if ((st = map(m, err))) goto fail;
    *out = m;
    return ANE_OK;
fail:
    destroy(m);
    return st;
}

ane_mapping *ane_mapping_retain(ane_mapping *m) {
    if (m) atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return m;
}

void ane_mapping_release(ane_mapping *m) {
    if (m && atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) == 1) destroy(m);
}

const unsigned char *ane_mapping_base(const ane_mapping *m) { return m->base; }
size_t ane_mapping_bytes(const ane_mapping *m) { return m->bytes; }
size_t ane_mapping_rounded(const ane_mapping *m) { return m->rounded; }
const char *ane_mapping_path(const ane_mapping *m) { return m->path; }

ane_status ane_mapping_check(const ane_mapping *m, const char *what, ane_error *err) {
    struct stat s;
    const char *of = what ? "tensor '" : "", *name = what ? what : "", *close = what ? "': " : "";
    if (m->slot && atomic_load(&m->slot->broken))
        return ane_fail(err, ANE_ERR_RUNTIME,
                        "%s%.200s%sthe file '%s' was cut while it was mapped, and zeros were "
                        "read in its place; open it again",
                        of, name, close, m->path);
    if (fstat(m->fd, &s))
        return ane_fail_os(err, errno, "%s%.200s%scannot look at '%s'", of, name, close,
                           m->path);
    if ((uintmax_t)s.st_size != m->bytes)
        return ane_fail(err, ANE_ERR_RUNTIME,
                        "%s%.200s%sthe file '%s' was %s while it was mapped: %zu bytes then, "
                        "%jd now; open it again",
                        of, name, close, m->path,
                        (uintmax_t)s.st_size < m->bytes ? "truncated" : "extended", m->bytes,
                        (intmax_t)s.st_size);
    struct timespec w = written(&s);
    if (w.tv_sec != m->written.tv_sec || w.tv_nsec != m->written.tv_nsec)
        return ane_fail(err, ANE_ERR_RUNTIME,
                        "%s%.200s%sthe file '%s' was written to while it was mapped; open it "
                        "again",
                        of, name, close, m->path);
    if (!stat(m->place, &s) && (s.st_dev != m->dev || s.st_ino != m->ino))
        return ane_fail(err, ANE_ERR_RUNTIME,
                        "%s%.200s%sthe file '%s' was replaced while it was mapped; open it "
                        "again",
                        of, name, close, m->path);
    return ANE_OK;
}

/* ---------------------------------------------------------------- surfaces */

/* What a surface over a mapping holds: the mapping, and for names the file it is part of. */
typedef struct view {
    ane_mapping *mapping;
    ane_weight_file *file;      /* NULL: none */
    unsigned shard;
} view;

static void view_release(void *arg) {
    view *v = arg;
    ane_mapping_release(v->mapping);
    ane_weight_release(v->file);
    ane_free(v);
}

static ane_status view_check(void *arg, size_t offset, size_t bytes, ane_error *err) {
    const view *v = arg;
    if (!ane_mapping_check(v->mapping, NULL, NULL)) return ANE_OK;
    /* Only now, as it takes a search: whose bytes are they? */
    return ane_mapping_check(v->mapping,
                             v->file ? ane__weight_at(v->file, v->shard, offset, bytes) : NULL,
                             err);
}

static ane_status wrap(ane_mapping *m, ane_weight_file *f, unsigned shard, bool rounded,
                       ane_surface **out, ane_error *err) {
    view *v = ane_malloc(sizeof *v);
    if (!v) return ane__weight_no_memory(m->path, err);
    *v = (view){ane_mapping_retain(m), ane_weight_retain(f), shard};
    ane_status st = ane_surface_wrap(m->base, rounded ? m->rounded : m->bytes, true,
                                     view_release, v, out, err);
    if (st) view_release(v);
    else (*out)->check = view_check;
    return st;
}

ane_status ane_mapping_surface(ane_mapping *m, ane_surface **out, ane_error *err) {
    return wrap(m, NULL, 0, false, out, err);
}

ane_status ane__weight_wrap(const ane_weight_file *f, unsigned shard, bool rounded,
                            ane_surface **out, ane_error *err) {
    return wrap(f->shards[shard], (ane_weight_file *)f, shard, rounded, out, err);
}

ane_status ane_mapping_file(const char *path, ane_surface **out, ane_error *err) {
    ane_mapping *m = NULL;
    ane_status st = ane_mapping_open(path, &m, err);
    if (!st) st = ane_mapping_surface(m, out, err);
    ane_mapping_release(m);
    return st;
}
