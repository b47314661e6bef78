/* Shared memory: a memfd on Linux, an unlinked shm_open object elsewhere, and a named POSIX
 * object when the name starts with '/'. Small ones are slots of a segment (segment.c).
 * Descriptors are the handles that other processes map. */
#include "segment.h"
#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#define HAVE_MEMFD 1
#else
#define HAVE_MEMFD 0
#endif

static bool available(void) { return true; }

/* A file nobody can find by name; EMFILE is worth a sentence of advice. */
static ane_status anonymous(const char *label, int *fd, ane_error *err) {
#if HAVE_MEMFD
    char name[200];
    snprintf(name, sizeof name, "%s", label);
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int e = errno;
#else
    (void)label;
    static atomic_uint serial;
    int e = EEXIST;
    *fd = -1;
    for (int i = 0; i < 100 && *fd < 0 && e == EEXIST; i++) {
        char name[31];                  /* macOS allows 31 bytes */
        snprintf(name, sizeof name, "/ane.%ld.%u", (long)getpid(),
                 atomic_fetch_add(&serial, 1));
        *fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        e = errno;
        if (*fd >= 0) (void)shm_unlink(name);
    }
    if (*fd >= 0) (void)fcntl(*fd, F_SETFD, FD_CLOEXEC);
#endif
    if (*fd < 0)
        return ane_fail_os(err, e,
                           e == EMFILE || e == ENFILE
                               ? "[surface_create] every large shm tensor holds a file "
                                 "descriptor and there are no more (raise `ulimit -n`, close "
                                 "tensors, or use mem=\"heap\")"
                               : "[surface_create] cannot create shared memory");
    return ANE_OK;
}

static ane_status size_and_map(int fd, size_t bytes, void **base, ane_error *err) {
    if (ftruncate(fd, (off_t)bytes))
        return ane_fail_os(err, errno, "[surface_create] cannot size shared memory to %zu "
                                       "bytes", bytes);
#if HAVE_MEMFD
    (void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
#endif
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        int e = errno;
        if (e == ENOMEM)
            return ane_fail(err, ANE_ERR_NOMEM,
                            "[surface_create] no address space for %zu bytes", bytes);
        return ane_fail_os(err, e, "[surface_create] cannot map %zu bytes", bytes);
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= (size_t)4 << 20) (void)madvise(p, bytes, MADV_HUGEPAGE);
#endif
    *base = p;
    return ANE_OK;
}

ane_status ane__shm_file(const char *label, size_t bytes, int *fd, void **base,
                         ane_error *err) {
    int f = -1;
    ane_status st = anonymous(label, &f, err);
    if (!st) st = size_and_map(f, bytes, base, err);
    if (st) {
        if (f >= 0) (void)close(f);
        return st;
    }
    *fd = f;
    return ANE_OK;
}

bool ane__shm_punch(void *base, size_t bytes) {
#ifdef MADV_REMOVE
    return madvise(base, bytes, MADV_REMOVE) == 0;
#else
    (void)base, (void)bytes;
    return false;
#endif
}

/* Named: visible to everybody who knows the name until its creator releases it. */
static ane_status create_named(ane_surface *s, size_t bytes, ane_error *err) {
    int fd = shm_open(s->name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        int e = errno;
        if (e == EEXIST)
            return ane_fail_os(err, e, "[surface_create] shared memory '%s' exists (open it, "
                                       "unlink it, or choose another name)", s->name);
        return ane_fail_os(err, e, "[surface_create] cannot create shared memory '%s'",
                           s->name);
    }
    void *base = NULL;
    ane_status st = size_and_map(fd, bytes, &base, err);
    if (st) {
        (void)close(fd);
        (void)shm_unlink(s->name);
        return st;
    }
    s->fd = fd;
    s->linked = true;
    s->owner_pid = (long)getpid();
    s->base = s->map = base;
    s->capacity = s->map_bytes = bytes;
    return ANE_OK;
}

static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    bool named = s->name && s->name[0] == '/';
    if (bytes <= ANE__SEGMENT_MAX && !named && !s->apart) return ane__segment_take(s, bytes, err);
    size_t n = ane__round_up(bytes, ane__page_size());
    if (!n || n > (size_t)INT64_MAX)
        return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] %zu bytes is too large", bytes);
    if (named) return create_named(s, n, err);
    void *base = NULL;
    int fd = -1;
    ane_status st = ane__shm_file(s->name ? s->name : "anetorch", n, &fd, &base, err);
    if (st) return st;
    s->fd = fd;
    s->base = s->map = base;
    s->capacity = s->map_bytes = n;
    return ANE_OK;
}

