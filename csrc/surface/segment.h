/* Slots of shared files for small shm surfaces, and the file primitives below both. */
#ifndef ANE_SURFACE_SEGMENT_H
#define ANE_SURFACE_SEGMENT_H

#include "surface.h"

typedef struct ane__segment ane__segment;

/* Surfaces up to this size share segments. */
#define ANE__SEGMENT_MAX ((size_t)64 << 10)

/* Fills base, capacity, handle, fd and fd_offset of *s with a zeroed slot. */
ane_status ane__segment_take(ane_surface *s, size_t bytes, ane_error *err);
void ane__segment_give(ane_surface *s);

/* surface_shm.c: an anonymous shared file of `bytes` (a multiple of the page), sealed
 * against shrinking where the system can, and its mapping. */
ane_status ane__shm_file(const char *label, size_t bytes, int *fd, void **base,
                         ane_error *err);
/* Gives the pages of a shared mapping back, leaving zeros; false where that is impossible. */
bool ane__shm_punch(void *base, size_t bytes);

#endif
