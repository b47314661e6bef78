/* Surfaces in other processes. */
#ifndef ANE_SURFACE_SHARE_H
#define ANE_SURFACE_SHARE_H

#include "surface.h"

/* A new surface over part of a descriptor, which is duplicated. seal: refuse what somebody
 * could shrink under us. */
ane_status ane__share_map(const char *who, int fd, size_t offset, size_t bytes, bool seal,
                          ane_surface **out, ane_error *err);

#endif
