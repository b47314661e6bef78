/* Linux dma-heap: memory that devices reach, as a descriptor like shm. The two ioctls and
 * their structs are typed here, since the headers are newer than many systems. */
#include "surface.h"

#if defined(__linux__)

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct heap_allocation {        /* struct dma_heap_allocation_data */
    uint64_t len;
    uint32_t fd, fd_flags;
    uint64_t heap_flags;
} heap_allocation;

#define HEAP_ALLOC _IOWR('H', 0x0, heap_allocation)
#define BUF_SYNC _IOW('b', 0, uint64_t)
#define SYNC_READ ((uint64_t)1)
#define SYNC_WRITE ((uint64_t)2)
#define SYNC_END ((uint64_t)4)

/* Contiguous memory first, then ordinary pages. */
static int open_heap(void) {
    static const char *const paths[] = {"/dev/dma_heap/linux,cma", "/dev/dma_heap/reserved",
                                        "/dev/dma_heap/system"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        int fd = open(paths[i], O_RDWR | O_CLOEXEC);
        if (fd >= 0) return fd;
    }
    return -1;
}

static bool available(void) {
    int fd = open_heap();
    if (fd >= 0) (void)close(fd);
    return fd >= 0;
}

static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    size_t n = ane__round_up(bytes, ane__page_size());
    if (!n) return ane_fail(err, ANE_ERR_NOMEM, "[surface_create] %zu bytes overflow", bytes);
    int heap = open_heap();
    if (heap < 0) return ane_fail_os(err, errno, "[surface_create] no dma-heap can be opened");
    heap_allocation a = {.len = n, .fd_flags = O_RDWR | O_CLOEXEC};
    int rc = ioctl(heap, HEAP_ALLOC, &a), e = errno;
    (void)close(heap);
    if (rc) return ane_fail_os(err, e, "[surface_create] the dma-heap refuses %zu bytes", n);
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, (int)a.fd, 0);
    if (p == MAP_FAILED) {
        e = errno;
        (void)close((int)a.fd);
        return ane_fail_os(err, e, "[surface_create] cannot map %zu bytes of dma-heap", n);
    }
    s->fd = (int)a.fd;
    s->base = s->map = p;               /* the kernel hands heaps out zeroed */
    s->capacity = s->map_bytes = n;
    return ANE_OK;
}

static void destroy(ane_surface *s) {
    (void)munmap(s->map, s->map_bytes);
    (void)close(s->fd);
}

static ane_status sync_cpu(ane_surface *s, ane_access access, uint64_t end, ane_error *err) {
    uint64_t flags = ((access & ANE_READ) ? SYNC_READ : 0) |
                     ((access & ANE_WRITE) ? SYNC_WRITE : 0) | end;
    int rc;
    do rc = ioctl(s->fd, BUF_SYNC, &flags);
    while (rc && (errno == EINTR || errno == EAGAIN));
    return rc ? ane_fail_os(err, errno, "[lock] DMA_BUF_IOCTL_SYNC") : ANE_OK;
}

static ane_status lock(ane_surface *s, ane_access access, ane_error *err) {
    return sync_cpu(s, access, 0, err);
}
static ane_status unlock(ane_surface *s, ane_access access, ane_error *err) {
    return sync_cpu(s, access, SYNC_END, err);
}

const ane__surface_kind ane__surface_dma = {.available = available,
                                            .create = create,
                                            .destroy = destroy,
                                            .lock = lock,
                                            .unlock = unlock};

#else

static bool available(void) { return false; }
static ane_status create(ane_surface *s, size_t bytes, ane_error *err) {
    (void)s, (void)bytes;
    return ane_fail(err, ANE_ERR_UNSUPPORTED, "[surface_create] dma-heaps are Linux's");
}
static void destroy(ane_surface *s) { (void)s; }

const ane__surface_kind ane__surface_dma = {
    .available = available, .create = create, .destroy = destroy};

#endif