static void destroy(ane_surface *s) {
    if (s->handle) {
        if (s->own_fd >= 0) (void)close(s->own_fd);
        ane__segment_give(s);
        return;
    }
    (void)munmap(s->map, s->map_bytes);
    if (s->fd >= 0) (void)close(s->fd);
    /* Not from a forked child: the name belongs to the process that made it. */
    if (s->linked && s->owner_pid == (long)getpid()) (void)shm_unlink(s->name);
}

const ane__surface_kind ane__surface_shm = {
    .available = available, .create = create, .destroy = destroy};

/* ---------------------------------------------------------------- import */

/* Maps [offset, offset+bytes) of fd, which becomes the surface's own on success. */
static ane_status map_fd(const char *who, int fd, size_t offset, size_t bytes,
                         ane_memory memory, ane_surface **out, ane_error *err) {
    size_t page = ane__page_size(), head = offset & (page - 1), length;
    if (!ane_add_size(bytes ? bytes : 1, head, &length) ||
        !(length = ane__round_up(length, page)) || length > (size_t)INT64_MAX)
        return ane_fail(err, ANE_ERR_INVALID, "[%s] %zu bytes at %zu overflow", who, bytes,
                        offset);
    int mode = fcntl(fd, F_GETFL);
    if (mode < 0) return ane_fail_os(err, errno, "[%s] descriptor %d", who, fd);
    bool readonly = (mode & O_ACCMODE) == O_RDONLY;
    ane_surface *s = ane__surface_new(memory, bytes, NULL, err);
    if (!s) return ANE_ERR_NOMEM;
    void *p = mmap(NULL, length, readonly ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED,
                   fd, (off_t)(offset - head));
    if (p == MAP_FAILED) {
        int e = errno;
        ane__surface_free(s);
        return ane_fail_os(err, e, "[%s] cannot map %zu bytes at %zu", who, bytes, offset);
    }
    s->fd = fd;
    s->map = p;
    s->map_bytes = length;
    s->base = (unsigned char *)p + head;
    s->fd_offset = offset;
    s->capacity = bytes ? bytes : 1;
    s->readonly = readonly;
    atomic_store(&s->shared, true);
    *out = s;
    return ANE_OK;
}

ane_status ane__share_map(const char *who, int fd, size_t offset, size_t bytes, bool seal,
                          ane_surface **out, ane_error *err) {
    struct stat info;
    if (fstat(fd, &info)) return ane_fail_os(err, errno, "[%s] descriptor %d", who, fd);
    ane_memory memory = ANE_MEM_SHM;
    size_t size = info.st_size > 0 ? (size_t)info.st_size : 0;
    if (!S_ISREG(info.st_mode)) {
        /* A dma-buf is no regular file; its length is where seeking to the end arrives. */
        off_t end = lseek(fd, 0, SEEK_END);
        if (end <= 0)
            return ane_fail(err, ANE_ERR_INVALID,
                            "[%s] descriptor %d is neither shared memory nor a dma-buf", who,
                            fd);
        size = (size_t)end;
        memory = ANE_MEM_DMA;
    }
    size_t end;
    if (!ane_add_size(offset, bytes, &end) || end > size)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[%s] %zu bytes at offset %zu do not fit the %zu bytes of "
                        "descriptor %d",
                        who, bytes, offset, size, fd);
#if HAVE_MEMFD
    if (seal && memory == ANE_MEM_SHM) {
        int seals = fcntl(fd, F_GET_SEALS);
        if (seals >= 0 && !(seals & F_SEAL_SHRINK) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
            seals |= F_SEAL_SHRINK;
        /* Sealed only now: it may have shrunk in between. */
        if (seals >= 0 && (seals & F_SEAL_SHRINK) &&
            (fstat(fd, &info) || (size_t)info.st_size < end))
            return ane_fail(err, ANE_ERR_INVALID, "[%s] the memory shrank while it was "
                                                  "opened", who);
        if (seals < 0 || !(seals & F_SEAL_SHRINK))
            return ane_fail(err, ANE_ERR_INVALID,
                            "[%s] descriptor %d cannot be sealed against shrinking (it is no "
                            "memfd made with MFD_ALLOW_SEALING): whoever shrinks it would "
                            "crash this process; pass seal=False to take that risk",
                            who, fd);
    }
#else
    (void)seal;
#endif
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) return ane_fail_os(err, errno, "[%s] cannot duplicate descriptor %d", who, fd);
    ane_status st = map_fd(who, own, offset, bytes, memory, out, err);
    if (st) (void)close(own);
    return st;
}
