/* A new tensor with the values of another. Large shm surfaces that nobody has touched are
 * filled through their descriptor: the system then copies into fresh pages without zeroing
 * them first and without a fault for each (about half the time of storing into the mapping). */
#include "tensor.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define CHUNK ((size_t)4 << 20)

typedef struct job {
    const ane_surface *s;
    const unsigned char *src;
    size_t bytes;
    atomic_bool failed;
} job;

static void write_chunk(void *arg, size_t i) {
    job *j = arg;
    size_t at = i * CHUNK, end = at + CHUNK < j->bytes ? at + CHUNK : j->bytes;
    while (at < end) {
        ssize_t n = pwrite(j->s->fd, j->src + at, end - at, (off_t)(j->s->fd_offset + at));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            atomic_store(&j->failed, true);
            return;
        }
        at += (size_t)n;
    }
}

ane_status ane_tensor_create_like(ane_memory kind, const ane_tensor *src, const char *name,
                                  ane_tensor *out, ane_error *err) {
    size_t bytes;
    ane_surface *s;
    ane_tensor t;
    ane_status st = ane_tensor_check(src, err);
    if (!st) st = ane_tensor_readable(src, err);
    if (!st) st = ane_shape_size(src->dtype, src->rank, src->shape, &bytes, err);
    if (!st) st = ane_surface_create(kind, bytes, name, &s, err);
    if (st) return st;
    st = ane_tensor_init(&t, s, 0, src->dtype, src->rank, src->shape, err);
    bool done = false;
    if (!st && kind == ANE_MEM_SHM && !s->handle && bytes >= ANE__THREAD_FROM &&
        ane_tensor_contiguous(src)) {
        job j = {.s = s, .src = ane_tensor_data(src), .bytes = bytes};
        ane_parallel_for((bytes + CHUNK - 1) / CHUNK, write_chunk, &j);
        done = !atomic_load(&j.failed);         /* else: the ordinary way, from the start */
    }
    if (!st && !done) st = ane_tensor_copy(&t, src, err);
    if (st) {
        ane_surface_release(s);
        return st;
    }
    *out = t;
    return ANE_OK;
}
