/* Surfaces in other processes: by descriptor, by a handle that names this process'
 * descriptor, and by POSIX name. Nothing is registered anywhere, so nothing is left behind
 * when a process dies. */
#include "share.h"

#include "iosurface.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static ane_status shareable(const char *who, ane_surface *s, ane_error *err) {
    if (s->fd >= 0) return ANE_OK;
    return ane_fail(err, ANE_ERR_UNSUPPORTED,
                    "[%s] %s memory has no descriptor that another process could open; create "
                    "the tensor with mem=\"shm\"",
                    who, ane_memory_name(s->memory));
}

ane_status ane_surface_descriptor(ane_surface *s, int *fd, size_t *offset, ane_error *err) {
    ane_status st = shareable("fileno", s, err);
    if (st) return st;
    atomic_store(&s->shared, true);
    ane_mutex_lock(&s->mutex);
    /* A slot's file is not its own: a second open file gets a position of its own, where the
     * slot begins, so that descriptor alone tells the place. */
    if (s->handle && s->own_fd < 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", s->fd);
        s->own_fd = open(path, O_RDWR | O_CLOEXEC);
        if (s->own_fd < 0)
            st = ane_fail_os(err, errno, "[fileno] cannot open a second descriptor");
        else
            (void)lseek(s->own_fd, (off_t)s->fd_offset, SEEK_SET);
    }
    *fd = s->handle ? s->own_fd : s->fd;
    *offset = s->fd_offset;
    ane_mutex_unlock(&s->mutex);
    return st;
}

ane_status ane_surface_from_descriptor(int fd, size_t offset, size_t bytes, bool seal,
                                       ane_surface **out, ane_error *err) {
    if (fd < 0)
        return ane_fail(err, ANE_ERR_INVALID, "[from_fd] descriptor %d is negative", fd);
    return ane__share_map("from_fd", fd, offset, bytes, seal, out, err);
}

/* ---------------------------------------------------------------- handles */

#define HANDLE "ane:%ld:%d:%" PRIuMAX ":%" PRIuMAX ":%zu:%zu"

ane_status ane_surface_handle(ane_surface *s, char *text, size_t n, ane_error *err) {
    if (s->memory == ANE_MEM_IOSURFACE) return ane__iosurface_handle(s, text, n, err);
#if defined(__linux__)
    ane_status st = shareable("id", s, err);
    if (st) return st;
    struct stat info;
    if (fstat(s->fd, &info)) return ane_fail_os(err, errno, "[id] descriptor %d", s->fd);
    atomic_store(&s->shared, true);
    int need = snprintf(text, n, HANDLE, (long)getpid(), s->fd, (uintmax_t)info.st_dev,
                        (uintmax_t)info.st_ino, s->fd_offset, s->bytes);
    if (need < 0 || (size_t)need >= n)
        return ane_fail(err, ANE_ERR_INVALID, "[id] needs %d bytes, got %zu", need + 1, n);
    return ANE_OK;
#else
    (void)text, (void)n, (void)s;
    return ane_fail(err, ANE_ERR_UNSUPPORTED,
                    "[id] only Linux opens another process' shm by id; send the tensor through "
                    "multiprocessing, or use fileno()");
#endif
}

ane_status ane_surface_lookup(const char *text, ane_surface **out, ane_error *err) {
    if (ane__iosurface_is_handle(text)) return ane__iosurface_lookup(text, out, err);
#if defined(__linux__)
    long pid;
    int fd, used = 0;
    uintmax_t dev, ino;
    size_t offset, bytes;
    if (sscanf(text, "ane:%ld:%d:%" SCNuMAX ":%" SCNuMAX ":%zu:%zu%n", &pid, &fd, &dev, &ino,
               &offset, &bytes, &used) != 6 ||
        text[used] || pid < 1 || fd < 0)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[lookup] '%.80s' is no surface handle "
                        "(ane:pid:descriptor:device:inode:offset:bytes)",
                        text);
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", pid, fd);
    int own = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (own < 0 && (errno == EACCES || errno == EROFS))
        own = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (own < 0) {
        int e = errno;
        if (e == ENOENT || e == ENXIO)
            return ane_fail(err, ANE_ERR_NOT_FOUND,
                            "[lookup] process %ld has no descriptor %d any more: it ended or "
                            "closed the tensor",
                            pid, fd);
        return ane_fail_os(err, e, "[lookup] descriptor %d of process %ld", fd, pid);
    }
    struct stat info;
    ane_status st;
    if (fstat(own, &info))
        st = ane_fail_os(err, errno, "[lookup] descriptor %d of process %ld", fd, pid);
    else if (info.st_dev != dev || info.st_ino != ino || !S_ISREG(info.st_mode))
        st = ane_fail(err, ANE_ERR_NOT_FOUND,
                      "[lookup] descriptor %d of process %ld is another file by now: the "
                      "tensor was closed",
                      fd, pid);
    else
        st = ane__share_map("lookup", own, offset, bytes, true, out, err);
    (void)close(own);
    return st;
#else
    (void)out;
    return ane_fail(err, ANE_ERR_UNSUPPORTED,
                    "[lookup] '%.80s': only Linux opens another process' shm by id; send the "
                    "tensor through multiprocessing, or use from_fd()",
                    text);
#endif
}

/* ---------------------------------------------------------------- names */

ane_status ane_surface_open(const char *name, size_t bytes, ane_surface **out,
                            ane_error *err) {
    if (name[0] != '/' || !name[1] || strchr(name + 1, '/'))
        return ane_fail(err, ANE_ERR_INVALID,
                        "[open] '%.80s' is no POSIX name: one leading '/', no other", name);
    int fd = shm_open(name, O_RDWR, 0);
    if (fd < 0 && errno == EACCES) fd = shm_open(name, O_RDONLY, 0);
    if (fd < 0) {
        int e = errno;
        if (e == ENOENT)
            return ane_fail(err, ANE_ERR_NOT_FOUND, "[open] there is no shared memory '%.80s'",
                            name);
        return ane_fail_os(err, e, "[open] shared memory '%.80s'", name);
    }
    /* A named object cannot be sealed: who knows the name is trusted. */
    ane_status st = ane__share_map("open", fd, 0, bytes, false, out, err);
    (void)close(fd);
    if (!st && !((*out)->name = ane_strdup(name))) {
        ane_surface_release(*out);
        st = ane_fail(err, ANE_ERR_NOMEM, "[open] no memory for the name");
    }
    return st;
}

ane_status ane_surface_unlink(const char *name, ane_error *err) {
    if (!shm_unlink(name)) return ANE_OK;
    int e = errno;
    if (e == ENOENT)
        return ane_fail(err, ANE_ERR_NOT_FOUND, "[unlink] there is no shared memory '%.80s'",
                        name);
    return ane_fail_os(err, e, "[unlink] shared memory '%.80s'", name);
}
