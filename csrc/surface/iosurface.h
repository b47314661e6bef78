/* What share.c asks of IOSurfaces. */
#ifndef ANE_SURFACE_IOSURFACE_H
#define ANE_SURFACE_IOSURFACE_H

#include "surface.h"

ane_status ane__iosurface_handle(ane_surface *s, char *text, size_t n, ane_error *err);
bool ane__iosurface_is_handle(const char *text);
ane_status ane__iosurface_lookup(const char *text, ane_surface **out, ane_error *err);

#endif
