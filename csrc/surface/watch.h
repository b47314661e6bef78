/* Watches of parts of surfaces, for whoever keeps what he has made of them. */
#ifndef ANE_SURFACE_WATCH_H
#define ANE_SURFACE_WATCH_H

#include "surface.h"

/* In its owner's memory; zeroed before it begins. The view's surface is retained while it
 * watches, NULL otherwise. */
typedef struct ane__watch {
    struct ane__watch *next;
    ane_tensor view;
    atomic_bool written;            /* since somebody last cleared it */
} ane__watch;

/* Begins as written. A dim that a view repeats (stride 0) is to be 1 there. */
void ane__watch_begin(ane__watch *w, const ane_tensor *view);
void ane__watch_end(ane__watch *w);

/* Whether every write to it is made known, and nobody outside may be writing now. */
bool ane__surface_tells(const ane_surface *s);
/* Elements of the view were written. */
void ane__surface_wrote(const ane_tensor *t);

#endif
